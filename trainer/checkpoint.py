"""The files of a run: written whole or not at all, read without pickle.

config.yaml         the config with every default written out
metrics.jsonl       one object per epoch and split, and one for the test split; appended while training runs
model.safetensors   the weights
model.json          what gives them meaning: the config again, vocabularies, normalisation, encoder specs, manifests
summary.json        what the run did; written last, so a run that has it is complete
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import yaml
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from cachestore.errors import DamageError, UsageError

FORMAT: Final = 1

CONFIG: Final = "config.yaml"
METRICS: Final = "metrics.jsonl"
WEIGHTS: Final = "model.safetensors"
MODEL: Final = "model.json"
SUMMARY: Final = "summary.json"
_FILES: Final = (
    SUMMARY,
    MODEL,
    WEIGHTS,
    METRICS,
    CONFIG,
)  # in the order they are deleted: a half-deleted run is no run


def create(output: Path | None, stem: str) -> Path:
    """Make the directory of a new run: ``output``, or the first free one of ``runs/<stem>``, ``runs/<stem>_1``, …

    A run that lies at ``output`` already is replaced. Raises UsageError when something else does, or it cannot be made.
    """
    try:
        if output is not None:
            check_output(output)
            for name in _FILES:
                (output / name).unlink(missing_ok=True)
            output.mkdir(parents=True, exist_ok=True)
            return output
        number = 0
        while True:
            path = Path("runs") / (f"{stem}_{number}" if number else stem)
            with contextlib.suppress(FileExistsError):
                path.mkdir(parents=True)
                return path
            number += 1
    except OSError as error:
        raise UsageError(
            f"The run directory {output or 'runs'} cannot be made ({error.strerror}). Name another with --output."
        ) from error


def check_output(output: Path) -> None:
    """Raises UsageError when ``create`` would refuse ``output``; looks only."""
    if not output.is_dir() and output.exists():
        raise UsageError(f"{output} is a file, not a directory. Name a new directory with --output.")
    if output.is_dir() and any(output.iterdir()) and not (output / CONFIG).exists():
        raise UsageError(f"{output} is not empty and holds no run. Name a new directory with --output.")


def write_config(run: Path, config: Mapping[str, Any]) -> None:
    """Write the resolved config."""
    _write(run / CONFIG, yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True).encode())


def append_metrics(run: Path, line: Mapping[str, Any]) -> None:
    """Add one line to the metrics, on disk when this returns; a metric that is NaN is null there."""
    with (run / METRICS).open("a", encoding="utf-8") as file:
        file.write(json.dumps(plain(line), allow_nan=False) + "\n")


def write_model(run: Path, model: nn.Module, description: Mapping[str, Any]) -> None:
    """Write the weights, then what gives them meaning."""
    # in name order: equal weights give equal bytes
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in sorted(model.state_dict().items())}
    _write(run / WEIGHTS, save(state))
    _write(run / MODEL, _json({"format": FORMAT, **description}))


def write_summary(run: Path, summary: Mapping[str, Any]) -> None:
    """Write the summary, which makes the run complete."""
    _write(run / SUMMARY, _json(summary))


def read_model(run: Path) -> dict[str, Any]:
    """The description of a run's model. Raises UsageError when ``run`` holds none, or one of a newer format."""
    description = _read_json(run, MODEL)
    if description.get("format") != FORMAT:
        raise UsageError(
            f"{run} has run format {description.get('format')}, and this version reads {FORMAT}. "
            "Upgrade cachestore, or train again with this version."
        )
    return description


def read_summary(run: Path) -> dict[str, Any]:
    """The summary of a finished run. Raises UsageError when ``run`` is not one."""
    return _read_json(run, SUMMARY)


def read_weights(run: Path, model: nn.Module) -> None:
    """Load the weights of ``run`` into ``model``. Raises DamageError when they are not whole or not of this model."""
    path = run / WEIGHTS
    try:
        state: dict[str, Tensor] = load(path.read_bytes())
        model.load_state_dict(state)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise DamageError(f"The weights {path} cannot be read ({error}). Restore the file, or train again.") from error


def plain(value: Any) -> Any:
    """``value`` as strict JSON has it: NaN and infinities, which it lacks, become null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def _read_json(run: Path, name: str) -> dict[str, Any]:
    path = run / name
    try:
        found = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(_no_run(run)) from None
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror}).") from error
    except ValueError as error:
        raise DamageError(f"{path} is damaged ({error}). Restore the file, or train again.") from error
    if not isinstance(found, dict):
        raise DamageError(f"{path} is damaged (it holds no object). Restore the file, or train again.")
    return found


def _no_run(run: Path) -> str:
    if not run.exists():
        return f"There is no run at {run}. Name the directory that train wrote."
    if (run / CONFIG).exists():
        return f"The run at {run} did not finish and has no model. Train again."
    return f"{run} is not a run. Name the directory that train wrote."


def _json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(plain(value), indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _write(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{uuid4().hex[:8]}")
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    except OSError as error:
        raise UsageError(f"{path} cannot be written ({error.strerror}).") from error
    finally:
        temporary.unlink(missing_ok=True)
