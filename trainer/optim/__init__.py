"""Optimizers, schedules of their learning rate, and what is done to gradients before a step."""

from __future__ import annotations

from trainer.optim.auto import auto_encoder_rate, auto_learning_rate
from trainer.optim.first_order import Adam, Sgd
from trainer.optim.gradients import Clipping, Gradients, Penalty
from trainer.optim.groups import Groups
from trainer.optim.lbfgs import Lbfgs
from trainer.optim.protocol import Optimizer
from trainer.optim.schedule import Decay, Plateau, Schedule

__all__ = [
    "Adam",
    "Clipping",
    "Decay",
    "Gradients",
    "Groups",
    "Lbfgs",
    "Optimizer",
    "Penalty",
    "Plateau",
    "Schedule",
    "Sgd",
    "auto_encoder_rate",
    "auto_learning_rate",
]
