"""Pictures of inputs whose encoder runs in the loop: decoded once, and kept as the pixels that the encoder takes.

They are in memory up to a share of it, and beyond that in a file without a name, of which the system keeps in memory what it can.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any, BinaryIO, Final, cast, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cachestore.cells import CellReader, Wanted
from cachestore.dataset import KEPT_SKIPPED, Dataset, SkippedCell
from cachestore.encoders import image_model, pictures
from cachestore.encoders.image_model import OneVector
from cachestore.errors import ConfigError, UsageError
from cachestore.keys import Json
from cachestore.manifest import PRESENT, SKIPPED
from trainer.live.cells import Cells
from trainer.live.columns import LiveColumn
from trainer.live.encoder import LiveEncoder
from trainer.live.state import LiveState
from trainer.schema.inputs import ImageInput

_CUT: Final = 4096  # rows whose pictures are decoded together
_BLOCK: Final = 64 << 20  # bytes of pixels that lie together
_SHARE: Final = 4  # pictures take a quarter of the memory at most, unless trainer.memory_limit says otherwise
_DIGEST: Final = 16
_CPU_PICTURES: Final = 16
_GPU_PICTURES: Final = 128


@final
@dataclass(frozen=True)
class PixelCells:
    """Decoded pictures, equal ones once: row i is picture ``which[i]`` of ``blocks``, each (pictures, height, width, 3) uint8.

    All blocks but the last have as many pictures. ``names`` (pictures, 16) tell one picture's bytes from another's.
    """

    blocks: tuple[NDArray[np.uint8], ...]
    names: NDArray[np.uint8]
    which: NDArray[np.int64]
    present: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.which)

    def take(self, places: NDArray[np.int64]) -> PixelCells:
        """Rows by number; the pictures themselves are shared."""
        return replace(self, which=self.which[places], present=self.present[places])

    def lengths(self) -> NDArray[np.int64]:
        """Pixels by row."""
        _, height, width, _ = self.blocks[0].shape
        return np.full(len(self), height * width, np.int64)

    def pixels(self) -> NDArray[np.uint8]:
        """(rows, height, width, 3)"""
        first = self.blocks[0]
        found = np.empty((len(self), *first.shape[1:]), np.uint8)
        for row, picture in enumerate(self.which.tolist()):
            block, place = divmod(picture, len(first))
            found[row] = self.blocks[block][place]
        return found

    def parts(self) -> Iterator[tuple[str, Tensor]]:
        """What names the picture of each row, which says what it is without its being read."""
        yield "pictures", torch.from_numpy(self.names[self.which])
        yield "present", torch.from_numpy(self.present)


class PictureEncoder(LiveEncoder):
    """An encoder of pictures; ``batch_size``: how many it takes at once where no gradient is wanted, None for what is usual."""

    def __init__(self, module: OneVector, dim: int, *, frozen: bool = False, batch_size: int | None = None) -> None:
        super().__init__(module, dim, frozen=frozen)
        self.area = module.size[0] * module.size[1]
        self.batch_size = batch_size

    def tensors(self, cells: Cells) -> dict[str, Tensor]:
        return {"pixels": torch.from_numpy(cast("PixelCells", cells).pixels())}

    def at_once(self, device: torch.device) -> int:
        return self.area * (self.batch_size or (_GPU_PICTURES if device.type == "cuda" else _CPU_PICTURES))


def example(module: OneVector) -> Tensor:
    """The vector of one black picture, (1, dim), on the device of the module."""
    device = next(module.parameters()).device
    found: Tensor = module(torch.zeros((1, *module.size, 3), dtype=torch.uint8, device=device))
    return found


def freeze_unused(module: OneVector) -> None:
    """Leave without gradients what no vector depends on: DDP would wait for it, and weight decay would shrink it."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    training = module.training
    module.eval()  # nothing is dropped
    gradients: tuple[Tensor | None, ...] = torch.autograd.grad(example(module).sum(), trained, allow_unused=True)
    module.train(training)
    for parameter, gradient in zip(trained, gradients, strict=True):
        if gradient is None:
            parameter.requires_grad_(False)


