"""What a run would take, before it begins: rows, steps, parameters, and the memory of a worker under each strategy. No weights are read."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

import numpy as np
import torch
from torch import nn

from cachestore.encoders.spec import resolve
from cachestore.errors import ConfigError
from cachestore.store import Store
from trainer import rows
from trainer.assemble import State, build_model
from trainer.events import Clock, Listener
from trainer.fitting import build_optimizer
from trainer.live.check import check_models, without_draws
from trainer.live.columns import LiveColumn
from trainer.model import Model
from trainer.prepare import Divided, divide
from trainer.schema import Config
from trainer.schema.inputs import EncodedInput, InputFeature
from trainer.schema.optimizers import LBFGS, SGD
from trainer.schema.preparation import RandomSplit
from trainer.schema.training import TrainerConfig
from trainer.stored_inputs import FittedText
from trainer.strategies import Trained, trained_of

TRIED: Final = 8  # rows at once where ``batch_size: auto`` is found by trying
_CACHED: Final = 128  # what auto is where no encoder is trained
_WORKERS: Final = 2  # shown of strategies whose workers are not counted yet


@dataclass(frozen=True)
class EncoderNeeds:
    """Of an input: ``model`` is its architecture. ``tokens`` of the training rows, and of the ``longest`` cell; ``activations`` in bytes,
    of as many of the longest cells as a step has at once. None: not known, or it has none.
    """

    name: str
    mode: str
    model: str | None
    dim: int
    parameters: int = 0
    trained: int = 0
    tokens: int | None = None
    longest: int | None = None
    activations: int | None = None


@dataclass(frozen=True)
class Memory:
    """Bytes of one worker. ``gathered``: weights of other shards while they are computed with, and gradients under way.

    ``best`` are the weights of the best epoch. Neither torch itself nor what is in use for a moment is among them.
    """

    strategy: str
    workers: int
    weights: int
    gradients: int
    optimizer: int
    best: int
    activations: int
    gathered: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.gradients + self.optimizer + self.best + self.activations + self.gathered


@dataclass(frozen=True)
class Estimate:
    """``head_parameters``: of everything but encoders in the loop. ``steps`` is 0 where early stop alone ends a run.

    ``rows``: training rows; ``at_once``: how many of them a forward pass has, of all workers; ``chosen``: the strategy of the config,
    ``workers`` how many it has; None in Ray, where the cluster says it.
    """

    encoders: tuple[EncoderNeeds, ...]
    head_parameters: int
    rows: int
    at_once: int
    measured_batch: bool
    step_rows: int
    steps_per_epoch: int
    steps: int
    memory: tuple[Memory, ...]
    chosen: str
    workers: int | None

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "memory": [{**asdict(each), "total": each.total} for each in self.memory]}


def estimate(
    config: Config,
    data: Any,
    store: Store,
    *,
    validation: Any = None,
    test: Any = None,
    progress: Listener | None = None,
) -> Estimate:
    """What training ``config`` on ``data`` would take. The data is read and its texts are tokenised; nothing is encoded or written.

    Raises what ``train`` would before its first step.
    """
    check_models(config, store)
    given = {"train": data, "validation": validation, "test": test}
    sources = {name: source for name, source in given.items() if source is not None}
    if config.preprocessing.split is None and len(sources) == 1:
        preprocessing = config.preprocessing.model_copy(update={"split": RandomSplit()})
        config = config.model_copy(update={"preprocessing": preprocessing})
    plain = _without_auto(without_draws(config))
    divided = divide(plain, sources, Clock(progress))
    train = (divided.parts == 0) & divided.tables["train"].usable
    states, columns = _states(plain, divided, train, store)
    model = build_model(plain, states, weights=False)
    trained = trained_of(model)
    count, (at_once, step_rows) = int(train.sum()), _batch(plain)
    per_epoch = math.ceil(count / step_rows)
    encoders = tuple(
        _needs(plain, feature, states[feature.name], model, columns, train, min(at_once, max(count, 1)))
        for feature in plain.input_features
        if isinstance(feature, EncodedInput)
    )
    return Estimate(
        encoders=encoders,
        head_parameters=sum(
            parameter.numel() for name, parameter in model.named_parameters() if model.input_of(name) is None
        ),
        rows=count,
        at_once=at_once,
        measured_batch=plain.trainer.batch_size == "auto" and bool(plain.trained),
        step_rows=step_rows,
        steps_per_epoch=per_epoch,
        steps=plain.trainer.train_steps or per_epoch * plain.trainer.epochs,
        memory=tuple(_memory(plain, model, trained, encoders)),
        chosen=(plain.backend.trainer.strategy if plain.live else None) or "one process",
        workers=_workers(plain),
    )


def _without_auto(config: Config) -> Config:
    """The config with float32 for ``precision: auto``, which may have to be measured, and that takes weights."""
    inputs: list[InputFeature] = []
    for feature in config.input_features:
        if isinstance(feature, EncodedInput) and getattr(feature.encoder, "precision", None) == "auto":
            encoder = feature.encoder.model_copy(update={"precision": "float32"})
            inputs.append(feature.model_copy(update={"encoder": encoder}))
        else:
            inputs.append(feature)
    return config.model_copy(update={"input_features": tuple(inputs)})


def _states(
    config: Config, divided: Divided, train: np.ndarray[Any, np.dtype[np.bool_]], store: Store
) -> tuple[dict[str, State], dict[str, LiveColumn]]:
    """What features are to the model, and the cells of live ones."""
    states: dict[str, State] = dict(rows.fit(config, divided.tables["train"], train, divided.opened["train"].label))
    for feature in config.cached:
        found = resolve(feature.encoder, digest=store.digest, known=store.knows)
        states[feature.name] = FittedText(found.dim, False, found.spec)
    if not config.live:
        return states, {}
    from trainer.live.inputs import read_live  # transformers: not where all encoders are frozen

    columns = read_live(config, divided.opened["train"], store)
    states.update({name: column.fitted(train) for name, column in columns.items()})
    return states, columns


def _batch(config: Config) -> tuple[int, int]:
    """Rows at once, and of a step."""
    trainer: TrainerConfig = config.trainer
    if isinstance(trainer.optimizer, LBFGS):
        raise ConfigError(
            "--dry-run: lbfgs sees all rows at every step, and keeps no more than the head; just train it"
        )
    whole, size, times = trainer.effective_batch_size, trainer.batch_size, trainer.gradient_accumulation_steps
    usual = min(TRIED if config.trained else _CACHED, trainer.max_batch_size)
    if whole != "auto":
        if size != "auto":
            return size, whole
        return (min(usual, whole) if times == "auto" else whole // times), whole
    at_once = usual if size == "auto" else size
    return at_once, at_once * (1 if times == "auto" else times)


def _needs(
    config: Config,
    feature: EncodedInput,
    state: Any,
    model: Model,
    columns: Mapping[str, LiveColumn],
    train: np.ndarray[Any, np.dtype[np.bool_]],
    at_once: int,
) -> EncoderNeeds:
    spec = state.spec
    named = spec.get("model_type") or spec.get("architecture") or spec.get("kind")
    found = EncoderNeeds(feature.name, feature.tuning.mode if feature.live else "cached", str(named), state.dim)
    if not feature.live:
        return found
    parameters = list(model.encoder(feature.name).parameters())
    found = replace(
        found,
        parameters=sum(each.numel() for each in parameters),
        trained=sum(each.numel() for each in parameters if each.requires_grad),
    )
    cells = columns[feature.name].filled(state).take(np.flatnonzero(train))
    if not len(cells):
        return found
    lengths = cells.lengths()
    if feature.type == "text":
        found = replace(found, tokens=int(lengths.sum()), longest=int(lengths.max()))
    if found.mode == "frozen":
        return replace(found, activations=0)
    from trainer.live.build import live_encoder
    from trainer.live.tracing import kept

    checkpointing = config.trainer.enable_gradient_checkpointing
    unchecked = config.trainer.model_copy(update={"enable_gradient_checkpointing": False})
    encoder = live_encoder(feature, state, config.model_copy(update={"trainer": unchecked}), weights=False)
    row = encoder.tensors(cells.take(np.asarray([int(lengths.argmax())], np.int64)))
    measured = kept(encoder.module, row, at_once, mixed_precision=config.trainer.use_mixed_precision)
    return replace(found, activations=None if measured is None else measured.total(checkpointing=checkpointing))


def _workers(config: Config) -> int | None:
    chosen = config.backend.trainer
    if chosen.strategy is None or not config.live:  # heads alone are trained in one process
        return 1
    if chosen.num_workers != "auto":
        return chosen.num_workers
    return None if config.backend.type == "ray" else max(1, torch.cuda.device_count())


def _memory(
    config: Config, model: Model, trained: Sequence[Trained], encoders: Sequence[EncoderNeeds]
) -> Iterable[Memory]:
    """Of one process, ddp and fsdp: what is sharded is divided by the workers (ZeRO stage 3, Rajbhandari et al. 2020, section 5)."""
    of_encoders = [each for each in trained if each.encoder is not None]
    of_head = [each for each in trained if each.encoder is None]
    live_weights = sum(_bytes(model.encoder(name).parameters()) for name in model.live)
    head_weights = _bytes(model.parameters()) - live_weights
    buffers = _bytes(model.buffers())
    live_trained, head_trained = _trained_bytes(of_encoders), _trained_bytes(of_head)
    live_state, head_state = (_state_bytes(config, part) for part in (of_encoders, of_head))
    activations = sum(each.activations or 0 for each in encoders)
    counted = _workers(config) or _WORKERS
    for strategy in ("one process", "ddp", "fsdp") if model.live else ("one process",):
        workers = 1 if strategy == "one process" else max(counted, _WORKERS)
        shards = workers if strategy == "fsdp" else 1
        gathered = live_trained + head_trained if strategy == "ddp" else 0
        if strategy == "fsdp":
            gathered = sum(_largest_units(model.encoder(name)) for name in model.live)
        yield Memory(
            strategy=strategy,
            workers=workers,
            weights=head_weights + buffers + math.ceil(live_weights / shards),
            gradients=head_trained + math.ceil(live_trained / shards),
            optimizer=head_state + math.ceil(live_state / shards),
            best=head_trained + math.ceil(live_trained / shards),
            activations=math.ceil(activations / workers),
            gathered=gathered,
        )


def _largest_units(encoder: nn.Module) -> int:
    """What fsdp has whole at once: all that is in no block, and two blocks, one of them on its way."""
    from trainer.live.freezing import blocks

    sizes = sorted(_bytes(block.parameters()) for block in blocks(encoder))
    return _bytes(encoder.parameters()) - sum(sizes) + sum(sizes[-2:])


def _state_bytes(config: Config, trained: Sequence[Trained]) -> int:
    """What the optimizer keeps of these parameters: its state is made on their device, so of those on the meta device nothing is."""
    settings = config.trainer.optimizer
    if not trained or isinstance(settings, LBFGS):
        return 0
    if isinstance(settings, SGD):  # whose state is made at the first step
        return _trained_bytes(trained) if settings.momentum else 0
    return _bytes(build_optimizer(config, trained).state_dict().values())


def _trained_bytes(trained: Sequence[Trained]) -> int:
    return _bytes(each.parameter for each in trained)


def _bytes(tensors: Iterable[torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
