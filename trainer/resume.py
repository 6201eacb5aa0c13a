"""What training that was stopped goes on from: the state of the loop after an epoch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class ResumeState:
    """``counters`` are plain enough for JSON; ``tensors`` by group and name, shared with the loop that gave them."""

    counters: Mapping[str, Any]
    tensors: Mapping[str, Mapping[str, Tensor]]
