"""`cachestore train`: train a head on stored vectors and the other columns of a file."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cachestore.errors import CachestoreError, StoreNotFound, UsageError
from cli import options, output

if TYPE_CHECKING:
    from cachestore import Store
    from trainer import Run
    from trainer.events import Listener


def command(
    data: Annotated[
        Path | None,
        typer.Argument(
            metavar="DATA", help="CSV, TSV, Parquet, JSON Lines, Arrow or Feather file, or a folder of pictures."
        ),
    ] = None,
    config: Annotated[Path | None, typer.Option("--config", "-c", metavar="YAML", help="The config file.")] = None,
    validation: options.ValidationFile = None,
    test: options.TestFile = None,
    output_dir: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="DIR", help="The run's directory; otherwise a new one in runs/."),
    ] = None,
    overrides: options.Overrides = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            "--resume", metavar="RUN", help="Go on with a run that was stopped; DATA and the rest are its own."
        ),
    ] = None,
    tensorboard: Annotated[
        Path | None,
        typer.Option("--tensorboard", metavar="DIR", help="Write each epoch's metrics there, for TensorBoard to show."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Tell what training would take: steps, parameters, memory. Write nothing.")
    ] = False,
    store: options.StorePath = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Train the config's outputs on DATA.

    Rows whose vectors the store lacks are built first. Without --validation and --test, and without a split in the
    config, rows are split at random into 70 % train, 10 % validation and 20 % test. A run at --output is replaced when
    the new one is finished. A run that was stopped goes on with --resume from the last epoch saved (every ten seconds;
    where an encoder is trained, from the last step saved), and ends with the same weights.

    \b
    Examples:
        cachestore train reviews.csv -c config.yaml
        cachestore train train.csv -c config.yaml --test test.csv --set trainer.epochs=20
        cachestore train reviews.csv -c config.yaml --dry-run
        cachestore train --resume runs/train

    \b
    Exit codes:
        0    done
        2    wrong usage, config or data
        3    the store is missing, locked, full or of another format
        4    damage found in the store
        5    done, but some rows could not be read or encoded and were left out
    """
    if os.environ.get("RANK", "0") != "0" and "TORCHELASTIC_RUN_ID" in os.environ:
        _follow(dry_run)
        return
    out = output.Output(as_json, quiet)
    if resume is not None:
        if dry_run or any(given is not None for given in (data, config, validation, test, output_dir, overrides)):
            raise UsageError(
                "--resume goes on with a run as it was begun. Give no DATA, config or other option but --store and --tensorboard."
            )
        run = _resumed(resume, store, tensorboard, out)
    elif data is None or config is None:
        raise UsageError("train needs DATA and --config. See: cachestore train --help")
    elif dry_run:
        _estimate(data, config, overrides or [], validation, test, store, out)
        return
    else:
        run = _trained(data, config, overrides or [], validation, test, output_dir, store, tensorboard, out)
    summary = run.to_json()
    out.result(summary, text(summary))
    if output.skipped(run.skipped_cells, run.skipped, data if data is not None else run.path):
        raise typer.Exit(output.SKIPPED_ROWS)


def _follow(dry_run: bool) -> None:
    """One of the processes that torchrun started: do its part of what the first trains, which alone speaks."""
    if dry_run:
        return
    from trainer.strategies import launch

    try:
        launch.follow()
    except CachestoreError as error:  # the first knows nothing of it where it is this process's own, such as its memory
        told = f"process {os.environ['RANK']}: {error}"
        output.error(type(error).__name__, told, error.exit_code, as_json=False)
        raise SystemExit(error.exit_code) from None
    except KeyboardInterrupt:
        raise SystemExit(output.INTERRUPTED) from None


def _trained(
    data: Path,
    config: Path,
    overrides: list[str],
    validation: Path | None,
    test: Path | None,
    output_dir: Path | None,
    store: Path | None,
    tensorboard: Path | None,
    out: output.Output,
) -> Run:
    from cachestore.dataset import open_dataset
    from trainer import load_config, train

    dataset = open_dataset(data)
    settings = load_config(config, overrides, dataset)
    with options.open_store(store, out) as opened, _watching(tensorboard, out) as progress:
        return train(settings, dataset, opened, validation=validation, test=test, output=output_dir, progress=progress)


