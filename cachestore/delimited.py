"""CSV and TSV as record batches: every column is text, an unquoted empty cell is null, ``""`` is an empty text.

The bytes are cut at record ends here, and pyarrow parses one piece at a time. pyarrow's own streaming reader reads 32
blocks ahead and needs a block larger than the longest row, so one 10 MB cell would cost half a gigabyte; it also takes a
quote that is never closed for a cell that ends with the file. Cutting first bounds memory by the longest row.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import BinaryIO

import numpy as np
import pyarrow as pa
from pyarrow import csv

from cachestore.errors import DataError

PIECE = 1 << 20
MAX_RECORD = 64 << 20

_QUOTE = 0x22


class Records:
    """The records of one delimited file, read once from front to back. ``names`` are the header's."""

    def __init__(self, opened: Callable[[], BinaryIO], delimiter: str, label: str) -> None:
        self._label = label
        self._opened = opened
        self._delimiter = delimiter
        separator = re.escape(delimiter.encode())
        # a quote opens only at the start of a field; what follows its closing quote still belongs to the field
        self._field = re.compile(
            rb'(?:"(?:[^"]++|"")*+(?P<closed>"?))?+[^%(sep)s\r\n]*+(?P<end>%(sep)s|\r\n|\r|\n|\Z)' % {b"sep": separator}
        )
        field = rb'(?:"(?:[^"]++|"")*+"|(?!"))[^%s\r\n]*+' % separator
        # \r as the last byte may be the first half of \r\n
        self._whole = re.compile(rb"(?:(?:%s%s)*+%s(?:\r\n|\n|\r(?!\Z)))*+" % (field, separator, field))
        self._may_open = np.zeros(256, dtype=np.bool_)
        self._may_open[[ord(delimiter), 0x0A, 0x0D, _QUOTE]] = True
        self._pieces = self._cut()
        self._start, self._first = next(self._pieces, (0, b""))
        self.names = self._header()

    def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """The named columns, each of type string whose bytes have not been checked to be UTF-8."""
        # numbered, because a header may repeat a name or leave it empty
        numbers = [str(self.names.index(name)) for name in columns]
        kept = list(dict.fromkeys(numbers)) or ["0"]
        parse = csv.ParseOptions(delimiter=self._delimiter, newlines_in_values=True)
        convert = csv.ConvertOptions(
            check_utf8=False,
            column_types=dict.fromkeys(kept, pa.string()),
            include_columns=kept,
            null_values=[""],
            strings_can_be_null=True,
            quoted_strings_can_be_null=False,
        )
        names = [str(number) for number in range(len(self.names))]
        for start, piece, header in self._all():
            read = csv.ReadOptions(use_threads=False, block_size=len(piece) + 1, column_names=names)
            source = pa.BufferReader(piece)
            try:
                table = csv.read_csv(source, read_options=read, parse_options=parse, convert_options=convert)
            except pa.ArrowInvalid as error:
                raise self._ragged(start, piece, error) from None
            for batch in table.slice(header).to_batches():
                chosen = batch.select(numbers)
                yield pa.RecordBatch.from_arrays(chosen.columns, names=list(columns)) if columns else chosen

    def _cut(self) -> Iterator[tuple[int, bytes]]:
        """Where it starts and its bytes, for pieces of whole records: about PIECE bytes each, or one longer record."""
        start, rest = 0, b""
        with self._opened() as stream:
            while block := stream.read(max(PIECE, len(rest))):
                data = rest + block
                end = self._last_end(data)
                if end == 0 and len(data) > MAX_RECORD:
                    raise DataError(
                        f"{self._label}: the row on line {self._line(start)} is longer than {MAX_RECORD >> 20} MiB. "
                        "Shorten it, or close its quote: one that is never closed takes the rest of the file into its cell."
                    )
                piece, rest = data[:end], data[end:]
                if not _blank(piece):
                    yield start, piece
                start += end
        if rest and self._last_end(rest + b"\n") <= len(rest):
            raise DataError(f"{self._label}: a quote in the row on line {self._line(start)} is never closed. Close it.")
        if not _blank(rest):
            yield start, rest

    def _last_end(self, data: bytes) -> int:
        """Where the last complete record of ``data`` ends; 0 if none does. ``data`` starts at a record's start."""
        values = np.frombuffer(data, dtype=np.uint8)
        quotes = np.flatnonzero(values == _QUOTE)
        opening = quotes[::2]
        before = values[opening[1:] - 1] if opening.size and opening[0] == 0 else values[opening - 1]
        if not self._may_open[before].all():  # a quote inside an unquoted field: counting quotes says nothing then
            whole = self._whole.match(data)
            return whole.end() if whole else 0
        # a newline ends a record outside quotes: before the first, between a closing and the next opening one, after the last
        lows = np.concatenate([[0], quotes[1::2] + 1])
        highs = np.append(opening, len(data))[: len(lows)]
        for index in np.flatnonzero(highs > lows)[::-1]:
            low, high = int(lows[index]), int(highs[index])
            found = data.rfind(b"\n", low, high)
            if found < 0:  # \r alone ends a record too, but the last byte may be the first half of \r\n
                found = data.rfind(b"\r", low, min(high, len(data) - 1))
            if found >= 0:
                return found + 1
        return 0

    def _all(self) -> Iterator[tuple[int, bytes, int]]:
        """(start, bytes, header rows) of every piece."""
        yield self._start, self._first, 1
        for start, piece in self._pieces:
            yield start, piece, 0

    def _records(self, data: bytes) -> Iterator[tuple[int, list[bytes], bool]]:
        """(end, raw fields, whether a line end closes it) of every record that is not blank."""
        at = 0
        fields: list[bytes] = []
        while at < len(data):
            field = self._field.match(data, at)
            assert field is not None  # every part of the pattern may be empty
            at = field.end()
            end = field["end"]
            raw = data[field.start() : field.start("end")]
            fields.append(raw)
            if end == self._delimiter.encode():
                if at < len(data):
                    continue
                fields.append(b"")  # the file ends right after a delimiter
            # at the very end \r may be half of \r\n, which would then look like a blank line: harmless
            ended = end in (b"\r\n", b"\n", b"\r") and field["closed"] != b""
            if fields != [b""]:
                yield at, fields, ended
            fields = []

    def _header(self) -> tuple[str, ...]:
        for end, fields, _ in self._records(self._first):
            self._has_rows = bool(self._first[end:].strip(b"\r\n"))
            try:
                return tuple(_unquote(field).decode() for field in fields)
            except UnicodeDecodeError:
                raise DataError(f"{self._label}: the header is not UTF-8. Save the file as UTF-8.") from None
        raise DataError(f"{self._label} is empty. It needs a header line and at least one row.")

    def has_rows(self) -> bool:
        """Whether anything follows the header; asked before ``batches``."""
        if not self._has_rows:
            _, following = next(self._pieces, (0, b""))
            self._first += following
            self._has_rows = bool(following)
        return self._has_rows

    def _ragged(self, start: int, piece: bytes, error: pa.ArrowInvalid) -> DataError:
        expected, before = len(self.names), 0
        for end, fields, _ in self._records(piece):
            if len(fields) != expected:
                line = self._line(start + end - len(piece[before:end].lstrip(b"\r\n")))
                found = "1 field" if len(fields) == 1 else f"{len(fields)} fields"
                return DataError(
                    f"{self._label}, line {line}: {found}, but the header has {expected}. "
                    f"Correct the row; a cell that contains {self._delimiter!r} or a newline must be quoted."
                )
            before = end
        return DataError(f"{self._label}, after line {self._line(start)}: {' '.join(str(error).split())[:200]}")

    def _line(self, position: int) -> int:
        """The number, from 1, of the line at a position. Reads the file again: counting all along would slow every read."""
        line, last = 1, b""
        with self._opened() as stream:
            while position > 0 and (block := stream.read(min(PIECE, position))):
                line += block.count(b"\n") + block.count(b"\r") - (last + block).count(b"\r\n")
                position -= len(block)
                last = block[-1:]
        return line


def _unquote(field: bytes) -> bytes:
    if not field.startswith(b'"'):
        return field
    closing = re.match(rb'"((?:[^"]++|"")*+)"', field)
    return closing[1].replace(b'""', b'"') + field[closing.end() :] if closing else field


def _blank(data: bytes) -> bool:
    return not data or (data.isspace() and not data.strip(b"\r\n"))
