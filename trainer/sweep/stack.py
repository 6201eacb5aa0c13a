"""Several models of one shape as one: scores, losses and metrics of every trial in one pass."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from trainer.batches import Batch, Batches
from trainer.decoders import Classifier, Decoder, SoftmaxCrossEntropy
from trainer.metrics import COMBINED
from trainer.model import Model
from trainer.sweep.layers import Draws, Parameters, Stacker, Unstackable
from trainer.tally import Metrics

_PENDING_SCORES = 1 << 17  # scores of all trials that wait until there are enough for one call to be worth it
_ALIKE_ROWS = 8


@dataclass(frozen=True, slots=True)
class StackBatch:
    """The rows of one step: tensors of a Batch with the trials as second dimension, which is 1 where all have the same rows."""

    inputs: Mapping[str, Tensor]
    missing: Mapping[str, Tensor]
    targets: Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class StackOutput:
    """Scores (rows, trials, …) by output; losses (trials,), unweighted, and their weighted sum ``loss``."""

    scores: Mapping[str, Tensor]
    losses: Mapping[str, Tensor]
    loss: Tensor


class Stack:
    """Models of equal shapes whose parameters become views of stacked ones. Raises Unstackable.

    The models stay whole: their optimizers step them, their weights can be read and loaded. Only one stack at a time.
    """

    def __init__(self, models: Sequence[Model], draws: Draws) -> None:
        first = models[0]
        self.models = tuple(models)
        self.parameters = Parameters()
        self._stacker = Stacker(self.parameters, draws)
        encoders = zip(*(model.encoders.values() for model in models), strict=True)
        self._encoders = [self._stacker.encoder(modules) for modules in encoders]
        self._combiner = self._stacker.combiner([model.combiner for model in models])
        self._decoders = {
            name: self._stacker.decoder([model.decoder(name) for model in models]) for name in first.outputs
        }
        if not self.parameters.whole(models):
            raise Unstackable("a part of the model has parameters that several trials cannot have in common")

    def train(self, training: bool) -> None:
        """Whether dropout draws and norms learn, as nn.Module.train."""
        self._stacker.training = training
        for model in self.models:
            model.train(training)

    def __call__(self, batch: StackBatch) -> StackOutput:
        model = self.models[0]
        vectors: dict[str, Tensor] = {}
        for name, encoder in zip(model.inputs, self._encoders, strict=True):
            vector = encoder(batch.inputs[name])
            if name in model.missing:
                vector = torch.cat([vector, batch.missing[name].expand(-1, vector.shape[1], -1)], dim=2)
            vectors[name] = vector
        combined = self._combiner(vectors)
        scores = {name: decoder(combined) for name, decoder in self._decoders.items()}
        losses = {name: self._losses(name, scores[name], targets) for name, targets in batch.targets.items()}
        return StackOutput(
            scores, losses, sum((losses[name] * model.weights[name] for name in losses), torch.zeros(()))
        )

    def alike(self, batches: Batches) -> bool:
        """Whether the stack scores some rows as its models do, one by one: nothing of them was overlooked."""
        batch = next(batches.in_order(_ALIKE_ROWS))
        self.train(False)
        with torch.inference_mode():
            found = self(spread(batch)).scores
            for place, model in enumerate(self.models):
                for name, scores in model(batch).scores.items():
                    if not torch.allclose(
                        found[name][:, place], scores, rtol=1e-3, atol=1e-4 * float(scores.abs().max())
                    ):
                        return False
        return True

    def _losses(self, name: str, scores: Tensor, targets: Tensor) -> Tensor:
        """The loss of every trial, (trials,)."""
        decoder = self.models[0].decoder(name)
        trials = len(self.models)
        if isinstance(decoder, Classifier) and _plain(decoder):
            wanted = targets.expand(-1, trials)
            rows = functional.cross_entropy(
                scores.float().reshape(-1, scores.shape[2]),
                wanted.reshape(-1),
                reduction="none",
                weight=decoder.class_weights,
                label_smoothing=getattr(decoder.error, "label_smoothing", 0.0),
            ).view(-1, trials)
            if decoder.class_weights is None:
                return rows.mean(dim=0)
            return rows.sum(dim=0) / decoder.class_weights[wanted].sum(dim=0)
        places = zip(scores.unbind(1), targets.expand(-1, trials, *targets.shape[2:]).unbind(1), strict=True)
        return torch.stack([decoder.loss(own, wanted) for own, wanted in places])


def spread(batch: Batch) -> StackBatch:
    """One batch for all trials."""
    inputs = {
        name: values for name, values in batch.inputs.items() if isinstance(values, Tensor)
    }  # no cells in a stack
    groups = (inputs, batch.missing, batch.targets)
    return StackBatch(*({name: tensor.unsqueeze(1) for name, tensor in group.items()} for group in groups))


def shuffled(
    train: Batches, batch_size: int, orders: Sequence[torch.Generator], of: Sequence[int]
) -> Iterator[StackBatch]:
    """Every row once for every trial, in the order that its generator, ``orders[of[trial]]``, draws."""
    if len(orders) == 1:
        yield from map(spread, train.shuffled(batch_size, orders[0]))
        return
    for batches in zip(*(train.shuffled(batch_size, order) for order in orders), strict=True):
        yield StackBatch(
            *(
                {name: torch.stack([getattr(batches[place], group)[name] for place in of], dim=1) for name in names}
                for group, names in (
                    ("inputs", batches[0].inputs),
                    ("missing", batches[0].missing),
                    ("targets", batches[0].targets),
                )
            )
        )


class StackTally:
    """Losses and predictions of every trial in a pass over the data, as ``trainer.tally.Tally`` has them of one model."""

    def __init__(self, stack: Stack) -> None:
        self._models = stack.models
        outputs = stack.models[0].outputs
        self._pending: list[tuple[Mapping[str, Tensor], Mapping[str, Tensor]]] = []
        self._pending_scores = 0
        self._observed: dict[str, list[dict[str, Tensor]]] = {name: [] for name in outputs}
        self._losses: dict[str, list[Tensor]] = {name: [] for name in outputs}
        self._weights: dict[str, list[Tensor]] = {name: [] for name in outputs}
        self._totals: list[Tensor] = []

    def add(self, output: StackOutput, batch: StackBatch) -> None:
        """Take one batch."""
        self._totals.append(output.loss.detach())
        for name, loss in output.losses.items():
            self._losses[name].append(loss.detach())
        scores = {name: tensor.detach() for name, tensor in output.scores.items()}
        self._pending.append((scores, batch.targets))
        self._pending_scores += sum(tensor.numel() for tensor in scores.values())
        if self._pending_scores >= _PENDING_SCORES:
            self._reduce()

    def first_bad_steps(self) -> list[int | None]:
        """Of every trial the first step, from 0, whose loss is NaN or infinite."""
        bad = ~torch.isfinite(torch.stack(self._totals))
        return [int(column.nonzero()[0].item()) if column.any() else None for column in bad.unbind(1)]

    def metrics(self) -> list[Metrics]:
        """Of every trial what ``Tally.metrics`` would give of it alone."""
        self._reduce()
        found: list[Metrics] = [{} for _ in self._models]
        for name, parts in self._observed.items():
            observed = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
            losses = torch.stack(self._losses[name]).double().cpu()
            weights = torch.stack(self._weights[name]).double().cpu()
            for place, model in enumerate(self._models):
                decoder = model.decoder(name)
                loss = decoder.joined_loss(losses[:, place], weights[:, place if weights.shape[1] > 1 else 0])
                own = {key: values[:, place].contiguous() for key, values in observed.items()}
                found[place][name] = {"loss": loss, **decoder.metrics(own)}
        for metrics in found:
            if len(metrics) > 1:
                whole = (metrics[name]["loss"] * weight for name, weight in self._models[0].weights.items())
                metrics[COMBINED] = {"loss": sum(whole, 0.0)}
        return found

    def _reduce(self) -> None:
        if not self._pending:
            return
        trials = len(self._models)
        for name, observed in self._observed.items():
            decoder = self._models[0].decoder(name)
            measured = tuple(dict.fromkeys(metric for each in self._models for metric in each.decoder(name).measured))
            self._weights[name] += [_loss_weights(decoder, targets[name]) for _, targets in self._pending]
            scores = torch.cat([scores[name] for scores, _ in self._pending])
            targets = torch.cat([targets[name] for _, targets in self._pending])
            targets = targets.expand(-1, trials, *targets.shape[2:])
            seen = decoder.observe(scores.flatten(0, 1), targets.flatten(0, 1), measured)
            observed.append({key: values.view(-1, trials, *values.shape[1:]) for key, values in seen.items()})
        self._pending.clear()
        self._pending_scores = 0


def _plain(decoder: Classifier) -> bool:
    """Whether its loss is cross entropy, class weights and label smoothing at most."""
    return type(decoder.error) is SoftmaxCrossEntropy and decoder.error.confidence_penalty == 0


def _loss_weights(decoder: Decoder, targets: Tensor) -> Tensor:
    """What the loss of each trial was divided by, (trials or 1,)."""
    first = decoder.loss_weight(targets[:, 0])
    if isinstance(first, int):
        return torch.full((1,), first)
    return torch.stack([torch.as_tensor(decoder.loss_weight(own)) for own in targets.unbind(1)])
