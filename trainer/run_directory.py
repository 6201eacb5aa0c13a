"""Where a run lies: its directory is begun, gone on with, and put in the place of an older run when it is finished."""

from __future__ import annotations

import contextlib
import fcntl
import glob
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import final
from uuid import uuid4

from cachestore import outside
from cachestore.errors import ConfigError, DataError, EncoderError, TrainingDiverged, UsageError
from trainer.checkpoint import CONFIG, FILES, MARK, RAY, STARTED, STATE, SUMMARY, is_run, run_id, write_mark


@final
@dataclass(frozen=True)
class NewRun:
    """A run on its way to ``path``. Its files are written to ``folder``: another one while an older run lies at ``path``.

    ``id`` is 32 hexadecimal digits; ``replaces`` is that of the older run, None where there is none or it has no id.
    ``made``: ``folder`` was not there before.
    """

    path: Path
    folder: Path
    id: str
    replaces: str | None = None
    made: bool = True


@contextlib.contextmanager
def new_run(output: Path | None, stem: str) -> Iterator[NewRun]:
    """A new run at ``output``, or at the first free one of ``runs/<stem>``, ``runs/<stem>_1``, …

    A run that lies at ``output`` already stays as it is until the body has ended well; then the new one takes its place,
    and files that are not of a run stay there. What was left of unfinished ones that were to take it is removed.
    If the body fails, a run that replaces none is left as far as it got, unless that is before its first step for a fault of
    config, data or encoder, and so is one that does and has saved a state to go on from, unless its training diverged, which it
    would again.
    Raises UsageError as ``check_output`` does, and when the directory cannot be made.
    """
    run = _make(output, stem)
    try:
        with _held(run.folder):
            yield run
    except BaseException as error:
        goes_on = _has_state(run.folder) and not isinstance(error, TrainingDiverged)
        if run.folder != run.path and not goes_on:
            shutil.rmtree(run.folder, ignore_errors=True)
        elif isinstance(error, (ConfigError, DataError, EncoderError)):  # which come again with --resume
            _remove_begun(run)
        raise
    if run.folder != run.path:
        _replace(run.path, run.folder)
    _clear_beside(run.path)


@contextlib.contextmanager
def continued(path: Path, folder: Path) -> Iterator[NewRun]:
    """The unfinished run in ``folder``, on its way to ``path``: as ``new_run``, but a body that fails leaves it as far as it got.

    Raises UsageError when a process still trains it.
    """
    identity = run_id(folder)
    if identity is None:
        raise UsageError(f"The run at {folder} has no id, so that it cannot go on. Train again.")
    run = NewRun(path, folder, identity, None if folder == path else run_id(path))
    with _held(folder):
        yield run
    if folder != path:
        check_output(path)
        if path.exists():
            _replace(path, folder)
        else:
            folder.rename(path)
    _clear_beside(path)


def unfinished(path: Path) -> Path:
    """Where the files of the unfinished run are that was to be at ``path``: there, or beside an older run it was to replace.

    Of several, the one begun last.
    Raises UsageError when there is no such run.
    """
    found = [*([path] if _is_unfinished(path) else []), *_beside(path)]
    if found:
        return max(found, key=lambda new: (new / MARK).stat().st_mtime)
    if is_run(path):
        raise UsageError(f"The run at {path} is finished; there is nothing to resume.")
    raise UsageError(f"There is no run at {path}. Name the directory that train wrote.")


def _beside(path: Path) -> list[Path]:
    """Unfinished runs on their way to ``path``, where another one lies or lay."""
    place = path.resolve()
    return [new for new in place.parent.glob(f".{glob.escape(place.name)}.new-*") if _is_unfinished(new)]


def _clear_beside(path: Path) -> None:
    """Remove what is ``_beside`` a run that is finished: --resume would go on with it, and put it in the place of that run."""
    for older in _beside(path):
        with contextlib.suppress(UsageError, OSError), _held(older):
            shutil.rmtree(older, ignore_errors=True)


def _remove_begun(run: NewRun) -> None:
    """Remove a folder that has nothing but what a run writes before it trains; one that was there before stays, empty."""
    folder = run.folder
    there = {path.name for path in folder.iterdir()}
    if there <= {MARK, CONFIG, STARTED, RAY} and not _has_state(folder):
        shutil.rmtree(folder / RAY, ignore_errors=True)
        with contextlib.suppress(OSError):
            for name in there - {RAY}:
                (folder / name).unlink()
            if run.made:
                folder.rmdir()


def _has_state(folder: Path) -> bool:
    """Whether a state was saved to go on from, by the run itself or by Ray: which may have it elsewhere where RAY is empty."""
    kept = folder / RAY
    elsewhere = kept.is_dir() and not any(kept.iterdir())
    return (folder / STATE).exists() or elsewhere or any(kept.glob(f"*/*/{STATE}"))


def _is_unfinished(folder: Path) -> bool:
    return is_run(folder) and not (folder / SUMMARY).exists()


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
    with _held(output):  # or another process trains there
        pass
    if Path.cwd().is_relative_to(output.resolve()) or output.is_mount():
        what = "a mount point" if output.is_mount() else "the working directory, or holds it,"
        raise UsageError(f"The run at {output} cannot be replaced, because it is {what}. {other}")


def _make(output: Path | None, stem: str) -> NewRun:
    try:
        if output is None:
            run = _numbered(stem)
        else:
            check_output(output)
            folder = outside.beside(output.resolve(), "new") if is_run(output) else output
            run = NewRun(output, folder, uuid4().hex, run_id(output), made=not folder.exists())
            run.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"The run directory {output or 'runs'} cannot be made ({error.strerror}). Name another with --output."
        ) from error
    write_mark(run.folder, run.id)
    return run


@contextlib.contextmanager
def _held(folder: Path) -> Iterator[None]:
    """No other process trains the run in ``folder`` during the body; a process that dies lets go."""
    with (folder / MARK).open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(
                f"The run at {folder} is being trained by another process. Wait for it to end, or name another directory."
            ) from None
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
            if entry.name not in FILES:
                entry.rename(place / entry.name)
        shutil.rmtree(aside)
    except OSError as error:
        raise UsageError(
            f"The new run is at {old}, but what else lay there cannot be moved back from {aside} ({error.strerror}). "
            "Move it by hand."
        ) from error
