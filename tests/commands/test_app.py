"""How every command ends: exit codes, one JSON object, no noise when a reader goes away."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest

import cachestore
from cli import output
from cli.app import app
from tests.commands.conftest import Command

BUILD = ("--column", "text", "--encoder", "hashing")
ROOT = Path(__file__).resolve().parent.parent.parent
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
    if name not in ("repair", "init", "schema"):  # the others read a store or a run, and the first mends it
        assert re.search(r"^ *4 +.*damage", done.out, re.M)
    storeless = ("report", "compare", "init", "schema")
    for option in (*(("--store",) if name not in storeless else ()), "--json", "--quiet"):
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


@pytest.mark.parametrize("arguments", [["stats"], ["gc"], ["build", "reviews.csv", *BUILD, "--dry-run"]])
def test_an_interrupted_command_that_stores_no_vectors_does_not_say_that_it_kept_some(
    command: Command, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    monkeypatch.setattr(cachestore, "open_store", raising(KeyboardInterrupt()))
    monkeypatch.setattr("cachestore.store.open_store", raising(KeyboardInterrupt()))
    assert command(*arguments).err == "error: interrupted\n"


EVERY = [
    "ls",
    "gc",
    "verify",
    "repair",
    "stats",
    "log x",
    "forget --text x",
    "export x -o x.npy",
    "diff a b",
    "tag a b",
]


@pytest.mark.parametrize("line", [*EVERY, "build {data} --column text --encoder hashing"])
def test_a_store_that_is_no_directory_and_an_empty_one_are_refused_alike_by_every_command(
    command: Command, reviews: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    arguments = line.format(data=reviews).split()
    done = command(*arguments, "--store", reviews)
    assert (done.code, done.err) == (
        3,
        f"error: {reviews} is not a directory, as a store is. Name a directory with --store.\n",
    )
    (place := tmp_path / "place").mkdir()
    monkeypatch.chdir(place)
    done = command(*arguments, "--store", "")
    assert (done.code, done.err.startswith("error: --store is empty.")) == (2, True)
    assert not list(place.iterdir())


@pytest.mark.parametrize(("number", "said"), [(0, "0 rows"), (1, "1 row"), (2, "2 rows"), (1234, "1,234 rows")])
def test_a_number_of_things_is_grammatical(number: int, said: str) -> None:
    assert output.count(number, "row") == said
    assert output.count(number, "copy", "copies") == said.replace("rows", "copies").replace("row", "copy")


def test_a_reader_that_goes_away_is_no_error(command: Command, store: Path, reviews: Path) -> None:
    command("build", reviews, *BUILD, "--store", store)
    script = "import sys; from cli.start import main; sys.argv = ['cachestore', 'ls', '--store', sys.argv[1]]; main()"
    with subprocess.Popen(
        [sys.executable, "-c", script, str(store)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.close()
        errors = process.stderr.read()
        assert process.wait(timeout=60) == 0
    assert errors == b""


def shell(line: str, *, python: str = "", **variables: str) -> subprocess.CompletedProcess[str]:
    """A command line of a real shell, with ``cachestore`` as the console script runs it."""
    start = f"{sys.executable} -c 'from cli.start import main; main()'"
    path = os.pathsep.join([python, str(ROOT)] if python else [str(ROOT)])
    return subprocess.run(
        ["/bin/sh", "-c", line.replace("cachestore", start, 1)],
        env={**os.environ, "PYTHONPATH": path, **variables},
        capture_output=True,
        encoding="utf-8",
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("arguments", ["ls", "ls --json"])
@pytest.mark.parametrize("library", ["numpy", "typer"])
def test_an_interrupt_while_it_starts_is_130(tmp_path: Path, arguments: str, library: str) -> None:
    (tmp_path / f"{library}.py").write_text(
        "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(30)\n", encoding="utf-8"
    )
    done = shell(f"cachestore {arguments}", python=str(tmp_path))
    assert done.returncode == 130
    if "--json" in arguments:
        assert json.loads(done.stdout)["error"]["exit_code"] == 130
        assert done.stderr == ""
    else:
        assert (done.stdout, done.stderr) == ("", "error: interrupted\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("arguments", ["ls --store {store}", "ls --store {store} --json", "--help", "--version"])
def test_a_result_that_cannot_be_written_is_no_bug(
    command: Command, store: Path, reviews: Path, arguments: str
) -> None:
    command("build", reviews, *BUILD, "--store", store)
    done = shell(f"cachestore {arguments.format(store=store)} > /dev/full")
    assert done.returncode == 2
    assert done.stderr.startswith("error: The result cannot be written to stdout: No space left on device.")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("as_json", ["", "--json"], ids=["text", "json"])
@pytest.mark.parametrize("closed", ["2>&-", "2>/dev/full", ">&- 2>&-", "<&- 2>&-"])
def test_a_closed_stream_takes_everything(
    command: Command, store: Path, reviews: Path, tmp_path: Path, closed: str, as_json: str
) -> None:
    (tmp_path / "latin.csv").write_bytes(b"text\nfine\nna\xefve\n")
    done = shell(
        f"cachestore build {tmp_path}/latin.csv --column text --encoder hashing --store {store} {as_json} {closed}"
    )
    assert done.returncode == 5
    assert done.stderr == ""
    assert done.stdout.count("\n") == (0 if ">&- 2" in closed else 1 if as_json else 4)
    assert command("build", reviews, *BUILD, "--store", store).code == 0
    failed = shell(f"cachestore ls --store {tmp_path}/nowhere {as_json} {closed}")
    assert failed.returncode == 3
    assert "Traceback" not in failed.stdout
    if as_json and ">&- 2" not in closed:
        assert json.loads(failed.stdout)["error"]["type"] == "StoreNotFound"
    else:
        assert failed.stdout == ""


@pytest.mark.parametrize(
    "locale",
    [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}],
    ids=["ascii", "C"],
)
def test_streams_that_cannot_take_a_character_get_its_escape(
    tmp_path: Path, store: Path, locale: dict[str, str]
) -> None:
    (tmp_path / "data.csv").write_bytes("t\u00e9xt,n\nfine,1\n".encode() + b"na\xefve,2\n")
    feature = "{name: text, type: text, column: t\u00e9xt, encoder: {type: hashing, dim: 32}}"
    config = f"input_features: [{feature}]\noutput_features: [{{name: n, type: number}}]\n"
    (tmp_path / "config.yaml").write_text(config, encoding="utf-8")
    done = shell(f"cachestore build {tmp_path}/data.csv -c {tmp_path}/config.yaml --store {store}", **locale)
    assert done.returncode == 5
    assert "column 't\\xe9xt', data row 1" in done.stderr
    shown = shell(f"cachestore ls --store {store}", **locale)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "t\\xe9xt: hashing" in shown.stdout
    as_json = json.loads(shell(f"cachestore ls --store {store} --json", **locale).stdout)
    assert as_json["names"][0]["columns"][0]["column"] == "t\u00e9xt"
    wrong = shell(f"cachestore build {tmp_path}/data.csv --column text --encoder hashing --store {store}", **locale)
    assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1)
    assert "did you mean 't\\xe9xt'" in wrong.stderr
