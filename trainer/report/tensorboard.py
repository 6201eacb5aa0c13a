"""TensorBoard's event files, written without TensorBoard: its records are few bytes, and importing it takes seconds.

A record is its length, 8 bytes, the masked CRC-32C of these, an Event of tensorflow/core/util/event.proto, and its masked
CRC-32C (tensorflow/core/lib/io/record_writer.h); numbers are little-endian.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final

from cachestore import outside
from trainer.events import EpochDone, Event, Listener

FOLDER: Final = "tensorboard"
_POLYNOMIAL: Final = 0x82F63B78  # CRC-32C (Castagnoli), bits reversed


class EventFiles:
    """The files under ``folder``, one for each split as TensorBoard likes it, written as lines of metrics come."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[str, Path] = {}

    def add(self, line: Mapping[str, Any]) -> None:
        """Append one line of metrics.jsonl. Raises UsageError when it cannot be written."""
        values = {
            f"{output}/{metric}": value
            for output, metrics in line["metrics"].items()
            for metric, value in metrics.items()
            if value is not None
        }
        if line["split"] == "train" and "learning_rate" in line:
            values["learning_rate"] = line["learning_rate"]
        summary = b"".join(_field(1, _field(1, tag.encode()) + _float(2, value)) for tag, value in values.items())
        path = self._folder / line["split"]
        try:
            with self._file(path).open("ab") as file:
                file.write(_record(_event(step=line["epoch"]) + _field(5, summary)))
        except OSError as error:
            raise outside.unwritable(path, error) from error

    def _file(self, folder: Path) -> Path:
        if folder.name not in self._files:
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / f"events.out.tfevents.{int(time.time())}.cachestore"
            path.write_bytes(_record(_event() + _field(3, b"brain.Event:2")))
            self._files[folder.name] = path
        return self._files[folder.name]


def listening(folder: Path, listener: Listener | None = None) -> Listener:
    """A ``progress`` function that writes each epoch under ``folder`` as it ends, into a folder named by the time of day.

    ``listener`` is told everything as well.
    """
    files = EventFiles(folder / time.strftime("%Y-%m-%d_%H-%M-%S"))

    def listen(event: Event) -> None:
        if isinstance(event, EpochDone):
            for split, metrics in event.metrics.items():
                files.add(
                    {"epoch": event.epoch, "split": split, "learning_rate": event.learning_rate, "metrics": metrics}
                )
        if listener is not None:
            listener(event)

    return listen


def _event(step: int = 0) -> bytes:
    return b"\x09" + struct.pack("<d", time.time()) + b"\x10" + _varint(step)


def _record(data: bytes) -> bytes:
    length = struct.pack("<Q", len(data))
    return length + _masked(length) + data + _masked(data)


def _field(number: int, data: bytes) -> bytes:
    """A field whose value has a length: a text or a message."""
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _float(number: int, value: float) -> bytes:
    return _varint(number << 3 | 5) + struct.pack("<f", value)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _masked(data: bytes) -> bytes:
    table = _table()
    crc = 0xFFFFFFFF
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


@cache
def _table() -> tuple[int, ...]:
    found = []
    for byte in range(256):
        crc = byte
        for _ in range(8):
            crc = crc >> 1 ^ (_POLYNOMIAL if crc & 1 else 0)
        found.append(crc)
    return tuple(found)
