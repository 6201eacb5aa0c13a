"""What encoders of texts and of images ask of the hardware: where it computes, how exactly, and how long it takes."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch

_T = TypeVar("_T")


def device() -> str:
    """Where encoders run here."""
    return "cuda" if torch.cuda.is_available() else "cpu"


@contextlib.contextmanager
def exact_float32() -> Iterator[None]:
    """float32 products and convolutions in float32 (no TF32 or bfloat16 in their place), whatever the process has allowed."""
    products, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(products)
        torch.backends.cudnn.allow_tf32 = convolutions


def timed(action: Callable[[], _T], device: str) -> tuple[_T, float]:
    """What ``action`` returns and the seconds it took, all of its work on a GPU included."""
    if device == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    done = action()
    if device == "cuda":
        torch.cuda.synchronize()
    return done, time.perf_counter() - began
