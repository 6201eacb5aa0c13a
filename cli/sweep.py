"""`cachestore sweep`: train many variants of a config, those of equal shapes in one pass, and keep the best."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from cli import options, output

_SHOWN = 20


def command(
    data: options.Data,
    config: options.ConfigPath,
    grids: Annotated[
        list[str] | None,
        typer.Option(
            "--grid", metavar="PATH=V1,V2", help="Values to try, as trainer.learning_rate=0.001,0.01; repeat."
        ),
    ] = None,
    folds: Annotated[
        int | None,
        typer.Option("--folds", metavar="K", help="Train each candidate K times, another part held out each time."),
    ] = None,
    seeds: Annotated[int, typer.Option("--seeds", metavar="N", help="Train each candidate with N random seeds.")] = 1,
    validation: options.ValidationFile = None,
    test: options.TestFile = None,
    output_dir: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="DIR", help="The sweep's directory; otherwise a new one in runs/."),
    ] = None,
    overrides: options.Overrides = None,
    store: options.StorePath = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Train every variant of a config on DATA and rank them.

    What varies stands in the config's hyperopt section, or in --grid. Trials of equal shapes train together in one pass.
    A sweep that was interrupted goes on where it was when it is started again with the same --output. The best candidate
    is trained as a run, in DIR/winner; every trial can be trained alone: cachestore train DATA -c DIR/trials/003/config.yaml

    \b
    Examples:
        cachestore sweep reviews.csv -c config.yaml --grid trainer.learning_rate=0.001,0.01,0.1
        cachestore sweep reviews.csv -c config.yaml --grid input_features.text.encoder=minilm,hashing --folds 5 -o sweep

    \b
    Exit codes:
        0    done
        2    wrong usage, config or data, or every trial failed
        3    the store is missing, locked, full or of another format
        4    damage found in the store
        5    done, but some trials failed, or rows could not be read or encoded and were left out
    """
    from cli.watch import watching
    from trainer.sweep import sweep

    out = output.Output(as_json, quiet)
    with options.open_store(store, out) as opened, watching(out) as progress:
        done = sweep(
            config,
            data,
            opened,
            validation=validation,
            test=test,
            overrides=overrides or (),
            grids=grids or (),
            folds=folds,
            seeds=seeds,
            output=output_dir,
            progress=progress,
        )
    summary = done.to_json()
    out.result(summary, text(summary))
    if output.skipped(done.winner.skipped_cells, done.winner.skipped, data) or summary["failed"]:
        raise typer.Exit(output.SKIPPED_ROWS)


def text(summary: Mapping[str, Any]) -> str:
    """The leaderboard's first lines, and where the rest is."""
    standings = summary["standings"]
    paths = list(dict.fromkeys(path for standing in standings for path in standing["values"]))
    heads = {path: path.rpartition(".")[2] for path in paths}
    if len(set(heads.values())) < len(paths):
        heads = {path: path for path in paths}
    many = any(len(standing["trials"]) > 1 for standing in standings)
    value = f"{summary['metric']} ({summary['split']})"
    rows = []
    for standing in standings[:_SHOWN]:
        mean, spread = standing["mean"], standing["spread"]
        told = "failed" if mean is None else f"{mean:.4f}" + (f" ± {spread:.4f}" if spread is not None else "")
        rows.append(
            (
                standing["rank"] or "",
                told,
                *(_short(standing["values"].get(path)) for path in paths),
                f"{standing['epochs']:.0f}",
                " ".join(f"{number:03}" for number in standing["trials"][:3])
                + (" …" if len(standing["trials"]) > 3 else ""),
            )
        )
    head = ("rank", value, *heads.values(), "epochs", "trials" if many else "trial")
    lines = [output.table(head, rows, right=("rank", "epochs")), ""]
    if len(standings) > _SHOWN:
        lines.append(f"{len(standings) - _SHOWN:,} more candidates in {summary['sweep']}/leaderboard.csv")
    failed = f", {summary['failed']:,} failed" if summary["failed"] else ""
    reused = f", {summary['reused']:,} of them earlier" if summary["reused"] else ""
    lines += [
        f"{output.count(len(standings), 'candidate')}, {output.count(summary['trials'], 'trial')}{reused}{failed} "
        f"in {output.duration(summary['seconds'])}; ranked by {summary['metric']} of {summary['field']} on {summary['split']} rows",
        f"leaderboard: {summary['sweep']}/leaderboard.csv, .json, .svg",
        f"winner: {summary['winner']['run']}",
    ]
    return "\n".join(lines)


def _short(value: Any) -> str:
    from trainer.sweep.plan import short

    return "" if value is None else short(value)
