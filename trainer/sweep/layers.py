"""Modules of several models as one: their parameters stacked, their inputs (rows, trials, features).

A tensor whose trials are one, (rows, 1, features), is the same to all: what every model computes of it is then one product
of matrices, (rows × features) · (features × trials·out), instead of one per model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainer.combiners.concat import Concat
from trainer.decoders import BinaryDecoder, Classifier, NumberDecoder, SetDecoder, VectorDecoder
from trainer.encoders import Embedding, EmbeddingSum
from trainer.layers import Dropout, FullyConnected, Residual

Apply: TypeAlias = Callable[[Tensor], Tensor]

_BY_ELEMENT: Final = (nn.Identity, nn.ReLU, nn.GELU, nn.Tanh, nn.Sigmoid, nn.ELU, nn.LeakyReLU)
_DECODERS: Final = {  # the name of the last layer
    **{Classifier: "scores", SetDecoder: "scores", VectorDecoder: "values"},
    **{BinaryDecoder: "score", NumberDecoder: "value"},  # which give one number a row, without a dimension of its own
}


class Unstackable(Exception):
    """A module that is not one of those here; names it. Not an error: its models train one by one."""


class Parameters:
    """The parameters of several models of equal shapes, each one tensor (trials, …) that the models' own are views of."""

    def __init__(self) -> None:
        self._pairs: list[tuple[Tensor, tuple[nn.Parameter, ...]]] = []

    def join(self, parameters: Sequence[nn.Parameter]) -> Tensor:
        """The stacked tensor, a leaf that takes gradients."""
        stacked = torch.stack([parameter.detach() for parameter in parameters])
        for parameter, view in zip(parameters, stacked.unbind(), strict=True):
            parameter.data = view
        leaf = stacked.requires_grad_()
        self._pairs.append((leaf, tuple(parameters)))
        return leaf

    @property
    def leaves(self) -> list[Tensor]:
        """The stacked tensors."""
        return [leaf for leaf, _ in self._pairs]

    def whole(self, models: Sequence[nn.Module]) -> bool:
        """Whether every parameter of ``models`` is in."""
        joined = {id(parameter) for _, parameters in self._pairs for parameter in parameters}
        return all(id(parameter) in joined for model in models for parameter in model.parameters())

    def share_gradients(self) -> None:
        """Give every model's parameter its part of the gradients, which the next backward pass begins anew."""
        for leaf, parameters in self._pairs:
            if leaf.grad is not None:
                for parameter, gradient in zip(parameters, leaf.grad.unbind(), strict=True):
                    parameter.grad = gradient
                leaf.grad = None


class Draws:
    """The generators that the dropout of each model draws from, as torch's global one does when it trains alone.

    Models of equal seed and rates draw the same, once.
    """

    def __init__(self, states: Sequence[Tensor], keys: Sequence[object]) -> None:
        places = {key: place for place, key in reversed(list(enumerate(keys)))}
        self._first = [place for place, key in enumerate(keys) if places[key] == place]
        self.group = torch.tensor([self._first.index(places[key]) for key in keys])
        self.generators = [torch.Generator() for _ in self._first]
        for generator, place in zip(self.generators, self._first, strict=True):
            generator.set_state(states[place])
        self._keys = list(keys)

    def of(self, places: Sequence[int]) -> Draws:
        """Of the models at ``places`` alone, where they stand."""
        states = [self.generators[int(self.group[place])].get_state() for place in places]
        return Draws(states, [self._keys[place] for place in places])

    def masks(self, rows: int, features: int, rates: Sequence[float]) -> Tensor:
        """What to multiply (rows, trials, features) with: 0 or 1 / (1 - rate), trials 1 where all are equal."""
        drawn = [
            torch.empty(rows, features).bernoulli_(1 - rates[place], generator=generator).div_(1 - rates[place])
            for generator, place in zip(self.generators, self._first, strict=True)
        ]
        masks = torch.stack(drawn, dim=1)
        return masks if len(drawn) == 1 else masks.index_select(1, self.group)


