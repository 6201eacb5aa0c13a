"""Whether encoders can be trained as a config says, found before their weights are loaded and the data is read."""

from __future__ import annotations

from cachestore.encoders import image_settings, sentence_transformers_files, text_settings
from cachestore.encoders.image_settings import ImageTransformerSettings, TorchvisionSettings
from cachestore.encoders.text_settings import TextSettings
from cachestore.errors import ConfigError
from cachestore.store import Store
from trainer.schema import Config
from trainer.schema.adapters import LoRA, unsupported
from trainer.schema.inputs import EncodedInput, InputFeature


def check_models(config: Config, store: Store) -> None:
    """Build every encoder that is trained without its weights, on the meta device, from its config.json.

    Raises ConfigError with every fault: an adapter that its model does not take, names of layers that match none, more layers to
    train than there are; EncoderError where the model cannot be had.
    """
    if not config.trained:
        return
    found = [fault for feature in config.trained for fault in _unsupported(config, feature)]
    if not found:
        found = _unbuildable(config, store)
    if found:
        head = "the config: " if len(found) == 1 else f"the config has {len(found)} faults:\n"
        raise ConfigError(head + "\n".join(found))


def without_draws(config: Config) -> Config:
    """The config whose adapters begin at nothing, so that none is drawn or taken out of weights: what is built of it has no weights."""
    return config.model_copy(update={"input_features": tuple(map(_without_draws, config.input_features))})


def _without_draws(feature: InputFeature) -> InputFeature:
    if not isinstance(feature, EncodedInput) or not isinstance(feature.tuning.adapter, LoRA):
        return feature
    adapter = feature.tuning.adapter.model_copy(update={"init_lora_weights": True})
    tuning = feature.tuning.model_copy(update={"adapter": adapter})
    return feature.model_copy(update={"tuning": tuning})


def _unsupported(config: Config, feature: EncodedInput) -> list[str]:
    model_type = _model_type(feature)
    adapter = None if feature.tuning.adapter is None else feature.tuning.adapter.type
    if model_type is None:
        return []
    strategy, checkpointing = config.backend.trainer.strategy, config.trainer.enable_gradient_checkpointing
    why = unsupported(model_type, adapter, strategy, checkpointing, feature.type)
    return [] if why is None else [f"input_features.{feature.name}.encoder{'.adapter' if adapter else ''}: {why}"]


def _model_type(feature: EncodedInput) -> str | None:
    """What config.json calls the model, or torchvision; None where it does not say."""
    match feature.encoder:
        case TorchvisionSettings() as settings:
            return settings.architecture
        case TextSettings() as settings:
            directory = sentence_transformers_files.read(text_settings.directory_of(settings)).directory
        case ImageTransformerSettings() as settings:
            directory = image_settings.directory_of(settings)
        case _:
            return None
    path = directory / "config.json"
    described = sentence_transformers_files.load_json(path) if path.is_file() else None
    named = described.get("model_type") if isinstance(described, dict) else None
    return named if isinstance(named, str) else None


def _unbuildable(config: Config, store: Store) -> list[str]:
    from trainer.live import build, freezing, inputs  # transformers: not where nothing is trained

    found, modules = [], []
    plain = without_draws(config)
    for feature in plain.trained:
        try:
            modules.append(build.live_encoder(feature, inputs.start(feature, store), plain, weights=False).module)
        except ConfigError as error:
            found.append(str(error))
            continue
        dropping = any(getattr(part, "layerdrop", 0.0) for part in modules[-1].modules())
        if dropping and config.backend.trainer.strategy == "fsdp":
            found.append(
                f"input_features.{feature.name}.encoder: the model leaves out layers by chance (layerdrop in its config.json), each "
                "worker others, and fsdp gathers those that all run; set it to 0 there, or strategy: ddp"
            )
    regex = config.trainer.layers_to_freeze_regex
    if regex is not None and not found:
        try:
            freezing.require_names(regex, modules)
        except ConfigError as error:
            found.append(str(error))
    return found
