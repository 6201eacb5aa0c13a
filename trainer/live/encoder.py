"""The module of an input whose encoder runs in the loop: the cells of a batch → their vectors."""

from __future__ import annotations

from typing import Any, Final, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cachestore.encoders.batches import Budget, batches
from cachestore.encoders.text_model import Collate
from trainer.live.cells import TextCells
from trainer.strategies.ranks import ALONE, Ranks

_BUDGET: Final = Budget(8192, fixed=True)  # tokens of a padded batch that leaves no gradient behind


class LiveEncoder(nn.Module):
    """Cells (rows) → vectors (rows, dim) float32, zeros where a cell is missing.

    ``module`` takes the tensors of a batch by keyword; it is what adapters change and strategies wrap. With several
    ``ranks`` each encodes its share of the rows, and all get the vectors of all.
    """

    def __init__(self, module: nn.Module, collate: Collate, dim: int) -> None:
        super().__init__()
        self.module = module
        self.collate = collate
        self.dim = dim
        self.ranks: Ranks = ALONE

    def forward(self, cells: TextCells) -> Tensor:
        rows = len(cells)
        mine = np.arange(rows)[self.ranks.share(rows)]
        # a rank without rows takes part in every step of the others
        local = self._encode(cells.take(mine if len(mine) else np.zeros(1, np.int64)))[: len(mine)]
        vectors = self.ranks.gather(local, rows)
        if cells.present.all():
            return vectors
        return vectors * torch.from_numpy(cells.present[:, None]).to(vectors.device)

    def _encode(self, cells: TextCells) -> Tensor:
        texts = cells.texts()
        if torch.is_grad_enabled() and self.training:
            return self._vectors(texts)
        chunks: list[NDArray[np.int64]] = [
            np.asarray(chunk, np.int64) for chunk in batches(cells.lengths().tolist(), _BUDGET)
        ]
        parts = [self._vectors([texts[row] for row in chunk]) for chunk in chunks]
        for _ in range(self.ranks.most(len(chunks)) - len(chunks)):
            self._vectors(texts[:1])
        order = torch.from_numpy(np.argsort(np.concatenate(chunks), kind="stable"))
        return torch.cat(parts).index_select(0, order.to(parts[0].device))

    def _vectors(self, texts: list[NDArray[Any]]) -> Tensor:
        device = next(self.module.parameters()).device
        padded = {name: tensor.to(device) for name, tensor in self.collate.pad(texts).items()}
        return cast("Tensor", self.module(**padded))
