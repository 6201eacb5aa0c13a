"""`cachestore explain`: why a build would encode what it would. Starts without torch."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cachestore.errors import StoreNotFound
from cli import build, options, output

if TYPE_CHECKING:
    from cachestore.diff import FieldChange
    from cachestore.explain import ExplainedColumn, Explanation, Nearest
    from cachestore.keys import Json

_DIGEST = re.compile(r"[0-9a-f]{32,}")


def command(
    data: options.Data,
    config: options.TextConfig = None,
    column: options.Columns = None,
    encoder: options.Encoders = None,
    store: options.StorePath = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Tell why a build of DATA would encode what it would.

    Counts the texts or pictures of each column that the store has no vector of. Where there are some, it names the stored encoder
    that differs least from the one asked for, each setting that differs, and how many of those it has vectors of.
    Encodes nothing, writes nothing.

    \b
    Examples:
        cachestore explain reviews.csv -c config.yaml
        cachestore explain reviews.csv --column text --encoder minilm --json

    \b
    Exit codes:
        0    done
        2    wrong usage, config or data
        3    the store cannot be read, or has another format
        4    damage found in the store
    """
    columns = build.columns_of(config, column or [], encoder or [])
    from cachestore.explain import explain
    from cachestore.store import open_to_read

    out = output.Output(as_json, quiet)
    try:
        opened = open_to_read(store)
    except StoreNotFound as error:
        out.say(str(error))
        found = explain(None, data, columns)
    else:
        with opened:
            found = explain(opened, data, columns)
    out.result(_summary(found), _text(found, data))


def _summary(found: Explanation) -> dict[str, Any]:
    return {
        "rows": found.rows,
        "to_encode": found.to_encode,
        "columns": [
            {
                "column": column.column,
                "encoder": column.label,
                "fingerprint": column.fingerprint.hex(),
                "vectors": column.vectors,
                "hits": column.cells.hits,
                "to_encode": column.cells.new,
                "duplicates": column.cells.repeats,
                "missing": column.cells.missing,
                "skipped": column.cells.skipped,
                "nearest": _nearest(column.nearest),
            }
            for column in found.columns
        ],
    }


def _nearest(nearest: Nearest | None) -> dict[str, Any] | None:
    if nearest is None:
        return None
    return {
        "encoder": nearest.encoder.label,
        "fingerprint": nearest.encoder.fingerprint.hex(),
        "vectors": nearest.encoder.vectors,
        "names": list(nearest.encoder.names),
        "texts": nearest.texts,
        "changes": [change.to_json() for change in nearest.changes],
    }


def _text(found: Explanation, data: Path) -> str:
    if not found.to_encode:
        lines = [f"{data}: {output.count(found.rows, 'row')}, all stored: a build would encode nothing"]
    else:
        kinds = {_noun(column) for column in found.columns}
        kind = kinds.pop() if len(kinds) == 1 else "cell"
        lines = [
            f"{data}: {output.count(found.rows, 'row')}, a build would encode {output.count(found.to_encode, kind)}"
        ]
    for column in found.columns:
        lines += _of_column(column)
    return "\n".join(lines)


def _of_column(column: ExplainedColumn) -> list[str]:
    cells = column.cells
    counts = [
        f"{output.count(cells.hits, 'cell')} found in the store",
        f"{output.count(cells.new, f'new {_noun(column)}')}",
        f"{output.count(cells.repeats, 'repeat')} of them",
    ]
    counts += [f"{cells.missing:,} missing"] if cells.missing else []
    counts += [f"{cells.skipped:,} to be skipped"] if cells.skipped else []
    held = f"{output.count(column.vectors, 'vector')} stored" if column.vectors else "nothing stored"
    lines = [
        f"column {column.column}: {', '.join(counts)}",
        f"  encoder {column.label} ({column.fingerprint.hex()[:8]}): {held}",
    ]
    if cells.new and column.spec.get("kind") == "imported":
        lines.append("  the new texts cannot be encoded here: import their vectors, see cachestore import --help")
    nearest = column.nearest
    if nearest is None:
        return lines
    used = f", used by {', '.join(nearest.encoder.names)}" if nearest.encoder.names else ""
    stored = f"{nearest.encoder.label} ({nearest.encoder.fingerprint.hex()[:8]})"
    vectors = f"{output.count(nearest.encoder.vectors, 'vector')}{used}"
    has = f"it has {nearest.texts:,} of the new {_noun(column)}s"
    lines.append(f"  nearest stored {stored}: {vectors}; {has}. From it to this one:")
    kind = [change for change in nearest.changes if change.field == "kind"]
    told = [f"    {_change(change)}" for change in kind or nearest.changes]  # of another kind, all else differs too
    return [*lines, *told, *([f"    and {len(nearest.changes) - 1} other settings"] if kind else [])]


def _noun(column: ExplainedColumn) -> str:
    return "picture" if column.spec.get("kind") == "image" else "text"


def _change(change: FieldChange) -> str:
    """As people read it: ``reduce_output mean → max``, ``weights digest 1a2b3c4d… → 5e6f7a8b…``."""
    old, new = _words(change.old), _words(change.new)
    file = change.field.removeprefix("tokenizer.")
    if file != change.field:
        change_of_file = {"old": "added", "new": "left out"}.get(change.absent, "changed")
        return f"tokenizer file {file} {change_of_file}"
    digest = " digest" if any(map(_DIGEST.fullmatch, old + new)) else ""
    sides = ["absent" if change.absent == side else _line(words) for side, words in (("old", old), ("new", new))]
    return f"{change.field}{digest} {sides[0]} → {sides[1]}"


def _words(value: Json) -> list[str]:
    if value is None or isinstance(value, bool):
        return ["null" if value is None else str(value).lower()]
    return [str(item) for item in value] if isinstance(value, list | tuple) else [str(value)]


def _line(words: list[str]) -> str:
    shown = [word[:8] + "…" if _DIGEST.fullmatch(word) else word for word in words]
    text = ", ".join(shown) or "nothing"
    return text if len(text) <= 100 else text[:99] + "…"
