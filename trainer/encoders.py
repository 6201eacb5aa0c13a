"""Encoders of the input features: what stands between a batch's tensor and the combiner.

Stored vectors, numbers and truth values pass as they are.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from trainer.features import Fitted, FittedCategory
from trainer.rows import FittedText
from trainer.schema.inputs import CategoryInput, InputFeature


class Embedding(nn.Module):
    """Category index (rows,) → a learnt vector (rows, dim)."""

    def __init__(self, classes: int, dim: int) -> None:
        super().__init__()
        self.table = nn.Embedding(classes, dim)
        nn.init.normal_(self.table.weight, std=dim**-0.5)  # about length 1, as sentence vectors have

    def forward(self, index: Tensor) -> Tensor:
        vector: Tensor = self.table(index)
        return vector


class OneHot(nn.Module):
    """Category index (rows,) → (rows, classes), 1 in its column."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes

    def forward(self, index: Tensor) -> Tensor:
        return functional.one_hot(index, self.classes).float()


def input_encoder(feature: InputFeature, state: Fitted | FittedText) -> tuple[nn.Module, int]:
    """The module of an input with fresh weights, and the width of the vector it gives."""
    match feature, state:
        case _, FittedText(dim=dim):
            return nn.Identity(), dim
        case CategoryInput(), FittedCategory(vocabulary=vocabulary):
            return _category(feature, len(vocabulary))
        case _:
            return nn.Identity(), 1


def _category(feature: CategoryInput, classes: int) -> tuple[nn.Module, int]:
    if feature.encoder.type == "onehot":
        return OneHot(classes), classes
    dim = min(feature.encoder.embedding_size, classes)
    return Embedding(classes, dim), dim
