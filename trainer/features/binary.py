"""True and false: booleans, 0 and 1, yes and no and the like, or any two values of which one is named as true."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, final

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from cachestore.errors import DataError, nearest
from trainer.features import cells as c
from trainer.features.filling import Filled, fill
from trainer.schema.inputs import BinaryInput
from trainer.schema.outputs import BinaryOutput

TRUE: Final = ("true", "t", "yes", "y", "1", "1.0")  # in any case
FALSE: Final = ("false", "f", "no", "n", "0", "0.0")
_SHOWN: Final = 5


@final
@dataclass(frozen=True)
class FittedBinary:
    """``labels``: how false and true are written. ``words``: any of ``TRUE`` and ``FALSE`` is read, not the labels alone.

    ``missing``: an indicator input follows.
    """

    labels: tuple[str, str]
    words: bool
    fill: float | None
    missing: bool = False

    def to_json(self) -> dict[str, Any]:
        """Plain values for a JSON file."""
        return {
            "type": "binary",
            "labels": list(self.labels),
            "words": self.words,
            "fill": self.fill,
            "missing": self.missing,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> FittedBinary:
        """What ``to_json`` gave."""
        missing = value.get("missing", False)  # runs of before there was an indicator have no such key
        return cls((value["labels"][0], value["labels"][1]), value["words"], value["fill"], missing)


def fit(
    feature: BinaryInput | BinaryOutput, cells: c.Column, train: NDArray[np.bool_], where: str, *, target: bool
) -> FittedBinary:
    """Which values mean true, by the training rows.

    Raises DataError for values that are neither words for true and false nor two of which ``fallback_true_label`` is one,
    and for an output that is always the same.
    """
    preprocessing = feature.preprocessing
    text = c.texts(cells, where, feature.column)
    counts = c.counted(text.filter(c.where_true(train)))
    labels, words = _labels(feature, [text for text, _ in counts], where)
    trues = sum(count for text, count in counts if _is_true(text, labels, words))
    total = sum(count for _, count in counts)
    if target and trues in (0, total):
        held = f"only {counts[0][0]!r}" if counts else "no value"
        raise DataError(
            f"{where}, column {feature.column!r} has {held} in the training rows; a binary output needs both"
        )
    strategy = preprocessing.missing_value_strategy
    if not counts and strategy in ("fill_with_mode", "bfill", "ffill"):
        raise DataError(
            f"{where}, column {feature.column!r} has no value in any training row to fill missing ones with"
        )
    match strategy:
        case "fill_with_false":
            stand_in: float | None = 0.0
        case "fill_with_true":
            stand_in = 1.0
        case "drop_row":
            stand_in = None
        case _:
            stand_in = float(2 * trues > total)
    indicator = isinstance(feature, BinaryInput) and feature.preprocessing.missing_value_indicator
    return FittedBinary(labels, words, stand_in, indicator and bool((~c.valid(text) & train).any()))


def transform(feature: BinaryInput | BinaryOutput, state: FittedBinary, cells: c.Column, where: str) -> Filled:
    """float32 (rows,), 0 or 1. Raises DataError at the first value that means neither."""
    text = c.texts(cells, where, feature.column)
    present = c.valid(text)
    known = (*FALSE, *TRUE) if state.words else state.labels
    places = c.indices(pc.utf8_lower(text) if state.words else text, known)
    unknown = (places < 0) & present
    if unknown.any():
        row = int(unknown.argmax())
        meant = "a word for true or false, such as yes and no, 1 and 0" if state.words else f"{state.labels[0]!r}"
        either = meant if state.words else f"{meant} or {state.labels[1]!r}"
        c.refuse(where, feature.column, row, f"{c.shown(text[row].as_py())} is not {either}")
    truth = (places >= len(known) // 2).astype(np.float32)
    return fill(truth, present, feature.preprocessing.missing_value_strategy, state.fill)


def _labels(feature: BinaryInput | BinaryOutput, distinct: list[str], where: str) -> tuple[tuple[str, str], bool]:
    """(false, true) as they are written, and whether they are words for true and false."""
    label = feature.preprocessing.fallback_true_label
    if all(text.lower() in TRUE + FALSE for text in distinct):
        if label is not None and label.lower() in FALSE:
            raise DataError(
                f"{where}, column {feature.column!r}: fallback_true_label {label!r} is a word for false, and the column "
                "holds such words; make it a category feature, or change the values"
            )
        false = next((text for text in distinct if text.lower() in FALSE), "False")
        return (false, next((text for text in distinct if text.lower() in TRUE), "True")), True
    shown = ", ".join(c.shown(text) for text in distinct[:_SHOWN]) + (", …" if len(distinct) > _SHOWN else "")
    if len(distinct) > 2:
        raise DataError(
            f"{where}, column {feature.column!r} has more than two values: {shown}. Make it a category feature"
        )
    if label is None:
        raise DataError(
            f"{where}, column {feature.column!r} has the values {shown}: set preprocessing.fallback_true_label of the "
            f"feature {feature.name!r} to the one that means true"
        )
    others = [text for text in distinct if text != label]
    if len(others) == 2:
        raise DataError(
            f"{where}, column {feature.column!r}: fallback_true_label {label!r} is none of its values, "
            f"{shown}{nearest(label, distinct)}"
        )
    return (others[0] if others else "", label), False


def _is_true(text: str, labels: tuple[str, str], words: bool) -> bool:
    return text.lower() in TRUE if words else text == labels[1]
