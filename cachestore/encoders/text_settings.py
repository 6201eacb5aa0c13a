"""Settings of text encoders and their resolution to a spec. Nothing here imports torch or transformers."""

from __future__ import annotations

import string
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, field_validator, model_validator

from cachestore.encoders import locate, model_files, precision
from cachestore.encoders.model_files import ModelFiles
from cachestore.encoders.resolved import Resolved
from cachestore.errors import EncoderError
from cachestore.keys import Fingerprint, Json

# Raised whenever our own preparation of a text (cutting, lowering, pooling) changes what a vector is.
TEXT_PREPROCESSING: Final = 1
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
POOLINGS: Final = ("mean", "sum", "max", "cls_pooled", "last", "mean_sqrt_len_tokens", "weightedmean")


class PromptTemplate(BaseModel):
    """A text made of several columns of a row: each ``{column}`` stands for the cell of that column."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    template: str

    @field_validator("template")
    @classmethod
    def _plain_placeholders(cls, value: str) -> str:
        try:
            parts = list(string.Formatter().parse(value))
        except ValueError as error:
            raise ValueError(f"{error}; write {{{{ and }}}} for braces that are text") from None
        names = [(name, form, conversion) for _, name, form, conversion in parts if name is not None]
        if not names:
            raise ValueError("it names no column; write one in braces, {title}, or a prompt without template")
        for name, form, conversion in names:
            if not name.strip():
                raise ValueError("{} names no column; write its name in the braces")
            if form or conversion:
                raise ValueError(f"{{{name}}} is followed by a format, and only a column's name may stand in braces")
        return value


class TextSettings(BaseModel):
    """A transformers model: packaged, in a local directory, or on the hub. None means unset: taken from the model."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    type: Literal[
        "minilm", "auto_transformer", "albert", "bert", "camembert", "deberta", "distilbert", "electra", "gpt", "gpt2",
        "longformer", "modernbert", "roberta", "t5", "xlmroberta", "xlnet",
    ]  # fmt: skip
    pretrained_model_name_or_path: Annotated[str, Field(min_length=1)] | None = None
    reduce_output: str | None = None
    layer: int | None = None
    prompt: str | PromptTemplate | None = None
    prompt_name: str | None = None
    max_sequence_length: PositiveInt | None = None
    normalize: bool | None = None
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    dtype: Literal["float16", "float32"] = "float16"
    batch_tokens: PositiveInt | None = None

    @field_validator("reduce_output", mode="before")
    @classmethod
    def _pooling(cls, value: object) -> object:
        names = ["mean" if name == "avg" else name for name in value.split("+")] if isinstance(value, str) else [value]
        if value is not None and any(name not in POOLINGS for name in names):
            raise ValueError(
                f"{value!r} is not a pooling of this store; choose one of {', '.join(POOLINGS)}, or several joined by +"
            )
        return value if value is None else "+".join(map(str, names))

    @field_validator("prompt", mode="before")
    @classmethod
    def _prompt(cls, value: object) -> object:
        # here and not left to the union, whose message would name both of its members
        if isinstance(value, Mapping):
            if unknown := [key for key in value if key != "template"]:
                raise ValueError(f"unknown key {unknown[0]!r}; the only one is template")
            if not isinstance(value.get("template"), str):
                raise ValueError("template must be a text such as '{title}: {body}'")
            PromptTemplate._plain_placeholders(value["template"])
            return dict(value)
        if value is not None and not isinstance(value, str | PromptTemplate):
            raise ValueError(
                f"must be a text that stands before each cell, or {{template: …}}, not {type(value).__name__}"
            )
        return value

    @model_validator(mode="after")
    def _model_name(self) -> TextSettings:
        if self.type == "auto_transformer" and self.pretrained_model_name_or_path is None:
            raise ValueError("auto_transformer needs pretrained_model_name_or_path: a model directory or a hub id")
        if self.type == "minilm" and self.pretrained_model_name_or_path is not None:
            raise ValueError("minilm is one fixed model; write type: auto_transformer to name another")
        if isinstance(self.prompt, str) and self.prompt_name is not None:
            raise ValueError("prompt and prompt_name are two ways to say what stands before a text; leave one out")
        return self

    @property
    def prompt_template(self) -> str | None:
        """The template that texts are rendered by, ``{column}`` for cells; None where a cell is the text."""
        return self.prompt.template if isinstance(self.prompt, PromptTemplate) else None

    @property
    def template_columns(self) -> tuple[str, ...]:
        """The columns that the template names, each once, in its order."""
        found = string.Formatter().parse(self.prompt_template or "")
        return tuple(dict.fromkeys(name for _, name, _, _ in found if name))


