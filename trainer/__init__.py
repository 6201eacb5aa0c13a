"""Heads trained on stored vectors: a YAML config and data in, a run directory out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trainer.config import load_config
from trainer.run import Run, evaluate, predict, resume_run, train

if TYPE_CHECKING:
    from trainer.estimators import CachedClassifier, CachedRegressor

__all__ = ["CachedClassifier", "CachedRegressor", "Run", "evaluate", "load_config", "predict", "resume_run", "train"]


def __getattr__(name: str) -> Any:
    """The estimators, which need scikit-learn, are imported when they are asked for."""
    if name in ("CachedClassifier", "CachedRegressor"):
        from trainer import estimators

        return getattr(estimators, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
