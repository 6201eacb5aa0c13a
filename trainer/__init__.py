"""Heads trained on stored vectors: a YAML config and data in, a run directory out."""

from __future__ import annotations

from trainer.config import load_config
from trainer.run import evaluate, open_run, predict, train

__all__ = ["evaluate", "load_config", "open_run", "predict", "train"]