def resolve(settings: TextSettings, *, digest: Callable[[Path], str], known: Callable[[Fingerprint], bool]) -> Resolved:
    """Settle everything the settings leave open; see ``spec.resolve``."""
    directory = directory_of(settings)
    files = model_files.read(directory, digest)
    spec = _spec(settings, files)
    layer = spec.get("layer")
    poolings = len(str(spec["reduce_output"]).split("+"))
    dim = model_files.dim(files, poolings=poolings, layer=layer if isinstance(layer, int) else None)
    if settings.precision == "auto":
        spec["precision"] = precision.choose(spec, dim, directory, known)
    else:
        spec["precision"] = settings.precision
    return Resolved(spec, dim, directory)


def _spec(settings: TextSettings, files: ModelFiles) -> dict[str, Json]:
    sentence = files.sentence
    spec: dict[str, Json] = {
        "kind": "text",
        "model_type": files.model_type,
        "config": files.config_digest,
        "weights": list(files.weights),
        "tokenizer": dict(files.tokenizer),
        "reduce_output": settings.reduce_output or "+".join(sentence.poolings()),
        "max_sequence_length": _max_sequence_length(settings, files),
        "normalize": sentence.normalize if settings.normalize is None else settings.normalize,
        "dtype": settings.dtype,
        "preprocessing": TEXT_PREPROCESSING,
    }
    # what came later is there only where it is used, so that a model without it keeps its fingerprint
    if sentence.do_lower_case:
        spec["do_lower_case"] = True
    if prompt := settings.prompt if isinstance(settings.prompt, str) else sentence.prompt(settings.prompt_name):
        spec["prompt"] = prompt
        if not sentence.pools_prompt():
            spec["pools_prompt"] = False
    if (layer := _layer(settings, files)) is not None:
        spec["layer"] = layer
    if files.head:
        spec["head"] = [dict(module) for module in files.head]
    return spec


def _layer(settings: TextSettings, files: ModelFiles) -> int | None:
    """The hidden layer counted from the embeddings, which are 0; None for the last."""
    asked = files.sentence.layer() if settings.layer is None else settings.layer
    if asked is None or asked == -1:
        return None
    last = model_files.layers(files)
    if not -last - 1 <= asked <= last:
        raise EncoderError(
            f"layer {asked} is not one of the model in {files.directory}: it has 0 (its embeddings) to {last}, or -1 (the "
            f"last) to {-last - 1}."
        )
    layer = asked if asked >= 0 else last + 1 + asked
    return None if layer == last else layer


def _max_sequence_length(settings: TextSettings, files: ModelFiles) -> int:
    limit = model_files.position_limit(files.model_type, files.config)
    asked = settings.max_sequence_length
    if asked is not None and limit is not None and asked > limit:
        raise EncoderError(
            f"max_sequence_length {asked} is more than the model in {files.directory} has positions for. "
            f"Set it to {limit} or less."
        )
    length = asked or files.sentence.max_sequence_length or DEFAULT_MAX_SEQUENCE_LENGTH
    return length if limit is None else min(length, limit)


def directory_of(settings: TextSettings) -> Path:
    """Where the files of the model lie. Raises EncoderError when it cannot be had."""
    if settings.type == "minilm":
        return locate.packaged_minilm()
    name = settings.pretrained_model_name_or_path or HUB_IDS[settings.type]
    return locate.locate(name)
