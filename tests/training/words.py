"""A small encoder of made-up texts in a model, for tests of what the loop does where encoders run in it."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from tests.training.heads import CLASSES, DIM
from trainer.combiners import ConcatCombiner
from trainer.decoders import CategoryClassifier, SoftmaxCrossEntropy
from trainer.epochs import FitSettings
from trainer.live.batches import LiveBatches
from trainer.live.cells import Cells, TextCells
from trainer.live.encoder import LiveEncoder
from trainer.model import Model

WORDS = 30
SETTINGS = FitSettings(
    epochs=3,
    batch_size=8,
    learning_rate=0.02,
    validation_field="kind",
    validation_metric="accuracy",
    encoder_rates={"text": 0.01},
)


class Bag(nn.Module):
    """The mean of the vectors of a text's words, after dropout."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.table = nn.Embedding(WORDS, DIM)
        self.frozen = nn.Linear(DIM, DIM).requires_grad_(False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, words: Tensor, mask: Tensor) -> Tensor:
        vectors = self.dropout(self.table(words)) * mask.unsqueeze(-1)
        mean: Tensor = self.frozen(vectors.sum(1) / mask.sum(1, keepdim=True))
        return mean


class BagEncoder(LiveEncoder):
    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__(Bag(dropout), DIM)

    def tensors(self, cells: Cells) -> dict[str, Tensor]:
        texts = cast("Any", cells).texts()
        longest = max(text.shape[1] for text in texts)
        words = np.stack([np.pad(text[0], (0, longest - text.shape[1])) for text in texts])
        mask = np.stack([np.arange(longest) < text.shape[1] for text in texts])
        return {"words": torch.from_numpy(words).long(), "mask": torch.from_numpy(mask).float()}

    def at_once(self, device: torch.device) -> int:
        return 1000


def model(dropout: float = 0.0, seed: int = 0) -> Model:
    """An encoder of texts of which some is trained, and a head with dropout."""
    torch.manual_seed(seed)
    combiner = ConcatCombiner(num_fc_layers=1, output_size=16, dropout=dropout).build({"text": DIM})
    decoder = CategoryClassifier().build(combiner.dim, CLASSES, SoftmaxCrossEntropy(), top_k=2, where="kind")
    return Model({"text": BagEncoder(dropout)}, (), combiner, {"kind": decoder}, {"kind": 1.0}, ["text"])


def texts(rows: int, seed: int = 0) -> LiveBatches:
    """Texts whose class is that of most of their words; row i is row 100 + i of the data."""
    draw = np.random.default_rng(seed)
    targets = draw.integers(len(CLASSES), size=rows)
    lengths = draw.integers(1, 12, size=rows)
    words = [
        (draw.integers(WORDS // 3, size=(1, length)) * 3 + target)
        for length, target in zip(lengths, targets, strict=True)
    ]
    cells = TextCells.of(words, np.ones(rows, np.bool_))
    return LiveBatches({"text": cells}, {}, {"kind": torch.from_numpy(targets)}, {}, np.arange(rows) + 100)