def read(feature: ImageInput, state: LiveState, dataset: Dataset, limit: int | None) -> LiveColumn:
    """The pictures of a column, decoded. Those that cannot be are skipped, with what is wrong with them.

    More than ``limit`` bytes of them, None for a share of this computer's memory, lie in a file in the temporary directory. Raises
    UsageError when that has no room.
    """
    if feature.preprocessing.missing_value_strategy == "fill_with_mode":
        raise ConfigError(
            f"input_features.{feature.name}.preprocessing.missing_value_strategy: fill_with_mode is not for pictures whose encoder "
            "runs in training; use indicator, drop_row, bfill or ffill"
        )
    decoded = _Decoded(state.spec, _share() if limit is None else limit)
    which: list[int] = []
    reasons: list[NDArray[np.uint8]] = [np.zeros(0, np.uint8)]
    skipped: list[SkippedCell] = []
    count = 0
    reader = CellReader(dataset, {feature.column: Wanted("image")})
    try:
        for part in reader.parts(_CUT):
            cells = part.cells[feature.column]
            places = [decoded.place(payload) for payload in cells.payloads]
            decoded.wait()
            found = cells.reasons.copy()
            for row, place in enumerate(places):
                if place in decoded.refused:
                    found[row] = SKIPPED
                    told = reader.told(feature.column, len(which) + row, decoded.refused[place])
                    cells.skipped.append(SkippedCell(len(which) + row, feature.column, told))
            which += places
            reasons.append(found)
            count += len(cells.skipped)
            skipped += sorted(cells.skipped, key=lambda cell: cell.row)[: KEPT_SKIPPED - len(skipped)]
    except BaseException as error:
        if not isinstance(error, Exception):  # Ctrl-C waits for no picture
            pictures.close()
        raise
    finally:
        decoded.close()
    whole = np.concatenate(reasons)
    pixels = PixelCells(decoded.blocks(), decoded.names(), np.asarray(which, np.int64), whole == PRESENT)
    return LiveColumn(
        feature, pixels, whole, state, count, tuple(replace(cell, where=dataset.label) for cell in skipped)
    )


def load(state: LiveState, *, weights: bool = True) -> OneVector:
    """The module of an input, in train mode."""
    return image_model.load_one(state.spec, Path(state.place), weights=weights)


class _Decoded:
    """Pictures as they are decoded, each at a place of its own; at place 0 is a black one, for cells that have none."""

    def __init__(self, spec: Mapping[str, Json], limit: int) -> None:
        picture: Any = spec["picture"]
        self._plan = {name: picture[name] for name in ("resize", "interpolation", "crop", "odd")}
        self._shape = (*(picture["crop"] or picture["resize"]), 3)
        self._bytes = int(np.prod(self._shape))
        self._in_block = max(1, _BLOCK // self._bytes)
        self._limit = limit
        self._file: BinaryIO | None = None
        self._blocks: list[NDArray[np.uint8]] = []
        self._blocks.append(self._block())
        self._places: dict[bytes, int] = {bytes(_DIGEST): 0}
        self._running: list[tuple[int, Future[str | None]]] = []
        self.refused: dict[int, str] = {}

    def place(self, payload: bytes | None) -> int:
        """Where a picture will be, which begins to be decoded if it is new."""
        if payload is None:
            return 0
        name = blake2b(payload, digest_size=_DIGEST).digest()
        if name in self._places:
            return self._places[name]
        place = self._places[name] = len(self._places)
        block, at = divmod(place, self._in_block)
        if block == len(self._blocks):
            self._blocks.append(self._block())
        (future,) = pictures.shared().start([payload], self._plan, self._blocks[block][at : at + 1])
        self._running.append((place, future))
        return place

    def wait(self) -> None:
        """Until all are decoded; ``refused`` says why some have no pixels."""
        for place, future in self._running:
            reason = future.result()
            if reason is not None:
                self.refused[place] = reason
        self._running = []

    def close(self) -> None:
        """Make room for no more pictures; those that are mapped stay."""
        if self._file is not None:
            self._file.close()

    def names(self) -> NDArray[np.uint8]:
        """(pictures, 16)"""
        return np.frombuffer(b"".join(self._places), np.uint8).reshape(-1, _DIGEST)

    def blocks(self) -> tuple[NDArray[np.uint8], ...]:
        """All pictures, the last block no longer than it must be, but the first, which says how many are in each."""
        last = len(self._places) - (len(self._blocks) - 1) * self._in_block
        return (*self._blocks[:-1], self._blocks[-1][:last])

    def _block(self) -> NDArray[np.uint8]:
        shape = (self._in_block, *self._shape)
        size = self._in_block * self._bytes
        if not self._blocks or (len(self._blocks) + 1) * size <= self._limit:
            return np.zeros(shape, np.uint8)
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile()  # noqa: SIM115
            begin = self._file.seek(0, os.SEEK_END)
            os.posix_fallocate(self._file.fileno(), begin, size)  # now, not in the middle of an epoch
        except OSError as error:
            raise UsageError(
                f"The decoded pictures have no room in {tempfile.gettempdir()} ({error.strerror}). Free space there, set TMPDIR to a "
                "larger place, or let trainer.memory_limit keep more of them in memory."
            ) from error
        return np.memmap(self._file, np.uint8, "r+", offset=begin, shape=shape)


def _share() -> int:
    return int(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")) // _SHARE
