"""Mixed precision: which type a device computes in, and what float16 takes beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Final

import torch
from torch import Tensor, nn

_GROWTH: Final = 2.0  # these three as torch.amp.GradScaler has them
_BACKOFF: Final = 0.5
_INTERVAL: Final = 2000


def half(device: torch.device) -> torch.dtype:
    """bfloat16; float16 on a GPU that lacks it."""
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.float16
    return torch.bfloat16


def autocast(device: torch.device, mixed_precision: bool) -> AbstractContextManager[object]:
    """Autocast to ``half`` on ``device``; nothing when it is not asked for."""
    return torch.autocast(device.type, dtype=half(device)) if mixed_precision else nullcontext()


class Scaler:
    """Scales losses so that the small gradients of float16 do not vanish, and finds the steps whose gradients overflow.

    It grows and shrinks as torch.amp.GradScaler does (Micikevicius et al. 2018), which wants a torch.optim.Optimizer. ``agreed``
    sums a tensor over all processes that train together: an overflow in one is that of all.
    """

    def __init__(
        self, device: torch.device, scale: float = 65536.0, agreed: Callable[[Tensor], Tensor] = lambda tensor: tensor
    ) -> None:
        self._agreed = agreed
        self._scale = torch.full((), scale, device=device)
        self._good_steps = torch.zeros((), dtype=torch.int32, device=device)

    def scaled(self, loss: Tensor) -> Tensor:
        """The loss to start the backward pass from."""
        return loss * self._scale

    def unscale(self, parameters: Sequence[nn.Parameter]) -> bool:
        """Divide the gradients by the scale, and set the next one. False when one overflowed: there must be no step then."""
        gradients = [gradient for parameter in parameters if (gradient := parameter.grad) is not None]
        inverse = self._scale.double().reciprocal().float()
        overflow = torch.zeros_like(self._scale)
        for device in {gradient.device for gradient in gradients}:  # shards may be in main memory
            here, found = [each for each in gradients if each.device == device], torch.zeros((), device=device)
            torch._amp_foreach_non_finite_check_and_unscale_(here, found, inverse.to(device))
            overflow += found.to(overflow.device)
        overflow = self._agreed(overflow)
        torch._amp_update_scale_(self._scale, self._good_steps, overflow, _GROWTH, _BACKOFF, _INTERVAL)
        return overflow.item() == 0.0

    def state_dict(self) -> dict[str, Tensor]:
        """The scale, and how many steps it has been good for; tensors are shared, not copied."""
        return {"scale": self._scale, "good_steps": self._good_steps}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue where the scaler that gave ``state`` stood."""
        self._scale.copy_(state["scale"])
        self._good_steps.copy_(state["good_steps"])
