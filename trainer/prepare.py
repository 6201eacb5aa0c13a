"""Data → everything the loop needs of it: files read and split, features fitted, texts built, rows gathered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cachestore.dataset import Dataset, SkippedCell, open_dataset
from cachestore.errors import ConfigError, DataError
from cachestore.manifest import PRESENT
from cachestore.store import Store
from trainer import rows, stored_inputs
from trainer.assemble import State
from trainer.batches import Batches
from trainer.events import Clock
from trainer.features.read import Table
from trainer.live.columns import LiveColumn
from trainer.live.state import LiveState
from trainer.rows import Columns
from trainer.sampling import balanced, sampled
from trainer.schema import Config
from trainer.schema.outputs import BinaryOutput, CategoryOutput
from trainer.split import split
from trainer.stored_inputs import Built, FittedText
from trainer.streaming import streams

SPLITS: Final = ("train", "validation", "test")
_LEFT_OUT: Final = -1


@dataclass(frozen=True)
class Prepared:
    """Everything the loop needs of the data, and what is to be told of it.

    ``held_out``: for validation and test, where they have rows, the dataset of ``opened`` and the rows of it, int64 (rows,).
    """

    opened: Mapping[str, Dataset]
    batches: Mapping[str, Batches]
    held_out: Mapping[str, tuple[str, NDArray[np.int64]]]
    states: Mapping[str, State]
    built: Mapping[str, Built]
    dropped: Mapping[str, int]
    left_out: int
    skipped: int
    skipped_cells: tuple[SkippedCell, ...]


@dataclass(frozen=True)
class Divided:
    """The files that were opened and the cells of them, by split, and the part of each row of the training file: a place in
    ``SPLITS``, below 0 where it is left out.
    """

    opened: Mapping[str, Dataset]
    tables: Mapping[str, Table]
    parts: NDArray[np.int8]
    left_out: int


def divide(config: Config, sources: Mapping[str, Any], clock: Clock) -> Divided:
    """Read the files (by split), but for what encoders take, and part their rows as the config asks for."""
    clock.begin("read")
    opened = {name: open_dataset(source) for name, source in sources.items()}
    chosen = config.preprocessing.split
    splitting = () if chosen is None else chosen.columns()
    tables = {
        name: rows.read(config, dataset, targets=True, extra=splitting if name == "train" else ())
        for name, dataset in opened.items()
    }
    where = opened["train"].label
    count = len(tables["train"].reasons)
    parts = np.zeros(count, np.int8)
    if chosen is not None:
        parts = split(
            chosen,
            tables["train"].columns,
            count,
            config.random_seed,
            where,
            used=tables["train"].usable,
        ).copy()
    for name in ("validation", "test"):
        if name in sources:
            parts[parts == SPLITS.index(name)] = _LEFT_OUT
    left_out = int((parts == _LEFT_OUT).sum())
    if left_out:
        clock.say(
            f"{left_out} rows of {where} are left out: the split puts them into a part that has a file of its own."
        )
    taken = sampled(parts, config.preprocessing, config.random_seed)
    if not taken[parts >= 0].all():
        clock.say(
            f"{int(taken.sum()):,} of {count - left_out:,} rows of {where} are used: the sample that the config asks for."
        )
        parts[~taken] = _LEFT_OUT
        left_out = count - int(taken.sum())
    return Divided(opened, tables, parts, left_out)


def prepare(config: Config, sources: Mapping[str, Any], store: Store, clock: Clock) -> Prepared:
    """Read the files (by split), build their texts and gather all rows; faults in cells are found before anything is encoded."""
    read = divide(config, sources, clock)
    opened, tables, parts, left_out = read.opened, read.tables, read.parts, read.left_out
    where = opened["train"].label
    learnt_from = (parts == 0) & tables["train"].usable
    fitted = rows.fit(config, tables["train"], learnt_from, where)
    columns = {
        name: rows.transform(config, fitted, tables[name], dataset.label, targets=True)
        for name, dataset in opened.items()
    }

    clock.begin("build")
    built = {
        name: stored_inputs.build_texts(config, dataset, store, progress=clock.building(dataset.label))
        for name, dataset in opened.items()
    }

    clock.begin("gather")
    limit = config.trainer.memory_bytes()
    streamed = streams(limit, stored_inputs.nbytes(built.values()))
    gathered = {name: stored_inputs.gather(build, store, limit if streamed else None) for name, build in built.items()}
    live = {name: read_live(config, dataset, store) for name, dataset in opened.items()}
    texts: dict[str, FittedText | LiveState] = {
        **stored_inputs.fit_texts(config, gathered["train"], learnt_from),
        **{name: column.fitted(learnt_from) for name, column in live["train"].items()},
    }
    joined = {
        name: rows.join(config, columns[name], gathered[name], live[name], texts, dataset.label)
        for name, dataset in opened.items()
    }
    batches: dict[str, Batches] = {"train": _training(config, joined["train"], parts == 0, clock)}
    for place, name in enumerate(SPLITS[1:], 1):
        held = joined.get(name)
        batches[name] = joined["train"].select(parts == place) if held is None else held.select(held.drop == "")
    held_out = {}
    for place, name in enumerate(SPLITS[1:], 1):
        own = name in sources
        usable = joined[name].drop == "" if own else (joined["train"].drop == "") & (parts == place)
        if usable.any():
            held_out[name] = (name if own else "train", np.flatnonzero(usable))
    dropped = _dropped(joined, parts)
    skipped_cells = tuple(
        cell
        for name in opened
        for cell in (
            *tables[name].skipped_cells,
            *built[name].skipped_cells,
            *(cell for column in live[name].values() for cell in column.skipped_cells),
        )
    )
    _require_rows(batches, opened, dropped, skipped_cells)
    reasons = {name: vectors.reasons for name, vectors in gathered["train"].items()}
    reasons |= {name: column.reasons for name, column in live["train"].items()}
    for name, why in reasons.items():
        if not (why[learnt_from] == PRESENT).any():
            clock.say(f"{where}: no training row has a value for {name!r}, so nothing is learnt from it.")
    scheduler = config.trainer.learning_rate_scheduler
    if (
        scheduler.plateau_metric is not None
        and scheduler.reduce_eval_split == "validation"
        and not batches["validation"].rows
    ):
        raise ConfigError(
            "trainer.learning_rate_scheduler.reduce_eval_split: there are no validation rows. Give them by --validation or "
            "preprocessing.split, or set it to training"
        )
    return Prepared(
        opened=opened,
        batches=batches,
        held_out=held_out,
        states={**fitted, **texts},
        built=built,
        dropped=dropped,
        left_out=left_out,
        skipped=sum(
            tables[name].skipped + built[name].skipped + sum(column.skipped for column in live[name].values())
            for name in opened
        ),
        skipped_cells=skipped_cells,
    )


def read_live(
    config: Config, dataset: Dataset, store: Store, trained: Mapping[str, LiveState] | None = None
) -> dict[str, LiveColumn]:
    """The cells of every input of a dataset whose encoder runs in the loop; ``trained`` as of ``trainer.live.inputs``."""
    if not config.live:
        return {}
    from trainer.live import inputs  # transformers: not where all encoders are frozen

    return inputs.read_live(config, dataset, store, trained)


def _training(config: Config, joined: Columns, train: NDArray[np.bool_], clock: Clock) -> Batches:
    """The training rows, with those of rare classes repeated or of frequent ones left out where the config asks for it."""
    places = np.flatnonzero(train & (joined.drop == ""))
    output = config.output_features[0].name
    chosen = None
    if isinstance(config.output_features[0], CategoryOutput | BinaryOutput) and len(places):
        chosen = balanced(joined.targets[output][places].astype(np.int64), config.preprocessing, config.random_seed)
    if chosen is None:
        return joined.select(train)
    clock.say(
        f"{len(chosen):,} training rows are made of {len(places):,}, to bring the classes of {output} nearer to each other."
    )
    return joined.take(places[chosen])


def _dropped(joined: Mapping[str, Columns], parts: NDArray[np.int8]) -> dict[str, int]:
    total: dict[str, int] = {}
    for name, columns in joined.items():
        for reason, count in columns.dropped(parts != _LEFT_OUT if name == "train" else None).items():
            total[reason] = total.get(reason, 0) + count
    return total


def _require_rows(
    batches: Mapping[str, Batches],
    opened: Mapping[str, Dataset],
    dropped: Mapping[str, int],
    skipped: Sequence[SkippedCell],
) -> None:
    first = ""
    if skipped:
        cell = skipped[0]
        place = f"{cell.where}, " if cell.where else ""
        first = f" The first cell that was skipped: {place}column {cell.column!r}, data row {cell.row} (counted from 0): {cell.why}."
    for name, dataset in opened.items():
        least = 2 if name == "train" else 1
        if batches[name].rows < least:
            raise DataError(
                f"{dataset.label} leaves {batches[name].rows} rows for {name}, and it takes at least {least}. "
                f"Dropped: {rows.reasons(dropped)}.{first}"
            )
