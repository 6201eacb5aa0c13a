"""Many trainings of one config: what varies, which train together, and how they rank."""

from __future__ import annotations

from trainer.sweep.run import Sweep, sweep

__all__ = ["Sweep", "sweep"]
