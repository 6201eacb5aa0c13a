"""The files of a run: written whole or not at all, read without pickle.

run.json            marks the directory as a run, with the number of its format and the run's id; written first
config.yaml         the config with every default written out
evaluation.json     the final evaluation of the validation and test splits: intervals, confusion, tables of classes
metrics.jsonl       one object per epoch and split, and one for the test split; appended while training runs
model.safetensors   the weights
model.json          what gives them meaning: the config again, vocabularies, normalisation, encoder specs, manifests
summary.json        what the run did; written last, so a run that has it is complete

and what ``report`` makes of them: predictions.safetensors and report.json, report.html, plots/ and tensorboard/
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, final
from uuid import uuid4

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from cachestore import outside, yaml_source
from cachestore.errors import DamageError, UsageError

FORMAT: Final = 1

MARK: Final = "run.json"
CONFIG: Final = "config.yaml"
METRICS: Final = "metrics.jsonl"
EVALUATION: Final = "evaluation.json"
WEIGHTS: Final = "model.safetensors"
MODEL: Final = "model.json"
SUMMARY: Final = "summary.json"
STARTED: Final = "started.json"  # these two are trainer/resume.py's
STATE: Final = "resume.safetensors"
_OF_REPORTS: Final = ("predictions.safetensors", "report.json", "report.html", "plots", "tensorboard")
_FILES: Final = (MARK, CONFIG, METRICS, EVALUATION, WEIGHTS, MODEL, SUMMARY, STARTED, STATE, *_OF_REPORTS)
_KIND: Final = "cachestore run"  # others call a file run.json too


@final
@dataclass(frozen=True)
class NewRun:
    """A run on its way to ``path``. Its files are written to ``folder``: another one while an older run lies at ``path``.

    ``id`` is 32 hexadecimal digits; ``replaces`` is that of the older run, None where there is none or it has no id.
    """

    path: Path
    folder: Path
    id: str
    replaces: str | None = None


@contextlib.contextmanager
def new_run(output: Path | None, stem: str) -> Iterator[NewRun]:
    """A new run at ``output``, or at the first free one of ``runs/<stem>``, ``runs/<stem>_1``, …

    A run that lies at ``output`` already stays as it is until the body has ended well; then the new one takes its place,
    and files that are not of a run stay there. If the body fails, a run that replaces none is left as far as it got.
    Raises UsageError as ``check_output`` does, and when the directory cannot be made.
    """
    run = _make(output, stem)
    try:
        with _held(run.folder):
            yield run
    except BaseException:
        if run.folder != run.path:
            shutil.rmtree(run.folder, ignore_errors=True)
        raise
    if run.folder != run.path:
        _replace(run.path, run.folder)


@contextlib.contextmanager
def continued(path: Path, folder: Path) -> Iterator[NewRun]:
    """The unfinished run in ``folder``, on its way to ``path``: as ``new_run``, but a body that fails leaves it as far as it got.

    Raises UsageError when a process still trains it.
    """
    mark = _read_mark(folder)
    identity = None if mark is None else _id(mark)
    if identity is None:
        raise UsageError(f"The run at {folder} has no id, so that it cannot go on. Train again.")
    run = NewRun(path, folder, identity, None if folder == path else run_id(path))
    with _held(folder):
        yield run
    if folder == path:
        return
    check_output(path)
    if path.exists():
        _replace(path, folder)
    else:
        folder.rename(path)


def unfinished(path: Path) -> Path:
    """Where the files of the unfinished run are that was to be at ``path``: there, or beside an older run it was to replace.

    Of several, the one begun last.
    Raises UsageError when there is no such run.
    """
    place = path.resolve()
    there = [path, *place.parent.glob(f".{place.name}.new-*")]
    found = [new for new in there if is_run(new) and not (new / SUMMARY).exists()]
    if found:
        return max(found, key=lambda new: (new / MARK).stat().st_mtime)
    if is_run(path):
        raise UsageError(f"The run at {path} is finished; there is nothing to resume.")
    raise UsageError(f"There is no run at {path}. Name the directory that train wrote.")


def read_config(run: Path) -> dict[str, Any]:
    """The resolved config. Raises UsageError when the run was stopped before it was written."""
    data = _read(run / CONFIG)
    if data is None:
        raise UsageError(f"The run at {run} was stopped before it trained. Train again.")
    found = yaml_source.parse(data.decode(), str(run / CONFIG))
    if not isinstance(found, dict):
        raise DamageError(f"{run / CONFIG} is damaged (it holds no mapping). Train again.")
    return found


def check_output(output: Path) -> None:
    """Raises UsageError when ``new_run`` would refuse ``output``; looks only."""
    other = "Name a new directory with --output."
    try:
        empty = not any(output.iterdir())
    except FileNotFoundError:
        return
    except NotADirectoryError:
        raise UsageError(f"{output} cannot be a directory: a file is in its place. {other}") from None
    except OSError as error:
        raise UsageError(f"{output} cannot be read ({error.strerror}). {other}") from error
    if empty:
        return
    if not is_run(output):
        raise UsageError(f"{output} is not empty and holds no run. {other}")
    if Path.cwd().is_relative_to(output.resolve()) or output.is_mount():
        what = "a mount point" if output.is_mount() else "the working directory, or holds it,"
        raise UsageError(f"The run at {output} cannot be replaced, because it is {what}. {other}")


def is_run(path: Path) -> bool:
    """Whether a directory is a run, finished or not."""
    return _read_mark(path) is not None


def run_id(path: Path) -> str | None:
    """The id of the run in a directory; None when it has none."""
    mark = _read_mark(path)
    return None if mark is None else _id(mark)


def write_config(run: Path, config: Mapping[str, Any]) -> None:
    """Write the resolved config."""
    outside.write(run / CONFIG, yaml_source.dump(dict(config)).encode())


def append_metrics(run: Path, line: Mapping[str, Any]) -> None:
    """Add one line to the metrics, which outlives this process from then on; a metric that is NaN is null there."""
    try:
        with (run / METRICS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(plain(line), allow_nan=False) + "\n")
    except OSError as error:
        raise outside.unwritable(run / METRICS, error) from error


def write_evaluation(run: Path, evaluation: Mapping[str, Any]) -> None:
    """Write the final evaluations, by split."""
    outside.write(run / EVALUATION, _json(evaluation))


def write_model(run: Path, model: nn.Module, description: Mapping[str, Any]) -> None:
    """Write the weights, then what gives them meaning."""
    # in name order: equal weights give equal bytes
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in sorted(model.state_dict().items())}
    outside.write(run / WEIGHTS, save(state))
    outside.write(run / MODEL, _json(description))


def write_summary(run: Path, summary: Mapping[str, Any]) -> None:
    """Write the summary, which makes the run complete: all of it is on disk before the summary is, and that when this returns."""
    try:
        outside.sync(run / METRICS)
        outside.sync(run)
        outside.write(run / SUMMARY, _json(summary))
        outside.sync(run)
        outside.sync(run.parent)
    except OSError as error:
        raise outside.unwritable(run / SUMMARY, error) from error


def read_model(run: Path) -> dict[str, Any]:
    """The description of a run's model. Raises UsageError when ``run`` holds none, or one of a newer format."""
    return _read_of_run(run, MODEL)


