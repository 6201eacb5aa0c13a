"""Vectors of pictures by frozen vision models: one decoding and one forward for all encoders that share them.

While the model has one batch, worker processes decode the next ones.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cachestore.encoders import hardware, image_files, image_model, pictures
from cachestore.encoders.batches import Budget, tokens_in_memory
from cachestore.encoders.image_model import ImageModule
from cachestore.encoders.image_specs import share_key
from cachestore.errors import EncoderError
from cachestore.keys import Fingerprint, Json

_AHEAD: Final = 3  # batches decoded or being decoded: one batch of slow pictures does not hold up the model
_FLOATS_PER_PIXEL: Final = 128  # of activations alive at once: measured on VGG, the hungriest

_loaded: dict[Fingerprint, ImageModule] = {}
_budgets: dict[tuple[Fingerprint, str], Budget] = {}
_loading = threading.Lock()


def encode(
    spec: Mapping[str, Json],
    place: Path,
    dim: int,
    payloads: Sequence[bytes],
    *,
    batch_size: int | None = None,
) -> tuple[NDArray[np.float32], dict[int, str]]:
    """Vectors of pictures, (pictures, dim) float32, and why a row has none: ``encode_many`` for one spec."""
    vectors, refused = encode_many([spec], place, [dim], payloads, batch_size=batch_size)
    return vectors[0], refused


def encode_many(
    specs: Sequence[Mapping[str, Json]],
    place: Path,
    dims: Sequence[int],
    payloads: Sequence[bytes],
    *,
    batch_size: int | None = None,
) -> tuple[list[NDArray[np.float32]], dict[int, str]]:
    """Vectors of pictures for each spec, (pictures, dim) float32, and by row why a picture has none: its rows are zeros.

    ``specs`` must have one ``share_key``; ``place`` is a transformers model's directory or torchvision's file of weights.
    Equal pictures are encoded once. The model is loaded once and shared until ``release``. ``batch_size`` is how many
    pictures go through it at once; None measures which number is fast here.
    Raises EncoderError when the model or a worker cannot be loaded, one picture has no room on the GPU, or vectors are
    not as long as ``dims`` say.
    """
    if len({share_key(spec) for spec in specs}) != 1:
        raise ValueError("specs of one call must have one share_key")
    places = {payload: row for row, payload in enumerate(dict.fromkeys(payloads))}
    vectors, reasons = _encode(specs, place, dims, list(places), batch_size)
    rows = [places[payload] for payload in payloads]
    refused = {row: reasons[distinct] for row, distinct in enumerate(rows) if distinct in reasons}
    return [array[rows] for array in vectors], refused


def release(spec: Mapping[str, Json] | None = None) -> None:
    """Forget the shared model of one spec, or all of them and the workers, so that their memory can be freed."""
    with _loading:
        if spec is not None:
            _loaded.pop(share_key(spec), None)
            return
        _loaded.clear()
    pictures.close()


def calibration() -> list[bytes]:
    """Pictures of waves, edges and noise: the same bytes anywhere."""
    y, x = np.mgrid[0:240, 0:320].astype(np.float64)
    made = []
    for i in range(8):
        noise = np.random.Generator(np.random.PCG64(i)).random((240, 320, 3))
        turned = x * np.cos(i) + y * np.sin(i)
        waves = np.stack([np.sin(turned / (3 + 4 * i + 5 * band)) for band in range(3)], axis=-1)
        edges = ((turned // (17 + 8 * i)) % 2)[..., None]
        mixed = 0.35 * (waves + 1) / 2 + 0.45 * edges + 0.2 * noise
        made.append(b"P6 320 240 255\n" + np.round(mixed * 255).astype(np.uint8).tobytes())
    return made


def _encode(
    specs: Sequence[Mapping[str, Json]],
    place: Path,
    dims: Sequence[int],
    payloads: Sequence[bytes],
    batch_size: int | None,
) -> tuple[list[NDArray[np.float32]], dict[int, str]]:
    vectors = [np.zeros((len(payloads), dim), np.float32) for dim in dims]
    refused: dict[int, str] = {}
    if not payloads:
        return vectors, refused
    device = hardware.device()
    poolings = [str(spec.get("reduce_output", "")) for spec in specs]
    module = _shared(specs[0], place, poolings, device)
    picture: Any = specs[0]["picture"]
    height, width = picture["crop"] or picture["resize"]
    budget = Budget(batch_size, fixed=True) if batch_size else _budget(specs[0], device, height * width)
    forward = partial(_forward, module, poolings, device)
    with torch.inference_mode(), hardware.exact_float32():
        for batch in _decoded(payloads, picture, (height, width), budget, device):
            good = [row for row, future in enumerate(batch.futures) if future.result() is None]
            refused |= {batch.start + row: reason for row, f in enumerate(batch.futures) if (reason := f.result())}
            if not good:
                continue
            pixels = batch.pixels if len(good) == len(batch.futures) else batch.pixels[good]
            found = _timed(forward, pixels, budget, device)
            rows = np.asarray(good) + batch.start
            for into, pooling in zip(vectors, poolings, strict=True):
                part = found[pooling].cpu().numpy()
                if part.shape[1] != into.shape[1]:
                    raise EncoderError(
                        f"{place}: vectors of {into.shape[1]} values are expected, the model gives {part.shape[1]}."
                    )
                into[rows] = part
    return vectors, refused


@dataclass(frozen=True)
class _Batch:
    """Pictures from row ``start`` on; those whose future gives None are in ``pixels`` (n, height, width, 3)."""

    start: int
    pixels: Tensor
    futures: Sequence[Future[str | None]]


def _decoded(
    payloads: Sequence[bytes], picture: Mapping[str, Any], size: tuple[int, int], budget: Budget, device: str
) -> Iterator[_Batch]:
    decoder = pictures.shared()
    plan = {name: picture[name] for name in ("resize", "interpolation", "crop", "odd")}
    begun: deque[_Batch] = deque()
    start = 0
    try:
        while begun or start < len(payloads):
            while len(begun) < _AHEAD and start < len(payloads):
                part = payloads[start : start + budget.tokens]
                pixels = torch.empty((len(part), *size, 3), dtype=torch.uint8, pin_memory=device == "cuda")
                begun.append(_Batch(start, pixels, decoder.start(part, plan, pixels.numpy())))
                start += len(part)
            yield begun.popleft()
    except BaseException as error:
        if not isinstance(error, Exception):  # Ctrl-C waits for no picture
            pictures.close()
        raise
    finally:
        for batch in begun:
            for future in batch.futures:
                future.cancel()


def _forward(module: ImageModule, poolings: Sequence[str], device: str, pixels: Tensor) -> dict[str, Tensor]:
    found: dict[str, Tensor] = module(pixels.to(device, non_blocking=True), poolings)
    return found


def _shared(spec: Mapping[str, Json], place: Path, poolings: Sequence[str], device: str) -> ImageModule:
    key = share_key(spec)
    with _loading:
        module = _loaded.get(key)
        if module is None or not module.poolings >= set(poolings):
            module = image_model.load(spec, place, poolings).requires_grad_(False).to(device)
            image_files.require_same(spec, place)
            _loaded[key] = module
        return module


def _budget(spec: Mapping[str, Json], device: str, pixels: int) -> Budget:
    """How many pictures of so many pixels go through a model of this process at once: what was measured is kept."""
    key = share_key(spec), device
    if key not in _budgets:
        # a few pictures fill a CPU's threads; many more leave its caches
        default, most = (128, 256) if device == "cuda" else (16, tokens_in_memory(4 * _FLOATS_PER_PIXEL * pixels))
        _budgets[key] = Budget(default, most=max(1, most))
    return _budgets[key]


def _timed(
    forward: Callable[[Tensor], dict[str, Tensor]], pixels: Tensor, budget: Budget, device: str
) -> dict[str, Tensor]:
    if not budget.measuring or len(pixels) != budget.tokens:
        return _within_memory(forward, pixels, budget)
    found, seconds = hardware.timed(partial(_within_memory, forward, pixels, budget), device)
    budget.took(len(pixels), seconds)
    return found


def _within_memory(forward: Callable[[Tensor], dict[str, Tensor]], pixels: Tensor, budget: Budget) -> dict[str, Tensor]:
    """``forward``, in halves where the GPU has no room for the whole."""
    try:
        return forward(pixels)
    except torch.OutOfMemoryError as error:
        if len(pixels) == 1:
            raise EncoderError("the GPU has no room for one picture. Free its memory.") from error
    torch.cuda.empty_cache()
    budget.too_much(len(pixels))
    half = len(pixels) // 2
    parts = _within_memory(forward, pixels[:half], budget), _within_memory(forward, pixels[half:], budget)
    return {pooling: torch.cat([part[pooling] for part in parts]) for pooling in parts[0]}
