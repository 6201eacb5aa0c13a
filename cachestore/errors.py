"""Everything that can go wrong, as one tree. Each class carries the exit code of a command that ends with it.

    CachestoreError                    1   never raised itself
    ├── UsageError                     2   an argument, path or name that cannot be used
    ├── ConfigError                    2   a config with one or more faults
    │   ├── TrainingDiverged           2   settings under which the loss became NaN or infinite
    │   └── OutOfMemory                2   settings under which a step does not fit into memory
    ├── DataError                      2   input data that cannot be read or used
    │   └── ColumnNotFound             2   a column the data does not have
    ├── EncoderError                   2   an encoder that cannot be found, loaded or trusted
    ├── ProcessLost                    2   a process that trains was killed
    ├── StoreError                     3   a store that cannot be used
    │   ├── StoreNotFound              3   no store at that place
    │   ├── StoreLocked                3   another process holds it
    │   ├── StoreNotReadable           3   no permission to read a file of it
    │   ├── StoreFull                  3   no space left, or a quota or file-size limit reached
    │   ├── StoreNotWritable           3   no permission to write, or a read-only file system
    │   ├── StoreFormatError           3   written by a newer version, or not a store at all
    │   ├── StoreWriteFailed           3   the operating system could not make a write durable
    │   └── ManifestNotFound           3   no manifest or name of that kind in the store
    └── DamageError                    4   stored bytes that fail their check
        └── MissingVector              4   a manifest names a key that the store does not hold

An error takes one string: what is wrong, which thing, what to do. It must survive pickling, so that a worker process can raise it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import ClassVar


class CachestoreError(Exception):
    """Base of every error this project raises on purpose."""

    exit_code: ClassVar[int] = 1


class UsageError(CachestoreError):
    """An argument, path or name cannot be used."""

    exit_code = 2


class ConfigError(CachestoreError):
    """A config has faults; the message lists all of them, each with its path: one in a line, several below each other."""

    exit_code = 2


class TrainingDiverged(ConfigError):
    """The loss became NaN or infinite; names the epoch, the step and the learning rate."""


class OutOfMemory(ConfigError):
    """A step of training does not fit into memory; names its rows and tokens, and what takes less."""


class DataError(CachestoreError):
    """Input data cannot be read or used; names the file, the column and the row where they are known."""

    exit_code = 2


class ColumnNotFound(DataError):
    """The data has no column of that name."""


class EncoderError(CachestoreError):
    """An encoder cannot be found, loaded or trusted."""

    exit_code = 2


class ProcessLost(CachestoreError):
    """One of the processes that train together ended before its work; says which, and how."""

    exit_code = 2


class StoreError(CachestoreError):
    """A store cannot be used."""

    exit_code = 3


class StoreNotFound(StoreError):
    """There is no store at that place."""


class StoreLocked(StoreError):
    """Another process is building into, or collecting, this store."""


class StoreNotReadable(StoreError):
    """No permission to read a file of the store."""


class StoreFull(StoreError):
    """No space left on the device, or a quota or file-size limit was reached."""


class StoreNotWritable(StoreError):
    """No permission to write there, or the file system is read-only."""


class StoreFormatError(StoreError):
    """The store was written by a newer version, or the directory is not a store."""


class StoreWriteFailed(StoreError):
    """The operating system could not make a write durable."""


class ManifestNotFound(StoreError):
    """The store holds no manifest or name of that kind."""


class DamageError(CachestoreError):
    """Stored bytes fail their check."""

    exit_code = 4


class MissingVector(DamageError):
    """A manifest names a key that the store does not hold."""


def nearest(word: str, choices: Iterable[str]) -> str:
    """A hint for a message: ``"; did you mean 'text'?"`` when a choice is close to ``word``, else ``""``."""
    close = difflib.get_close_matches(word, list(choices), n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""
