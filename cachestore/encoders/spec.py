"""Settings of each encoder, and their resolution to a spec: what a fingerprint is made of.

Nothing here imports torch or transformers: listing, fingerprints and a warm training run need only this module.
A spec holds everything that can change a vector by intent and nothing else, so it has no path, no hub name and not
the nickname under which the settings were written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError, field_validator, model_validator

from cachestore.encoders import imported, locate, model_files, precision
from cachestore.encoders.model_files import ModelFiles
from cachestore.errors import ConfigError, EncoderError, UsageError, nearest
from cachestore.keys import Fingerprint, Json

# Raised whenever our own preparation of a text (cutting, lowering, pooling) changes what a vector is.
TEXT_PREPROCESSING: Final = 1
HASHING_PREPROCESSING: Final = 1
DEFAULT_MAX_SEQUENCE_LENGTH: Final = 256

HUB_IDS: Final[Mapping[str, str]] = {
    "albert": "albert-base-v2",
    "bert": "bert-base-uncased",
    "camembert": "camembert-base",
    "deberta": "tasksource/deberta-base-long-nli",
    "distilbert": "distilbert-base-uncased",
    "electra": "google/electra-small-discriminator",
    "gpt": "openai-gpt",
    "gpt2": "gpt2",
    "longformer": "allenai/longformer-base-4096",
    "modernbert": "answerdotai/ModernBERT-base",
    "roberta": "roberta-base",
    "t5": "t5-small",
    "xlmroberta": "FacebookAI/xlm-roberta-base",
    "xlnet": "xlnet-base-cased",
}
TYPES: Final = ("hashing", "minilm", "auto_transformer", *HUB_IDS, "imported")
POOLINGS: Final = ("mean", "sum", "max", "cls_pooled", "last")

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


class TextSettings(BaseModel):
    """A transformers model: packaged, in a local directory, or on the hub. None means unset: taken from the model."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    type: Literal[
        "minilm", "auto_transformer", "albert", "bert", "camembert", "deberta", "distilbert", "electra", "gpt", "gpt2",
        "longformer", "modernbert", "roberta", "t5", "xlmroberta", "xlnet",
    ]  # fmt: skip
    pretrained_model_name_or_path: Annotated[str, Field(min_length=1)] | None = None
    reduce_output: Literal["mean", "sum", "max", "cls_pooled", "last"] | None = None
    max_sequence_length: PositiveInt | None = None
    normalize: bool | None = None
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    dtype: Literal["float16", "float32"] = "float16"

    @field_validator("reduce_output", mode="before")
    @classmethod
    def _pooling(cls, value: object) -> object:
        if value == "avg":
            return "mean"
        if value is not None and value not in POOLINGS:
            raise ValueError(f"{value!r} is not a pooling of this store; choose one of {', '.join(POOLINGS)}")
        return value

    @model_validator(mode="after")
    def _model_name(self) -> TextSettings:
        if self.type == "auto_transformer" and self.pretrained_model_name_or_path is None:
            raise ValueError("auto_transformer needs pretrained_model_name_or_path: a model directory or a hub id")
        if self.type == "minilm" and self.pretrained_model_name_or_path is not None:
            raise ValueError("minilm is one fixed model; write type: auto_transformer to name another")
        return self


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


AnySettings: TypeAlias = HashingSettings | TextSettings | ImportedSettings
Settings: TypeAlias = Annotated[AnySettings, Field(discriminator="type")]


_CLASSES: Final[Mapping[str, type[AnySettings]]] = {"hashing": HashingSettings, "imported": ImportedSettings}


@dataclass(frozen=True)
class Resolved:
    """Settings with every default settled: the spec, the length of a vector, and where the files of a model lie."""

    spec: Mapping[str, Json]
    dim: int
    directory: Path = Path()


def parse_settings(value: str | Mapping[str, Any]) -> AnySettings:
    """Settings from a mapping as written in a config; a bare string is a type. Raises ConfigError with all faults."""
    if isinstance(value, str):
        value = {"type": value}
    if not isinstance(value, Mapping):
        raise ConfigError(f"encoder: must be a type or a mapping with a type, not {type(value).__name__}")
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
    files = model_files.read(_directory(settings), digest)
    spec = _text_spec(settings, files)
    dim = model_files.dim(files)
    if settings.precision == "auto":
        spec["precision"] = precision.choose(spec, dim, files.directory, known)
    else:
        spec["precision"] = settings.precision
    return Resolved(spec, dim, files.directory)


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


def _text_spec(settings: TextSettings, files: ModelFiles) -> dict[str, Json]:
    spec: dict[str, Json] = {
        "kind": "text",
        "model_type": files.model_type,
        "config": files.config_digest,
        "weights": list(files.weights),
        "tokenizer": dict(files.tokenizer),
        "reduce_output": settings.reduce_output or files.sentence.pooling(),
        "max_sequence_length": _max_sequence_length(settings, files),
        "normalize": files.sentence.normalize if settings.normalize is None else settings.normalize,
        "dtype": settings.dtype,
        "preprocessing": TEXT_PREPROCESSING,
    }
    if files.sentence.do_lower_case:
        spec["do_lower_case"] = True
    return spec


def _max_sequence_length(settings: TextSettings, files: ModelFiles) -> int:
    limit = model_files.position_limit(files)
    asked = settings.max_sequence_length
    if asked is not None and limit is not None and asked > limit:
        raise EncoderError(
            f"max_sequence_length {asked} is more than the model in {files.directory} has positions for. "
            f"Set it to {limit} or less."
        )
    length = asked or files.sentence.max_sequence_length or DEFAULT_MAX_SEQUENCE_LENGTH
    return length if limit is None else min(length, limit)


def _directory(settings: TextSettings) -> Path:
    if settings.type == "minilm":
        return locate.packaged_minilm()
    name = settings.pretrained_model_name_or_path or HUB_IDS[settings.type]
    return locate.locate(name)


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
