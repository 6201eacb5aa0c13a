"""The model: encoders (the identity where vectors are stored) → combiner → decoders, in one forward."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from trainer.batches import Batch
from trainer.decoders import Decoder


@dataclass(frozen=True, slots=True)
class Output:
    """Scores by output feature; ``losses`` (unweighted) and their weighted sum ``loss`` when the batch had targets."""

    scores: Mapping[str, Tensor]
    losses: Mapping[str, Tensor]
    loss: Tensor | None


class Model(nn.Module):
    """Encoders, combiner and decoders by feature name.

    ``live`` names the inputs whose encoder runs in the loop, ``missing`` the inputs whose vector is followed by a 1-wide
    indicator; ``weights`` are those of the losses in their sum.
    """

    def __init__(
        self,
        encoders: Mapping[str, nn.Module],
        missing: Collection[str],
        combiner: nn.Module,
        decoders: Mapping[str, Decoder],
        weights: Mapping[str, float],
        live: Collection[str] = (),
    ) -> None:
        super().__init__()
        self.live = frozenset(live)
        self.inputs = tuple(encoders)
        self.outputs = tuple(decoders)
        self.missing = frozenset(missing)
        self.weights = dict(weights)
        self.encoders = nn.ModuleDict({_key(name): encoder for name, encoder in encoders.items()})
        self.combiner = combiner
        self.decoders = nn.ModuleDict({_key(name): decoder for name, decoder in decoders.items()})

    def decoder(self, name: str) -> Decoder:
        """The decoder of output feature ``name``."""
        return cast("Decoder", self.decoders[_key(name)])

    def encoder(self, name: str) -> nn.Module:
        """The encoder of input feature ``name``."""
        return self.encoders[_key(name)]

    def input_of(self, parameter: str) -> str | None:
        """The live input that a parameter of this name belongs to, None for the rest of the model."""
        return next((name for name in self.live if parameter.startswith(f"encoders.{_key(name)}.")), None)

    def encode(self, batch: Batch) -> dict[str, Tensor]:
        """The vector (rows, dim) of every input, with its indicator."""
        vectors: dict[str, Tensor] = {}
        for name, encoder in zip(self.inputs, self.encoders.values(), strict=True):
            vector = encoder(batch.inputs[name])
            if name in self.missing:
                vector = torch.cat([vector, batch.missing[name]], dim=1)
            vectors[name] = vector
        return vectors

    def forward(self, batch: Batch) -> Output:
        combined = self.combiner(self.encode(batch))
        scores: dict[str, Tensor] = {}
        losses: dict[str, Tensor] = {}
        total: Tensor | None = None
        for name in self.outputs:
            decoder = self.decoder(name)
            scores[name] = decoder(combined)
            if name in batch.targets:
                losses[name] = decoder.loss(scores[name], batch.targets[name])
                weight = self.weights[name]
                weighted = losses[name] if weight == 1.0 else losses[name] * weight
                total = weighted if total is None else total + weighted
        return Output(scores, losses, total)


def _key(name: str) -> str:
    # torch allows no dot in a module's name, and none that is an attribute ("type", "keys")
    return "feature:" + name.replace("%", "%25").replace(".", "%2E")
