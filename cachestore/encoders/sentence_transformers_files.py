"""What the files of a sentence-transformers model settle (modules.json and those it names): pooling, length, prompts,
and what comes after pooling.

Old and new spellings are read: once a pooling was a set of booleans and max_seq_length stood in
sentence_bert_config.json; now a pooling has a name and the length is the tokenizer's. What would change a vector and is
not supported is refused, never skipped.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cachestore.errors import EncoderError
from cachestore.keys import Json

# Activation functions of a Dense module that are known: classes of torch.nn that need no argument.
ACTIVATIONS: Final = ("Identity", "Tanh", "ReLU", "GELU", "Sigmoid", "SiLU", "Mish", "ELU", "LeakyReLU", "Softplus")

_POOLINGS: Final[Mapping[str, str]] = {
    "mean": "mean",
    "max": "max",
    "cls": "cls_pooled",
    "lasttoken": "last",
    "mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "weightedmean": "weightedmean",
    "sum": "sum",  # this and a layer are cachestore's own, in what it exports; sentence-transformers refuses them
}
_POOLING_SWITCHES: Final[Mapping[str, str]] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_TRANSFORMER_CONFIGS: Final = tuple(
    f"sentence_{kind}_config.json"
    for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
_ARGUMENTS: Final = ("model_args", "model_kwargs", "tokenizer_args", "processor_kwargs", "config_args", "config_kwargs")
_HUGE: Final = 10**9  # a tokenizer without a length says 1e30


@dataclass(frozen=True)
class HeadFile:
    """A module after the pooling: what it computes, as a spec holds it, and the file of its weights."""

    settings: Mapping[str, Json]
    weights: Path | None = None


@dataclass(frozen=True)
class Sentence:
    """Defaults of one model directory; ``directory`` is where its transformer lies."""

    directory: Path
    normalize: bool = False
    max_sequence_length: int | None = None
    do_lower_case: bool = False
    pooling_config: Path | None = None
    prompts_config: Path | None = None
    head: tuple[HeadFile, ...] = ()

    def poolings(self) -> tuple[str, ...]:
        """The poolings by their names here, to be joined. Raises EncoderError for one that is unknown."""
        return ("mean",) if self.pooling_config is None else _poolings(self.pooling_config)

    def layer(self) -> int | None:
        """The hidden layer that is pooled, counted from the embeddings; None for the last."""
        layer = (_load_object(self.pooling_config) if self.pooling_config else {}).get("layer")
        return layer if isinstance(layer, int) else None

    def pools_prompt(self) -> bool:
        """Whether the tokens of a prompt are pooled with the text's."""
        config = _load_object(self.pooling_config) if self.pooling_config else {}
        return bool(config.get("include_prompt", True))

    def prompt(self, name: str | None = None) -> str:
        """The prompt of that name, or the model's default. Raises EncoderError when it has none of that name."""
        path = self.prompts_config
        config = _load_object(path) if path and path.is_file() else {}
        prompts = config.get("prompts") or {}
        if not isinstance(prompts, dict):
            raise EncoderError(f"{path}: its prompts are no mapping of names to texts.")
        chosen = config.get("default_prompt_name") if name is None else name
        if chosen is None:
            return ""
        prompt = prompts.get(chosen, "" if name is None else None)
        if chosen not in prompts and name is not None:
            names = ", ".join(map(repr, prompts)) or "none"
            raise EncoderError(f"prompt_name {name!r}: the prompts of the model in {self.directory} are {names}.")
        if not isinstance(prompt, str | None):
            raise EncoderError(f"{path}: the prompt {chosen!r} is no text.")
        return prompt or ""


def read(directory: Path) -> Sentence:
    """The defaults of a directory; those of a plain transformers model if it has no modules.json."""
    path = directory / "modules.json"
    if not path.is_file():
        return Sentence(directory)
    modules = load_json(path)
    names = [_module_name(module, path) for module in modules] if isinstance(modules, list) else []
    if names[:2] != ["Transformer", "Pooling"] or not {*names[2:]} <= {*_HEAD, "Dropout"}:
        raise EncoderError(
            f"{path}: the modules {', '.join(names)} are not supported yet, only Transformer, Pooling, then any of "
            f"{', '.join(_HEAD)}, Dropout."
        )
    folders = [directory / module.get("path", "") for module in modules]
    after = [
        (name, folder) for name, folder in zip(names, folders, strict=True) if name in _HEAD
    ]  # dropout is of training
    head = [_HEAD[name](folder) for name, folder in after]
    normalize = bool(after) and after[-1][0] == "Normalize"
    config = _transformer_config(folders[0])
    return Sentence(
        directory=folders[0],
        normalize=normalize,
        max_sequence_length=config.get("max_seq_length") or _tokenizer_length(folders[0] / "tokenizer_config.json"),
        do_lower_case=bool(config.get("do_lower_case", False)),
        pooling_config=folders[1] / "config.json",
        prompts_config=directory / "config_sentence_transformers.json",
        head=tuple(head[:-1] if normalize else head),
    )


