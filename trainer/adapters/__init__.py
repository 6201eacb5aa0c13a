"""Adapters of the encoders that are trained, made, saved and merged by PEFT.

An adapter stands on ``module.backbone``, which becomes PEFT's model; the rest of an encoder module stays as it is.
"""

from __future__ import annotations

from cachestore.encoders import _torchvision

_torchvision.make_importable()

from trainer.adapters.adalora import after_step, load_state, penalty, set_steps, state  # noqa: E402  # peft imports transformers
from trainer.adapters.files import CONFIG, WEIGHTS, load, mergeable, merged, save  # noqa: E402
from trainer.adapters.making import adapt, adapter_of  # noqa: E402

__all__ = [
    "CONFIG",
    "WEIGHTS",
    "adapt",
    "adapter_of",
    "after_step",
    "load",
    "load_state",
    "mergeable",
    "merged",
    "penalty",
    "save",
    "set_steps",
    "state",
]
