"""What a model directory says about itself: digests of its files, length of its vectors, how many positions it has."""

from __future__ import annotations

import fnmatch
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cachestore.encoders import sentence_transformers_files as modules
from cachestore.errors import EncoderError
from cachestore.keys import Json

_SINGLE: Final = "model.safetensors"
_SHARDED: Final = "model.safetensors.index.json"
_TOKENIZER_FILES: Final = (
    "tokenizer*.json", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges*", "*.model", "*.spm", "*.bpe",
    "*.codes", "dict.txt", "tekken.json",
)  # fmt: skip
# At least one of them holds the vocabulary; without it transformers makes an empty tokenizer and says nothing.
_VOCABULARIES: Final = ("tokenizer.json", "vocab*", "*.model", "*.spm", "*.bpe", "*.codes", "dict.txt", "tekken.json")
_BYTE_TOKENIZERS: Final = frozenset({"ByT5Tokenizer", "CanineTokenizer", "PerceiverTokenizer"})
# Where a model or tokenizer was saved from and by what: true of the file, not of its vectors.
_PROVENANCE: Final = frozenset({
    "_name_or_path", "name_or_path", "transformers_version", "special_tokens_map_file", "tokenizer_file", "is_local",
    "local_files_only",
})  # fmt: skip
_RELATIVE_POSITIONS: Final = frozenset({
    "bloom", "longt5", "mpt", "mt5", "pop2piano", "switch_transformers", "t5", "transfo-xl", "udop", "umt5", "xlnet",
})  # fmt: skip
# Positions are counted from the padding id + 1, so the first rows of the table are never a position.
_PADDED_POSITIONS: Final = frozenset({
    "camembert", "data2vec-text", "esm", "ibert", "lilt", "longformer", "luke", "markuplm", "mluke", "mpnet", "roberta",
    "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod",
})  # fmt: skip
_DIM_KEYS: Final = ("hidden_size", "d_model", "n_embd", "dim", "emb_dim")
# The encoder's come first.
_LAYER_KEYS: Final = ("encoder_layers", "num_encoder_layers", "num_hidden_layers", "n_layer", "n_layers", "num_layers")


@dataclass(frozen=True)
class ModelFiles:
    """One model directory, read. ``weights`` are SHA-256 digests, sorted; ``tokenizer`` maps file name to digest."""

    directory: Path
    config: Mapping[str, Any]
    config_digest: str
    weights: tuple[str, ...]
    tokenizer: Mapping[str, str]
    sentence: modules.Sentence
    head: tuple[Mapping[str, Json], ...] = ()

    @property
    def model_type(self) -> str:
        return str(self.config["model_type"])


def read(directory: Path, digest: Callable[[Path], str]) -> ModelFiles:
    """Read a model directory; ``digest`` gives the SHA-256 of a file. Raises EncoderError when it cannot be used."""
    sentence = modules.read(directory)
    directory = sentence.directory
    path = directory / "config.json"
    if not path.is_file():
        raise EncoderError(f"{directory} holds no config.json: it is not the directory of a transformers model.")
    config = modules.load_json(path)
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise EncoderError(f"{path} names no model_type, so transformers could not load it.")
    if (directory / "adapter_config.json").exists():
        raise EncoderError(
            f"{directory} holds a PEFT adapter, which is not supported yet. Merge it and save the model."
        )
    return ModelFiles(
        directory=directory,
        config=config,
        config_digest=json_digest(config),
        weights=tuple(sorted({digest(file) for file in weight_files(directory)})),
        tokenizer={file.name: _tokenizer_digest(file, digest) for file in tokenizer_files(directory)},
        sentence=sentence,
        head=tuple(
            {**module.settings, **({"weights": digest(module.weights)} if module.weights else {})}
            for module in sentence.head
        ),
    )


def require_same(spec: Mapping[str, Json], directory: Path) -> None:
    """Raises EncoderError unless the model in ``directory`` is that of ``spec``.

    After the files were read it shows that they were: a model may be put in the place of another at any time.
    """
    files = read(directory, sha256_of_file)
    here = {"config": files.config_digest, "weights": list(files.weights), "tokenizer": dict(files.tokenizer)}
    if any(spec.get(name) != value for name, value in here.items()):
        raise changed(directory)


def require_same_head(spec: Mapping[str, Json], directory: Path) -> None:
    """As ``require_same``, of the modules after the pooling."""
    settings: Any = spec.get("head", [])
    files = [module.weights for module in modules.read(directory).head] if settings else []
    if [each.get("weights") for each in settings] != [None if path is None else sha256_of_file(path) for path in files]:
        raise changed(directory)


