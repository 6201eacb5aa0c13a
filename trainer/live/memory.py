"""How much memory a step takes, and how much there is: bytes, or None where this system does not tell."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import torch

_STATUS: Final = Path("/proc/self/status")
_CLEAR: Final = Path("/proc/self/clear_refs")
_MEMINFO: Final = Path("/proc/meminfo")
_CGROUP: Final = Path("/sys/fs/cgroup")


class Peak:
    """How far the memory of this process rises above what it has when this is made."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self._before: int | None = torch.cuda.memory_allocated(device)
        else:
            self._before = _status("VmRSS") if _forget_peak() else None

    def grown(self) -> int | None:
        """By how much it was above that at most, so far."""
        if self._before is None:
            return None
        peak = torch.cuda.max_memory_allocated(self._device) if self._device.type == "cuda" else _status("VmHWM")
        return None if peak is None else max(0, peak - self._before)


def available(device: torch.device) -> int | None:
    """What processes may still take, on the device or within the limit of this container."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free) + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    found = _value(_MEMINFO, "MemAvailable")
    limit, used = _number(_CGROUP / "memory.max"), _number(_CGROUP / "memory.current")
    if limit is not None and used is not None:
        found = limit - used if found is None else min(found, limit - used)
    return found


def _forget_peak() -> bool:
    try:
        _CLEAR.write_text("5")  # proc(5): the peak becomes what there is now
    except OSError:
        return False
    return True


def _status(name: str) -> int | None:
    return _value(_STATUS, name)


def _value(path: Path, name: str) -> int | None:
    try:
        found = re.search(rf"^{name}:\s+(\d+) kB", path.read_text(), re.MULTILINE)
    except OSError:
        return None
    return None if found is None else int(found[1]) * 1024


def _number(path: Path) -> int | None:
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None