def _estimate(
    data: Path,
    config: Path,
    overrides: list[str],
    validation: Path | None,
    test: Path | None,
    store: Path | None,
    out: output.Output,
) -> None:
    from cachestore.dataset import open_dataset
    from cli import dry_run
    from trainer import load_config
    from trainer.estimate import estimate

    dataset = open_dataset(data)
    settings = load_config(config, overrides, dataset)
    for notice in settings.notices:
        out.say(notice)
    with _to_look_at(store) as opened:
        found = estimate(settings, dataset, opened, validation=validation, test=test)
    out.result({"dry_run": True, **found.to_json()}, dry_run.text(found))


@contextlib.contextmanager
def _to_look_at(path: Path | None) -> Iterator[Store]:
    """The store, opened to be read; where there is none an empty one, for the time being."""
    from cachestore import open_store

    try:
        opened = open_store(path, mode="r")
    except StoreNotFound:
        with tempfile.TemporaryDirectory() as folder, open_store(folder) as empty:
            yield empty
        return
    with opened:
        yield opened


def _resumed(path: Path, store: Path | None, tensorboard: Path | None, out: output.Output) -> Run:
    from trainer import resume_run

    if store is None:
        with _watching(tensorboard, out) as progress:
            return resume_run(path, progress=progress)
    with options.open_store(store, out) as opened, _watching(tensorboard, out) as progress:
        return resume_run(path, opened, progress=progress)


@contextlib.contextmanager
def _watching(tensorboard: Path | None, out: output.Output) -> Iterator[Listener]:
    from cli.watch import watching

    with watching(out) as progress:
        if tensorboard is None:
            yield progress
        else:
            from trainer.report.tensorboard import listening

            yield listening(tensorboard, progress)


def text(summary: Mapping[str, Any]) -> str:
    """A finished run: its metrics, what it was trained on, what was encoded, how long it took, and where it is."""
    used = ", ".join(f"{count:,} {split}" for split, count in summary["rows"].items())
    dropped = sum(summary["dropped"].values())
    best = ""
    if summary["rows"].get("validation"):
        chosen_by = f"{summary['validation_field']} {summary['validation_metric']}"
        best = f", the best is {summary['best_epoch']} by {chosen_by} on the validation rows"
    lines = [
        output.metrics(summary["metrics"]),
        "",
        f"rows: {used}" + (f"; {dropped:,} could not be used" if dropped else ""),
        *_versions(summary["references"]),
        *_stored(summary),
        f"{output.count(summary['epochs'], 'epoch')}{best}; learning rate {summary['learning_rate']:g}{_rates(summary)}",
        ", ".join(f"{phase} {output.duration(spent)}" for phase, spent in summary["seconds"].items()),
        f"run: {summary['run']}",
        *_encoders(summary),
    ]
    return "\n".join(lines)


def _stored(summary: Mapping[str, Any]) -> list[str]:
    """What the store had to do with it; nothing where no input goes through it."""
    if not any(summary["manifests"].values()):
        return []
    encoded, hits = output.count(summary["encoded"], "vector"), output.count(summary["hits"], "cell")
    return [f"{encoded} encoded, {hits} found in the store"]


def _rates(summary: Mapping[str, Any]) -> str:
    """The learning rates of encoders that were trained."""
    rates = summary["encoder_learning_rates"]
    return f" (encoder of {', '.join(f'{name}: {rate:g}' for name, rate in rates.items())})" if rates else ""


def _encoders(summary: Mapping[str, Any]) -> list[str]:
    """The encoders that a run has trained and left behind as plain models."""
    from cachestore.encoders import exported

    run = summary["run"]
    there = [name for name in summary["encoder_learning_rates"] if exported.folder(Path(run), name).is_dir()]
    return [
        f"encoder of {name}: {exported.folder(Path(run), name)}; its vectors are stored by --encoder '{run}#{name}'"
        for name in there
    ]


def _versions(by_split: Mapping[str, Sequence[str]]) -> list[str]:
    """Which versions of the data in the store the run used; nothing where it has no texts."""
    verbs = {"train": "trained", "validation": "validated", "test": "tested"}
    used = [
        f"{verbs[split]} on " + ", ".join(name if "@" in name else f"manifest {name[:12]}" for name in names)
        for split, names in by_split.items()
        if names
    ]
    return ["; ".join(used)] if used else []
