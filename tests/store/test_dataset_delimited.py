"""CSV and TSV: what counts as a cell, a row and a line, whatever the sizes, and what is refused."""

from __future__ import annotations

import csv
import io
import itertools
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pyarrow import csv as arrow_csv

from cachestore import delimited
from cachestore.dataset import SkippedCell, open_dataset, payloads, text_column
from cachestore.delimited import Records
from cachestore.errors import ColumnNotFound, DataError
from cachestore.manifest import SKIPPED

Rows = list[list[bytes | None]]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a.csv"


def read(path: Path) -> Rows:
    """Every row's payloads, in column order."""
    opened = open_dataset(path)
    rows: Rows = []
    for batch in opened.batches(opened.columns):
        columns = [payloads(batch, name, len(rows)).payloads for name in opened.columns]
        rows += [list(row) for row in zip(*columns, strict=True)]
    return rows


@pytest.mark.parametrize(
    ("content", "columns", "rows"),
    [
        (b'a,b\n1,\n"",x\n', "ab", [[b"1", None], [b"", b"x"]]),
        (b"a,b\n1,2", "ab", [[b"1", b"2"]]),
        (b"a,b\n1,", "ab", [[b"1", None]]),
        (b"a,b\r\n1,2\r\n", "ab", [[b"1", b"2"]]),
        (b"a,b\r1,2\r3,4\r", "ab", [[b"1", b"2"], [b"3", b"4"]]),
        (b"\xef\xbb\xbfa,b\n1,2\n", "ab", [[b"1", b"2"]]),
        (b'\xef\xbb\xbf"a","b"\n1,2\n', "ab", [[b"1", b"2"]]),
        (b"\n\r\na,b\n\n1,2\n\n\n3,4\n\n", "ab", [[b"1", b"2"], [b"3", b"4"]]),
        (b'a\n1\n\n""\n\n2\n', "a", [[b"1"], [b""], [b"2"]]),
        (b'a,b\n"x\r\ny","p ""q"" r"\n', "ab", [[b"x\r\ny", b'p "q" r']]),
        (b'a,b\n"x,y", z \n', "ab", [[b"x,y", b" z "]]),
        (b'a,b\n5" disk,"6"" disk"\n', "ab", [[b'5" disk', b'6" disk']]),
        (b'a,b\n"x"y,z"\n', "ab", [[b"xy", b'z"']]),
        (b"a,b\nNULL,NA\nnan,None\n", "ab", [[b"NULL", b"NA"], [b"nan", b"None"]]),
        (b"a,b\n1,1.50\n007,true\n", "ab", [[b"1", b"1.50"], [b"007", b"true"]]),
        (b"a,b\n\0,x\0y\n", "ab", [[b"\0", b"x\0y"]]),
        (b"a,b\n=1+1,@x\n", "ab", [[b"=1+1", b"@x"]]),
        (b"a,b,\n1,2,\n", ["a", "b", ""], [[b"1", b"2", None]]),
        (b',"say ""hi""","x,y\nz"\n1,2,3\n', ["", 'say "hi"', "x,y\nz"], [[b"1", b"2", b"3"]]),
        ("größe,文\n1,2\n".encode(), ["größe", "文"], [[b"1", b"2"]]),
        (b"a\n \n\t\n", "a", [[b" "], [b"\t"]]),
    ],
)
def test_cells(path: Path, content: bytes, columns: str | list[str], rows: Rows) -> None:
    path.write_bytes(content)
    assert open_dataset(path).columns == tuple(columns)
    assert read(path) == rows


