"""The frozen surface: public names and command-line options. A change here changes what users have."""

from __future__ import annotations

import importlib

import pytest
import typer

from cli.app import app

NAMES = {
    "cachestore": {"Encoder", "Manifest", "Store", "build", "errors", "open_store"},
    "trainer": {
        "CachedClassifier",
        "CachedRegressor",
        "Run",
        "evaluate",
        "load_config",
        "predict",
        "resume_run",
        "train",
    },
    "cli": set(),
}
EVERYWHERE = {"--store", "--json", "--quiet", "-q", "--help"}
WITHOUT_STORE = {"compare", "report", "init", "schema"}
OPTIONS = {
    "build": {"DATA", "--config", "-c", "--column", "--encoder", "--name", "--dry-run"},
    "train": {
        "DATA",
        "--config",
        "-c",
        "--validation",
        "--test",
        "--output",
        "-o",
        "--set",
        "--resume",
        "--dry-run",
        "--tensorboard",
    },
    "sweep": {
        *(
            "DATA",
            "--config",
            "-c",
            "--grid",
            "--folds",
            "--seeds",
            "--validation",
            "--test",
            "--output",
            "-o",
            "--set",
        ),
    },
    "report": {"RUN", "DATA", "--plots", "--tensorboard"},
    "compare": {"RUN…", "--split", "--html"},
    "predict": {"RUN", "DATA", "--output", "-o"},
    "evaluate": {"RUN", "DATA"},
    "ls": {"--runs"},
    "log": {"NAME"},
    "diff": {"A", "B", "--rows"},
    "tag": {"NAME[@VERSION]", "TAG", "--delete"},
    "explain": {"DATA", "--config", "-c", "--column", "--encoder"},
    "stats": {"--sample"},
    "verify": {"[NAME]...", "--read-data", "--sample", "--reencode", "--config", "-c", "--encoder", "--seed"},
    "repair": {"--dry-run", "--wait"},
    "gc": {
        "--dry-run",
        "--unreferenced-older-than",
        "--keep-last",
        "--max-bytes",
        "--repack",
        "--drop-missing-runs",
        "--grace",
        "--wait",
    },
    "forget": {"--text", "--file", "--rows", "--resume", "--dry-run", "--wait"},
    "export": {"NAME", "--output", "-o", "--column", "--with", "--timestamp-column", "--dtype"},
    "import": {"VECTORS", "--spec", "--text-column", "--vector-column", "--data", "--column", "--name"},
    "init": {"DATA", "--target", "--encoder", "--output", "-o"},
    "schema": {"--output", "-o"},
    "demo": {"--output", "-o"},
}


@pytest.mark.parametrize("package", NAMES)
def test_public_names_are_these_and_exist(package: str) -> None:
    module = importlib.import_module(package)
    public = set(getattr(module, "__all__", ()))
    assert public == NAMES[package]
    assert all(hasattr(module, name) for name in public)


def test_the_commands_are_these() -> None:
    assert set(typer.main.get_command(app).commands) == set(OPTIONS)  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", OPTIONS)
def test_the_options_are_these(name: str) -> None:
    parameters = typer.main.get_command(app).commands[name].params  # type: ignore[attr-defined]
    shown = {
        word
        for parameter in parameters
        for word in (
            [parameter.metavar]
            if parameter.param_type_name == "argument"
            else [*parameter.opts, *parameter.secondary_opts]
        )
    }
    assert shown | {"--help"} == OPTIONS[name] | (EVERYWHERE - {"--store"} if name in WITHOUT_STORE else EVERYWHERE)
