"""Settings of each encoder, and their resolution to a spec: what a fingerprint is made of.

Nothing here imports torch or transformers: listing, fingerprints and a warm training run need only this module.
A spec holds everything that can change a vector by intent and nothing else, so it has no path, no hub name and not
the nickname under which the settings were written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError, field_validator

from cachestore.encoders import exported, image_settings, imported, text_settings
from cachestore.encoders.image_settings import ImageTransformerSettings, TorchvisionSettings
from cachestore.encoders.resolved import Resolved
from cachestore.encoders.text_settings import HUB_IDS, TextSettings
from cachestore.errors import ConfigError, UsageError, nearest
from cachestore.keys import Fingerprint, Json

HASHING_PREPROCESSING: Final = 1
TYPES: Final = ("hashing", "minilm", "auto_transformer", *HUB_IDS, *image_settings.TYPES, "imported")

_LUDWIG_ONLY_TYPES: Final = (
    "parallel_cnn", "stacked_cnn", "stacked_parallel_cnn", "rnn", "cnnrnn", "transformer", "embed", "tf_idf", "llm",
    "mamba", "mamba2", "jamba", "mt5", "xlm",
)  # fmt: skip
_LUDWIG_ONLY_KEYS = {
    "adapter": "encoders of the store are frozen",
    "trainable": "encoders of the store are frozen",
    "pretrained_kwargs": "not supported yet",
    "saved_weights_in_checkpoint": "not supported yet",
    "use_pretrained": "the store always uses the pretrained weights",
    **dict.fromkeys(("skip", "vocab"), "not supported yet"),
    **dict.fromkeys(
        (
            *(
                "attention_probs_dropout_prob",
                "classifier_dropout",
                "gradient_checkpointing",
                "hidden_act",
                "hidden_size",
            ),
            *("hidden_dropout_prob", "initializer_range", "intermediate_size", "layer_norm_eps", "num_attention_heads"),
            *("max_position_embeddings", "num_hidden_layers", "pad_token_id", "position_embedding_type", "vocab_size"),
            "type_vocab_size",
        ),
        "it is that of the pretrained weights; leave it out",
    ),
}


class HashingSettings(BaseModel):
    """Feature hashing of word n-grams: a baseline that needs no model."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    type: Literal["hashing"] = "hashing"
    dim: Annotated[int, Field(ge=1, le=1 << 20)] = 1024
    ngram_range: Annotated[tuple[PositiveInt, PositiveInt], Field(strict=False)] = (1, 2)
    lowercase: bool = True
    normalize: bool = True
    dtype: Literal["float16", "float32"] = "float16"

    @field_validator("ngram_range")
    @classmethod
    def _ordered(cls, value: tuple[int, int]) -> tuple[int, int]:
        if value[0] > value[1]:
            raise ValueError(f"[{value[0]}, {value[1]}] is empty; write the shorter n-gram first")
        return value


