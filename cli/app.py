"""The command line: one typer app, and the one place where an error becomes a message and an exit code."""

from __future__ import annotations

import traceback
from collections.abc import Iterable, Sequence
from importlib import import_module
from importlib.metadata import version
from typing import Annotated, Any

import typer

from cachestore.errors import CachestoreError
from cli import output

COMMANDS = (
    *(
        "build",
        "train",
        "sweep",
        "predict",
        "evaluate",
        "report",
        "compare",
        "ls",
        "log",
        "diff",
        "tag",
        "explain",
        "stats",
    ),
    *("verify", "repair", "gc", "forget", "export", "import", "init", "schema", "demo"),
)
_MODULES = {"import": "imports"}  # of a command that cannot name its module
# typer raises this class for bad arguments, but exports only the subclass.
UsageMistake: type[Exception] = typer.BadParameter.__mro__[1]

_HELP = """Store the vectors of frozen encoders once, and train heads on them in seconds.

    \b
    A first look, on a small data set that comes with the package:
        cachestore demo

    \b
    Exit codes:
        0    done
        1    a bug in cachestore
        2    wrong usage, config or data
        3    the store is missing, locked, full or of another format
        4    damage found in the store
        5    finished, but some rows were skipped
        130  interrupted; vectors already stored are kept
        143  terminated; the same
    """


def _app(names: Iterable[str]) -> typer.Typer:
    """The app with these commands. A run needs one: to import and describe all takes a tenth of a second."""
    made = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False, help=_HELP)
    made.callback()(options)
    for name in names:
        made.command(name)(import_module(f"cli.{_MODULES.get(name, name)}").command)
    return made


def __getattr__(name: str) -> Any:
    if name == "app":
        return _app(COMMANDS)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def run(arguments: Sequence[str]) -> int:
    """Run one command; returns its exit code, with every error already shown."""
    as_json = "--json" in arguments
    try:
        named = arguments[:1] if arguments and arguments[0] in COMMANDS else COMMANDS
        app = _app(named)
        code = app(args=list(arguments) or ["--help"], prog_name="cachestore", standalone_mode=False) or 0
    except output.ResultLost as error:
        return _lost(error)
    except CachestoreError as error:
        output.error(type(error).__name__, str(error), error.exit_code, as_json=as_json)
        return error.exit_code
    except UsageMistake as error:
        output.error("UsageError", _mistake(error), 2, as_json=as_json)
        return 2
    except (KeyboardInterrupt, typer.Abort):
        return output.interrupted(arguments)
    except Exception as error:
        if isinstance(error, OSError) and _of_typer(error):
            return _lost(output.lost(error))
        traceback.print_exc()
        output.error(
            type(error).__name__, f"this is a bug in cachestore: {type(error).__name__}: {error}", 1, as_json=as_json
        )
        return 1
    if code == output.INTERRUPTED:
        return output.interrupted(arguments)
    return int(code)


def _lost(error: output.ResultLost) -> int:
    """On stderr even under --json: stdout takes nothing."""
    output.error("UsageError", str(error), 2, as_json=False)
    return 2


def _of_typer(error: OSError) -> bool:
    """Whether it was raised while typer wrote its own text, help or version."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return str(frame.f_globals.get("__name__")).partition(".")[0] in ("typer", "click")


def _mistake(error: Any) -> str:
    """typer's sentence, and where to read on."""
    command = f"{error.ctx.command_path} --help" if error.ctx else "cachestore --help"
    sentence = str(error.format_message())
    return f"{sentence}{'' if sentence.endswith(('.', '?')) else '.'} Try: {command}"


def show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"cachestore {version('cachestore')}")
        raise typer.Exit


def options(
    _version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass
