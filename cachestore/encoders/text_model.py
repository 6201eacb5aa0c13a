"""Loading a transformers model with its tokenizer: for a frozen encoder, shared in this process, and to be trained."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import normalizers
from torch import Tensor, nn

from cachestore.encoders import hardware, model_files, sentence_transformers_files, transformers_model
from cachestore.encoders.pooling import Head, head_module
from cachestore.encoders.text_specs import weights_key
from cachestore.encoders.tokens import Tokenizer, Tokens
from cachestore.errors import EncoderError
from cachestore.keys import Fingerprint, Json

transformers = transformers_model.transformers

_loaded: dict[Fingerprint, tuple[Any, nn.Module]] = {}
_loading = threading.Lock()


@dataclass(frozen=True)
class Collate:
    """Payloads to the inputs of a TextModule: int64 tensors (batch, tokens), padded on the right."""

    tokenizer: Tokenizer

    def __call__(self, payloads: Sequence[bytes]) -> dict[str, Tensor]:
        return self.pad(self.tokenizer.tokens(payloads))

    def pad(self, texts: Sequence[Tokens]) -> dict[str, Tensor]:
        return {name: torch.from_numpy(values) for name, values in self.tokenizer.pad(texts).items()}


class TextModule(nn.Module):
    """A transformers model with a head on one of its hidden layers: the tensors of a batch → (batch, dim) float32."""

    def __init__(self, backbone: nn.Module, head: Head, layer: int | None) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.layer = layer

    def forward(self, attention_mask: Tensor, **inputs: Tensor) -> Tensor:
        hidden = hidden_states(self.backbone, {self.layer}, attention_mask, **inputs)[self.layer]
        vectors: Tensor = self.head(hidden, attention_mask)
        return vectors


def hidden_states(
    backbone: nn.Module, layers: Iterable[int | None], attention_mask: Tensor, **inputs: Tensor
) -> dict[int | None, Tensor]:
    """The hidden states (batch, tokens, width) after each of ``layers``: 0 are the embeddings, None is the last.

    Raises EncoderError when the model does not give a state for each token of each layer.
    """
    wanted = set(layers)
    options = {"output_hidden_states": True} if wanted != {None} else {}
    output = backbone(attention_mask=attention_mask, **inputs, **options)
    count = len(output.hidden_states) - 1 if options else 0
    if any(layer is not None and layer >= count for layer in wanted):
        raise EncoderError(
            f"layer: the model gives the states of {count} hidden layers only. Set layer to one of them."
        )
    found = {layer: output[0] if layer is None else output.hidden_states[layer] for layer in wanted}
    for states in found.values():
        if states.shape[:2] != attention_mask.shape:
            raise EncoderError(
                f"models of type {getattr(backbone.config, 'model_type', '?')!r} are not supported as text encoders: "
                f"for {attention_mask.shape[1]} tokens they give {states.shape[1]} states."
            )
    return found


def load(spec: Mapping[str, Json], directory: Path, *, weights: bool = True) -> tuple[Collate, TextModule]:
    """A model of its own, on the CPU and in train mode: what an encoder that is trained starts from.

    Without ``weights`` it is made on the meta device, and their files are not read.
    Raises EncoderError when the files are not a model that transformers can load, or lack weights.
    """
    collate = load_collate(spec, directory)
    backbone = _load_backbone(spec, directory, weights=weights)
    head = make_head(spec, directory, collate)
    return collate, TextModule(backbone, head if weights else head.to("meta"), layer_of(spec)).train()


def load_collate(spec: Mapping[str, Json], directory: Path) -> Collate:
    """What makes tokens of texts. Raises EncoderError when the files are not those of a tokenizer."""
    return make_collate(spec, _load_tokenizer(spec, directory))


def shared(spec: Mapping[str, Json], directory: Path) -> tuple[Any, nn.Module]:
    """The tokenizer and frozen model of a spec, on the device they run on: loaded once, then kept until ``release``.

    Raises EncoderError when the files are not a model that transformers can load, lack weights, or are not those of the spec.
    """
    key = weights_key(spec)
    with _loading:
        if key not in _loaded:
            tokenizer, backbone = _load_tokenizer(spec, directory), _load_backbone(spec, directory)
            model_files.require_same(spec, directory)
            _loaded[key] = tokenizer, backbone.requires_grad_(False).eval().to(hardware.device())
        return _loaded[key]


def release(spec: Mapping[str, Json] | None = None) -> None:
    """Forget the shared model of one spec, or all of them, so that their memory can be freed."""
    with _loading:
        if spec is None:
            _loaded.clear()
        else:
            _loaded.pop(weights_key(spec), None)


def make_collate(spec: Mapping[str, Json], tokenizer: Any) -> Collate:
    """Raises EncoderError when max_sequence_length leaves no room for a text."""
    return Collate(Tokenizer(tokenizer, int(spec["max_sequence_length"]), str(spec.get("prompt", ""))))  # type: ignore[arg-type]


def make_head(spec: Mapping[str, Json], directory: Path, collate: Collate) -> Head:
    """What a spec puts on the hidden states, in float32 and on the CPU."""
    settings: Any = spec.get("head", [])
    files = [module.weights for module in sentence_transformers_files.read(directory).head] if settings else []
    if len(files) != len(settings):
        raise EncoderError(
            f"{directory}: its modules.json is not the one that the encoder was opened with. Open it again."
        )
    return Head(
        str(spec["reduce_output"]).split("+"),
        nn.Sequential(*map(head_module, settings, files)),
        normalize=bool(spec["normalize"]),
        unpooled=0 if spec.get("pools_prompt", True) else collate.tokenizer.prompt_tokens,
    )


def layer_of(spec: Mapping[str, Json]) -> int | None:
    """The hidden layer that is pooled; None is the last."""
    layer = spec.get("layer")
    return None if layer is None else int(layer)  # type: ignore[arg-type]


def with_decoder(backbone: nn.Module, directory: Path) -> nn.Module:
    """The whole model to save, for a backbone that is but a part of what ``directory`` is loaded as; else itself."""
    config: Any = backbone.config
    if not config.is_encoder_decoder or type(config) in transformers.MODEL_FOR_TEXT_ENCODING_MAPPING:
        return backbone
    with transformers_model.loading(directory):
        whole, _ = transformers_model.load(
            _model_class(config, directory), directory, pooler=False, dtype=next(backbone.parameters()).dtype
        )
        whole.get_encoder().load_state_dict(backbone.state_dict())
    model: nn.Module = whole
    return model


def _load_tokenizer(spec: Mapping[str, Json], directory: Path) -> Any:
    directory = sentence_transformers_files.read(directory).directory
    with transformers_model.loading(directory):
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            directory, local_files_only=True, trust_remote_code=False
        )
    if spec.get("do_lower_case"):
        _lowercase(tokenizer, directory)
    return tokenizer


def _load_backbone(spec: Mapping[str, Json], directory: Path, *, weights: bool = True) -> Any:
    directory = sentence_transformers_files.read(directory).directory
    dtype = getattr(torch, str(spec["precision"]))
    with transformers_model.loading(directory):
        config = transformers.AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
        model = _model_class(config, directory)
        if weights:
            backbone, missing = transformers_model.load(model, directory, pooler=False, config=config, dtype=dtype)
        else:
            with torch.device("meta"):
                backbone, missing = transformers_model.empty(model, config, pooler=False, dtype=dtype), []
    transformers_model.require_whole(directory, missing)
    if backbone.config.is_encoder_decoder and type(config) not in transformers.MODEL_FOR_TEXT_ENCODING_MAPPING:
        backbone = backbone.get_encoder()
        if getattr(backbone, "main_input_name", "input_ids") != "input_ids":
            raise EncoderError(f"{directory}: models of type {config.model_type!r} do not encode texts.")
    if hasattr(config, "use_cache"):
        backbone.config.use_cache = False  # keys and values of earlier tokens: only generation reads them
    return backbone


def _model_class(config: Any, directory: Path) -> Any:
    """The class without a head; the encoder alone of an encoder and decoder that has a class for it."""
    kind = type(config)
    if kind in transformers.MODEL_FOR_TEXT_ENCODING_MAPPING:
        found = transformers.MODEL_FOR_TEXT_ENCODING_MAPPING[kind]
    elif kind in transformers.MODEL_MAPPING:
        found = transformers.MODEL_MAPPING[kind]
    else:
        raise EncoderError(f"{directory}: models of type {config.model_type!r} are not supported yet as text encoders.")
    return found[0] if isinstance(found, tuple) else found


def _lowercase(tokenizer: Any, directory: Path) -> None:
    # in the tokenizer, not on the text: special tokens written in a text are recognised before it
    if not hasattr(tokenizer, "backend_tokenizer"):
        raise EncoderError(f"{directory}: do_lower_case is not supported yet for a tokenizer without tokenizer.json.")
    normalizer = tokenizer.backend_tokenizer.normalizer
    parts = [normalizers.Lowercase(), *([normalizer] if normalizer else [])]
    tokenizer.backend_tokenizer.normalizer = normalizers.Sequence(parts)
