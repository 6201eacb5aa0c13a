"""The cells of inputs whose encoder runs in the loop, read from the data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cachestore import sources
from cachestore.cells import CellReader, Wanted
from cachestore.dataset import Dataset, SkippedCell
from cachestore.encoders import template_of, text_model
from cachestore.encoders.spec import resolve
from cachestore.manifest import PRESENT
from cachestore.store import Store
from trainer.live.cells import TextCells
from trainer.live.columns import LiveColumn
from trainer.live.state import LiveState
from trainer.schema import Config
from trainer.schema.inputs import EncodedInput

_CUT = 1 << 15  # rows


def read_live(config: Config, dataset: Dataset, store: Store) -> dict[str, LiveColumn]:
    """The cells of every live input of a dataset, tokenised."""
    return {feature.name: _read(feature, dataset, store) for feature in config.live}


def _read(feature: EncodedInput, dataset: Dataset, store: Store) -> LiveColumn:
    settings: Any = feature.encoder.model_copy(update={"precision": "float32"})
    resolved = resolve(settings, digest=store.digest, known=store.knows)
    template = template_of(feature.encoder)
    columns = [feature.column] if template is None else sources.fields(template)
    tokenizer, _ = text_model.load(resolved.spec, Path(resolved.directory))
    texts: list[NDArray[Any]] = []
    reasons: list[NDArray[np.uint8]] = []
    skipped: list[SkippedCell] = []
    for part in CellReader(dataset, {column: Wanted("text") for column in columns}).parts(_CUT):
        cells = part.cells[feature.column] if template is None else sources.fill_template(template, part.cells)
        texts += tokenizer.tokenizer.tokens([payload or b"" for payload in cells.payloads])
        reasons.append(cells.reasons)
        skipped += cells.skipped
    whole = np.concatenate(reasons)
    preprocessing = feature.preprocessing
    indicator = preprocessing.missing_value_strategy == "indicator" or preprocessing.missing_value_indicator
    found = TextCells.of(texts, whole == PRESENT)
    return LiveColumn(
        found, whole, tuple(skipped), LiveState(resolved.dim, False, resolved.spec, str(resolved.directory)), indicator
    )