class ImportedSettings(BaseModel):
    """Vectors that were imported. ``spec`` is what their owner declared, as a mapping or as the path of a YAML file that is read here."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    type: Literal["imported"] = "imported"
    spec: dict[str, Any]

    @field_validator("spec", mode="before")
    @classmethod
    def _declared(cls, value: object) -> object:
        # here and not when it is opened, so that a run holds the words and not the path of a file that may change
        try:
            content = imported.read_declared(Path(value).expanduser()) if isinstance(value, str) else value
            if not isinstance(content, Mapping):
                raise ConfigError("must be the path of a YAML file, or the mapping that it would hold")
            imported.declare(content)
        except (ConfigError, UsageError) as error:
            raise ValueError(str(error)) from None
        return dict(content)


AnySettings: TypeAlias = (
    HashingSettings | TextSettings | ImportedSettings | TorchvisionSettings | ImageTransformerSettings
)
Settings: TypeAlias = Annotated[AnySettings, Field(discriminator="type")]


_CLASSES: Final[Mapping[str, type[AnySettings]]] = {
    "hashing": HashingSettings,
    "imported": ImportedSettings,
    **{kind: image_settings.class_of(kind) for kind in image_settings.TYPES},
}


def parse_settings(value: str | Mapping[str, Any]) -> AnySettings:
    """Settings from a mapping as written in a config; a bare string is a type, or RUN#FEATURE. Raises ConfigError with all faults."""
    if isinstance(value, str):
        value = {"type": value}
    if not isinstance(value, Mapping):
        raise ConfigError(f"encoder: must be a type or a mapping with a type, not {type(value).__name__}")
    value = exported.dereferenced(value)
    kind = value.get("type")
    if not isinstance(kind, str) or kind not in TYPES:
        raise ConfigError(_wrong_type(kind))
    settings: type[AnySettings] = _CLASSES.get(kind, TextSettings)
    try:
        return settings.model_validate(dict(value))
    except ValidationError as error:
        raise ConfigError("\n".join(_fault(fault, settings) for fault in error.errors())) from None


def resolve(
    settings: AnySettings,
    *,
    digest: Callable[[Path], str],
    known: Callable[[Fingerprint], bool],
) -> Resolved:
    """Settle everything the settings leave open. Reads the model's files through ``digest``, loads no model.

    ``known(fingerprint)`` tells whether the store holds vectors of a fingerprint: ``precision: auto`` follows it.
    Raises EncoderError when the model cannot be found, trusted or used as asked.
    """
    if isinstance(settings, HashingSettings):
        return Resolved(_hashing_spec(settings), settings.dim)
    if isinstance(settings, ImportedSettings):
        spec = imported.declare(settings.spec)
        return Resolved(spec, settings.spec["dim"])
    if isinstance(settings, TorchvisionSettings | ImageTransformerSettings):
        return image_settings.resolve(settings, digest=digest, known=known)
    return text_settings.resolve(settings, digest=digest, known=known)


def _hashing_spec(settings: HashingSettings) -> dict[str, Json]:
    return {
        "kind": "hashing",
        "dim": settings.dim,
        "ngram_range": list(settings.ngram_range),
        "lowercase": settings.lowercase,
        "normalize": settings.normalize,
        "precision": "float32",
        "dtype": settings.dtype,
        "preprocessing": HASHING_PREPROCESSING,
    }


def _wrong_type(kind: object) -> str:
    if isinstance(kind, str) and len(kind) > 200:
        kind = f"{kind[:200]}…"
    if kind is None:
        return f"encoder.type: is required; choose one of {', '.join(TYPES)}"
    if isinstance(kind, str) and kind in _LUDWIG_ONLY_TYPES:
        return f"encoder.type: {kind!r} is not supported yet; choose one of {', '.join(TYPES)}"
    if isinstance(kind, str) and "/" in kind:
        return (
            f"encoder.type: {kind!r} looks like a model; "
            f"write {{type: auto_transformer, pretrained_model_name_or_path: {kind}}}"
        )
    return f"encoder.type: unknown type {kind!r}{nearest(str(kind), TYPES) or '.'} Choose one of {', '.join(TYPES)}"


def _fault(fault: Any, settings: type[BaseModel]) -> str:
    path = ".".join(["encoder", *(str(part) for part in fault["loc"])])
    if fault["type"] == "extra_forbidden":
        key = str(fault["loc"][-1])
        if key in _LUDWIG_ONLY_KEYS:
            return f"{path}: cannot be set here: {_LUDWIG_ONLY_KEYS[key]}"
        return f"{path}: unknown key{nearest(key, settings.model_fields)}"
    if fault["type"] == "value_error":
        return f"{path}: {fault['ctx']['error']}"
    if fault["type"] == "missing":
        return f"{path}: is required"
    return f"{path}: {fault['msg'][0].lower()}{fault['msg'][1:]}, not {fault['input']!r}"
