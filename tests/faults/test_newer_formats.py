"""B3 19: what a newer version wrote is refused with the advice to upgrade, and not one byte of it is touched."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lmdb
import pyarrow as pa
import pytest

from tests.faults import damage
from tests.faults.damage import ask, command
from tests.faults.record import Record
from tests.faults.warm import Warm

Recording = Callable[[str], Record]


def _header(**changes: Any) -> Callable[[Path], object]:
    def change(root: Path) -> None:
        header = json.loads((root / "store.json").read_text())
        (root / "store.json").write_text(json.dumps({**header, **changes}))

    return change


def _format(pattern: str) -> Callable[[Path], object]:
    """Give every JSON object of those files the next format."""

    def change(root: Path) -> None:
        for path in root.glob(pattern):
            path.write_text(re.sub(r'"format": *1\b', '"format": 2', path.read_text()))

    return change


def _chunks(root: Path) -> None:
    for path in root.glob("chunks/*/*.arrow"):
        table = pa.ipc.open_file(path.read_bytes()).read_all().replace_schema_metadata({"cachestore.format": "2"})
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
        damage.write(path, sink.getvalue().to_pybytes())


def _newer_lmdb(root: Path) -> None:
    for path in (root / "index").iterdir():
        path.unlink()
    lmdb.open(str(root / "index"), lib_version=1).close()


STORES: dict[str, tuple[list[str], Callable[[Path], object]]] = {
    "the header": ([], _header(format=2)),
    "a required feature": ([], _header(features=["compressed-shards"])),
    "shards": (["cachestore.shard"], lambda root: None),
    "manifests, chunks and logs": (["cachestore.manifest"], lambda root: None),
    "logs alone": ([], _format("names/*.jsonl")),
    "chunks alone": ([], _chunks),
    "tags": ([], _format("tags/*.json")),
    "the index": (["cachestore.index"], lambda root: None),
    "the index, of LMDB 1.0": ([], _newer_lmdb),
}


@pytest.mark.parametrize("kind", STORES)
def test_what_a_newer_version_wrote_is_refused_and_left_as_it_is(
    warm: Warm, folder: Path, record: Recording, kind: str
) -> None:
    modules, change = STORES[kind]
    place = folder / "future"
    assert ask(warm, "make_of_the_future", place, modules=modules).code == 0
    root = place / "store"
    change(root)
    before = damage.digests(root)
    with record("19 files of a newer format") as trial:
        read = ask(warm, "read", place)
        said = json.dumps(read.value)
        assert "Upgrade" in said, read
        if read.code == 0:  # the store could be opened, and each thing of the newer format is refused
            assert read.value["wrong"] == 0
            assert all("StoreFormatError" in error for error in read.value["errors"] + read.value["refused"]), read
        else:
            assert (read.code, read.value["error"]) == (3, "StoreFormatError")
        trial.trial()
        assert damage.digests(root) == before, "reading changed it"

        commands = [["ls"], ["verify"], ["log", "table"]]
        if kind not in ("tags", "shards", "chunks alone"):  # which a build of other rows and encoders need not look at
            commands.append(["build", str(place / "table.csv"), "--column", "text", "--encoder", "hashing"])
        for line in commands:
            ended = command(warm, *line, "--store", root)
            assert ended.code in (0, 3), (line, ended)
            assert "Traceback" not in ended.err, ended.err
            if ended.code == 3:
                assert "Upgrade" in ended.err, ended.err
                assert len(ended.err.splitlines()) == 1, ended.err
            assert damage.digests(root) == before, f"{line} changed it"
            trial.trial()
        assert any(command(warm, *line, "--store", root).code == 3 for line in commands[1:]), "nothing said so"
