"""Heads trained on stored vectors: a YAML config and data in, a run directory out."""

from __future__ import annotations

from trainer.config import load_config
from trainer.run import Run, evaluate, predict, train

__all__ = ["Run", "evaluate", "load_config", "predict", "train"]
