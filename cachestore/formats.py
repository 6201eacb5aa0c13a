"""Files as record batches of bounded size: CSV, TSV, JSON Lines, Parquet, Arrow files and streams.

Text files keep the text of a cell as it stands there: CSV cells and JSON scalars arrive as strings (1.50 in JSON is
"1.50", true is "true"). Strings may hold bytes that are not UTF-8; ``dataset.payloads`` and ``text_column`` check them.
"""

from __future__ import annotations

import io
import json
import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa

from cachestore.delimited import Records
from cachestore.errors import DataError, nearest
from cachestore.tables import BATCH_BYTES, READER, ROWS, Reader, reading, slices, strings

MAX_LINE = 64 << 20
SAMPLE = 1000

TEXT = {".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl"}
TYPED = {".parquet": "parquet", ".arrow": "arrow", ".ipc": "arrow", ".feather": "arrow"}
COMPRESSED = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd", ".lz4": "lz4"}
_DELIMITERS = {"csv": ",", "tsv": "\t"}
_ONE_OBJECT = "JSON Lines has one object per line."
_FOREIGN = {
    b"PAR1": "Parquet (.parquet)",
    b"ARROW1": "Arrow (.arrow)",
    b"\x1f\x8b": "gzip (add .gz to its name)",
    b"PK\x03\x04": "zip or Excel",
}


def open_file(path: Path) -> Reader:
    """Opens a regular file by its suffix. Raises DataError for anything else, without waiting on a pipe or device."""
    label = str(path)
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise DataError(_not_found(path)) from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise DataError(f"{label!r} cannot be opened: {getattr(error, 'strerror', None) or error}.") from None
    if not stat.S_ISREG(mode):
        raise DataError(f"{label} is a pipe, socket or device. Write it to a file first: data is read more than once.")
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]] or [""]
    compression = COMPRESSED.get(suffixes[-1]) if len(suffixes) == 2 and suffixes[0] in TEXT else None
    kind = TEXT.get(suffixes[0 if compression else -1]) or TYPED.get(suffixes[-1])
    if kind is None:
        found = f"the suffix {suffixes[-1]}" if suffixes[-1] else "a name without suffix"
        raise DataError(f"{label} cannot be read: {found} does not say what it is. Read are {_known()}.")
    with reading(label):
        if path.stat().st_size == 0:
            raise DataError(f"{label} is empty: 0 bytes.")
        if kind == "parquet":
            return _parquet(path)
        if kind == "arrow":
            return _ipc(path)
        if compression and not pa.Codec.is_available(compression):
            raise DataError(f"{label}: this pyarrow cannot read {compression}. Decompress the file.")
        options = {"format": kind, "encoding": "utf-8", "compression": compression or "none", "reader": READER}
        return _jsonl(path, compression, options) if kind == "jsonl" else _delimited(path, compression, options)


def _known() -> str:
    return f"{', '.join(TEXT)} (each also with {', '.join(COMPRESSED)}), {', '.join(TYPED)}"


def _not_found(path: Path) -> str:
    folder = path.parent
    if not folder.is_dir():
        return f"{path} does not exist: there is no folder {folder}."
    try:
        hint = nearest(path.name, [entry.name for entry in folder.iterdir()])
    except OSError:  # a folder that may be entered but not listed
        hint = ""
    return f"{path} does not exist{hint or '.'}"


def _open_text(path: Path, compression: str | None) -> BinaryIO:
    """The file's bytes, decompressed, after a byte order mark."""
    stream = io.BufferedReader(pa.input_stream(str(path), compression=compression), 1 << 20)
    head = stream.peek(8)[:8]
    if head.startswith(b"\xef\xbb\xbf"):
        stream.read(3)
    if head[:2] in (b"\xff\xfe", b"\xfe\xff") or (len(head) > 1 and (head[0] == 0) != (head[1] == 0)):
        raise DataError(f"{path} is UTF-16 or UTF-32 text. Save it as UTF-8: iconv -f UTF-16 -t UTF-8.")
    for magic, kind in _FOREIGN.items():
        if head.startswith(magic):
            raise DataError(f"{path} is not text: it looks like {kind}.")
    return stream


