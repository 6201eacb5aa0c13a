"""Writes the store that later versions of this package must be able to read: ``python -m tests.compat.write_store``.

Run once for each format, by the last version that writes it; ``store-<format>`` is then checked in and never changed. Everything that
a store can hold is in it: two names, versions, a tag, a pin, both dtypes, missing, skipped and forgotten cells. ``expected.json`` holds
what was read from it when it was written, byte for byte.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

from cachestore import open_store
from cachestore.build import run
from cachestore.fill import Limits
from cachestore.forget import forget
from cachestore.header import FORMAT
from cachestore.pins import Pin, write_pin

HERE = Path(__file__).parent
PLACE = HERE / f"store-{FORMAT}"
ENCODERS: dict[str, Any] = {
    "text": {"type": "hashing", "dim": 16, "normalize": False},
    "title": {"type": "hashing", "dim": 5, "ngram_range": [1, 1], "dtype": "float32"},
}
FORGOTTEN = "please forget what I wrote here"
REFERENCES = {
    "reviews": ("text", "title"),
    "reviews@1": ("text", "title"),
    "reviews@first": ("text", "title"),
    "notes": ("text",),
}


def table(rows: int) -> bytes:
    """A CSV file in which texts repeat, one is missing, one is not UTF-8 and one will be forgotten."""
    texts = [f"the parcel number {row % 17} arrived on day {row % 5}".encode() for row in range(rows)]
    texts[3], texts[5], texts[8] = b"", b"caf\xe9", FORGOTTEN.encode()
    texts[11] = '"naïve café, größer; 文"'.encode()
    return b"text,title\n" + b"".join(b"%s,title %d\n" % (text, row % 7) for row, text in enumerate(texts))


def read(root: Path) -> dict[str, Any]:
    """What the references of the store lead to: ids, reasons and vectors as hexadecimal bytes."""
    found: dict[str, Any] = {}
    with open_store(root, mode="r") as store:
        for reference, columns in REFERENCES.items():
            manifest = store.manifest(reference)
            found[reference] = {"id": manifest.id, "rows": manifest.rows}
            for column in columns:
                vectors, reasons = store.column(manifest, column)
                found[reference][column] = {
                    "dtype": vectors.dtype.str,
                    "dim": vectors.shape[1],
                    "reasons": reasons.tolist(),
                    "vectors": vectors.tobytes().hex(),
                }
    return found


def main() -> None:
    """Write ``store-<format>``. Refuses to write over one that is there."""
    if PLACE.exists() and "--again" not in sys.argv[1:]:
        raise SystemExit(f"{PLACE} is there. A published format does not change; before it is published, give --again.")
    shutil.rmtree(PLACE, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix="compat-"))
    os.environ["LOGNAME"] = "somebody"  # in the audit
    os.chdir(folder)
    limits = Limits(shard_rows=10, window_rows=10)
    with warnings.catch_warnings(), open_store(folder / "store") as store:
        warnings.simplefilter("ignore")
        for rows in (20, 30):
            Path("reviews.csv").write_bytes(table(rows))
            run(store, "reviews.csv", ENCODERS, limits=limits)
            if rows == 20:
                store.tag("reviews", "first")
        notes = [{"text": "a note"}, {"text": FORGOTTEN}, {"text": "another note"}]
        Path("notes.jsonl").write_text("".join(json.dumps(note) + "\n" for note in notes))
        run(store, "notes.jsonl", {"text": ENCODERS["text"]}, limits=limits)
        head = store.manifest("reviews").id
        write_pin(store.root, Pin("5eed0000", "/home/somebody/run", (head,), "2026-01-01T00:00:00+00:00"))
        forget(store, [FORGOTTEN.encode()])
    PLACE.mkdir()
    shutil.copytree(
        folder / "store", PLACE / "store", ignore=shutil.ignore_patterns("lock.mdb", "locks", "tmp", "trash")
    )
    data = PLACE / "store" / "index" / "data.mdb"
    data.write_bytes(
        data.read_bytes().rstrip(b"\0").ljust(-(-len(data.read_bytes().rstrip(b"\0")) // 4096) * 4096, b"\0")
    )
    (PLACE / "reviews.csv").write_bytes(table(30))
    (PLACE / "expected.json").write_text(json.dumps(read(folder / "store"), indent=1, sort_keys=True) + "\n")
    shutil.rmtree(folder)
    print(f"{PLACE}: {sum(path.stat().st_size for path in PLACE.rglob('*') if path.is_file()):,} bytes")


if __name__ == "__main__":
    main()
