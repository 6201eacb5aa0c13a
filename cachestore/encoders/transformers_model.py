"""Models of transformers from local directories: safetensors only, none of their code, and no talk while they load."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from cachestore.encoders import _torchvision
from cachestore.errors import EncoderError

_torchvision.make_importable()

import transformers  # noqa: E402  # needs torchvision's operators declared

__all__ = ["empty", "load", "loading", "quiet", "require_whole", "transformers"]


@contextlib.contextmanager
def loading(directory: Path) -> Iterator[None]:
    """Loads a model in its body, quietly. Raises EncoderError for whatever is wrong with its files."""
    with quiet():
        try:
            yield
        except EncoderError:
            raise
        except Exception as error:  # transformers raises whatever its parts raise, each for its own kind of broken file
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise EncoderError(f"{directory} cannot be loaded as a transformers model: {reason}") from error


def load(model: Any, directory: Path, *, pooler: bool, **options: Any) -> tuple[Any, list[str]]:
    """A model of that class, with its pooler where it is wanted and the class has a choice, and the weights its files lack."""
    if "add_pooling_layer" in inspect.signature(model).parameters:
        options["add_pooling_layer"] = pooler
    backbone, report = model.from_pretrained(
        directory, local_files_only=True, use_safetensors=True, output_loading_info=True, **options
    )
    return backbone, sorted(report["missing_keys"])


def empty(model: Any, config: Any, *, pooler: bool, dtype: Any) -> Any:
    """A model of that class without the weights of files, on torch's default device: where that is meta, they are put into it later."""
    options = {"add_pooling_layer": pooler} if "add_pooling_layer" in inspect.signature(model).parameters else {}
    return model(config, **options).to(dtype)


def require_whole(directory: Path, missing: Sequence[str]) -> None:
    """Raises EncoderError when weights are missing."""
    if missing:
        raise EncoderError(
            f"{directory} lacks weights of the model that config.json describes ({', '.join(missing[:3])}"
            f"{', …' if len(missing) > 3 else ''}). Save the whole model again."
        )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """transformers says nothing meanwhile: what matters of a model's loading is checked and raised here."""
    logging: Any = transformers.utils.logging  # partly untyped
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.ERROR)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