def load_json(path: Path) -> Any:
    """The content of a JSON file. Raises EncoderError naming the file."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise EncoderError(f"{path} cannot be read as JSON: {error}") from None


def _load_object(path: Path) -> dict[str, Any]:
    content = load_json(path)
    if not isinstance(content, dict):
        raise EncoderError(f"{path} holds {type(content).__name__} where an object of settings belongs.")
    return content


def _module_name(module: Any, path: Path) -> str:
    kind = str(module.get("type", "")) if isinstance(module, dict) else ""
    folder = module.get("path", "") if isinstance(module, dict) else ""
    if not kind.startswith("sentence_transformers."):
        raise EncoderError(f"{path}: the module {kind!r} is code of the model's own, which is never run.")
    if not isinstance(folder, str) or Path(folder).is_absolute() or ".." in Path(folder).parts:
        raise EncoderError(f"{path}: the module path {folder!r} does not lie in that directory.")
    return kind.rpartition(".")[2]


def _poolings(path: Path) -> tuple[str, ...]:
    config = _load_object(path)
    mode = config.get("pooling_mode") or [name for switch, name in _POOLING_SWITCHES.items() if config.get(switch)]
    modes = [str(mode) for mode in (mode if isinstance(mode, list) else [mode])] or ["mean"]
    if any(mode not in _POOLINGS for mode in modes):
        raise EncoderError(f"{path}: pooling {' + '.join(modes)} is not supported, only {', '.join(_POOLINGS)}.")
    return tuple(_POOLINGS[mode] for mode in modes)


def _dense(folder: Path) -> HeadFile:
    path = folder / "config.json"
    config = _load_object(path)
    _require_sentence_embedding(path, config)
    activation = str(config.get("activation_function", "torch.nn.modules.activation.Tanh"))
    name = activation.rpartition(".")[2]
    if name not in ACTIVATIONS or not activation.startswith("torch.nn."):
        raise EncoderError(
            f"{path}: the activation function {activation!r} is not supported, only those of torch.nn called "
            f"{', '.join(ACTIVATIONS)}; code that a model names is never run."
        )
    sizes = _size(path, config, "in_features"), _size(path, config, "out_features")
    settings: dict[str, Json] = {
        "type": "dense",
        "in_features": sizes[0],
        "out_features": sizes[1],
        "bias": bool(config.get("bias", True)),
        "activation": name,
    }
    if config.get("use_residual"):
        settings["residual"] = True
    return HeadFile(settings, _head_weights(folder))


def _layer_norm(folder: Path) -> HeadFile:
    path = folder / "config.json"
    settings: dict[str, Json] = {"type": "layer_norm", "dimension": _size(path, _load_object(path), "dimension")}
    return HeadFile(settings, _head_weights(folder))


def _normalize(folder: Path) -> HeadFile:
    path = folder / "config.json"
    _require_sentence_embedding(path, _load_object(path) if path.is_file() else {})
    return HeadFile({"type": "normalize"})


_HEAD: Final[Mapping[str, Callable[[Path], HeadFile]]] = {
    "Dense": _dense,
    "LayerNorm": _layer_norm,
    "Normalize": _normalize,
}


def _require_sentence_embedding(path: Path, config: Mapping[str, Any]) -> None:
    if any(value not in (None, "sentence_embedding") for key, value in config.items() if key.startswith("module_")):
        raise EncoderError(f"{path}: a module on anything but the sentence embedding is not supported yet.")


def _size(path: Path, config: Mapping[str, Any], name: str) -> int:
    size = config.get(name)
    if not isinstance(size, int) or size < 1:
        raise EncoderError(f"{path}: {name} is {size!r}, which is not a number of values.")
    return size


def _head_weights(folder: Path) -> Path:
    path = folder / "model.safetensors"
    if not path.is_file():
        raise EncoderError(
            f"{folder} holds no model.safetensors. If its weights are a pickle that you trust, load the model with "
            "sentence_transformers once and save it again."
        )
    return path


def _transformer_config(folder: Path) -> dict[str, Any]:
    path = next((folder / name for name in _TRANSFORMER_CONFIGS if (folder / name).is_file()), None)
    config: dict[str, Any] = _load_object(path) if path else {}
    task = config.get("transformer_task", "feature-extraction")
    output = config.get("module_output_name", "token_embeddings")
    method = (config.get("modality_config") or {}).get(
        "text", {"method": "forward", "method_output_name": "last_hidden_state"}
    )
    arguments = [name for name in _ARGUMENTS if config.get(name)]
    if (task, output) != ("feature-extraction", "token_embeddings") or method != {
        "method": "forward",
        "method_output_name": "last_hidden_state",
    }:
        raise EncoderError(
            f"{path}: {task} by {method} is not supported yet, only the last hidden state of a text model."
        )
    if arguments:
        raise EncoderError(f"{path}: {', '.join(arguments)} are not supported yet.")
    return config


def _tokenizer_length(path: Path) -> int | None:
    length = _load_object(path).get("model_max_length") if path.is_file() else None
    return int(length) if isinstance(length, int | float) and 0 < length < _HUGE else None
