"""Encoders of the input features: what stands between a batch's tensor and the combiner.

Stored vectors, numbers and truth values pass as they are.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainer.features import Fitted, FittedCategory, FittedDate, FittedSet, FittedVector
from trainer.layers import FullyConnected
from trainer.live.state import LiveState
from trainer.schema import Config
from trainer.schema.inputs import (
    CategoryInput,
    DenseCategory,
    DenseVector,
    EmbedSet,
    ImageInput,
    InputFeature,
    OnehotCategory,
    OnehotSet,
    PassthroughVector,
    SetInput,
    TextInput,
    VectorInput,
)
from trainer.stored_inputs import FittedText


class Embedding(nn.Module):
    """Category index (rows,) → a learnt vector (rows, dim); that of index 0 is zero where no training row has it."""

    def __init__(self, classes: int, dim: int, *, unknown: bool = True) -> None:
        super().__init__()
        self.table = nn.Embedding(classes, dim)
        nn.init.normal_(self.table.weight, std=dim**-0.5)  # about length 1, as sentence vectors have
        if not unknown:
            with torch.no_grad():
                self.table.weight[0] = 0.0  # no gradient moves it

    def forward(self, index: Tensor) -> Tensor:
        vector: Tensor = self.table(index)
        return vector


class OneHot(nn.Module):
    """Category index (rows,) → (rows, dim), 1 in its column; index 0 has none where no training row has it."""

    def __init__(self, classes: int, *, unknown: bool = True) -> None:
        super().__init__()
        self.classes = classes
        self.first = 0 if unknown else 1
        self.dim = classes - self.first

    def forward(self, index: Tensor) -> Tensor:
        return functional.one_hot(index, self.classes)[:, self.first :].float()


class MultiHot(nn.Module):
    """The items of a set, (rows, vocabulary) 0 and 1 of any dtype → the same as float32."""

    def forward(self, items: Tensor) -> Tensor:
        return items.float()


class EmbeddingSum(nn.Module):
    """The items of a set, (rows, vocabulary) 0 and 1 of any dtype → the sum (rows, dim) of their learnt vectors."""

    def __init__(self, vocabulary: int, dim: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.empty(vocabulary, dim))
        nn.init.normal_(self.table, std=dim**-0.5)

    def forward(self, items: Tensor) -> Tensor:
        return items.float() @ self.table


def input_encoder(
    feature: InputFeature, state: Fitted | FittedText | LiveState, config: Config, *, weights: bool = True
) -> tuple[nn.Module, int]:
    """The module of an input, and the width of the vector it gives. Its weights are fresh, or pretrained ones.

    Without ``weights``, a module that would have pretrained ones is on the meta device.
    """
    match feature, state:
        case TextInput() | ImageInput(), LiveState(dim=dim):
            from trainer.live.build import live_encoder  # transformers: not where all encoders are frozen

            return live_encoder(feature, state, config, weights=weights), dim
        case _, FittedText(dim=dim):
            return nn.Identity(), dim
        case CategoryInput(encoder=OnehotCategory()), FittedCategory(vocabulary=vocabulary, unknown=unknown):
            onehot = OneHot(len(vocabulary), unknown=unknown)
            return onehot, onehot.dim
        case CategoryInput(encoder=DenseCategory(embedding_size=size)), FittedCategory(vocabulary=vocabulary):
            dim = min(size, len(vocabulary))
            return Embedding(len(vocabulary), dim, unknown=state.unknown), dim
        case SetInput(encoder=OnehotSet()), FittedSet(vocabulary=vocabulary):
            return MultiHot(), len(vocabulary)
        case SetInput(encoder=EmbedSet(embedding_size=size)), FittedSet(vocabulary=vocabulary):
            dim = min(size, len(vocabulary))
            return EmbeddingSum(len(vocabulary), dim), dim
        case VectorInput(encoder=DenseVector() as encoder), FittedVector(dim=width):
            stack = FullyConnected(width, encoder.layers())
            return stack, stack.dim
        case VectorInput(encoder=PassthroughVector()), FittedVector(dim=width):
            return nn.Identity(), width
        case _, FittedDate(dim=width):
            return nn.Identity(), width
        case _:
            return nn.Identity(), 1