class Stacker:
    """Turns the modules that stand in one place of several models into one function; ``training`` as of nn.Module."""

    def __init__(self, parameters: Parameters, draws: Draws) -> None:
        self.training = True
        self._parameters, self._draws = parameters, draws

    def stack(self, modules: Sequence[nn.Module]) -> Apply:
        """Raises Unstackable for a module it does not know, which is one of any class but exactly those below."""
        first = modules[0]
        kind = type(first)
        if kind in _BY_ELEMENT:
            return first
        match first:
            case nn.Sequential() if kind is nn.Sequential:
                return _chain([self.stack(group) for group in zip(*modules, strict=True)])
            case nn.Linear() if kind is nn.Linear:
                return self._linear(modules)
            case nn.LayerNorm() if kind is nn.LayerNorm:
                return self._layer_norm(modules)
            case nn.BatchNorm1d():
                # it cancels the bias before it, whose gradient is rounding errors, which Adam turns into full steps: curves
                # are the same only where the sums are taken in the same order
                raise Unstackable("batch norm gives the same curves only to the same sequence of sums")
            case Dropout() if kind is Dropout:
                return self._dropout(modules)
            case FullyConnected() if kind is FullyConnected and set(first._modules) == {"layers"}:
                return self.stack([getattr(module, "layers") for module in modules])  # noqa: B009
            case Residual() if kind is Residual and set(first._modules) == {"block"}:
                block = self.stack([getattr(module, "block") for module in modules])  # noqa: B009
                return lambda values: values + block(values)
        raise Unstackable(f"{kind.__name__} has no form for several trials")

    def encoder(self, modules: Sequence[nn.Module]) -> Apply:
        """(rows, 1 or trials) or (rows, 1 or trials, features) of a batch → (rows, 1 or trials, features)."""
        first = modules[0]
        if type(first) is nn.Identity:
            return first
        if not any(True for _ in (*first.parameters(), *first.buffers())):
            return lambda values: first(values.flatten(0, 1)).unflatten(0, values.shape[:2])
        if type(first) is Embedding:
            return self._embedding([getattr(module, "table") for module in modules])  # noqa: B009
        if type(first) is EmbeddingSum:
            tables = self._parameters.join([_parameter(module, "table") for module in modules])
            return lambda items: torch.matmul(items.transpose(0, 1).float(), tables).transpose(0, 1)
        return self.stack(modules)

    def combiner(self, modules: Sequence[nn.Module]) -> Callable[[dict[str, Tensor]], Tensor]:
        """Vectors by feature name → (rows, 1 or trials, features)."""
        first = modules[0]
        if type(first) is not Concat or set(first._modules) != {"stack"}:
            raise Unstackable(f"the combiner {type(first).__name__} has no form for several trials")
        names = first.names
        stack = self.stack([getattr(module, "stack") for module in modules])  # noqa: B009
        return lambda vectors: stack(_joined([vectors[name] for name in names]))

    def decoder(self, modules: Sequence[nn.Module]) -> Apply:
        """(rows, 1 or trials, features) → scores (rows, trials, classes) or (rows, trials)."""
        first = modules[0]
        last = _DECODERS.get(type(first))  # type: ignore[call-overload]
        if last is None or set(first._modules) != {"stack", last}:
            raise Unstackable(f"the decoder {type(first).__name__} has no form for several trials")
        stack = self.stack([getattr(module, "stack") for module in modules])  # noqa: B009
        scores = self.stack([getattr(module, last) for module in modules])
        if last in ("scores", "values"):
            return lambda combined: scores(stack(combined))
        return lambda combined: scores(stack(combined)).squeeze(2)

    def _embedding(self, modules: Sequence[nn.Module]) -> Apply:
        tables = self._parameters.join([_parameter(module, "weight") for module in modules])
        trials, classes, dim = tables.shape
        first = torch.arange(trials, device=tables.device) * classes
        return lambda index: functional.embedding(index + first, tables.view(-1, dim))

    def _linear(self, modules: Sequence[nn.Module]) -> Apply:
        weight = self._parameters.join([_parameter(module, "weight") for module in modules])
        bias = None
        if modules[0].bias is not None:
            bias = self._parameters.join([_parameter(module, "bias") for module in modules])
        trials, out, dim = weight.shape

        def apply(values: Tensor) -> Tensor:
            rows = values.shape[0]
            if values.shape[1] == 1:
                flat = None if bias is None else bias.view(-1)
                return functional.linear(values[:, 0], weight.view(trials * out, dim), flat).view(rows, trials, out)
            each, turned = values.transpose(0, 1), weight.transpose(1, 2)
            product = torch.bmm(each, turned) if bias is None else torch.baddbmm(bias[:, None], each, turned)
            return product.transpose(0, 1)

        return apply

    def _layer_norm(self, modules: Sequence[nn.Module]) -> Apply:
        weight = self._parameters.join([_parameter(module, "weight") for module in modules])
        bias = self._parameters.join([_parameter(module, "bias") for module in modules])
        eps = modules[0].eps
        return lambda values: functional.layer_norm(values, weight.shape[1:], eps=float(eps)) * weight + bias  # type: ignore[arg-type]

    def _dropout(self, modules: Sequence[nn.Module]) -> Apply:
        rates = [float(module.rate) for module in modules]  # type: ignore[arg-type]

        def apply(values: Tensor) -> Tensor:
            if not self.training:
                return values
            return values * self._draws.masks(values.shape[0], values.shape[2], rates)

        return apply


def _chain(parts: Sequence[Apply]) -> Apply:
    def apply(values: Tensor) -> Tensor:
        for part in parts:
            values = part(values)
        return values

    return apply


def _joined(parts: Sequence[Tensor]) -> Tensor:
    trials = max(part.shape[1] for part in parts)
    return parts[0] if len(parts) == 1 else torch.cat([part.expand(-1, trials, -1) for part in parts], dim=2)


def _parameter(module: object, name: str) -> nn.Parameter:
    found = getattr(module, name)
    assert isinstance(found, nn.Parameter)
    return found
