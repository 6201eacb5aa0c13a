"""`cachestore train`: train a head on stored vectors and the other columns of a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from cli import options, output


def command(
    data: Annotated[
        Path,
        typer.Argument(
            metavar="DATA", help="CSV, TSV, Parquet, JSON Lines, Arrow or Feather file, or a folder of pictures."
        ),
    ],
    config: options.ConfigPath,
    validation: Annotated[
        Path | None, typer.Option("--validation", metavar="FILE", help="Validation rows; DATA is then used whole.")
    ] = None,
    test: Annotated[
        Path | None, typer.Option("--test", metavar="FILE", help="Test rows; DATA is then used whole.")
    ] = None,
    output_dir: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="DIR", help="The run's directory; otherwise a new one in runs/."),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="PATH=VALUE", help="Change one config value, as trainer.epochs=3; repeat for more."
        ),
    ] = None,
    store: options.StorePath = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Train the config's outputs on DATA.

    Rows whose vectors the store lacks are built first. Without --validation and --test, and without a split in the
    config, rows are split at random into 70 % train, 10 % validation and 20 % test. A run at --output is replaced when
    the new one is finished.

    \b
    Examples:
        cachestore train reviews.csv -c config.yaml
        cachestore train train.csv -c config.yaml --test test.csv --set trainer.epochs=20

    \b
    Exit codes:
        0    done
        2    wrong usage, config or data
        3    the store is missing, locked, full or of another format
        4    damage found in the store
        5    done, but some rows could not be read or encoded and were left out
    """
    from cachestore.dataset import open_dataset
    from cli.watch import watching
    from trainer import load_config, train

    out = output.Output(as_json, quiet)
    dataset = open_dataset(data)
    settings = load_config(config, overrides or [], dataset)
    with options.open_store(store, out) as opened, watching(out) as progress:
        run = train(settings, dataset, opened, validation=validation, test=test, output=output_dir, progress=progress)
    summary = run.to_json()
    out.result(summary, text(summary))
    if output.skipped(run.skipped_cells, run.skipped, data):
        raise typer.Exit(output.SKIPPED_ROWS)


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
        f"{output.count(summary['encoded'], 'vector')} encoded, {output.count(summary['hits'], 'cell')} found in the store",
        f"{output.count(summary['epochs'], 'epoch')}{best}; learning rate {summary['learning_rate']:g}",
        ", ".join(f"{phase} {output.duration(spent)}" for phase, spent in summary["seconds"].items()),
        f"run: {summary['run']}",
    ]
    return "\n".join(lines)


def _versions(by_split: Mapping[str, Sequence[str]]) -> list[str]:
    """Which versions of the data in the store the run used; nothing where it has no texts."""
    verbs = {"train": "trained", "validation": "validated", "test": "tested"}
    used = [
        f"{verbs[split]} on " + ", ".join(name if "@" in name else f"manifest {name[:12]}" for name in names)
        for split, names in by_split.items()
        if names
    ]
    return ["; ".join(used)] if used else []
