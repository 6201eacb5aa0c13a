"""The module of an input whose encoder runs in the loop: the cells of a batch → their vectors."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, Final, Self, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cachestore.encoders.batches import Budget, batches
from cachestore.encoders.text_model import Collate
from cachestore.errors import OutOfMemory
from trainer.live.cells import Cells
from trainer.live.steps import out_of_memory
from trainer.strategies.ranks import ALONE, Ranks

# Tokens of a padded batch that leaves no gradient behind: on a CPU more leave the caches, on a GPU less leave it idle.
_CPU_TOKENS: Final = 2048
_GPU_TOKENS: Final = 65536


class LiveEncoder(nn.Module, ABC):
    """Cells (rows) → vectors (rows, dim) float32, zeros where a cell is missing.

    ``module`` takes the tensors of a batch by keyword; it is what adapters change and strategies wrap. A ``frozen`` one stays in
    eval mode. With several ``ranks`` each encodes its share of the rows, and all get the vectors of all; vectors that are given in
    place of cells are the answer. ``device``: where the module computes, None for where its weights are.
    """

    def __init__(self, module: nn.Module, dim: int, *, frozen: bool = False) -> None:
        super().__init__()
        self.module = module
        self.dim = dim
        self.frozen = frozen
        self.ranks: Ranks = ALONE
        self.device: torch.device | None = None

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        if self.frozen:
            self.module.eval()
        return self

    def forward(self, cells: Cells | Tensor) -> Tensor:
        if isinstance(cells, Tensor):
            return cells
        rows = len(cells)
        mine = np.arange(rows)[self.ranks.share(rows)]
        # a rank without rows takes part in every step of the others
        own = cells.take(mine if len(mine) else np.zeros(1, np.int64))
        vectors = self.ranks.gather(self._encode(own)[: len(mine)], rows)
        if cells.present.all():
            return vectors
        return vectors * torch.from_numpy(cells.present[:, None]).to(vectors.device)

    @abstractmethod
    def tensors(self, cells: Cells) -> dict[str, Tensor]:
        """What the module takes of some cells, on the CPU."""

    @abstractmethod
    def at_once(self, device: torch.device) -> int:
        """How much of ``cells.lengths()`` the module takes at once where no gradient is wanted."""

    def _encode(self, cells: Cells) -> Tensor:
        if not self.frozen and self.training and torch.is_grad_enabled():
            with self._own_draws():
                return self._vectors(cells)
        with torch.no_grad():
            return self._in_chunks(cells)

    def _in_chunks(self, cells: Cells) -> Tensor:
        """Rows of like length together, so that little is padding."""
        budget = Budget(self.at_once(self._place()), fixed=True)
        chunks: list[NDArray[np.int64]] = [
            np.asarray(chunk, np.int64) for chunk in batches(cells.lengths().tolist(), budget)
        ]
        try:
            parts = [self._vectors(cells.take(chunk)) for chunk in chunks]
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            raise OutOfMemory(
                "There is not enough memory for the encoder of an input. Set a smaller batch_tokens, or for pictures batch_size, among "
                "its encoder settings."
            ) from error
        for _ in range(self.ranks.most(len(chunks)) - len(chunks)):
            self._vectors(cells.take(np.zeros(1, np.int64)))
        order = torch.from_numpy(np.argsort(np.concatenate(chunks), kind="stable"))
        return torch.cat(parts).index_select(0, order.to(parts[0].device))

    def _vectors(self, cells: Cells) -> Tensor:
        device = self._place()
        return cast("Tensor", self.module(**{name: tensor.to(device) for name, tensor in self.tensors(cells).items()}))

    def _place(self) -> torch.device:
        return next(self.module.parameters()).device if self.device is None else self.device

    @contextlib.contextmanager
    def _own_draws(self) -> Iterator[None]:
        """Dropout in the body draws what no other rank draws, and leaves the generators as all ranks have them.

        The seed comes from the global generator, so that what is saved of that is all there is to save.
        """
        seed = int(torch.randint(2**62, ()))
        place = self._place()
        with torch.random.fork_rng(devices=[place] if place.type == "cuda" else []):
            torch.manual_seed(seed + self.ranks.rank)
            yield


class TextEncoder(LiveEncoder):
    """An encoder of texts; ``batch_tokens``: how many padded tokens it takes at once, None for what is usual."""

    def __init__(
        self, module: nn.Module, collate: Collate, dim: int, *, frozen: bool = False, batch_tokens: int | None = None
    ) -> None:
        super().__init__(module, dim, frozen=frozen)
        self.collate = collate
        self.batch_tokens = batch_tokens

    def tensors(self, cells: Cells) -> dict[str, Tensor]:
        return self.collate.pad(cast("Any", cells).texts())

    def at_once(self, device: torch.device) -> int:
        return self.batch_tokens or (_GPU_TOKENS if device.type == "cuda" else _CPU_TOKENS)
