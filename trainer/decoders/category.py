"""The category decoder: one score per class, softmax cross entropy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from cachestore.errors import ConfigError, nearest
from trainer import metrics
from trainer.frozen import Frozen
from trainer.layers import DecoderLayers, FcLayer, FullyConnected, LossWeight, Positive


class SoftmaxCrossEntropy(Frozen):
    """``weight`` of this output in the sum over outputs; ``class_weights`` by class name, 1 where none is given."""

    type: Literal["softmax_cross_entropy"] = "softmax_cross_entropy"
    weight: LossWeight = 1.0
    class_weights: Mapping[str, Positive] | None = None


class CategoryClassifier(DecoderLayers):
    """Settings of the category decoder."""

    type: Literal["classifier"] = "classifier"

    def build(self, dim: int, classes: Sequence[str], loss: SoftmaxCrossEntropy, top_k: int, where: str) -> Classifier:
        """The module for combined vectors of width ``dim``; ``where`` names the output in messages.

        Raises ConfigError when a class weight names no class.
        """
        weights = None
        if loss.class_weights is not None:
            for name in loss.class_weights:
                if name not in classes:
                    raise ConfigError(
                        f"{where}.loss.class_weights.{name}: the training rows have no such class"
                        + nearest(name, classes)
                    )
            weights = [loss.class_weights.get(name, 1.0) for name in classes]
        return Classifier(dim, tuple(classes), self.layers(), weights, top_k)


class Classifier(nn.Module):
    """(batch, dim) → scores (batch, classes); targets are class indices, int64 (batch,)."""

    default_metric: ClassVar[str] = "accuracy"
    metric_names: ClassVar[tuple[str, ...]] = ("loss", "accuracy", "hits_at_k", "f1_macro")

    def __init__(
        self,
        dim: int,
        classes: tuple[str, ...],
        layers: Sequence[FcLayer],
        class_weights: Sequence[float] | None,
        top_k: int,
    ) -> None:
        super().__init__()
        self.classes = classes
        self.top_k = top_k
        self.stack = FullyConnected(dim, layers)
        self.scores = nn.Linear(self.stack.dim, len(classes))
        self.class_weights: Tensor | None
        weights = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float32)
        self.register_buffer("class_weights", weights, persistent=False)

    def forward(self, combined: Tensor) -> Tensor:
        scores: Tensor = self.scores(self.stack(combined))
        return scores

    def loss(self, scores: Tensor, targets: Tensor) -> Tensor:
        """Mean cross entropy over the batch; with class weights, the weighted mean."""
        return functional.cross_entropy(scores.float(), targets, weight=self.class_weights)

    def loss_weight(self, targets: Tensor) -> Tensor | int:
        """The class weights of the batch's rows, summed; without class weights, its number of rows."""
        if self.class_weights is None:
            return len(targets)
        return self.class_weights[targets].sum()

    def observe(self, scores: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """What the metrics need of each row, one number each: (rows, classes) scores do not pile up over an epoch."""
        return {"predicted": scores.argmax(dim=1), "rank": metrics.rank(scores, targets), "target": targets}

    def metrics(self, observed: Mapping[str, Tensor]) -> dict[str, float]:
        """Metrics of all rows observed."""
        return {
            "accuracy": metrics.accuracy(observed["predicted"], observed["target"]),
            "hits_at_k": metrics.hits_at_k(observed["rank"], self.top_k),
            "f1_macro": metrics.f1_macro(observed["predicted"], observed["target"], len(self.classes)),
        }

    def predict(self, scores: Tensor) -> Tensor:
        """Probability of each class, float32 (rows, classes)."""
        return functional.softmax(scores.float(), dim=1)
