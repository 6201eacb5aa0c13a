"""Which compute precision ``precision: auto`` stands for: settled once per store, weights and settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from cachestore import keys
from cachestore.keys import Fingerprint, Json

Precision: TypeAlias = Literal["float32", "bfloat16"]

MIN_COSINE: Final = 0.999
CALIBRATION: Final = Path(__file__).with_name("calibration.txt")

_CPU_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})  # the last one is what Linux calls it on arm64
_GPU_DEVICES = ("/dev/nvidiactl", "/dev/nvidia0", "/dev/dxg")
_chosen: dict[Fingerprint, Precision] = {}


def choose(spec: Mapping[str, Json], dim: int, directory: Path, known: Callable[[Fingerprint], bool]) -> Precision:
    """The precision for ``spec``, which lacks it.

    The one under which the store already holds vectors of this spec, float32 if it has both. A new spec gets bfloat16
    where the hardware computes it and, on the calibration texts, each vector's cosine to float32 is at least 0.999.
    """
    float32 = keys.fingerprint({**spec, "precision": "float32"})
    in_float32 = known(float32)
    if not in_float32 and known(keys.fingerprint({**spec, "precision": "bfloat16"})):
        return "bfloat16"
    # torch is imported only where it could say yes
    if in_float32 or not (cpu_has_bfloat16() or any(Path(device).exists() for device in _GPU_DEVICES)):
        return "float32"
    if float32 not in _chosen:
        _chosen[float32] = _calibrate(spec, dim, directory)
    return _chosen[float32]


def cpu_has_bfloat16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether the CPU has bfloat16 instructions (without them torch computes it, slowly); False where Linux is not."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return False
    return any(_CPU_FLAGS & set(line.split()) for line in lines if line.startswith(("flags", "Features")))


def min_cosine(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """The smallest cosine between row i of ``a`` and row i of ``b``; 0.0 where a row is zero or not finite."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    usable = np.isfinite(lengths) & (lengths > 0)
    cosines = np.divide((a * b).sum(axis=1), lengths, out=np.zeros_like(lengths), where=usable)
    return float(cosines.min())


def _calibrate(spec: Mapping[str, Json], dim: int, directory: Path) -> Precision:
    # torch and transformers, which a known spec does not need
    if not _has_bfloat16():
        return "float32"
    exact_spec, close_spec = {**spec, "precision": "float32"}, {**spec, "precision": "bfloat16"}
    if spec["kind"] == "image":
        from cachestore.encoders import image

        pictures = image.calibration()
        (exact, _), (close, _) = (image.encode(s, directory, dim, pictures) for s in (exact_spec, close_spec))
        release = image.release
    else:
        from cachestore.encoders import text

        payloads = [line for line in CALIBRATION.read_bytes().splitlines() if line]
        exact, close = (text.encode(s, directory, dim, payloads) for s in (exact_spec, close_spec))
        release = text.release
    chosen: Precision = "bfloat16" if min_cosine(exact, close) >= MIN_COSINE else "float32"
    release(exact_spec if chosen == "bfloat16" else close_spec)
    return chosen


def _has_bfloat16() -> bool:
    from cachestore.encoders import text

    return text.cuda_has_bfloat16() if text.uses_cuda() else cpu_has_bfloat16()