def test_tsv(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_bytes(b'a\tb\n1,2\t"x\ty"\n\t""\n')
    assert read(path) == [[b"1,2", b"x\ty"], [None, b""]]
    assert open_dataset(path).options["delimiter"] == "\t"


def test_types_do_not_change_from_batch_to_batch(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delimited, "PIECE", 16)
    path.write_text("a,b\n" + "1,\n" * 50 + "x,2.5\n" * 50)
    batches = list(open_dataset(path).batches(["b", "a"]))
    assert len(batches) > 10
    assert {str(field.type) for batch in batches for field in batch.schema} == {"string"}
    assert pa.Table.from_batches(batches).column("b").to_pylist() == [None] * 50 + ["2.5"] * 50


def test_several_nameless_columns_are_fine_until_one_is_asked_for(path: Path) -> None:
    path.write_bytes(b"a,,\n1,2,3\n")
    opened = open_dataset(path)
    assert [batch.to_pydict() for batch in opened.batches(["a"])] == [{"a": ["1"]}]
    with pytest.raises(DataError, match="2 columns named ''"):
        opened.require([""])


class TestLineNumbers:
    def error(self, path: Path, content: bytes) -> str:
        path.write_bytes(content)
        with pytest.raises(DataError) as caught:
            read(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    @pytest.mark.parametrize(
        ("content", "where"),
        [
            (b"a,b\n1,2\n3\n4,5\n", "line 3: 1 field, but the header has 2"),
            (b"a,b\n1,2\n3,4,5", "line 3: 3 fields, but the header has 2"),
            (b'a,b\n"x\n\ny",2\n\n\n3,4,5\n', "line 7: 3 fields"),
            (b'\xef\xbb\xbfa,b\r\n"x\r\ny",2\r\n3\r\n', "line 4: 1 field"),
            (b'a,b\r"x\ry",2\r3\r', "line 4: 1 field"),
            (b'a,b\n5" d,2\n5" d,2,3\n', "line 3: 3 fields"),
            (b"a,b\n1,2\n  \n", "line 3: 1 field"),
            (b"\n\na,b\n1\n", "line 4: 1 field"),
            (b"a\nx\n,", "line 3: 2 fields"),
        ],
    )
    @pytest.mark.parametrize("piece", [1, 7, 1 << 20])
    def test_a_ragged_row(
        self, path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, where: str, piece: int
    ) -> None:
        monkeypatch.setattr(delimited, "PIECE", piece)
        assert where in self.error(path, content)

    @pytest.mark.parametrize("piece", [1, 7, 1 << 20])
    @pytest.mark.parametrize(
        ("content", "line"),
        [
            (b'a,b\n1,"never closed\n2,x\n3,y\n', 2),
            (b'a,b\n1,2\n\n"x\ny",2\n"z""', 6),
            (b'a,b\n5" d,1\n1,"x', 3),
            (b'"a', 1),
        ],
    )
    def test_a_quote_that_is_never_closed_does_not_swallow_rows(
        self, path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, line: int, piece: int
    ) -> None:
        monkeypatch.setattr(delimited, "PIECE", piece)
        assert f"a quote in the row on line {line} is never closed" in self.error(path, content)

    def test_a_row_over_the_limit(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(delimited, "PIECE", 64)
        monkeypatch.setattr(delimited, "MAX_RECORD", 1000)
        assert "the row on line 3 is longer than" in self.error(path, b'a,b\n1,2\n3,"' + b"x" * 2000 + b'"\n4,5\n')

    def test_a_ragged_row_far_into_the_file(self, path: Path) -> None:
        message = self.error(path, b"a,b\n" + b'1,"two\nlines"\n' * 400_000 + b"oops\n")
        assert "line 800002: 1 field" in message

    def test_rows_before_the_ragged_one_are_delivered(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(delimited, "PIECE", 16)
        path.write_bytes(b"a,b\n" + b"1,2\n" * 100 + b"3\n")
        batches = open_dataset(path).batches(["a"])
        delivered = []
        with pytest.raises(DataError, match="line 102"):
            delivered.extend(batch.num_rows for batch in batches)
        assert sum(delivered) >= 90


def whole(data: bytes, width: int) -> Rows | None:
    """The rows as pyarrow reads them from one block that holds all; None where it refuses them."""
    names = [str(number) for number in range(width)]
    try:
        table = arrow_csv.read_csv(
            pa.BufferReader(data),
            read_options=arrow_csv.ReadOptions(use_threads=False, block_size=len(data) + 1, column_names=names),
            parse_options=arrow_csv.ParseOptions(newlines_in_values=True),
            convert_options=arrow_csv.ConvertOptions(
                column_types=dict.fromkeys(names, pa.binary()),
                null_values=[""],
                strings_can_be_null=True,
                quoted_strings_can_be_null=False,
            ),
        )
    except pa.ArrowInvalid:
        return None
    return [list(row) for row in zip(*(column.to_pylist() for column in table.slice(1).columns), strict=True)]


PARTS = st.sampled_from(["a", ",", "\n", "\r", "\r\n", '"', '""', '"x"', '"p""q"', '"y\nz"', "é"])


@given(st.lists(PARTS, max_size=25).map("".join), st.integers(1, 3), st.integers(1, 9))
@example('5" d\n"a\n', 1, 1)
@settings(max_examples=400, deadline=None)
def test_cutting_the_file_anywhere_changes_nothing(body: str, width: int, piece: int) -> None:
    data = (",".join("hij"[:width]) + "\n" + body).encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(delimited, "PIECE", piece)
        try:
            records = Records(lambda: io.BytesIO(data), ",", "data")
            found: Rows | None = []
            for batch in records.batches(records.names):
                columns = [batch.column(index).cast(pa.binary()).to_pylist() for index in range(width)]
                assert found is not None
                found += [list(row) for row in zip(*columns, strict=True)]
        except DataError as error:
            if "never closed" in str(error):  # which pyarrow takes; the csv module says whether it is so
                with pytest.raises(csv.Error):
                    list(csv.reader(io.StringIO(data.decode(), newline=""), strict=True))
                return
            found = None
    assert found == whole(data, width)


TEXT = st.none() | st.text(max_size=12) | st.text(alphabet='ab",\n\r\t ', max_size=12)


@given(st.lists(st.tuples(st.integers(0, 9), TEXT, TEXT), min_size=1, max_size=12), st.integers(1, 64), st.booleans())
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_the_csv_module_writes_is_read_back(
    tmp_path: Path, rows: list[tuple[int, str | None, str | None]], piece: int, quote_all: bool
) -> None:
    path = tmp_path / "a.csv"
    # the csv module writes None and "" alike, so a mark stands for "" and becomes a quoted empty cell afterwards
    mark = "\x01empty\x01"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["n", "first", "second"])
        for row in rows:
            writer.writerow([mark if cell == "" else cell for cell in row])
    path.write_bytes(path.read_bytes().replace(mark.encode(), b'""'))
    expected = [[cell if cell is None else str(cell).encode() for cell in row] for row in rows]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(delimited, "PIECE", piece)
        assert read(path) == expected
        opened = open_dataset(path)
        strings = [text_column(batch.column("second"))[0].to_pylist() for batch in opened.batches(["second"])]
    assert list(itertools.chain(*strings)) == [row[2] for row in rows]


def test_a_ten_megabyte_cell_is_read_and_one_over_the_limit_is_skipped(path: Path) -> None:
    big, huge = b"x, \n" * (10 << 18), b"y" * ((16 << 20) + 1)
    path.write_bytes(b'n,text\n1,"' + big + b'"\n2,"' + huge + b'"\n3,\n4,"z"\n')
    rows, skipped = [], []
    for batch in open_dataset(path).batches(["text"]):
        found = payloads(batch, "text", len(rows))
        rows += found.payloads
        skipped += found.skipped
        assert (found.reasons == SKIPPED).sum() == len(found.skipped)
    assert rows == [big, None, None, b"z"]
    assert skipped == [SkippedCell(1, "text", "is 16.0 MiB, over the limit of 16 MiB")]


def test_a_cell_that_is_not_utf8_is_found_wherever_its_batch_lies(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delimited, "PIECE", 32)
    path.write_bytes(
        b"n,text\n" + b"".join(b"%d,%s\n" % (n, b"\xe9t\xe9" if n % 10 == 7 else b"ok") for n in range(50))
    )
    rows, skipped = 0, []
    for batch in open_dataset(path).batches(["text"]):
        skipped += [cell.row for cell in payloads(batch, "text", rows).skipped]
        rows += batch.num_rows
    assert skipped == [7, 17, 27, 37, 47]


def test_ten_thousand_columns_and_a_header_longer_than_a_piece(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delimited, "PIECE", 4096)
    names = [f"column {number}" for number in range(10_000)]
    path.write_text(",".join(names) + "\n" + 3 * (",".join(map(str, range(10_000))) + "\n"))
    batches = list(open_dataset(path).batches(["column 9999", "column 0"]))
    assert pa.Table.from_batches(batches).to_pydict() == {"column 9999": ["9999"] * 3, "column 0": ["0"] * 3}
    with pytest.raises(ColumnNotFound, match="did you mean") as caught:
        open_dataset(path).require(["colum 77"])
    assert len(str(caught.value)) < 1000


MEASURE = """
import resource, sys
from cachestore.dataset import open_dataset, payloads
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
for batch in open_dataset(sys.argv[1]).batches(["text"]):  # the libraries' own memory
    payloads(batch, "text", 0)
before = peak()
for batch in open_dataset(sys.argv[2]).batches(["text"]):
    payloads(batch, "text", 0)
print(peak() - before)
"""


@pytest.mark.parametrize("kind", ["many rows", "quotes in fields", "one long line"])
def test_memory_is_bounded_by_the_batch(tmp_path: Path, kind: str) -> None:
    small, large = tmp_path / "small.csv", tmp_path / "large.csv"
    row = b'5" disk,x' if kind == "quotes in fields" else b'1,"x, y"'
    small.write_bytes(b"n,text\n" + (row + b"\n") * 200_000)
    with large.open("wb") as file:
        file.write(b"n,text\n")
        for _ in range(15):
            file.write(b"1," + b"x" * 10_000_000 + b"\n" if kind == "one long line" else (row + b"\n") * 1_000_000)
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, small, large], capture_output=True, text=True, check=True, timeout=100
    )
    assert int(done.stdout) < (200 if kind == "one long line" else 30), "MiB beyond what a small file takes"
