"""The only code that writes to paths of a store.

Content files (shards, chunks, manifests) are written once: temporary file, fsync, rename to a name made of a digest, fsync of the
folder. Small mutable files (a name's log, the store's header) are replaced whole by the same steps. A failed fsync is never
retried on the same file: its pages may already be marked clean, so the temporary file is thrown away and the write fails.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import shutil
import stat
import uuid
from hashlib import sha256
from pathlib import Path

from cachestore.errors import DamageError, StoreError, StoreFull, StoreNotWritable, StoreWriteFailed
from cachestore.layout import content_path, entries, reading

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


def write_once(root: Path, folder: str, data: bytes | memoryview, suffix: str, name: str | None = None) -> str:
    """Write an immutable file durably and return its name, the SHA-256 of ``data`` in hexadecimal unless one is given.

    The file lies at ``folder/<first two characters>/<name><suffix>``; writing the same content again is harmless.
    """
    name = name or sha256(data).hexdigest()
    path = content_path(root, folder, name, suffix)
    if not _holds(path, data) or not _renewed(path):
        _publish(root, path, data, 0o444)
    return name


def replace_small(root: Path, path: Path, data: bytes) -> None:
    """Replace a small file of the store as one step: readers see the old bytes or the new, also after a power cut."""
    _publish(root, path, data, 0o666)


def make_folder(path: Path, mode: int = 0o777) -> None:
    """Make a folder durably, and those above it, where they are not there."""
    with reading(path):
        if path.is_dir():
            return
    if path.parent != path:
        make_folder(path.parent, mode)
    try:
        path.mkdir(mode=mode, exist_ok=True)
        _sync_folder(path.parent)  # an entry that is not synced can be lost, with everything synced below it
    except OSError as error:
        raise translate(error, path) from error


def reserve(path: Path, nbytes: int, *, create: bool) -> None:
    """Give the first ``nbytes`` of a file their place on disk; its bytes stay. Raises StoreFull when there is none.

    One that is not there is made when ``create``, and otherwise left alone.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | (os.O_CREAT if create else 0), 0o666)
        try:
            os.posix_fallocate(descriptor, 0, nbytes)
        finally:
            os.close(descriptor)
    except FileNotFoundError as error:
        if create:
            raise translate(error, path) from error
    except OSError as error:
        raise translate(error, path) from error


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable."""
    try:
        _sync_folder(path)
    except OSError as error:
        raise translate(error, path) from error


def make_durable(path: Path) -> None:
    """Sync a file that another process renamed to its place and may have died before syncing, and the folders that lead to it."""
    try:
        descriptor = _open_regular(path)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        for folder in (path.parent, path.parent.parent):
            _sync_folder(folder)
    except OSError as error:
        raise translate(error, path) from error


def set_aside(path: Path) -> Path:
    """Rename a folder at the top of the store out of the way, keeping its content; returns where it is now."""
    aside = path.with_name(f"{path.name}.damaged-{uuid.uuid4().hex[:8]}")
    _move(path.parent, path, aside)
    return aside


def to_trash(root: Path, batch: str, path: Path) -> None:
    """Move a file or folder of the store to ``trash/<batch>``, under the path it had. What maps it keeps its bytes."""
    _move(root, path, root / "trash" / batch / path.relative_to(root))


def to_quarantine(root: Path, path: Path) -> Path:
    """Move a damaged file to ``quarantine``, where nothing reads it; returns where it is now."""
    place = root / "quarantine" / f"{path.name}.{uuid.uuid4().hex[:8]}"
    _move(root, path, place)
    return place


def put_back(root: Path, path: Path, place: Path) -> None:
    """Rename a file of the store that lies elsewhere to its place, which is empty and stays so. The caller is alone in the store."""
    _move(root, path, place)


def remove(path: Path) -> None:
    """Delete a file of the store; it may be gone already."""
    folder = path.parent
    root = next((place for place in (folder, *folder.parents) if (place / "store.json").exists()), folder)
    _refuse_links(root, folder)
    try:
        path.unlink(missing_ok=True)
        if folder.exists():
            _sync_folder(folder)
    except OSError as error:
        raise translate(error, path) from error


def delete_tree(root: Path, path: Path) -> None:
    """Delete a folder of the store and all in it; links are deleted, not followed."""
    if not path.is_relative_to(root) or path == root:
        raise ValueError(f"{path} is not inside {root}")
    _refuse_links(root, path.parent)
    try:
        if path.is_symlink() or not path.is_dir():
            path.unlink(missing_ok=True)
        else:
            shutil.rmtree(path)
        if path.parent.exists():
            _sync_folder(path.parent)
    except OSError as error:
        raise translate(error, path) from error


def exchange(root: Path, new: Path, place: Path) -> Path:
    """Put the folder ``new`` at ``place``, as one step where the system can; returns where the folder is now that lay there."""
    aside = root / "tmp" / uuid.uuid4().hex
    _refuse_links(root, new.parent)
    _refuse_links(root, place.parent)
    try:
        if _exchanged(new, place):
            aside = new
        else:
            os.rename(place, aside)
            os.rename(new, place)
        _sync_folder(place.parent)
    except OSError as error:
        raise translate(error, place) from error
    return aside


def held_by_readers(path: Path) -> bool:
    """Whether the mapping of a file by ``map_file`` is alive, in this process or another."""
    try:
        descriptor = _open_regular(path)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def sweep_temporary(root: Path) -> int:
    """Delete what killed writers left in ``tmp``; only safe while no other process writes. Returns how much was there."""
    swept = 0
    for entry in entries(root / "tmp"):
        delete_tree(root, Path(entry.path))
        swept += 1
    return swept


def open_lock(path: Path) -> int:
    """A file descriptor on a lock file, made if it is not there. The caller closes it."""
    _refuse_links(path.parent.parent, path.parent)
    make_folder(path.parent)
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
    except OSError as error:
        raise translate(error, path) from error


def hold_new_lock(root: Path, path: Path) -> int:
    """A lock file at ``path`` that is held exclusively from the moment it is there; returns its descriptor, which holds it."""
    _refuse_links(root, path.parent)
    make_folder(root / "tmp")
    make_folder(path.parent)
    temporary = root / "tmp" / uuid.uuid4().hex
    descriptor = -1
    try:
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        os.fchmod(descriptor, 0o644)  # it holds no data, and all who share the store look at it, whatever the umask
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.rename(temporary, path)
    except OSError as error:
        if descriptor >= 0:
            os.close(descriptor)
        raise translate(error, path) from error
    return descriptor


def read_small(path: Path, limit: int = 64 << 20) -> bytes:
    """All bytes of a small regular file. FileNotFoundError passes through; DamageError when it is larger than ``limit``."""
    descriptor = _open_regular(path)
    with os.fdopen(descriptor, "rb") as file:
        if os.fstat(descriptor).st_size > limit:
            raise DamageError(f"{path} is larger than {limit >> 20} MiB, which no such file of a store is.")
        return file.read()


def map_file(path: Path) -> memoryview:
    """The bytes of a regular file, mapped read-only without a copy. FileNotFoundError passes through, ValueError if it is empty.

    The file is locked shared until the last view of the mapping is gone: see ``held_by_readers``.
    """
    descriptor = _open_regular(path)
    try:
        if os.fstat(descriptor).st_size == 0:
            raise ValueError("it is empty")
        # mmap keeps a duplicate of the descriptor, and with it the lock, as long as the mapping lives
        with contextlib.suppress(BlockingIOError):  # held alone for the moment in which somebody asks who reads it
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return memoryview(mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ))
    finally:
        os.close(descriptor)


def translate(error: OSError, path: Path | str) -> StoreError:
    """The store's error for one of the operating system, naming the path."""
    reason = error.strerror or str(error)
    if error.errno in _FULL:
        return StoreFull(
            f"No space to write {path}: {reason}. Free some space and run again; what was stored is intact."
        )
    if error.errno in _FORBIDDEN:
        above = [Path(path), *Path(path).parents]
        root = next((place for place in above if os.path.exists(place / "store.json")), None)
        where = path if root is None else f"the store at {root}"
        inside = "" if root is None or root == Path(path) else f" ({Path(path).relative_to(root)})"
        return StoreNotWritable(
            f"Cannot write {where}: {reason}{inside}. Choose another store with --store, or change its permissions."
        )
    return StoreWriteFailed(
        f"Cannot write {path}: {reason}. What was stored before is intact; check the disk and run again."
    )


