"""Small models on made-up vectors, for tests of the loop and its parts."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trainer.batches import CachedBatches
from trainer.combiners import ConcatCombiner
from trainer.decoders import (
    BinaryRegressor,
    BinaryWeightedCrossEntropy,
    CategoryClassifier,
    MeanSquaredError,
    NumberRegressor,
    SoftmaxCrossEntropy,
)
from trainer.model import Model

DIM = 8
CLASSES = ("ant", "bee", "cat")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def clusters(rows: int, seed: int = 0, noise: float = 0.5) -> tuple[Tensor, Tensor]:
    """Vectors (rows, DIM) around one centre per class, and the class of each."""
    draw = generator(seed)
    centres = torch.randn(len(CLASSES), DIM, generator=generator(99))
    targets = torch.randint(len(CLASSES), (rows,), generator=draw)
    return centres[targets] + noise * torch.randn(rows, DIM, generator=draw), targets


def three_outputs(rows: int, seed: int = 0) -> CachedBatches:
    """A vector, and a class, a truth value and a number that depend on it."""
    vectors, kinds = clusters(rows, seed)
    return CachedBatches(
        {"text": vectors},
        {"kind": kinds, "is_bee": (kinds == 1).float(), "size": vectors.sum(dim=1)},
    )


def classifier(
    layers: int = 0, dropout: float = 0.0, seed: int = 0, class_weights: dict[str, float] | None = None
) -> Model:
    """A model of one vector and the output ``kind``."""
    torch.manual_seed(seed)
    combiner = ConcatCombiner(num_fc_layers=layers, output_size=16, dropout=dropout).build({"text": DIM})
    loss = SoftmaxCrossEntropy(class_weights=class_weights)
    decoder = CategoryClassifier().build(combiner.dim, CLASSES, loss, top_k=2, where="kind")
    return Model({"text": nn.Identity()}, (), combiner, {"kind": decoder}, {"kind": 1.0})


def three_decoders(weights: dict[str, float] | None = None, seed: int = 0) -> Model:
    """A model of one vector and the outputs of ``three_outputs``."""
    torch.manual_seed(seed)
    combiner = ConcatCombiner().build({"text": DIM})
    return Model(
        {"text": nn.Identity()},
        (),
        combiner,
        {
            "kind": CategoryClassifier().build(combiner.dim, CLASSES, SoftmaxCrossEntropy(), top_k=2, where="kind"),
            "is_bee": BinaryRegressor().build(combiner.dim, BinaryWeightedCrossEntropy(), threshold=0.5),
            "size": NumberRegressor().build(combiner.dim, MeanSquaredError(), restore=None),
        },
        weights or {"kind": 1.0, "is_bee": 1.0, "size": 1.0},
    )
