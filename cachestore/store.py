"""The store: one directory of shards, manifests and names, and the one object that joins them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from cachestore import (
    claims,
    digests,
    encoders,
    files,
    filesystem,
    header,
    locks,
    manifest,
    reconcile,
    references,
    shard,
)
from cachestore.claims import Claims
from cachestore.encoders import Encoder, EncoderLike
from cachestore.errors import (
    DamageError,
    DataError,
    EncoderError,
    MissingVector,
    StoreError,
    StoreNotFound,
    StoreNotWritable,
    UsageError,
)
from cachestore.fill import Fill, Limits
from cachestore.heads import Name, heads
from cachestore.index import Locations
from cachestore.keys import Fingerprint, Json, Key, fingerprint, keys
from cachestore.manifest import PRESENT, Manifest, ManifestColumn, Version
from cachestore.mapped import Mapped


def open_store(path: str | os.PathLike[str] | None = None, mode: Literal["r", "w"] = "w") -> Store:
    """Open the store at ``path``, else at ``$CACHESTORE_STORE``, else at ``~/.cache/cachestore``.

    Mode "w" creates it when it is not there; mode "r" never writes. Raises StoreNotFound, StoreNotWritable, StoreFormatError.
    """
    if mode not in ("r", "w"):
        raise UsageError(f"A store is opened with mode 'r' or 'w', not {mode!r}.")
    return Store(root_of(path), mode)


def open_to_read(path: str | os.PathLike[str] | None = None) -> Store:
    """The store at ``path`` opened for reading. An index that is lost, damaged or new is filled first, where this user may write.

    Raises as ``open_store`` with mode "r"; DamageError when the index is such and this user may not write, or a shard is damaged.
    """
    try:
        opened = open_store(path, "r")
    except DamageError:
        if not _filled(path):
            raise
        return open_store(path, "r")
    if opened.index.next_number() == 0:  # nothing was ever indexed: it was made by a command that needed none
        opened.close()
        _filled(path)
        return open_store(path, "r")
    return opened


def _filled(path: str | os.PathLike[str] | None) -> bool:
    """Whether the index agrees with the shards now. False where this user may not write; raises DamageError for a damaged shard."""
    if not os.access(root_of(path), os.W_OK):
        return False
    try:
        with open_store(path) as opened, opened.writing():
            return True
    except StoreNotWritable:
        return False


def root_of(path: str | os.PathLike[str] | None) -> Path:
    """The directory of the store that ``open_store`` opens. Raises StoreNotFound when a file lies there."""
    place = path or os.environ.get("CACHESTORE_STORE") or Path.home() / ".cache" / "cachestore"
    root = Path(place).expanduser().absolute()
    if os.path.lexists(root) and not os.path.isdir(root):
        raise StoreNotFound(f"{root} is not a directory, as a store is. Name a directory with --store.")
    return root


def readable_root(path: str | os.PathLike[str] | None = None) -> Path:
    """The directory of the store that ``open_store`` opens, of which only what needs no index is read: names, tags, pins, manifests.

    Raises StoreNotFound, StoreNotReadable, StoreFormatError.
    """
    root = root_of(path)
    header.check(root)
    return root


class Store:
    """Vectors by key, manifests by name. Use ``open_store``; a context manager that closes itself."""

    def __init__(self, root: Path, mode: Literal["r", "w"]) -> None:
        self.root = root
        self.readonly = mode == "r"
        self._reconciled = False
        self._own: dict[Fingerprint, Encoder] = {}
        if not self.readonly:
            header.create(root)
        header.check(root)
        if not self.readonly:
            filesystem.check(root)
        self.index = reconcile.open_index(root, readonly=self.readonly)
        self._mapped = Mapped(root, self.index)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> tuple[type[Store], tuple[Path, str]]:
        # another process opens it anew: an index and mappings cannot be sent
        return Store, (self.root, "r" if self.readonly else "w")

    def close(self) -> None:
        """Release the index and all mapped shards."""
        self._mapped.release()
        self.index.close()

    # -- vectors ---------------------------------------------------------------------------------------------------

    def missing(self, wanted: Sequence[Key]) -> list[Key]:
        """The distinct keys of ``wanted`` that the store does not hold, in the order of their first appearance."""
        found = self.index.lookup(wanted).shards.tolist()
        return list(dict.fromkeys(key for key, number in zip(wanted, found, strict=True) if number < 0))

    def put(
        self,
        spec: Mapping[str, Json],
        keys: Sequence[Key],
        vectors: NDArray[Any],
        *,
        owner: bytes | None = None,
        moved: bool = False,
    ) -> tuple[int, int]:
        """Store ``vectors`` (len(keys), dim) of the spec's dtype durably: shard first, then index.

        Only inside ``writing``. Keys that another shard holds stay there, unless they have ``moved``; the claims of ``owner`` end.
        Returns the shard's number and its size in bytes.
        """
        name, nbytes = shard.write(self.root, spec, keys, vectors)
        number = self.index.commit(name, fingerprint(spec), spec, keys, nbytes, owner=owner, moved=moved)
        return number, nbytes

    def gather(self, wanted: NDArray[np.void], found: Locations, out: NDArray[Any]) -> None:
        """Copy the vectors of keys (n,) at their locations into ``out`` (n, dim), each checked against its key and its check.

        A vector that was moved since its place was looked up is looked up once more. Raises MissingVector when it has no place.
        """
        self._mapped.gather(wanted, found, out)

    def embed(self, texts: Iterable[str], encoder: EncoderLike) -> NDArray[Any]:
        """Vectors (len(texts), dim) of the texts, in their order; what the store lacks is encoded and kept.

        The dtype is the encoder's stored dtype. Raises DataError for a text that has no UTF-8 form or no finite vector.
        """
        if isinstance(texts, str):
            raise UsageError("embed takes a list of texts, not one text. Write embed([text], …)[0].")
        texts = list(texts)
        opened = self.open_encoder(encoder)
        payloads = [_utf8(text, at) for at, text in enumerate(texts)]
        wanted = keys(fingerprint(opened.spec), payloads)
        lacking = set(self.missing([key for key in wanted if key is not None]))
        if lacking:
            with self.writing(), self.fill(opened) as fill:
                fill.add({key: payload for key, payload in zip(wanted, payloads, strict=True) if key in lacking})
                fill.flush()
                fill.settle()
            for at, key in enumerate(wanted):
                if key in fill.refused:
                    raise DataError(f"Text {at} cannot be stored: {fill.refused[key]}.")
        out = np.zeros((len(texts), opened.dim), shard.stored_dtype(opened.spec))
        self.gather(np.frombuffer(b"".join(key or b"" for key in wanted), "V32"), self.index.lookup(wanted), out)
        return out

    def fill(self, encoder: Encoder, limits: Limits | None = None, tick: Callable[[], None] | None = None) -> Fill:
        """A Fill that puts what ``encoder`` encodes into this store. Only inside ``writing``."""

        held = Claims(self.root, self.index)

        def put(names: Sequence[Key], vectors: NDArray[Any]) -> tuple[int, int]:
            return self.put(encoder.spec, names, vectors, owner=held.owner)

        return Fill(encoder, shard.stored_dtype(encoder.spec), put, held, limits or Limits(), tick)

    # -- manifests -------------------------------------------------------------------------------------------------

    def manifest(self, reference: str) -> Manifest:
        """The manifest of an id or its first 8 or more digits, of NAME (its newest version), NAME@VERSION or NAME@TAG."""
        return references.manifest_of(self.root, reference)

    def tag(self, name: str, tag: str, version: int | None = None) -> references.Tag:
        """Freeze a version of a name, by default its newest, under a tag, which then leads to it as ``NAME@TAG``.

        Raises UsageError when the tag is another manifest's already.
        """
        if self.readonly:
            raise StoreNotWritable(
                f"The store at {self.root} is open for reading only, and a tag is written to it. Open it for writing."
            )
        line = references.version(self.root, name, version)
        target = references.resolve(self.root, f"{name}@{line.version}")
        made = references.Tag(name, tag, line.version, target, datetime.now(UTC).isoformat(timespec="seconds"))
        references.write_tag(self.root, made)
        return made

    def log(self, name: str) -> list[Version]:
        """The versions of a name, oldest first."""
        return manifest.read_log(self.root, name)

    def names(self) -> list[Name]:
        """All names with their newest manifest, sorted; a name whose files are damaged has a ``fault`` instead."""
        return heads(self.root)

    def point(self, name: str, target: Manifest, provenance: Callable[[], Mapping[str, Json]]) -> None:
        """Add a version to a name's log, unless its head is this manifest already; only then is ``provenance`` asked for."""
        with locks.held(self.root, "names", exclusive=True, timeout=header.LOCK_SECONDS):
            if not self.leads(name, target):
                created = datetime.now(UTC).isoformat(timespec="seconds")
                manifest.append_version(self.root, name, target, created, provenance())

    def leads(self, name: str, target: Manifest) -> bool:
        """Whether the newest version of a name is this manifest."""
        return name in manifest.names(self.root) and self.log(name)[-1].manifest == target.id

    def vectors(self, source: Manifest | str, column: str) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Vectors (rows, dim) of a cached column in dataset order, zeros where a row has none, and the mask (rows,) of rows with one.

        Raises MissingVector naming the first row whose vector the store does not hold.
        """
        vectors, reasons = self.column(source, column)
        return vectors, reasons == PRESENT

    def column(self, source: Manifest | str, column: str) -> tuple[NDArray[Any], NDArray[np.uint8]]:
        """As ``vectors``, with the reasons (rows,): PRESENT, or why a row has none, MISSING, SKIPPED or FORGOTTEN."""
        source = self.manifest(source) if isinstance(source, str) else source
        described = source.column(column)
        dtype = shard.stored_dtype(described.spec)
        try:
            out = np.zeros((source.rows, described.dim), dtype)
        except (MemoryError, ValueError) as error:
            nbytes = source.rows * described.dim * dtype.itemsize
            raise StoreError(
                f"The vectors of column {column!r} are {nbytes / 1e9:,.0f} GB, more than this machine can hold at once."
            ) from error
        reasons = np.empty(source.rows, np.uint8)
        at = 0
        for chunk_keys, chunk_reasons in manifest.read_chunks(self.root, source, column):
            reasons[at : at + len(chunk_keys)] = chunk_reasons
            rows = np.flatnonzero(chunk_reasons == PRESENT)
            wanted = chunk_keys[rows]
            found = self.index.lookup(wanted.tolist())
            lost = np.flatnonzero(found.shards < 0)
            if len(lost):
                raise MissingVector(
                    f"Data row {at + int(rows[lost[0]])} (counted from 0) of column {column!r} has no vector in "
                    f"the store at {self.root}, nor have {len(lost) - 1} of the rows after it. Build the data set again to encode them."
                )
            whole = len(rows) == len(chunk_keys)
            target = out[at : at + len(rows)] if whole else np.empty((len(rows), described.dim), out.dtype)
            self.gather(wanted, found, target)
            if not whole:
                out[at + rows] = target
            at += len(chunk_keys)
        return out, reasons

    def reasons(self, source: Manifest | str, column: str) -> NDArray[np.uint8]:
        """Why each row (rows,) of a cached column has a vector or none: PRESENT, MISSING, SKIPPED or FORGOTTEN."""
        source = self.manifest(source) if isinstance(source, str) else source
        return np.concatenate([reasons for _, reasons in manifest.read_chunks(self.root, source, column)])

    def write_manifest(self, columns: Sequence[ManifestColumn], chunks: Sequence[tuple[str, int]]) -> Manifest:
        """Write a manifest of chunks that are in the store. Only inside ``writing``."""
        return manifest.write_manifest(self.root, columns, chunks)

    # -- encoders --------------------------------------------------------------------------------------------------

    def open_encoder(self, encoder: EncoderLike) -> Encoder:
        """Resolve an encoder against this store: file digests are remembered, ``precision: auto`` follows what is stored.

        Raises EncoderError for an Encoder of the caller's own whose spec or dimension cannot be stored.
        """
        opened = encoders.open_encoder(encoder, digest=self.digest, known=self.knows)
        if opened.spec.get("dtype") not in shard.DTYPES:
            raise EncoderError(
                f"The spec of {type(opened).__name__} has dtype {opened.spec.get('dtype')!r}. "
                f"It must say what its vectors are stored as: {' or '.join(shard.DTYPES)}."
            )
        if not isinstance(opened.dim, int) or opened.dim < 1:
            raise EncoderError(
                f"The dim of {type(opened).__name__} is {opened.dim!r}. It must be the length of its vectors."
            )
        return self._own.get(fingerprint(opened.spec), opened)

    def use(self, encoder: Encoder) -> None:
        """Have an encoder of the caller's own encode wherever its spec is asked for, as in a config that says ``type: imported``.

        Raises as ``open_encoder``.
        """
        opened = self.open_encoder(encoder)
        self._own[fingerprint(opened.spec)] = opened

    def knows(self, encoder: Fingerprint) -> bool:
        """Whether the store holds vectors of that encoder."""
        return self.index.spec(encoder) is not None

    def digest(self, path: Path) -> str:
        """SHA-256 of a file in hexadecimal, remembered by its size, times and inode; remembering only saves time."""
        return digests.digest(self.index, path)

    # -- writing ---------------------------------------------------------------------------------------------------

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the shared lock of writers for the body. Mends what killed writers left: temporary files, and once unindexed shards.

        Raises StoreNotWritable in a store opened for reading, StoreLocked while somebody holds the store for himself.
        """
        self._require_writable()
        with locks.held(self.root, "builders", exclusive=False, timeout=header.LOCK_SECONDS) as lock:
            if locks.alone(lock):
                self._sweep()
            locks.share(lock, self.root, "builders", header.LOCK_SECONDS)
            if not self._reconciled:
                reconcile.reconcile(self.root, self.index)
                self._reconciled = True
            yield

    @contextmanager
    def alone(
        self,
        wait: float = header.LOCK_SECONDS,
        tell: Callable[[str], None] | None = None,
        *,
        mend: bool = True,
    ) -> Iterator[int]:
        """Hold the exclusive lock of writers for the body: nobody builds, while readers go on. Not inside ``writing``.

        Yields how many temporary files and folders it deleted.
        Mends what killed writers left, as ``writing`` does, unless ``mend`` is false. ``tell`` is called if this has to wait.
        Raises StoreNotWritable in a store opened for reading, StoreLocked when a writer is still there after ``wait`` seconds.
        """
        self._require_writable()
        with locks.held(self.root, "builders", exclusive=True, timeout=wait, tell=tell):
            swept = self._sweep()
            if mend:
                reconcile.reconcile(self.root, self.index)
            yield swept

    def settled(self) -> bool:
        """Whether the index agrees with the shards on disk, so that a writer has nothing to mend."""
        return reconcile.disagreement(self.root, self.index) == ([], [])

    def rebuild_index(self) -> int:
        """Fill a new index from the shards, which must be sound, and put it in the place of the old; returns the rows indexed.

        Only inside ``alone``. Nothing of the old index is left, nor what it remembered.
        """
        return reconcile.rebuild(self.root, self.index)

    def release(self) -> None:
        """Give up the shards that this store has mapped; ``gather`` maps again what it needs."""
        self._mapped.release()

    def _require_writable(self) -> None:
        if self.readonly:
            raise StoreNotWritable(
                f"The store at {self.root} is open for reading only, and this must write to it. "
                "Open it for writing, as a user who may."
            )

    def _sweep(self) -> int:
        """Only safe while nobody else writes."""
        claims.sweep(self.root, self.index)
        return files.sweep_temporary(self.root)


def _utf8(text: str, at: int) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"Text {at} has no UTF-8 form ({error.reason} at character {error.start}). Remove or replace that character."
        ) from error
    except AttributeError:
        raise DataError(
            f"Text {at} is of type {type(text).__name__}, not str. Leave missing texts out, or pass ''."
        ) from None
