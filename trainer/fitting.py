"""The optimizer of a config, and the settings of the loop with every ``auto`` settled."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Final

import torch
from torch import nn

from cachestore.errors import ConfigError
from trainer import optim
from trainer.batches import Batches
from trainer.decoders import NumberDecoder
from trainer.epochs import FitSettings
from trainer.frozen import Frozen
from trainer.layers import Dropout
from trainer.model import Model
from trainer.optim import (
    Clipping,
    Groups,
    Lbfgs,
    Optimizer,
    Penalty,
    Plateau,
    Schedule,
    auto_encoder_rate,
    auto_learning_rate,
    functional,
)
from trainer.precision import autocast
from trainer.range_test import range_test
from trainer.schema import Config
from trainer.schema import optimizers as chosen
from trainer.schema.training import Scheduler, TrainerConfig
from trainer.strategies import Strategy, Trained, trained_of

# Linear head on MiniLM vectors, 20 epochs at the auto learning rate, best validation accuracy and seconds on one core:
# banking77 32 0.931 18.9, 64 0.931 8.3, 128 0.929 5.6, 256 0.924 5.3, 1024 0.908 3.4
# sentence polarity 32 0.770 9.9, 64 0.768 6.7, 128 0.766 2.9, 256 0.768, 1024 0.759
AUTO_BATCH_SIZE: Final = 128
_ROWS_AT_ONCE: Final = 4096  # of lbfgs, whose steps see all rows
_MEASURED_ROWS: Final = 4096
_ENCODED_ROWS: Final = 256  # where encoders have to run for it

_MAKERS: Final[Mapping[type[Frozen], Callable[..., Optimizer]]] = {
    chosen.Adadelta: functional.adadelta,
    chosen.Adafactor: functional.adafactor,
    chosen.Adagrad: functional.adagrad,
    chosen.Adamax: functional.adamax,
    chosen.Muon: functional.Muon,
    chosen.NAdam: functional.nadam,
    chosen.RAdam: functional.radam,
    chosen.RMSprop: functional.rmsprop,
}


def build_optimizer(
    config: Config, trained: Sequence[Trained], settings: FitSettings | None = None
) -> Optimizer | Lbfgs:
    """The optimizer of ``config`` on what is trained; each encoder learns at the rate that ``settings`` have for it."""
    chosen_type = config.trainer.optimizer
    if isinstance(chosen_type, chosen.LBFGS):
        return Lbfgs(
            [each.parameter for each in trained],
            max_iter=chosen_type.max_iter,
            max_eval=chosen_type.max_eval,
            tolerance_grad=chosen_type.tolerance_grad,
            tolerance_change=chosen_type.tolerance_change,
            history_size=chosen_type.history_size,
            line_search=chosen_type.line_search_fn is not None,
        )
    groups: dict[tuple[float, torch.device], list[nn.Parameter]] = {}
    factors = {} if settings is None else settings.encoder_factors
    for each in trained:
        factor = 1.0 if each.encoder is None else factors.get(each.encoder, 1.0)
        groups.setdefault((factor, each.parameter.device), []).append(each.parameter)
    if list(groups)[1:] or any(factor != 1.0 for factor, _ in groups):
        parts = [(_by_steps(chosen_type, each), factor) for (factor, _), each in groups.items()]
        return Groups([each.parameter for each in trained], parts)
    return _by_steps(chosen_type, [each.parameter for each in trained])


def _by_steps(settings: chosen.StepOptimizer, parameters: Iterable[nn.Parameter]) -> Optimizer:
    match settings:
        case chosen.Adam() | chosen.AdamW():
            return optim.Adam(
                parameters,
                betas=settings.betas,
                eps=settings.eps,
                weight_decay=settings.weight_decay,
                amsgrad=settings.amsgrad,
                decoupled=isinstance(settings, chosen.AdamW),
            )
        case chosen.SGD():
            return optim.Sgd(
                parameters,
                momentum=settings.momentum,
                dampening=settings.dampening,
                weight_decay=settings.weight_decay,
                nesterov=settings.nesterov,
            )
    make: Callable[..., Optimizer] = _MAKERS[type(settings)]
    return make(parameters, **settings.model_dump(exclude={"type"}))  # the settings of each are its keywords


def chosen_by(config: Config, model: Model) -> tuple[str, str]:
    """The output feature and its metric on the validation rows by which the best epoch is chosen."""
    field = config.validation_field
    return field, config.trainer.validation_metric or model.decoder(field).default_metric


def fit_settings(config: Config, model: Model, train: Batches, strategy: Strategy | None = None) -> FitSettings:
    """Settings of the loop; all ranks of ``strategy`` call it, after it wrapped the model, and get the same.

    Raises ConfigError for a learning rate or batch size that cannot go with the rest.
    """
    trainer = config.trainer
    batch_size, accumulation = _batch_sizes(trainer)
    _check_model(trainer, model, batch_size, train.rows)
    field, metric = chosen_by(config, model)
    kind, strength = trainer.regularization_type or "", trainer.regularization_lambda
    clipping = trainer.gradient_clipping
    settings = FitSettings(
        epochs=trainer.epochs,
        steps=trainer.train_steps,
        batch_size=batch_size,
        accumulation=accumulation,
        learning_rate=trainer.learning_rate if isinstance(trainer.learning_rate, float) else 0.0,
        validation_field=field,
        validation_metric=metric,
        eval_batch_size=trainer.eval_batch_size,
        schedule=_schedule(trainer.learning_rate_scheduler),
        plateau=_plateau(trainer.learning_rate_scheduler),
        clipping=Clipping(clipping.clipglobalnorm, clipping.clipnorm, clipping.clipvalue),
        penalty=Penalty(l1=strength if "l1" in kind else 0.0, l2=strength if "l2" in kind else 0.0),
        early_stop=trainer.early_stop,
        mixed_precision=trainer.use_mixed_precision,
        evaluate_training_set=trainer.evaluate_training_set,
        seed=config.random_seed,
    )
    if trainer.learning_rate == "auto":
        settings = replace(settings, learning_rate=_auto(config, model, train))
    elif trainer.learning_rate == "range_test":
        assert not isinstance(trainer.optimizer, chosen.LBFGS)  # the config's own check
        trained = trained_of(model) if strategy is None else strategy.trained(model)
        optimizer = build_optimizer(config, trained)
        assert not isinstance(optimizer, Lbfgs)
        settings = replace(settings, learning_rate=range_test(model, train, optimizer, settings, strategy))
    if strategy is None:
        return _with_encoder_rates(config, settings, 1.0)
    # rank 0's: the last bits of a GPU's sums differ from one to another
    settings = replace(settings, learning_rate=strategy.ranks.first(settings.learning_rate))
    workers = strategy.ranks.world
    factor = {"constant": 1.0, "linear": float(workers), "sqrt": workers**0.5}[trainer.learning_rate_scaling]
    return _with_encoder_rates(config, settings, factor)


def _with_encoder_rates(config: Config, settings: FitSettings, factor: float) -> FitSettings:
    """Every rate times ``factor``, by which several workers learn faster; and those of encoders."""
    given, rates = config.trainer.encoder_learning_rate, {}
    for feature in config.trained:
        if given is not None:
            rates[feature.name] = given * factor
        elif config.trainer.learning_rate == "auto" and not isinstance(config.trainer.optimizer, chosen.LBFGS):
            adapter = feature.tuning.adapter
            rates[feature.name] = auto_encoder_rate(feature.type, None if adapter is None else adapter.type) * factor
        else:
            rates[feature.name] = settings.learning_rate * factor
    return replace(settings, learning_rate=settings.learning_rate * factor, encoder_rates=rates)


def _batch_sizes(trainer: TrainerConfig) -> tuple[int, int]:
    """Rows at once, and how many times their gradients are added up before a step."""
    whole, size, times = trainer.effective_batch_size, trainer.batch_size, trainer.gradient_accumulation_steps
    usual = min(
        _ROWS_AT_ONCE if isinstance(trainer.optimizer, chosen.LBFGS) else AUTO_BATCH_SIZE,
        trainer.max_batch_size,
    )
    if whole == "auto":
        return (usual if size == "auto" else size), (1 if times == "auto" else times)
    if size != "auto":
        return size, whole // size
    times = 1 if times == "auto" else times
    return whole // times, times


def _check_model(trainer: TrainerConfig, model: Model, batch_size: int, rows: int) -> None:
    modules = list(model.modules())
    averaging = any(isinstance(module, nn.BatchNorm1d) for module in modules)
    if batch_size == 1 and averaging:
        raise ConfigError("trainer.batch_size: 1 leaves batch norm nothing to average; set at least 2, or norm: layer")
    if isinstance(trainer.optimizer, chosen.LBFGS):
        if any(isinstance(module, Dropout) for module in modules):
            raise ConfigError(
                "trainer.optimizer.type: lbfgs needs a loss that does not change by itself; set dropout to 0"
            )
        if averaging:
            raise ConfigError("trainer.optimizer.type: lbfgs cannot go with norm: batch; use norm: layer, or none")
        for name in model.outputs:
            decoder = model.decoder(name)
            if rows > batch_size and isinstance(decoder, NumberDecoder) and decoder.error.root:
                raise ConfigError(
                    f"trainer.optimizer.type: lbfgs takes {rows:,} rows {batch_size:,} at a time, and the loss of {name!r}, "
                    f"{decoder.error.type}, is no mean over them; use mean_squared_error, which is least where its root is"
                )


def _auto(config: Config, model: Model, train: Batches) -> float:
    optimizer = config.trainer.optimizer
    if isinstance(optimizer, chosen.LBFGS):
        return 1.0
    if not isinstance(optimizer, chosen.Adam | chosen.AdamW):
        raise ConfigError(
            f"trainer.learning_rate: auto is measured for adam and adamw, not for {optimizer.type}; "
            "set a number, such as 0.1 for sgd, or range_test"
        )
    return auto_learning_rate(_magnitude(model, train, config.trainer.use_mixed_precision), _hidden(config))


def _schedule(scheduler: Scheduler) -> Schedule:
    return Schedule(
        scheduler.decay,
        warmup_fraction=scheduler.warmup_fraction,
        warmup_steps=scheduler.warmup_steps,
        warmup_epochs=scheduler.warmup_evaluations,
        decay_rate=scheduler.decay_rate,
        decay_steps=scheduler.decay_steps,
        staircase=scheduler.staircase,
        power=scheduler.power,
        least=scheduler.eta_min,
    )


def _plateau(scheduler: Scheduler) -> Plateau | None:
    if (metric := scheduler.plateau_metric) is None:
        return None
    return Plateau(
        times=scheduler.reduce_on_plateau,
        patience=scheduler.reduce_on_plateau_patience,
        factor=scheduler.reduce_on_plateau_rate,
        metric=metric,
        split="train" if scheduler.reduce_eval_split == "training" else "validation",
    )


def _hidden(config: Config) -> bool:
    return not config.combiner.linear or any(output.decoder.layers() for output in config.output_features)


def _magnitude(model: Model, train: Batches, mixed_precision: bool) -> float:
    """The mean over rows of the sum of absolute inputs."""
    model.eval()  # dropout would draw, and batch norm learn
    # fsdp has the weights of encoders in the type that is computed in
    with torch.no_grad(), autocast(train.device, mixed_precision and bool(model.live)):
        batch = next(train.in_order(_ENCODED_ROWS if model.live else _MEASURED_ROWS))
        return float(sum(vector.abs().sum().item() for vector in model.encode(batch).values()) / batch.rows)
