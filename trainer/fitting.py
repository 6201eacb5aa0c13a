"""The optimizer of a config, and the settings of the loop with every ``auto`` settled."""

from __future__ import annotations

from typing import Final

import torch
from torch import nn

from cachestore.errors import ConfigError
from trainer.batches import CachedBatches
from trainer.loop import FitSettings
from trainer.model import Model
from trainer.optim import Adam, Optimizer, Sgd, auto_learning_rate
from trainer.schema import Config
from trainer.schema.training import SGD, AdamW

# Linear head on MiniLM vectors, 20 epochs at the auto learning rate, best validation accuracy and seconds on one core:
# banking77 32 0.931 18.9, 64 0.931 8.3, 128 0.929 5.6, 256 0.924 5.3, 1024 0.908 3.4
# sentence polarity 32 0.770 9.9, 64 0.768 6.7, 128 0.766 2.9, 256 0.768, 1024 0.759
AUTO_BATCH_SIZE: Final = 128
_MEASURED_ROWS: Final = 4096


def build_optimizer(config: Config, model: Model) -> Optimizer:
    """The optimizer of ``config`` on the parameters of ``model``."""
    settings = config.trainer.optimizer
    parameters = model.parameters()
    if isinstance(settings, SGD):
        return Sgd(
            parameters,
            momentum=settings.momentum,
            dampening=settings.dampening,
            weight_decay=settings.weight_decay,
            nesterov=settings.nesterov,
        )
    return Adam(
        parameters,
        betas=settings.betas,
        eps=settings.eps,
        weight_decay=settings.weight_decay,
        amsgrad=settings.amsgrad,
        decoupled=isinstance(settings, AdamW),
    )


def fit_settings(config: Config, model: Model, train: CachedBatches) -> FitSettings:
    """Settings of the loop. Raises ConfigError for a learning rate or batch size that cannot go with the rest."""
    trainer = config.trainer
    rate = trainer.learning_rate
    if rate == "auto":
        if isinstance(trainer.optimizer, SGD):
            raise ConfigError(
                "trainer.learning_rate: auto is measured for adam and adamw, not for sgd; set a number, such as 0.1"
            )
        rate = auto_learning_rate(_magnitude(model, train), _hidden(config))
    batch_size = AUTO_BATCH_SIZE if trainer.batch_size == "auto" else trainer.batch_size
    if batch_size == 1 and any(isinstance(module, nn.BatchNorm1d) for module in model.modules()):
        raise ConfigError("trainer.batch_size: 1 leaves batch norm nothing to average; set at least 2, or norm: layer")
    field = trainer.validation_field or config.output_features[0].name
    return FitSettings(
        epochs=trainer.epochs,
        batch_size=batch_size,
        learning_rate=rate,
        validation_field=field,
        validation_metric=trainer.validation_metric or model.decoder(field).default_metric,
        eval_batch_size=trainer.eval_batch_size,
        warmup_fraction=trainer.learning_rate_scheduler.warmup_fraction,
        decay=trainer.learning_rate_scheduler.decay,
        early_stop=trainer.early_stop,
        mixed_precision=trainer.use_mixed_precision,
        evaluate_training_set=trainer.evaluate_training_set,
        seed=config.random_seed,
    )


def _hidden(config: Config) -> bool:
    return bool(config.combiner.layers()) or any(output.decoder.layers() for output in config.output_features)


def _magnitude(model: Model, train: CachedBatches) -> float:
    """The mean over rows of the sum of absolute inputs."""
    with torch.no_grad():
        batch = next(train.in_order(_MEASURED_ROWS))
        return float(sum(vector.abs().sum().item() for vector in model.encode(batch).values()) / batch.rows)