def changed(place: Path) -> EncoderError:
    """What to raise where files are not those that they were."""
    return EncoderError(
        f"The model in {place} was changed while it was in use. Put its files back, or begin again with those that are there."
    )


def dim(files: ModelFiles, *, poolings: int = 1, layer: int | None = None) -> int:
    """Length of one vector: the width of a hidden layer (None is the last), times the poolings that are joined, as
    the modules after pooling change it. Raises EncoderError when they do not fit."""
    width = _width(files, layer) * poolings
    for module in files.head:
        taken = module.get("in_features", module.get("dimension", width))
        if taken != width:
            raise EncoderError(
                f"{files.directory}: the {module['type']} module after pooling takes {taken} values, "
                f"and pooling gives {width}. Leave reduce_output unset."
            )
        width = int(module.get("out_features", width))  # type: ignore[arg-type]
    return width


def _width(files: ModelFiles, layer: int | None) -> int:
    keys = ("word_embed_proj_dim", *_DIM_KEYS) if files.model_type == "opt" and layer is None else _DIM_KEYS
    for key in keys:
        width = files.config.get(key)
        if isinstance(width, int) and width > 0:
            return width
    raise EncoderError(
        f"{files.directory / 'config.json'} does not say how wide the hidden states are ({_DIM_KEYS[0]})."
    )


def layers(files: ModelFiles) -> int:
    """How many hidden layers there are. Raises EncoderError when config.json does not say."""
    for key in _LAYER_KEYS:
        count = files.config.get(key)
        if isinstance(count, int) and count > 0:
            return count
    raise EncoderError(
        f"{files.directory / 'config.json'} does not say how many layers there are ({_LAYER_KEYS[2]}). Leave layer unset."
    )


def position_limit(model_type: str, config: Mapping[str, Any]) -> int | None:
    """The most tokens a model has positions for, special tokens included; None where positions are relative."""
    if model_type in _RELATIVE_POSITIONS:
        return None
    for key in ("max_encoder_position_embeddings", "max_position_embeddings", "n_positions"):
        positions = config.get(key)
        if isinstance(positions, int) and positions > 0:
            padding = config.get("pad_token_id", 1) if model_type in _PADDED_POSITIONS else -1
            return int(positions - padding - 1)
    return None


def weight_files(directory: Path) -> list[Path]:
    if (directory / _SINGLE).exists():
        return [directory / _SINGLE]
    if (directory / _SHARDED).exists():
        index = modules.load_json(directory / _SHARDED)
        names = sorted(set(index.get("weight_map", {}).values())) if isinstance(index, dict) else []
        for name in names:
            if Path(name).name != name or not (directory / name).is_file():
                raise EncoderError(f"{directory / _SHARDED} names {name!r}, which is not a file of that directory.")
        if names:
            return [directory / name for name in names]
        raise EncoderError(f"{directory / _SHARDED} names no weight file.")
    if list(directory.glob("*.bin")) or list(directory.glob("*.pt")):
        raise EncoderError(
            f"{directory} has its weights only as a pickle, which can run code when it is read. If you trust it, "
            "convert it once: AutoModel.from_pretrained(directory).save_pretrained(new_directory), and the tokenizer likewise."
        )
    raise EncoderError(f"{directory} holds no weights: neither {_SINGLE} nor {_SHARDED}.")


def tokenizer_files(directory: Path) -> list[Path]:
    files = [
        path
        for path in sorted(directory.iterdir())
        if path.is_file() and any(fnmatch.fnmatch(path.name, pattern) for pattern in _TOKENIZER_FILES)
    ]
    if not _has_vocabulary(directory, files):
        raise EncoderError(
            f"{directory} holds no vocabulary of a tokenizer (tokenizer.json, vocab.txt, …). Save the tokenizer into it."
        )
    return files


def _has_vocabulary(directory: Path, files: list[Path]) -> bool:
    if any(fnmatch.fnmatch(path.name, pattern) for path in files for pattern in _VOCABULARIES):
        return True
    path = directory / "tokenizer_config.json"
    config = modules.load_json(path) if path in files else None
    return isinstance(config, dict) and config.get("tokenizer_class") in _BYTE_TOKENIZERS


def _tokenizer_digest(path: Path, digest: Callable[[Path], str]) -> str:
    if path.name != "tokenizer_config.json":
        return digest(path)
    return json_digest(modules.load_json(path))


def sha256_of_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def json_digest(value: Any) -> str:
    """SHA-256 of a JSON file's content: neither its spacing, nor its order, nor where it was saved from."""
    if isinstance(value, dict):
        value = {key: item for key, item in value.items() if key not in _PROVENANCE}
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