def _delimited(path: Path, compression: str | None, options: Mapping[str, str]) -> Reader:
    delimiter = _DELIMITERS[options["format"]]

    def records() -> Records:
        return Records(lambda: _open_text(path, compression), delimiter, str(path))

    first = records()
    if not first.has_rows():
        raise DataError(f"{path} has a header and no rows.")

    def read(columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        with reading(str(path)):
            yield from slices(records().batches(columns))

    return Reader(first.names, None, {**options, "delimiter": delimiter}, read)


def _jsonl(path: Path, compression: str | None, options: Mapping[str, str]) -> Reader:
    def keys(limit: int | None) -> tuple[str, ...]:
        found: dict[str, None] = {}
        with reading(str(path)):
            for count, (_, row) in enumerate(_objects(path, compression)):
                if count == limit:
                    break
                found.update(dict.fromkeys(row))
        return tuple(found)

    columns = keys(SAMPLE)
    if next(_objects(path, compression), None) is None:
        raise DataError(f"{path} has no rows: every line is blank.")

    def read(columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        cells: dict[str, list[str | None]] = {name: [] for name in columns}
        rows = size = 0
        with reading(str(path)):
            for number, row in _objects(path, compression):
                for name, column in cells.items():
                    cell = row.get(name)
                    if not isinstance(cell, str) and cell is not None:
                        if not isinstance(cell, bool):
                            held = "a list" if isinstance(cell, list) else "an object"
                            raise DataError(
                                f"{path}, line {number}: column {name!r} holds {held}. "
                                "A cell is text, a number, true, false or null."
                            )
                        cell = "true" if cell else "false"
                    column.append(cell)
                    size += len(cell or "")
                rows += 1
                if rows == ROWS or size > BATCH_BYTES // 4:
                    yield _batch(cells, rows)
                    cells, rows, size = {name: [] for name in columns}, 0, 0
            if rows:
                yield _batch(cells, rows)

    return Reader(columns, None, options, read, lambda: keys(None))


def _batch(cells: Mapping[str, Sequence[str | None]], rows: int) -> pa.RecordBatch:
    arrays = {name: strings(column) for name, column in cells.items()} or {"": pa.nulls(rows)}
    return pa.RecordBatch.from_arrays(list(arrays.values()), names=list(arrays)).select(list(cells))


def _objects(path: Path, compression: str | None) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, object) of every line that is not blank; numbers as the text that stands in the file."""
    decoder = json.JSONDecoder(parse_float=str, parse_int=str, parse_constant=str)
    with _open_text(path, compression) as stream:
        number = 0
        while line := stream.readline(MAX_LINE + 1):
            number += 1
            if len(line) > MAX_LINE:
                raise DataError(f"{path}, line {number} is longer than {MAX_LINE >> 20} MiB. {_ONE_OBJECT}")
            if line.isspace():
                continue
            try:
                # a byte that is not UTF-8 spoils its cell, not the line
                row = decoder.decode(line.decode("utf-8", "surrogateescape"))
            except json.JSONDecodeError as error:
                reason = f"{error.msg} at character {error.pos + 1}"
                raise DataError(f"{path}, line {number} is not JSON: {reason}. {_ONE_OBJECT}") from None
            except RecursionError:
                raise DataError(f"{path}, line {number} is nested too deeply to read.") from None
            if not isinstance(row, dict):
                held = "a list" if isinstance(row, list) else "a single value"
                raise DataError(f"{path}, line {number} holds {held}. {_ONE_OBJECT}")
            yield number, row


def _parquet(path: Path) -> Reader:
    from pyarrow import parquet

    def opened() -> Any:
        # no pre_buffer: it would hold a whole row group, and memory is bounded by the batch
        return parquet.ParquetFile(pa.OSFile(str(path)), pre_buffer=False, buffer_size=1 << 20)

    with opened() as file:
        columns, rows = tuple(file.schema_arrow.names), int(file.metadata.num_rows)

    def read(columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        with reading(str(path)), opened() as file:
            wanted = list(dict.fromkeys(columns)) or file.schema_arrow.names[:1]
            for batch in file.iter_batches(_rows_per_batch(file.metadata, set(wanted)), columns=wanted):
                yield from slices([batch.select(columns)])

    return Reader(columns, rows, {"format": "parquet", "reader": READER}, read)


def _rows_per_batch(metadata: Any, columns: set[str]) -> int:
    """So many rows that the columns' cells stay near BATCH_BYTES in the row group whose cells are largest."""
    largest = 1.0
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        chunks = (group.column(index) for index in range(group.num_columns))
        size = sum(chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema.split(".")[0] in columns)
        largest = max(largest, size / max(group.num_rows, 1))
    return max(1, min(ROWS, int(BATCH_BYTES / largest)))


def _ipc(path: Path) -> Reader:
    with path.open("rb") as file:
        head = file.read(8)
    if head.startswith(b"FEA1"):
        raise DataError(f"{path} is Feather version 1. Write it again as version 2 (pyarrow.feather.write_feather).")
    is_file = head.startswith(b"ARROW1")

    def opened(source: Any, fields: list[int] | None = None) -> Any:
        options = pa.ipc.IpcReadOptions(included_fields=fields)
        return pa.ipc.open_file(source, options=options) if is_file else pa.ipc.open_stream(source, options=options)

    # not mapped: a file that is cut while it is mapped ends the process
    with pa.OSFile(str(path)) as source, opened(source) as file:
        names = tuple(file.schema.names)

    def read(columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        fields = sorted({names.index(name) for name in columns}) or [0]
        with reading(str(path)), pa.OSFile(str(path)) as source, opened(source, fields) as file:
            for batch in map(file.get_batch, range(file.num_record_batches)) if is_file else file:
                for column in batch.columns:
                    # offsets of a damaged file may point anywhere; the bytes of texts are checked per cell, later
                    (column.view(_BINARY[column.type]) if column.type in _BINARY else column).validate(full=True)
                yield from slices([batch.select(columns)])

    return Reader(names, None, {"format": "arrow", "reader": READER}, read)


_BINARY = {pa.string(): pa.binary(), pa.large_string(): pa.large_binary(), pa.string_view(): pa.binary_view()}
