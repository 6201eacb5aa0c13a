"""Datasets of every kind: what a cell's payload is, what is missing or skipped, and what is refused."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import xxhash
from pyarrow import feather, parquet

from cachestore import tables
from cachestore.dataset import MAX_CELL_BYTES, SkippedCell, open_dataset, payloads, text_column
from cachestore.errors import CachestoreError, ColumnNotFound, DataError
from cachestore.manifest import MISSING, PRESENT, SKIPPED

TEXTS = ["plain", "zwölf €", "", None, "two\nlines", 'a "quote"', " spaces ", "nul\0", "😀", "e\u0301"]


def cells(source: Any, column: str) -> list[bytes | None]:
    """All payloads of a column, and a check of what ``payloads`` promises."""
    found: list[bytes | None] = []
    for batch in open_dataset(source).batches([column]):
        part = payloads(batch, column, len(found))
        assert len(part.payloads) == len(part.reasons) == batch.num_rows
        assert [payload is None for payload in part.payloads] == (part.reasons != PRESENT).tolist()
        assert [cell.row - len(found) for cell in part.skipped] == np.flatnonzero(part.reasons == SKIPPED).tolist()
        found += part.payloads
    return found


def skipped(source: Any, column: str) -> list[SkippedCell]:
    found: list[SkippedCell] = []
    rows = 0
    for batch in open_dataset(source).batches([column]):
        found += payloads(batch, column, rows).skipped
        rows += batch.num_rows
    return found


def encoded(texts: list[str | None]) -> list[bytes | None]:
    return [None if text is None else text.encode() for text in texts]


def write_jsonl(path: Path, texts: list[str | None]) -> None:
    path.write_text("".join(json.dumps({"n": n, "text": text}) + "\n" for n, text in enumerate(texts)))


def write_csv(path: Path, texts: list[str | None]) -> None:
    quoted = ("" if text is None else '"' + text.replace('"', '""') + '"' for text in texts)
    path.write_text("n,text\n" + "".join(f"{n},{text}\n" for n, text in enumerate(quoted)), newline="")


def table(texts: list[str | None], kind: pa.DataType | None = None) -> pa.Table:
    return pa.table({"n": list(range(len(texts))), "text": pa.array(texts, kind or pa.string())})


def write_stream(path: Path, texts: list[str | None]) -> None:
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table(texts).schema) as stream:
        stream.write_table(table(texts), max_chunksize=3)


def write_ipc(path: Path, texts: list[str | None]) -> None:
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table(texts).schema) as stream:
        stream.write_table(table(texts), max_chunksize=3)


FILES: dict[str, Callable[[Path, list[str | None]], None]] = {
    "a.csv": write_csv,
    "A.CSV": write_csv,
    "a.jsonl": write_jsonl,
    "a.ndjson": write_jsonl,
    "a.parquet": lambda path, texts: parquet.write_table(table(texts), path, row_group_size=4),
    "dictionary.parquet": lambda path, texts: parquet.write_table(
        table(texts, pa.dictionary(pa.int8(), pa.string())), path
    ),
    "a.arrow": write_ipc,
    "a.ipc": write_ipc,
    "stream.arrow": write_stream,
    "a.feather": lambda path, texts: feather.write_feather(table(texts), str(path)),
}


@pytest.mark.parametrize("name", FILES)
def test_every_kind_of_file_gives_the_same_payloads(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    FILES[name](path, TEXTS)
    assert cells(path, "text") == encoded(TEXTS)
    assert cells(str(path), "n") == [str(n).encode() for n in range(len(TEXTS))]
    opened = open_dataset(path)
    assert opened.path == path
    assert opened.label == str(path)
    assert opened.columns == ("n", "text")
    assert opened.rows in {None, len(TEXTS)}
    assert opened.digest() == xxhash.xxh3_128(path.read_bytes()).hexdigest()
    assert opened.options["reader"] == tables.READER


@pytest.mark.parametrize("name", FILES)
def test_batches_have_the_asked_columns_in_the_asked_order_again_and_again(tmp_path: Path, name: str) -> None:
    FILES[name](tmp_path / name, TEXTS)
    opened = open_dataset(tmp_path / name)
    for columns in (["text", "n"], ["n", "text"], ["n"], []):
        batches = list(opened.batches(columns))
        assert all(batch.schema.names == columns for batch in batches)
        assert sum(batch.num_rows for batch in batches) == len(TEXTS)
        assert len({batch.schema for batch in batches}) == 1


class Stream:
    def __init__(self, texts: list[str | None], kind: pa.DataType) -> None:
        self.table = table(texts, kind)

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        return self.table.__arrow_c_stream__(requested_schema)


MEMORY: dict[str, Callable[[list[str | None]], Any]] = {
    "table": table,
    "chunked table": lambda texts: pa.concat_tables([table(texts).slice(0, 3), table(texts).slice(3)]),
    "record batch": lambda texts: pa.record_batch({"n": list(range(len(texts))), "text": texts}),
    "reader": lambda texts: table(texts).to_reader(3),
    "large_string": lambda texts: table(texts, pa.large_string()),
    "string_view": lambda texts: table(texts, pa.string_view()),
    "binary": lambda texts: pa.table({"n": list(range(len(texts))), "text": pa.array(encoded(texts), pa.binary())}),
    "binary_view": lambda texts: pa.table({"n": range(len(texts)), "text": pa.array(encoded(texts), pa.binary_view())}),
    "dictionary": lambda texts: table(texts, pa.dictionary(pa.int32(), pa.string())),
    "arrow stream": lambda texts: Stream(texts, pa.string_view()),
    "mapping": lambda texts: {"n": list(range(len(texts))), "text": texts},
    "mapping of arrays": lambda texts: {"n": np.arange(len(texts)), "text": np.array(texts, dtype=object)},
    "mapping of series": lambda texts: {"n": range(len(texts)), "text": pd.Series(texts, dtype="object")},
    "frame of objects": lambda texts: pd.DataFrame({"n": range(len(texts)), "text": pd.Series(texts, dtype="object")}),
    "frame of strings": lambda texts: pd.DataFrame({"n": range(len(texts)), "text": pd.Series(texts, dtype="string")}),
    "categorical frame": lambda texts: pd.DataFrame({"n": range(len(texts)), "text": pd.Categorical(texts)}),
    "filtered frame": lambda texts: pd.DataFrame({"n": range(-1, len(texts)), "text": ["x", *texts]}).query("n >= 0"),
}


@pytest.mark.parametrize("kind", MEMORY)
def test_every_table_in_memory_gives_the_same_payloads(kind: str) -> None:
    assert cells(MEMORY[kind](TEXTS), "text") == encoded(TEXTS)
    assert cells(MEMORY[kind](TEXTS), "n") == [str(n).encode() for n in range(len(TEXTS))]
    opened = open_dataset(MEMORY[kind](TEXTS))
    assert opened.path is None
    assert opened.digest() is None
    assert opened.columns == ("n", "text")
    assert opened.rows in {None, len(TEXTS)}
    batches = list(opened.batches([]))
    assert sum(batch.num_rows for batch in batches) == len(TEXTS)


def test_a_slice_counts_from_its_own_start() -> None:
    for kind in ("table", "large_string", "dictionary", "string_view"):
        sliced = MEMORY[kind](TEXTS).slice(2, 5)
        assert cells(sliced, "text") == encoded(TEXTS)[2:7]


def test_a_reader_is_read_once() -> None:
    opened = open_dataset(table(["a"]).to_reader())
    list(opened.batches(["text"]))
    with pytest.raises(DataError, match="read once"):
        list(opened.batches(["text"]))


def test_rows_are_bounded_by_number_and_by_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "BATCH_BYTES", 4000)
    texts: list[str | None] = ["x" * 1000] * 10 + ["y" * 9000] + ["z"] * 100_000
    batches = list(open_dataset(table(texts)).batches(["text"]))
    assert sum(batch.num_rows for batch in batches) == len(texts)
    assert max(batch.num_rows for batch in batches) <= tables.ROWS
    assert all(batch.nbytes <= 5000 or batch.num_rows == 1 for batch in batches[:11])
    assert cells(table(texts), "text") == encoded(texts)


@pytest.mark.parametrize("kind", [pa.string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())])
def test_typed_columns_are_not_cut_to_single_rows(kind: pa.DataType) -> None:
    texts: list[str | None] = [f"text number {n}" for n in range(70_000)]
    assert len(list(open_dataset(table(texts, kind)).batches(["text"]))) == 3


def test_reasons() -> None:
    batch = pa.record_batch({"text": pa.array([b"a", None, b"\xff", b"", b"x" * (MAX_CELL_BYTES + 1)])})
    found = payloads(batch, "text", 1000)
    assert found.payloads == [b"a", None, None, b"", None]
    assert found.reasons.tolist() == [PRESENT, MISSING, SKIPPED, PRESENT, SKIPPED]
    assert found.reasons.dtype == np.uint8
    assert found.skipped == [
        SkippedCell(1002, "text", "is not UTF-8 at byte 0 (0xff)"),
        SkippedCell(1004, "text", "is 16.0 MiB, over the limit of 16 MiB"),
    ]


def test_a_cell_of_exactly_the_limit_is_taken() -> None:
    batch = pa.record_batch({"text": ["x" * MAX_CELL_BYTES]})
    assert payloads(batch, "text", 0).skipped == []


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "parquet", "arrow"])
def test_a_cell_that_is_not_utf8_costs_only_its_row(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    values = pa.array([b"good", b"b\xc3d", b"also good", None]).view(pa.string())  # pyarrow writes it unchecked
    if suffix == "jsonl":
        path.write_bytes(b'{"text": "good"}\n{"text": "b\xc3d"}\n{"text": "also good"}\n{}\n')
    elif suffix == "parquet":
        parquet.write_table(pa.table({"text": values}), path)
    elif suffix == "arrow":
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, pa.schema({"text": pa.string()})) as stream:
            stream.write_batch(pa.record_batch({"text": values}))
    else:
        mark = "," if suffix == "csv" else "\t"
        path.write_bytes(b"n_text\n1_good\n2_b\xc3d\n3_also good\n4_\n".replace(b"_", mark.encode()))
    assert cells(path, "text") == [b"good", None, b"also good", None]
    assert [cell.row for cell in skipped(path, "text")] == [1]


@pytest.mark.parametrize(
    "make", [list, lambda cells: pd.Series(cells, dtype="object"), lambda cells: np.array(cells, dtype=object)]
)
def test_a_lone_surrogate_costs_only_its_row(make: Callable[[list[str | None]], Any]) -> None:
    texts = ["a", "b\ud800", None, "d"]
    assert cells({"text": make(texts)}, "text") == [b"a", None, None, b"d"]
    assert [cell.row for cell in skipped({"text": make(texts)}, "text")] == [1]


def test_a_lone_surrogate_in_a_frame_and_in_json(tmp_path: Path) -> None:
    frame = pd.DataFrame({"text": pd.Series(["a", "\udcff", float("nan"), "d"], dtype="object"), "n": range(4)})
    assert cells(frame, "text") == [b"a", None, None, b"d"]
    assert cells(frame, "n") == [b"0", b"1", b"2", b"3"]
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n{"text": "\\udce2\\udc82\\udcac"}\n{"text": "\\ud83d\\ude00"}\n')
    assert cells(path, "text") == [b"a", None, "😀".encode()]


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        (pa.array([1, None, -3]), ["1", None, "-3"]),
        (pa.array([2**64 - 1], pa.uint64()), [str(2**64 - 1)]),
        (pa.array([True, False, None]), ["true", "false", None]),
        (pa.nulls(2), [None, None]),
        (pa.array([b"ab", None], pa.binary(2)), ["ab", None]),
        (pa.array([3, None, 3]).dictionary_encode(), ["3", None, "3"]),
        (pa.array(["{}", None], pa.json_()), ["{}", None]),
    ],
    ids=str,
)
def test_whole_numbers_and_booleans_count_as_their_text(values: pa.Array, texts: list[str | None]) -> None:
    assert cells(pa.table({"text": values}), "text") == encoded(texts)
    column, invalid = text_column(values)
    assert column.type == pa.string()
    assert column.to_pylist() == texts
    assert not invalid.any()


@pytest.mark.parametrize(
    "values", [pa.array([1.5]), pa.array([["a"]]), pa.array([{"a": 1}]), pa.array([0], pa.timestamp("s"))], ids=str
)
def test_other_types_are_refused_by_name(values: pa.Array) -> None:
    for call in (lambda: cells(pa.table({"price": values}), "price"), lambda: text_column(values, "price")):
        with pytest.raises(DataError, match=r"Column 'price' has type .*, not text"):
            call()


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())]
)
def test_text_column(kind: pa.DataType) -> None:
    values = table(TEXTS, kind).column("text")
    for array in (values, values.combine_chunks(), pa.chunked_array([values.chunk(0)[:3], values.chunk(0)[3:]])):
        found, invalid = text_column(array)
        assert isinstance(found, pa.StringArray)
        assert found.to_pylist() == TEXTS
        assert invalid.tolist() == [False] * len(TEXTS)


def test_text_column_flags_what_is_not_utf8() -> None:
    found, invalid = text_column(pa.array([b"a", b"\xff", None, b"\xc3\xa9", b"\xe2\x82"]))
    assert found.to_pylist() == ["a", None, None, "é", None]
    assert invalid.tolist() == [False, True, False, False, True]
    found.validate(full=True)
    assert text_column(pa.chunked_array([], pa.string()))[0].to_pylist() == []


def test_json_scalars_keep_the_text_they_are_written_in(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"t": 1.50}\n\n{"t": true}\r\n  \n{"t": 12345678901234567890}\n{"u": 1}\n{"t": null}\n{"t": 1e5}')
    assert cells(path, "t") == [b"1.50", b"true", b"12345678901234567890", None, None, b"1e5"]


def test_json_lines_keys_may_come_late(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": "x"}\n' * 3000 + '{"late": "y"}\n')
    opened = open_dataset(path)
    assert opened.columns == ("a",)
    opened.require(["late"])
    assert cells(path, "late")[-2:] == [None, b"y"]
    with pytest.raises(ColumnNotFound, match=r"'lat'; did you mean 'late'\?"):
        opened.require(["lat"])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "a"', r"line 3 is not JSON: Expecting ',' delimiter at character 1\d"),
        ('["a"]', "line 3 holds a list"),
        ('"a"', "line 3 holds a single value"),
        ('{"text": ["a"]}', "line 3: column 'text' holds a list"),
        ('{"text": {"a": 1}}', "line 3: column 'text' holds an object"),
        ("[" * 200_000, "line 3 is nested too deeply"),
    ],
)
def test_bad_json_lines(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(f'{{"text": "a"}}\n\n{line}\n')
    with pytest.raises(DataError, match=message) as caught:
        cells(path, "text")
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_nested_value_in_a_column_that_is_not_asked_for_does_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a", "tags": ["x"], "meta": {"k": 1}}\n')
    assert cells(path, "text") == [b"a"]


def test_a_json_line_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cachestore.formats.MAX_LINE", 100)
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n{"text": "' + "b" * 100 + '"}\n')
    with pytest.raises(DataError, match="line 2 is longer"):
        cells(path, "text")


@pytest.mark.parametrize("name", ["a.csv.gz", "a.jsonl.gz", "a.csv.bz2", "a.csv.zst", "a.TSV.GZ"])
def test_compressed_text(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    codec = {"gz": "gzip", "bz2": "bz2", "zst": "zstd"}[path.suffix[1:].lower()]
    text = b'{"n": 1, "text": "x"}\n' * 5 if "jsonl" in name else b"n,text\n" + b"1,x\n" * 5
    if "TSV" in name:
        text = text.replace(b",", b"\t")
    with pa.output_stream(str(path), compression=codec) as stream:
        stream.write(text)
    assert cells(path, "text") == [b"x"] * 5
    assert open_dataset(path).options["compression"] == codec
    if codec == "gzip":
        path.write_bytes(
            path.read_bytes()
            + gzip.compress(
                b'{"text": "y"}\n' if "jsonl" in name else b"2,y\n".replace(b",", b"\t" if "TSV" in name else b",")
            )
        )
        assert cells(path, "text") == [b"x"] * 5 + [b"y"]
        path.write_bytes(path.read_bytes()[:-9])
        with pytest.raises(DataError, match="cannot be read"):
            cells(path, "text")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"", "is empty: 0 bytes"),
        ("a.parquet", b"", "is empty: 0 bytes"),
        ("a.csv", b"\n\r\n\n", "is empty. It needs a header"),
        ("a.csv", b"\xef\xbb\xbf", "is empty. It needs a header"),
        ("a.csv", b"n,text", "has a header and no rows"),
        ("a.csv", b"n,text\r\n\r\n\n", "has a header and no rows"),
        ("a.jsonl", b"\n \n", "has no rows"),
        ("a.jsonl", b"{}\n", "has no columns"),
        ("a.csv", "n,text\n1,é\n".encode("utf-16"), "is UTF-16"),
        ("a.csv", "n,text\n1,a\n".encode("utf-16-le"), "is UTF-16"),
        ("a.tsv", "n,text\n1,a\n".encode("utf-16-be"), "is UTF-16"),
        ("a.jsonl", '{"text": "a"}'.encode("utf-16"), "is UTF-16"),
        ("a.csv", b"PAR1....", "looks like Parquet"),
        ("a.csv", gzip.compress(b"n,text\n1,a\n", mtime=0), "looks like gzip"),
        ("a.csv", b"PK\x03\x04....", "looks like zip or Excel"),
        ("a.csv.gz", b"n,text\n1,a\n", "cannot be read"),
        ("a.csv", b"n,text,n\n1,a,2\n", "has 2 columns named 'n'"),
        ("a.csv", b"n,t\xffxt\n1,a\n", "header is not UTF-8"),
        ("a.parquet", b"PAR1 not really", "cannot be read"),
        ("a.arrow", b"ARROW1 not really", "cannot be read"),
        ("a.arrow", b"neither file nor stream", "cannot be read"),
        ("a.feather", b"FEA1 of long ago", "Feather version 1"),
        ("a.xlsx", b"PK", r"the suffix \.xlsx .* Read are \.csv"),
        ("data", b"n,text\n1,a\n", "a name without suffix"),
        ("a.parquet.gz", b"PAR1", r"the suffix \.gz"),
    ],
)
def test_files_that_cannot_be_read(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        open_dataset(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_places_that_are_not_files(tmp_path: Path) -> None:
    (tmp_path / "reviews.csv").write_text("n,text\n1,a\n")
    os.mkfifo(tmp_path / "pipe.csv")
    (tmp_path / "loop.csv").symlink_to(tmp_path / "loop.csv")
    for place, message in [
        (tmp_path / "review.csv", r"does not exist; did you mean 'reviews\.csv'\?"),
        (tmp_path / "nothing like it", r"nothing like it does not exist\."),
        (tmp_path / "no" / "a.csv", "there is no folder"),
        (tmp_path / "reviews.csv" / "a.csv", "cannot be opened|no folder"),
        (tmp_path, "is a directory"),
        (tmp_path / "pipe.csv", "is a pipe"),
        ("/dev/zero", "is a pipe, socket or device"),
        (tmp_path / "loop.csv", "cannot be opened"),
        ("a\0.csv", "cannot be opened"),
        ("x" * 5000 + ".csv", "cannot be opened"),
    ]:
        with pytest.raises(DataError, match=message):
            open_dataset(place)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (["a", "b"], "cannot be read from list"),
        (None, "cannot be read from NoneType"),
        (42, "cannot be read from int"),
        ({"text": "abc"}, "Column 'text' is str, not a list"),
        ({"text": iter("abc")}, "Column 'text' is str_ascii_iterator, not a list"),
        ({"a": ["x"], "b": ["x", "y"]}, "'a' has 1, 'b' has 2"),
        ({0: ["x"]}, "0 is int. Rename"),
        ({}, "has no columns"),
        ({"text": []}, "has no rows"),
        (pa.table({"text": pa.array([], pa.string())}), "has no rows"),
        (pd.DataFrame({"text": []}), "has no rows"),
        (pd.DataFrame([["a", "b"]], columns=["x", "x"]), "has 2 columns named 'x'"),
        (pa.table([["a"], ["b"]], names=["x", "x"]), "has 2 columns named 'x'"),
        (pd.DataFrame([["a"]]), "0 is int. Rename"),
    ],
)
def test_tables_that_cannot_be_read(source: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_dataset(source)


def test_an_empty_stream_is_found_when_it_is_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no rows"):
        list(open_dataset(Stream([], pa.string())).batches(["text"]))
    write_stream(tmp_path / "a.arrow", [])
    with pytest.raises(DataError, match=r"a\.arrow has no rows"):
        list(open_dataset(tmp_path / "a.arrow").batches(["text"]))


def test_cells_of_several_types() -> None:
    for column in (["a", 1, "b"], np.array(["a", 1, "b"], dtype=object), pd.Series(["a", 1, "b"], dtype="object")):
        with pytest.raises(DataError, match=r"Column 'text': data row 1 \(counted from 0\) holds int"):
            cells({"text": column}, "text")
    assert cells({"text": ["a", b"b", float("nan")]}, "text") == [b"a", b"b", None]
    assert cells({"text": [True, None]}, "text") == [b"true", None]
    assert cells({"other": ["a", 1, {}], "text": ["x", "y", "z"]}, "text") == [b"x", b"y", b"z"]


def test_a_missing_column_names_the_nearest(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text,label\na,b\n")
    opened = open_dataset(path)
    opened.require(["label", "text"])
    with pytest.raises(
        ColumnNotFound, match=r"has no column 'txt'; did you mean 'text'\? Its columns: 'text', 'label'\."
    ) as caught:
        opened.require(["text", "txt"])
    assert caught.value.exit_code == 2
    with pytest.raises(ColumnNotFound):
        list(opened.batches(["Text"]))
    path.write_text("text;label\na;b\n")
    with pytest.raises(ColumnNotFound, match="separate its columns by ';'"):
        open_dataset(path).require(["text"])


def test_a_parquet_column_whose_name_has_a_dot(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    parquet.write_table(pa.table({"a": ["1"], "a.b": ["2"], "s": [{"x": "3"}]}), path)
    for name, value in (("a", b"1"), ("a.b", b"2")):
        assert cells(path, name) == [value]


def test_a_parquet_file_of_large_cells_is_read_few_rows_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    blocks = [hashlib.shake_256(bytes([n])).hexdigest(1 << 20) for n in range(40)]  # 2 MiB each
    parquet.write_table(pa.table({"n": list(range(40)), "text": blocks}), path)
    batches = list(open_dataset(path).batches(["text"]))
    assert max(batch.nbytes for batch in batches) <= tables.BATCH_BYTES
    assert sum(batch.num_rows for batch in batches) == 40
    assert len(list(open_dataset(path).batches(["n"]))) == 1


@pytest.mark.parametrize("name", ["a.parquet", "dictionary.parquet", "a.arrow", "stream.arrow", "a.feather"])
def test_a_damaged_file_is_an_error_or_other_cells_but_never_a_crash(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    FILES[name](path, TEXTS)
    whole = path.read_bytes()
    messages = []
    for seed in range(150):
        random = np.random.default_rng(seed)
        damaged = np.frombuffer(whole, np.uint8).copy()
        damaged[random.integers(0, len(damaged), 1 + seed % 4)] ^= np.uint8(1 << (seed % 8))
        path.write_bytes(damaged.tobytes() if seed % 3 else whole[: int(random.integers(1, len(whole)))])
        try:
            cells(path, "text")
        except CachestoreError as error:
            messages.append(str(error))
    assert messages
    assert not any("\n" in message for message in messages)


def test_nothing_imports_pandas(tmp_path: Path) -> None:
    # pyarrow does so for pa.array and to_numpy, where pandas is installed: 0.3 s of every command
    for name in ("a.csv", "a.jsonl", "a.parquet", "a.arrow"):
        FILES[name](tmp_path / name, [*TEXTS, "b"])
    code = f"""
import sys
from pathlib import Path
from cachestore.dataset import open_dataset, payloads, text_column
for name in ("a.csv", "a.jsonl", "a.parquet", "a.arrow"):
    for batch in open_dataset(Path({str(tmp_path)!r}) / name).batches(["text", "n"]):
        payloads(batch, "text", 0); payloads(batch, "n", 0); text_column(batch.column("text"))
for batch in open_dataset({{"text": ["a", None, "b"]}}).batches(["text"]):
    payloads(batch, "text", 0)
assert "pandas" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
