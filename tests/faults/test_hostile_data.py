"""B3 23: text and tables that nobody meant well with. Memory and time stay bounded, bad cells are told, all others are stored."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cachestore import open_store
from cachestore.build import run
from cachestore.dataset import open_dataset
from cachestore.encoders import open_encoder
from cachestore.errors import DataError
from cachestore.keys import fingerprint, keys
from cachestore.manifest import MISSING, PRESENT, SKIPPED
from tests.faults.damage import command
from tests.faults.record import Record
from tests.faults.warm import Warm
from tests.store.counting import CountingEncoder

Recording = Callable[[str], Record]
MB = 1 << 20


def build_measured(folder: str, files: dict[str, str]) -> dict[str, Any]:
    """Build these files, column by file; counts of each, how much more memory than before it took, and how long."""
    found = {}
    with open_store(Path(folder) / "store") as store:
        run(store, {"text": ["warm"]}, {"text": CountingEncoder()})
        for name, column in files.items():
            before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
            built = run(store, Path(folder) / name, {column: CountingEncoder()})
            found[name] = {
                "counts": vars(built.counts),
                "skipped": [[cell.row, cell.why] for cell in built.skipped_cells],
                "MB": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10,
                "seconds": time.monotonic() - began,
                "reasons": store.reasons(built.manifest, column)[:50].tolist(),
            }
    return found


@pytest.mark.parametrize("rows", [100_000, pytest.param(1_000_000, marks=[pytest.mark.long, pytest.mark.timeout(600)])])
def test_many_tiny_rows_take_little_memory(warm: Warm, folder: Path, record: Recording, rows: int) -> None:
    with (folder / "tiny.csv").open("w") as file:
        file.write("n,text\n")
        file.writelines(f"{row},{row % (rows // 2)}\n" for row in range(rows))
    with record("23 hostile text and tables") as trial:
        found = warm.run(
            "tests.faults.test_hostile_data:build_measured",
            folder=str(folder),
            files={"tiny.csv": "text"},
            timeout=300,
        ).facts["tiny.csv"]
        trial.trial()
    assert (found["counts"]["rows"], found["counts"]["encoded"]) == (rows, rows // 2)
    assert found["MB"] < 150 + rows // 4000, found


def test_one_file_with_everything_in_it(warm: Warm, folder: Path, record: Recording) -> None:
    cells: list[tuple[bytes, int]] = [
        (b"plain", PRESENT),
        (b"", MISSING),
        (b'""', PRESENT),
        (b"\0", PRESENT),
        (b"a\0b\0", PRESENT),
        (b"\xff\xfe", SKIPPED),
        (b"\xed\xa0\x80", SKIPPED),  # a lone surrogate, as some write it
        (b"\xc0\xaf", SKIPPED),  # a slash, too long
        (b"\xf4\x90\x80\x80", SKIPPED),  # beyond Unicode
        (b"\xe2\x82", SKIPPED),  # cut
        ("e\u0301 is not \u00e9".encode(), PRESENT),
        ("\u202eright to left".encode(), PRESENT),
        ("\ufeffmark".encode(), PRESENT),
        ("\U0001f469\u200d\U0001f469\u200d\U0001f467".encode() * 200, PRESENT),
        (b"=cmd|'/C calc'!A0", PRESENT),
        (b"@SUM(1+1)", PRESENT),
        (b"-2+3", PRESENT),
        (b"\x1b[2J\x07", PRESENT),
        (b'"a ""quote"", a comma\r\nand lines\n"', PRESENT),
        (b'"' + b"x" * 200_000 + b'"', PRESENT),  # the csv module of Python stops at 131,072
        (b"y" * (10 * MB), PRESENT),
        (b"z" * (16 * MB + 1), SKIPPED),
        (b"NULL", PRESENT),
        (b"nan", PRESENT),
        (b" ", PRESENT),
        (b"last", PRESENT),
    ]
    table = b"\xef\xbb\xbfn,text\n" + b"".join(b"%d,%s\n" % (at, cell) for at, (cell, _) in enumerate(cells))
    (folder / "all.csv").write_bytes(table)
    with record("23 hostile text and tables") as trial:
        found = warm.run(
            "tests.faults.test_hostile_data:build_measured", folder=str(folder), files={"all.csv": "text"}
        ).facts["all.csv"]
        trial.trial()
    assert found["reasons"] == [reason for _, reason in cells]
    assert [row for row, _ in found["skipped"]] == [at for at, (_, reason) in enumerate(cells) if reason == SKIPPED]
    assert all(why for _, why in found["skipped"])
    assert found["MB"] < 250, found
    assert found["seconds"] < 20, found
    ended = command(
        warm, "build", folder / "all.csv", "--column", "text", "--encoder", "hashing", "--store", folder / "s"
    )
    assert ended.code == 5, ended
    assert "\x1b" not in ended.out + ended.err
    assert "xxxxxxxxxx" not in ended.err, "the text of a cell is not in what is said of it"


@pytest.mark.parametrize("encoder", ["hashing", {"type": "hashing", "ngram_range": [1, 3]}])
@pytest.mark.parametrize(
    "text",
    [
        "x" * (10 * MB),
        "a " * (5 * MB),
        "\u0301" * (3 * MB),
        "\n" * (5 * MB),
        "".join(map(chr, range(0x4E00, 0x9FFF))) * 100,
    ],
    ids=["one word", "words", "marks", "lines", "ideographs"],
)
def test_a_long_text_is_encoded_in_bounded_time(encoder: Any, text: str) -> None:
    began = time.monotonic()
    (vector,) = open_encoder(encoder).encode([text.encode()])
    assert time.monotonic() - began < 30
    assert vector.shape == (1024,)


def test_texts_that_look_alike_are_different_texts(tmp_path: Path, record: Recording) -> None:
    """Nothing is normalised: a model may tell them apart. Each has its own key and vector."""
    texts = [
        "\u00e9", "e\u0301", "\u212b", "\u00c5", "A\u030a", "a", "\u0430", "a ", " a", "a\u200b", "a\n", "a\r\n", "a\0", "\0a", "",
        "1", "1.0", "01", "True", "true", "\ufb01", "fi", "\u00df", "ss", "\u0130", "i\u0307", "\ufeffa",
    ]  # fmt: skip
    encoder = CountingEncoder("float32")
    assert len(set(keys(fingerprint(encoder.spec), [text.encode() for text in texts]))) == len(texts)
    with record("23 hostile text and tables") as trial, open_store(tmp_path / "store") as store:
        vectors = store.embed(texts, encoder)
        trial.trial()
        assert len(encoder.seen) == len(texts) == len({vector.tobytes() for vector in vectors})
        again = store.embed(texts[::-1], encoder)
        assert again.tobytes() == vectors[::-1].tobytes()
        assert len(encoder.seen) == len(texts)


FILES: dict[str, tuple[str, bytes]] = {
    "ragged": ("a.csv", b"n,text\n1,a\n2\n3,c\n"),
    "ten thousand fields in a row": ("a.csv", b"n,text\n1,a\n" + b"," * 10_000 + b"\n"),
    "a quote that never closes": ("a.csv", b'n,text\n1,"a\n' + b"2,b\n" * 100_000),
    "no rows": ("a.csv", b"n,text\n"),
    "nothing": ("a.csv", b""),
    "twice the same column": ("a.csv", b"text,text\n1,2\n"),
    "UTF-16": ("a.csv", "n,text\n1,a\n".encode("utf-16")),
    "a picture": ("a.csv", b"\x89PNG\r\n\x1a\n" + bytes(100)),
    "a pickle": ("a.csv", b"\x80\x04\x95\x00\x00\x00\x00"),
    "a zip": ("a.csv", b"PK\x03\x04" + bytes(100)),
    "gzip that is none": ("a.csv.gz", b"n,text\n1,a\n"),
    "gzip cut short": ("a.csv.gz", b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03\x4b\xd4"),
    "Parquet that is none": ("a.parquet", b"PAR1" + bytes(100) + b"PAR1"),
    "Parquet with a footer of 2 GB": ("a.parquet", b"PAR1" + b"\xff\xff\xff\x7f" + b"PAR1"),
    "Arrow that is none": ("a.arrow", b"ARROW1\0\0" + bytes(100) + b"\xff\xff\xff\x7fARROW1"),
    "JSON Lines: deep": ("a.jsonl", b'{"text": ' + b"[" * 100_000),
    "JSON Lines: a list": ("a.jsonl", b"[1, 2]\n"),
    "JSON Lines: cut": ("a.jsonl", b'{"text": "a"}\n{"text": "b\n'),
    "JSON Lines: a long number": ("a.jsonl", b'{"text": ' + b"9" * 1_000_000 + b", }\n"),
}


@pytest.mark.parametrize("kind", FILES)
def test_a_file_that_is_no_table_is_refused_in_one_line(warm: Warm, folder: Path, record: Recording, kind: str) -> None:
    name, content = FILES[kind]
    (folder / name).write_bytes(content)
    began = time.monotonic()
    with record("23 hostile text and tables") as trial:
        line = ["build", folder / name, "--column", "text", "--encoder", "hashing", "--store", folder / "store"]
        ended = command(warm, *line)
        trial.trial()
    assert ended.code == 2, ended
    assert len(ended.err.splitlines()) == 1, ended.err
    assert len(ended.err) < 1000, ended.err
    assert time.monotonic() - began < 20


def test_a_compressed_file_of_zeros_takes_little_memory(warm: Warm, folder: Path, record: Recording) -> None:
    """A bomb of a thousand to one: lines are read piece by piece, and a line that is no line is refused."""
    import gzip

    with gzip.open(folder / "lines.csv.gz", "wb", compresslevel=1) as file:
        file.write(b"text\n")
        for _ in range(40):
            file.write((b"a" * 63 + b"\n") * 40_000)
    with gzip.open(folder / "line.csv.gz", "wb", compresslevel=1) as file:
        file.write(b"text\n")
        for _ in range(40):
            file.write(b"a" * (10 * MB))
    with record("23 hostile text and tables") as trial:
        facts = warm.run(
            "tests.faults.test_hostile_data:build_measured", folder=str(folder), files={"lines.csv.gz": "text"}
        ).facts["lines.csv.gz"]
        assert facts["counts"]["rows"] == 1_600_000
        assert facts["MB"] < 200, facts
        ended = warm.run(
            "tests.faults.test_hostile_data:build_measured", folder=str(folder), files={"line.csv.gz": "text"}
        )
        assert (ended.code, ended.value["error"]) == (2, "DataError"), ended
        trial.trial()


def test_a_pipe_a_folder_and_a_device_are_not_read(warm: Warm, folder: Path) -> None:
    os.mkfifo(folder / "pipe.csv")
    (folder / "folder.csv").mkdir()
    (folder / "zero.csv").symlink_to("/dev/zero")
    (folder / "loop.csv").symlink_to("loop.csv")
    for name in ("pipe.csv", "folder.csv", "zero.csv", "loop.csv"):
        line = ["build", folder / name, "--column", "text", "--encoder", "hashing", "--store", folder / "store"]
        ended = command(warm, *line)
        assert (ended.code, len(ended.err.splitlines())) == (2, 1), ended


def test_a_path_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"caf\xe9.csv")
    path.write_text("text\na\n")
    with pytest.raises(DataError, match=r"caf\\xe9\.csv' has no UTF-8 form here"):
        open_dataset(path)
