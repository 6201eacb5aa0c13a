"""A value for several processes of this machine: its arrays and tensors lie in one file, whose pages all of them share.

The file is pickled, and is for processes that trust each other: the one that writes it starts those that read it.
"""

from __future__ import annotations

import io
import mmap
import pickle
import struct
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

_HEAD: Final = struct.Struct("<QQ")  # buffers, bytes of the pickle
_SIZE: Final = struct.Struct("<Q")
_ALIGNED: Final = 64


def write(value: object, path: Path) -> None:
    """Write ``value`` for ``read``. Tensors must be on the CPU; what they require of gradients is lost."""
    buffers: list[pickle.PickleBuffer] = []
    told = io.BytesIO()
    _Pickler(told, protocol=5, buffer_callback=buffers.append).dump(value)
    views = [buffer.raw() for buffer in buffers]
    with path.open("wb") as file:
        file.write(_HEAD.pack(len(views), told.tell()))
        for view in views:
            file.write(_SIZE.pack(view.nbytes))
        file.write(told.getbuffer())
        for view in views:
            file.write(b"\0" * (-file.tell() % _ALIGNED))
            file.write(view)


def read(path: Path) -> Any:
    """What ``write`` was given. A process that changes an array changes its own pages alone."""
    with path.open("rb") as file:
        whole = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))
    count, length = _HEAD.unpack_from(whole)
    sizes = [_SIZE.unpack_from(whole, _HEAD.size + i * _SIZE.size)[0] for i in range(count)]
    at = _HEAD.size + count * _SIZE.size
    told = whole[at : at + length]
    at += length
    buffers = []
    for size in sizes:
        at += -at % _ALIGNED
        buffers.append(whole[at : at + size])
        at += size
    return pickle.loads(told, buffers=buffers)


class _Pickler(pickle.Pickler):
    def reducer_override(self, value: object) -> Any:
        if not isinstance(value, Tensor):
            return NotImplemented
        tensor = value.detach().contiguous()
        # bytes, for numpy has no bfloat16
        return _tensor, (tensor.reshape(-1).view(torch.uint8).numpy(), tensor.dtype, tuple(tensor.shape))


def _tensor(values: Any, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    return torch.from_numpy(values).view(dtype).reshape(shape)
