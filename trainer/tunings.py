"""How an encoder is trained, as users write it: among the encoder's settings, an adapter as its type alone, by Ludwig's or PEFT's names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from cachestore.encoders.spec import HashingSettings, ImportedSettings
from trainer import faults
from trainer.faults import Fault
from trainer.schema.adapters import PEFT_NAMES, LoHa, LoKr, reason
from trainer.schema.backend import LocalBackend, RayBackend
from trainer.schema.inputs import EncodedInput, InputFeature
from trainer.schema.optimizers import LBFGS, Adafactor, Adam, AdamW, Muon
from trainer.schema.training import GradientClipping, TrainerConfig
from trainer.schema.tuning import Tuning

_CACHE: Final = ("preprocessing", "cache_encoder_embeddings")


def apart(encoder: Any, faulty: list[Fault]) -> tuple[Any, dict[str, Any]]:
    """The settings of an encoder as written, and those of its training, which stand among them."""
    if not isinstance(encoder, Mapping):
        return encoder, {}
    tuning = {key: item for key, item in encoder.items() if key in Tuning.model_fields}
    if tuning.get("adapter") is not None:
        tuning["adapter"] = _adapter(faults.with_type(tuning["adapter"]), faulty)
    return {key: item for key, item in encoder.items() if key not in tuning}, tuning


def _adapter(written: Any, faulty: list[Fault]) -> Any:
    """An adapter's settings by our names."""
    if not isinstance(written, Mapping):
        return written
    renamed = PEFT_NAMES.get(str(written.get("type")), {})
    settings = {key: item for key, item in written.items() if key not in renamed}
    for key, item in written.items():
        if key in renamed and renamed[key] in settings:
            why = f"is PEFT's name of {renamed[key]}, and that is here as well; leave one out"
            faulty.append(Fault(("encoder", "adapter", key), why))
        elif key in renamed:
            settings[renamed[key]] = item
    return settings


def check(feature: EncodedInput) -> list[Fault]:
    """What the settings of an encoder and of its training cannot be together."""
    encoder, mode, cached = feature.encoder, feature.tuning.mode, feature.preprocessing.cache_encoder_embeddings
    written = "adapter" if mode == "adapter" else "trainable" if feature.tuning.trainable else "trainable_layers"
    if isinstance(encoder, HashingSettings | ImportedSettings):
        if mode != "frozen":
            return [Fault(("encoder", written), f"{encoder.type} has no weights to train; leave it out")]
        if cached is False:
            why = f"false: vectors of {encoder.type} always go through the store; leave it out"
            return [Fault(_CACHE, why)]
        return []
    found = []
    adapter = feature.tuning.adapter
    if adapter is not None and (reasoned := reason(None, adapter.type, None, feature.type)) is not None:
        found.append(Fault(("encoder", "adapter"), f"{reasoned}; choose another"))
    if mode != "frozen" and cached:
        why = f"true: the encoder is trained ({written}), so its vectors change at every step and cannot be stored; leave it out"
        found.append(Fault(_CACHE, why))
    if mode != "frozen" and encoder.precision == "bfloat16":
        why = (
            "is that of frozen encoders, and this one is trained: its weights are float32; leave it out, "
            "and set trainer.use_mixed_precision to compute in bfloat16"
        )
        found.append(Fault(("encoder", "precision"), why))
    return found


def with_defaults(trainer: TrainerConfig, written: Any, features: Sequence[InputFeature]) -> TrainerConfig:
    """The trainer section with the defaults that it has where an encoder is trained: a learning rate by what is trained, and clipping."""
    if not any(isinstance(each, EncodedInput) and each.tuning.mode != "frozen" for each in features):
        return trainer
    said = written if isinstance(written, Mapping) else {}  # a null is said, too: of clipping, that there is none
    changes: dict[str, Any] = {}
    if "learning_rate" not in said and isinstance(trainer.optimizer, Adam | AdamW):
        changes["learning_rate"] = "auto"
    if "gradient_clipping" not in said and not isinstance(trainer.optimizer, LBFGS):
        changes["gradient_clipping"] = GradientClipping(clipglobalnorm=1.0)
    return trainer.model_copy(update=changes)


def check_trainer(
    trainer: TrainerConfig, backend: LocalBackend | RayBackend | None, features: Sequence[InputFeature]
) -> list[str]:
    """Settings of training that its encoders make impossible, or that none of them would heed."""
    live = [each for each in features if isinstance(each, EncodedInput) and each.live]
    trained = [each for each in live if each.tuning.mode != "frozen"]
    found = []
    if live and isinstance(trainer.optimizer, LBFGS):
        found.append(
            "trainer.optimizer: lbfgs sees all rows at every step, and the encoder of "
            f"{live[0].name!r} runs in batches; choose another"
        )
    heeded = {
        "enable_gradient_checkpointing": trainer.enable_gradient_checkpointing,
        "layers_to_freeze_regex": trainer.layers_to_freeze_regex is not None,
        "encoder_learning_rate": trainer.encoder_learning_rate is not None,
    }
    found += [
        f"trainer.{key}: no encoder is trained; leave it out, or set trainable: true or an adapter under one"
        for key, given in heeded.items()
        if given and not trained
    ]
    if backend is None or backend.trainer.strategy != "fsdp" or not live:
        return found
    if isinstance(trainer.optimizer, Adafactor | Muon):
        found.append(
            f"trainer.optimizer: {trainer.optimizer.type} works on whole matrices, which fsdp shards; "
            "choose another, or strategy: ddp"
        )
    found += [
        f"input_features.{each.name}.encoder.adapter.module_dropout: leaves out layers by chance, each worker others, and fsdp gathers "
        "those that all run; set it to 0, or strategy: ddp"
        for each in trained
        if isinstance(each.tuning.adapter, LoHa | LoKr) and each.tuning.adapter.module_dropout
    ]
    found += [
        f"input_features.{each.name}.encoder.adapter: {reason(None, 'adalora', 'fsdp', each.type)}; choose another, or strategy: ddp"
        for each in trained
        if each.tuning.adapter is not None and each.tuning.adapter.type == "adalora"
    ]
    return found
