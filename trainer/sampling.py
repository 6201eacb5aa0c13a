"""Which of the training rows are used, and how often: samples, and classes made more even."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from trainer.schema.preparation import Preprocessing


def sampled(parts: NDArray[np.int8], settings: Preprocessing, seed: int) -> NDArray[np.bool_]:
    """(rows,) which rows are used: the same share of every part from 0 on, and at least one row of each."""
    taking = parts >= 0
    rows = int(taking.sum())
    share = settings.sample_ratio if settings.sample_size is None else min(settings.sample_size / max(rows, 1), 1.0)
    if share >= 1:
        return taking
    order = np.random.default_rng(seed).permutation(len(parts))
    for part in np.unique(parts[taking]):
        here = order[parts[order] == part]
        taking[here[max(round(share * len(here)), 1) :]] = False
    return taking


def balanced(classes: NDArray[np.int64], settings: Preprocessing, seed: int) -> NDArray[np.int64] | None:
    """Places of ``classes`` (rows,), in their order, some of them repeated or left out; None when all stay as they are.

    Of a class that is to have more, every row is repeated as often as another, but for one time.
    """
    counts = np.bincount(classes)
    there = counts[counts > 0]
    if settings.oversample_minority is not None:
        wanted = np.maximum(counts, np.rint(there.max() * settings.oversample_minority).astype(np.int64))
    elif settings.undersample_majority is not None:
        wanted = np.minimum(counts, np.rint(there.min() / settings.undersample_majority).astype(np.int64))
    else:
        return None
    generator = np.random.default_rng(seed)
    places: list[NDArray[np.int64]] = []
    for kind in np.flatnonzero(counts):
        own = generator.permutation(np.flatnonzero(classes == kind))
        places.append(np.resize(own, wanted[kind]))
    return np.sort(np.concatenate(places))
