"""How every command ends: exit codes, one JSON object, no noise when a reader goes away."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest

import cachestore
from cli.app import app
from tests.commands.conftest import Command

BUILD = ("--column", "text", "--encoder", "hashing")
COMMANDS = ("build", "train", "predict", "evaluate", "ls", "demo")


def raising(error: BaseException) -> Callable[..., NoReturn]:
    def call(*_arguments: Any, **_named: Any) -> NoReturn:
        raise error

    return call


@pytest.mark.parametrize("name", COMMANDS)
def test_help_says_what_a_command_does_and_how_it_ends(command: Command, name: str) -> None:
    done = command(name, "--help")
    assert done.code == 0
    assert f"cachestore {name}" in done.out
    assert "Example" in done.out
    assert "Exit codes:" in done.out
    assert re.search(r"^ *4 +damage found in the store", done.out, re.M)  # every command reads one
    for option in ("--store", "--json", "--quiet"):
        assert option in done.out


def test_every_command_is_tested_here() -> None:
    assert tuple(info.name for info in app.registered_commands) == COMMANDS


def test_no_arguments_is_help(command: Command) -> None:
    done = command()
    assert done.code == 0
    assert "Exit codes:" in done.out


def test_version(command: Command) -> None:
    assert command("--version").out == f"cachestore {cachestore.__version__}\n"


def test_an_unforeseen_exception_is_a_bug(command: Command, reviews: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cachestore, "open_store", raising(KeyError("shards")))
    done = command("build", reviews, *BUILD)
    assert done.code == 1
    assert "this is a bug in cachestore" in done.err
    assert "Traceback" in done.err
    as_json = command("build", reviews, *BUILD, "--json")
    assert as_json.code == 1
    assert as_json.json["error"]["type"] == "KeyError"


def test_an_interrupt_is_130(command: Command, reviews: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cachestore, "open_store", raising(KeyboardInterrupt()))
    done = command("build", reviews, *BUILD)
    assert done.code == 130
    assert done.err == "error: interrupted; vectors already stored are kept\n"
    assert command("build", reviews, *BUILD, "--json").json["error"]["exit_code"] == 130


def test_a_reader_that_goes_away_is_no_error(command: Command, store: Path, reviews: Path) -> None:
    command("build", reviews, *BUILD, "--store", store)
    script = "import sys; from cli.app import main; sys.argv = ['cachestore', 'ls', '--store', sys.argv[1]]; main()"
    with subprocess.Popen(
        [sys.executable, "-c", script, str(store)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.close()
        errors = process.stderr.read()
        assert process.wait(timeout=60) == 0
    assert errors == b""
