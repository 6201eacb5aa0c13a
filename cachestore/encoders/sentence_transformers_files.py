"""What the files of a sentence-transformers model settle (modules.json and those it names): pooling, L2, length.

Old and new spellings are read: once a pooling was a set of booleans and max_seq_length stood in
sentence_bert_config.json; now a pooling has a name and the length is the tokenizer's. What would change a vector and is
not supported is refused, never skipped.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cachestore.errors import EncoderError

_POOLINGS: Final[Mapping[str, str]] = {"mean": "mean", "max": "max", "cls": "cls_pooled", "lasttoken": "last"}
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
class Sentence:
    """Defaults of one model directory; ``directory`` is where its transformer lies."""

    directory: Path
    normalize: bool = False
    max_sequence_length: int | None = None
    do_lower_case: bool = False
    pooling_config: Path | None = None

    def pooling(self) -> str:
        """The pooling by its name here. Raises EncoderError for one that is not supported: ask only if it is needed."""
        return "mean" if self.pooling_config is None else _pooling(self.pooling_config)


def read(directory: Path) -> Sentence:
    """The defaults of a directory; those of a plain transformers model if it has no modules.json."""
    path = directory / "modules.json"
    if not path.is_file():
        return Sentence(directory)
    modules = load_json(path)
    names = [_module_name(module, path) for module in modules] if isinstance(modules, list) else []
    if names not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        raise EncoderError(
            f"{path}: the modules {', '.join(names)} are not supported yet, only Transformer, Pooling, Normalize."
        )
    _require_no_prompt(directory / "config_sentence_transformers.json")
    folders = [directory / module.get("path", "") for module in modules]
    if len(folders) == 3:
        _require_plain_normalize(folders[2] / "config.json")
    config = _transformer_config(folders[0])
    return Sentence(
        directory=folders[0],
        normalize=len(folders) == 3,
        max_sequence_length=config.get("max_seq_length") or _tokenizer_length(folders[0] / "tokenizer_config.json"),
        do_lower_case=bool(config.get("do_lower_case", False)),
        pooling_config=folders[1] / "config.json",
    )


def load_json(path: Path) -> Any:
    """The content of a JSON file. Raises EncoderError naming the file."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise EncoderError(f"{path} cannot be read as JSON: {error}") from None


def _module_name(module: Any, path: Path) -> str:
    kind = str(module.get("type", "")) if isinstance(module, dict) else ""
    folder = module.get("path", "") if isinstance(module, dict) else ""
    if not kind.startswith("sentence_transformers."):
        raise EncoderError(f"{path}: the module {kind!r} is code of the model's own, which is never run.")
    if not isinstance(folder, str) or Path(folder).is_absolute() or ".." in Path(folder).parts:
        raise EncoderError(f"{path}: the module path {folder!r} does not lie in that directory.")
    return kind.rpartition(".")[2]


def _pooling(path: Path) -> str:
    config = load_json(path)
    mode = config.get("pooling_mode") or [name for switch, name in _POOLING_SWITCHES.items() if config.get(switch)]
    modes = [mode] if isinstance(mode, str) else mode or ["mean"]
    if len(modes) > 1 or modes[0] not in _POOLINGS:
        raise EncoderError(
            f"{path}: pooling {' + '.join(map(str, modes))} is not supported yet, only {', '.join(_POOLINGS)}."
        )
    return _POOLINGS[modes[0]]


def _require_no_prompt(path: Path) -> None:
    config = load_json(path) if path.is_file() else {}
    prompt = (config.get("prompts") or {}).get(config.get("default_prompt_name"))
    if prompt:
        raise EncoderError(f"{path}: a default prompt ({prompt!r}) is not supported yet.")


def _require_plain_normalize(path: Path) -> None:
    config = load_json(path) if path.is_file() else {}
    if any(value not in (None, "sentence_embedding") for key, value in config.items() if key.startswith("module_")):
        raise EncoderError(f"{path}: normalising anything but the sentence embedding is not supported yet.")


def _transformer_config(folder: Path) -> dict[str, Any]:
    path = next((folder / name for name in _TRANSFORMER_CONFIGS if (folder / name).is_file()), None)
    config: dict[str, Any] = load_json(path) if path else {}
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
    length = load_json(path).get("model_max_length") if path.is_file() else None
    return int(length) if isinstance(length, int | float) and 0 < length < _HUGE else None
