"""Where a store lies: LMDB needs a local disk, and embeddings are personal data."""

from __future__ import annotations

import os
import stat
import warnings
from pathlib import Path

from cachestore.errors import StoreError

OVERRIDE = "CACHESTORE_NETWORK_STORE"
# locks or shared mappings of these are not the same on every machine that mounts them
_REFUSED = {
    "nfs", "nfs4", "cifs", "smb3", "smbfs", "afs", "ncpfs", "fuse.sshfs", "fuse.s3fs", "fuse.gcsfuse", "fuse.goofys",
    "fuse.rclone", "fuse.blobfuse2", "fuse.mount-s3", "fuse.davfs2",
}  # fmt: skip
# these can be set up so that they are
_DOUBTED = {
    "lustre", "gpfs", "beegfs", "ceph", "fuse.ceph", "fuse.ceph-fuse", "glusterfs", "fuse.glusterfs", "orangefs", "9p", "panfs",
    "ocfs2", "gfs2", "fuse.juicefs", "weka",
}  # fmt: skip


def check(root: Path) -> None:
    """Raises StoreError where a link leads out of the store, and on a network file system, unless CACHESTORE_NETWORK_STORE=1.

    Warns of a file system that may be one, and of a store that everybody may write to.
    """
    if root.stat().st_mode & stat.S_IWOTH:
        warnings.warn(
            f"Everybody may write to the store at {root}, and so change what others train on. Run: chmod o-w {root}",
            stacklevel=2,
        )
    with os.scandir(root) as entries:
        links = sorted(entry.path for entry in entries if entry.is_symlink())
    if links:
        raise StoreError(
            f"{links[0]} is a link, and nothing is changed through one. Put what it leads to in its place, or link the store itself."
        )
    found = kind(root)
    if found in _REFUSED and os.environ.get(OVERRIDE) != "1":
        raise StoreError(
            f"{root} is on a network file system ({found}), where the locks and the index of a store cannot be trusted. "
            f"Name a directory on a local disk with --store; with {OVERRIDE}=1, one machine at a time may use it all the same."
        )
    if found in _REFUSED | _DOUBTED:
        warnings.warn(
            f"{root} is on {found}. A store is safe there only while one machine at a time uses it.", stacklevel=2
        )


def kind(path: Path) -> str:
    """The type of the file system that holds a path, as ``mount`` names it; empty where the system does not tell."""
    status = path.stat()
    device = f"{os.major(status.st_dev)}:{os.minor(status.st_dev)}"
    found = ""
    for line in _mounts():
        before, _, after = line.partition(" - ")
        fields = before.split()
        if len(fields) > 2 and fields[2] == device:
            found = after.partition(" ")[0]
    return found


def _mounts() -> list[str]:
    """The lines of mountinfo; see proc(5)."""
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as table:
            return table.read().splitlines()
    except OSError:
        return []
