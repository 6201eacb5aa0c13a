"""The cells of inputs whose encoder runs in the loop, read from the data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cachestore import sources
from cachestore.cells import CellReader, Wanted
from cachestore.dataset import KEPT_SKIPPED, Dataset, SkippedCell
from cachestore.encoders import exported, template_of, text_model
from cachestore.encoders.resolved import Resolved
from cachestore.encoders.spec import resolve
from cachestore.errors import DamageError, EncoderError
from cachestore.manifest import MISSING, PRESENT
from cachestore.store import Store
from trainer.live import pictures
from trainer.live.cells import TextCells
from trainer.live.columns import LiveColumn
from trainer.live.state import LiveState
from trainer.schema import Config
from trainer.schema.inputs import EncodedInput, TextInput
from trainer.settled import require_same

_CUT: Final = 1 << 15  # rows tokenised at once


def read_live(
    config: Config, dataset: Dataset, store: Store, trained: Mapping[str, LiveState] | None = None
) -> dict[str, LiveColumn]:
    """The cells of every live input of a dataset, texts as tokens and pictures as pixels.

    ``trained``: what the inputs are to the run that is put to use; otherwise they start from their encoders.
    """
    found = {}
    for feature in config.live:
        state = start(feature, store) if trained is None else trained[feature.name]
        if isinstance(feature, TextInput):
            found[feature.name] = _texts(feature, state, dataset)
        else:
            found[feature.name] = pictures.read(feature, state, dataset, config.trainer.memory_bytes())
    return found


def start(feature: EncodedInput, store: Store) -> LiveState:
    """What a live input starts from: its encoder as it is before training. Its files are read, no weights are loaded."""
    found = _resolved(feature, store)
    return LiveState(found.dim, False, found.spec, str(found.directory), feature.type)


def of_run(feature: EncodedInput, state: LiveState, run: Path, store: Store) -> LiveState:
    """What a live input is to the ``run`` that trained it, with the places of its files.

    Raises DamageError when the run has lost them, EncoderError when an encoder that it did not train is no longer the one it had.
    """
    if feature.tuning.mode == "full":
        folder = _there(exported.folder(run, feature.name))
        return replace(state, place=str(folder / exported.WEIGHTS if "architecture" in state.spec else folder))
    try:
        found = _resolved(feature, store, precision=str(state.spec["precision"]))
    except EncoderError as error:
        raise EncoderError(
            f"{run} holds of the encoder of {feature.name!r} only what it trained, and needs the model it began with: {error} "
            "Put that back, or train again."
        ) from error
    require_same(feature, found.spec, state.spec)
    placed = replace(state, place=str(found.directory))
    if feature.tuning.mode == "frozen":
        return placed
    return replace(placed, adapter=str(_there(exported.adapter_folder(run, feature.name))))


def _there(folder: Path) -> Path:
    if not folder.is_dir():
        raise DamageError(f"{folder} is not there, which has weights of this run. Restore it, or train again.")
    return folder


def _resolved(feature: EncodedInput, store: Store, precision: str | None = None) -> Resolved:
    """Weights that are trained are float32, and so is what an adapter stands on."""
    settings: Any = feature.encoder
    if precision is None and feature.tuning.mode != "frozen":
        precision = "float32"
    if precision is not None:
        settings = settings.model_copy(update={"precision": precision})
    return resolve(settings, digest=store.digest, known=store.knows)


def _texts(feature: TextInput, state: LiveState, dataset: Dataset) -> LiveColumn:
    template = template_of(feature.encoder)
    columns = [feature.column] if template is None else sources.fields(template)
    tokenizer = text_model.load_collate(state.spec, Path(state.place)).tokenizer
    parts: list[TextCells] = []
    reasons: list[NDArray[np.uint8]] = [np.zeros(0, np.uint8)]
    skipped: list[SkippedCell] = []
    count = 0
    for part in CellReader(dataset, {column: Wanted("text") for column in columns}).parts(_CUT):
        cells = part.cells[feature.column] if template is None else sources.fill_template(template, part.cells)
        texts = tokenizer.tokens([payload or b"" for payload in cells.payloads])
        parts.append(TextCells.of(texts, cells.reasons == PRESENT))
        reasons.append(cells.reasons)
        count += len(cells.skipped)
        skipped += cells.skipped[: KEPT_SKIPPED - len(skipped)]
    joined, why = TextCells.joined(parts), np.concatenate(reasons)
    fill_value = feature.preprocessing.fill_value
    if feature.preprocessing.missing_value_strategy == "fill_with_const" and fill_value is not None:
        joined = joined.filled(tokenizer.tokens([fill_value.encode()])[0], why == MISSING)
    told = tuple(replace(cell, where=dataset.label) for cell in skipped)
    return LiveColumn(feature, joined, why, state, count, told)