def _holds(path: Path, data: bytes | memoryview) -> bool:
    """Whether a file is there and holds exactly ``data``."""
    try:
        return map_file(path) == data
    except (FileNotFoundError, ValueError, DamageError, StoreError):
        return False


def _renewed(path: Path) -> bool:
    """Make a file durable as if it had been written now: its writer may have died before, and its age is when it was last of use.

    False where only its owner may.
    """
    try:
        os.utime(path)
    except (PermissionError, FileNotFoundError):
        return False
    make_durable(path)
    return True


def _move(root: Path, path: Path, place: Path) -> None:
    _refuse_links(root, path.parent)
    _refuse_links(root, place.parent)
    make_folder(place.parent)
    try:
        os.rename(path, place)
        _sync_folder(place.parent)
        _sync_folder(path.parent)
    except OSError as error:
        raise translate(error, path) from error


def _exchanged(new: Path, place: Path) -> bool:
    """Swap two folders as one step. False where the system or file system cannot."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    if rename(_AT_FDCWD, os.fsencode(new), _AT_FDCWD, os.fsencode(place), _RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        return False
    raise OSError(number, os.strerror(number))


def _publish(root: Path, path: Path, data: bytes | memoryview, mode: int) -> None:
    _refuse_links(root, root / "tmp")
    _refuse_links(root, path.parent)
    make_folder(root / "tmp")
    make_folder(path.parent)
    temporary = root / "tmp" / uuid.uuid4().hex
    try:
        try:
            _write_synced(temporary, data, mode)
            os.rename(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)
    except OSError as error:
        raise translate(error, path) from error


def _refuse_links(root: Path, folder: Path) -> None:
    """Nothing is written, moved or deleted through a link that leads out of the store; the store itself may lie behind one."""
    while folder != root and folder.is_relative_to(root):
        with reading(folder):
            linked = folder.is_symlink()
        if linked:
            raise StoreError(
                f"{folder} is a symbolic link, through which nothing is changed. Put the files in its place, or link the whole store."
            )
        folder = folder.parent


def _write_synced(path: Path, data: bytes | memoryview, mode: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(descriptor, rest) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)  # without it a power cut can keep the bytes and lose the name
    finally:
        os.close(descriptor)


def _open_regular(path: Path) -> int:
    # O_NONBLOCK: opening a FIFO put in place of a file must not hang
    try:
        with reading(path):
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise DamageError(f"Cannot read {path}: {error.strerror}. A store holds plain files.") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise DamageError(f"{path} is not a regular file, as every file of a store is.")
    return descriptor
