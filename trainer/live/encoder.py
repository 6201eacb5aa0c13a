"""The module of an input whose encoder runs in the loop: the cells of a batch → their vectors."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Final, Self, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cachestore.encoders.batches import Budget, batches
from cachestore.encoders.text_model import Collate
from trainer.live.cells import TextCells
from trainer.strategies.ranks import ALONE, Ranks

# Tokens of a padded batch that leaves no gradient behind: on a CPU more leave the caches, on a GPU less leave it idle.
_CPU_TOKENS: Final = 2048
_GPU_TOKENS: Final = 65536


class LiveEncoder(nn.Module):
    """Cells (rows) → vectors (rows, dim) float32, zeros where a cell is missing.

    ``module`` takes the tensors of a batch by keyword; it is what adapters change and strategies wrap. A ``frozen`` one stays in
    eval mode. With several ``ranks`` each encodes its share of the rows, and all get the vectors of all. ``device``: where the
    module computes, None for where its weights are. ``batch_tokens``: how many tokens it takes at once where no gradient is wanted.
    """

    def __init__(
        self, module: nn.Module, collate: Collate, dim: int, *, frozen: bool = False, batch_tokens: int | None = None
    ) -> None:
        super().__init__()
        self.module = module
        self.collate = collate
        self.dim = dim
        self.frozen = frozen
        self.batch_tokens = batch_tokens
        self.ranks: Ranks = ALONE
        self.device: torch.device | None = None

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        if self.frozen:
            self.module.eval()
        return self

    def forward(self, cells: TextCells) -> Tensor:
        rows = len(cells)
        mine = np.arange(rows)[self.ranks.share(rows)]
        # a rank without rows takes part in every step of the others
        own = cells.take(mine if len(mine) else np.zeros(1, np.int64))
        vectors = self.ranks.gather(self._encode(own)[: len(mine)], rows)
        if cells.present.all():
            return vectors
        return vectors * torch.from_numpy(cells.present[:, None]).to(vectors.device)

    def _encode(self, cells: TextCells) -> Tensor:
        if not self.frozen and self.training and torch.is_grad_enabled():
            with self._own_draws():
                return self._vectors(cells.texts())
        with torch.no_grad():
            return self._in_chunks(cells)

    def _in_chunks(self, cells: TextCells) -> Tensor:
        """Rows of like length together, so that little is padding."""
        texts = cells.texts()
        usual = _GPU_TOKENS if self._place().type == "cuda" else _CPU_TOKENS
        budget = Budget(self.batch_tokens or usual, fixed=True)
        chunks: list[NDArray[np.int64]] = [
            np.asarray(chunk, np.int64) for chunk in batches(cells.lengths().tolist(), budget)
        ]
        parts = [self._vectors([texts[row] for row in chunk]) for chunk in chunks]
        for _ in range(self.ranks.most(len(chunks)) - len(chunks)):
            self._vectors(texts[:1])
        order = torch.from_numpy(np.argsort(np.concatenate(chunks), kind="stable"))
        return torch.cat(parts).index_select(0, order.to(parts[0].device))

    def _vectors(self, texts: list[NDArray[Any]]) -> Tensor:
        device = self._place()
        padded = {name: tensor.to(device) for name, tensor in self.collate.pad(texts).items()}
        return cast("Tensor", self.module(**padded))

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