def read_summary(run: Path) -> dict[str, Any]:
    """The summary of a finished run. Raises UsageError when ``run`` is not one, or of a newer format."""
    return _read_of_run(run, SUMMARY)


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


def _make(output: Path | None, stem: str) -> NewRun:
    try:
        if output is None:
            run = _numbered(stem)
        else:
            check_output(output)
            old = _read_mark(output)
            folder = output if old is None else outside.beside(output.resolve(), "new")
            run = NewRun(output, folder, uuid4().hex, None if old is None else _id(old))
            run.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"The run directory {output or 'runs'} cannot be made ({error.strerror}). Name another with --output."
        ) from error
    outside.write(run.folder / MARK, _json({"kind": _KIND, "format": FORMAT, "id": run.id}))
    return run


@contextlib.contextmanager
def _held(folder: Path) -> Iterator[None]:
    """No other process trains the run in ``folder`` during the body; a process that dies lets go."""
    with (folder / MARK).open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"The run at {folder} is being trained by another process. Wait for it to end.") from None
        yield


def _numbered(stem: str) -> NewRun:
    number = 0
    while True:
        path = Path("runs") / (f"{stem}_{number}" if number else stem)
        with contextlib.suppress(FileExistsError):
            path.mkdir(parents=True)
            return NewRun(path, path, uuid4().hex)
        number += 1


def _replace(old: Path, new: Path) -> None:
    """Put the run ``new`` in the place of ``old``, of which what is no file of a run is kept."""
    place = old.resolve()
    try:
        aside = outside.swap(place, new)
    except OSError as error:
        raise UsageError(
            f"The run at {old} cannot be replaced ({error.strerror}). The new one is whole at {new}; move it by hand."
        ) from error
    try:
        outside.sync(place.parent)
        for entry in aside.iterdir():
            if entry.name not in _FILES:
                entry.rename(place / entry.name)
        shutil.rmtree(aside)
    except OSError as error:
        raise UsageError(
            f"The new run is at {old}, but what else lay there cannot be moved back from {aside} ({error.strerror}). "
            "Move it by hand."
        ) from error


def _read_of_run(run: Path, name: str) -> dict[str, Any]:
    """A JSON file of a run. Raises UsageError when ``run`` is none, is of a newer format, or has no such file yet."""
    mark = _read_mark(run)
    if mark is None:
        missing = f"{run} is not a run" if run.exists() else f"There is no run at {run}"
        raise UsageError(f"{missing}. Name the directory that train wrote.")
    if mark.get("format") != FORMAT:
        raise UsageError(
            f"{run} has run format {mark.get('format')}, and this version reads {FORMAT}. "
            "Upgrade cachestore, or train again with this version."
        )
    path = run / name
    data = _read(path)
    if data is None:
        raise UsageError(f"The run at {run} did not finish and has no model. Train again.")
    try:
        found = json.loads(data)
    except ValueError as error:
        raise DamageError(f"{path} is damaged ({error}). Restore the file, or train again.") from error
    if not isinstance(found, dict):
        raise DamageError(f"{path} is damaged (it holds no object). Restore the file, or train again.")
    return found


def _read_mark(path: Path) -> dict[str, Any] | None:
    """What marks a directory as a run, None where nothing does."""
    try:
        found = json.loads(_read(path / MARK) or b"null")
    except ValueError:
        return None
    return found if isinstance(found, dict) and found.get("kind") == _KIND else None


def _id(mark: Mapping[str, Any]) -> str | None:
    """The id of a run that a mark tells, None where it tells none that could be one."""
    found = mark.get("id")
    return found if isinstance(found, str) and re.fullmatch("[0-9a-f]{32}", found) else None


def _read(path: Path) -> bytes | None:
    """The bytes of a file, None when there is no such file."""
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror}).") from error


def _json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(plain(value), indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()
