"""What a command shows: its result on stdout as text or as one JSON object; talk, progress and errors on stderr."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TextIO

from cli.visible import visible

if TYPE_CHECKING:
    from pathlib import Path

    from cachestore.built import Progress
    from cachestore.dataset import SkippedCell
    from cli.bar import Bar

SKIPPED_ROWS = 5
INTERRUPTED = 130
TERMINATED = 143
SKIPPED_SHOWN = 5
_KEPT = dict.fromkeys(
    ("build", "train", "predict", "evaluate", "import", "demo"), "; vectors already stored are kept"
) | {
    "forget": "; a forget that has begun is finished by: cachestore forget --resume",
    "sweep": "; trials that are finished are kept: start it again with the same --output",
}


class ResultLost(Exception):
    """The result cannot be written to stdout. Not of the tree of cachestore, which takes long to import."""


def prepare_streams() -> None:
    """Before anything is written: a character that a stream cannot take is escaped, and a closed stream takes everything.
    Warnings are sentences, as everything else on stderr.

    Its number is taken as well, so that no file of a store gets it, and with it what C libraries write to stderr.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115  # as long as the process
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"


@dataclass(frozen=True)
class Output:
    """Where the words of one command go."""

    as_json: bool
    quiet: bool

    def result(self, summary: Mapping[str, Any], text: str) -> None:
        """The result, once: ``summary`` under --json, else ``text``. Raises ResultLost when it cannot be written."""
        _result(json.dumps(summary, allow_nan=False) if self.as_json else text)

    def say(self, line: str) -> None:
        """A remark on the way, unless --quiet."""
        if not self.quiet:
            _remark(line)

    def bar(self) -> AbstractContextManager[Bar | None]:
        """A progress bar on stderr; None where nobody would see it."""
        if self.quiet or self.as_json or sys.stderr is None or not sys.stderr.isatty():
            return contextlib.nullcontext()
        from cli.bar import Bar  # rich is loaded for a terminal only

        return Bar()


def error(kind: str, message: str, exit_code: int, *, as_json: bool) -> None:
    """An error as one JSON object on stdout, or as a sentence on stderr, also where stdout takes nothing."""
    if as_json:
        with contextlib.suppress(ResultLost):
            _result(json.dumps({"error": {"type": kind, "message": message, "exit_code": exit_code}}))
            return
    _remark(f"error: {message}")


class _Stopped:
    code = INTERRUPTED
    run: tuple[Path, Path] | None = None


def terminate(number: int, _frame: object) -> None:
    """Handles SIGTERM: the command ends as an interrupted one does, with an exit code of its own."""
    import signal

    signal.signal(number, signal.SIG_IGN)  # a second one would end what keeps the vectors of the first
    _Stopped.code = TERMINATED
    raise KeyboardInterrupt


def begun(path: Path, folder: Path) -> None:
    """The run that is to be at ``path`` can be gone on with while its files are in ``folder``; ``interrupted`` says so."""
    _Stopped.run = path, folder


def interrupted(arguments: Sequence[str]) -> int:
    """Says so, and what is kept of the command that these are the arguments of; returns the exit code."""
    kept = "" if "--dry-run" in arguments else _KEPT.get(arguments[0] if arguments else "", "")
    if arguments[:1] == ["train"] and _Stopped.run is not None:
        from cachestore.errors import UsageError
        from trainer.run_directory import unfinished

        path, folder = _Stopped.run
        with contextlib.suppress(UsageError, OSError):
            if unfinished(path).resolve() == folder.resolve():  # or nothing of it was saved, and another one is there
                kept += f", and the run goes on with: cachestore train --resume {path}"
    error("Interrupted", f"interrupted{kept}", _Stopped.code, as_json="--json" in arguments)
    return _Stopped.code


def lost(failure: OSError) -> ResultLost:
    """What a failed write to stdout means; the rest of the result goes nowhere."""
    if sys.stdout is not None:
        _divert(sys.stdout)
    return ResultLost(
        f"The result cannot be written to stdout: {failure.strerror}. Make room there, or send it elsewhere."
    )


def skipped(cells: Sequence[SkippedCell], total: int, data: object) -> bool:
    """Name the first skipped cells on stderr, even under --quiet; returns whether there are any.

    ``data`` is the file of those that do not say theirs.
    """
    for cell in cells[:SKIPPED_SHOWN]:
        place = f"data row {cell.row} (counted from 0)"
        _remark(f"skipped: {cell.where or data}, column {cell.column!r}, {place}: {cell.why}")
    if total > SKIPPED_SHOWN:
        _remark(f"skipped: {total - SKIPPED_SHOWN:,} more")
    return total > 0


def say_if_waiting(out: Output, told: set[str], data: str, progress: Progress) -> None:
    """Say once of each build that it waits for another process."""
    if progress.waiting and data not in told:
        told.add(data)
        out.say(f"{data}: waiting for {count(progress.waiting, 'vector')} that another process encodes just now")


def table(head: Sequence[str], rows: Sequence[Sequence[object]], *, right: Sequence[str] = ()) -> str:
    """Columns padded to their widest cell, two spaces apart; those named in ``right`` align to the right."""
    cells = [list(head), *([str(cell) for cell in row] for row in rows)]
    widths = [max(len(row[at]) for row in cells) for at in range(len(head))]
    lines = (
        "  ".join(
            cell.rjust(width) if name in right else cell.ljust(width)
            for name, cell, width in zip(head, row, widths, strict=True)
        ).rstrip()
        for row in cells
    )
    return "\n".join(lines)


def metrics(by_split: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """A table of metrics: a line per output feature and metric, a column per split."""
    splits = list(by_split)
    lines = dict.fromkeys(
        (feature, metric) for features in by_split.values() for feature, values in features.items() for metric in values
    )
    rows = []
    for feature, metric in lines:
        values = [by_split[split].get(feature, {}).get(metric) for split in splits]
        rows.append((feature, metric, *("" if value is None else number(value) for value in values)))
    return table(("output", "metric", *splits), rows, right=splits)


def number(value: float) -> str:
    """A metric as a person reads it: four decimals, and a power of ten where it is huge."""
    return f"{value:.4f}" if abs(value) < 1e7 or value != value else f"{value:.3e}"  # noqa: PLR0124  # NaN


def count(number: int, noun: str, plural: str = "") -> str:
    """A number of things as a person reads it: ``"1 vector"``, ``"1,234 vectors"``."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def size(nbytes: int) -> str:
    """Bytes as a person reads them: ``"3.2 MB"``."""
    amount = float(nbytes)
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 1000:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.1f} TB"


def duration(seconds: float) -> str:
    """Seconds as a person reads them: ``"0.31 s"``, ``"12.4 s"``, ``"3 min 20 s"``."""
    if seconds < 10:
        return f"{seconds:.2f} s"
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def _result(text: str) -> None:
    if failure := _write(sys.stdout, text):
        raise lost(failure) from failure


def _remark(text: str) -> None:
    _write(sys.stderr, text)  # nobody can be told that stderr takes nothing


def _write(stream: TextIO | None, text: str) -> OSError | None:
    """Why it could not be written; a stream that is closed, or that nobody reads any more, is no fault."""
    if stream is None:
        return None
    try:
        print(visible(text), file=stream, flush=True)
    except (
        BrokenPipeError
    ):  # the reader has seen enough (`cachestore ls | head -1`); the exit code still tells the rest
        _divert(stream)
    except OSError as failure:
        _divert(stream)
        return failure
    return None


def _divert(stream: TextIO) -> None:
    """/dev/null takes what is left in the buffer, so that the flush at interpreter exit does not complain either."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)
