"""Where the files of a store lie, and which files are its own: those whose path has one of the exact forms below.

    shards/aa/<id>.arrow    chunks/aa/<id>.arrow    manifests/aa/<id>.json
    names/<name>.jsonl      tags/<name>@<tag>.json  pins/<run id>.json

An id has 64 lower-case hexadecimal digits, of which ``aa`` are the first two. What else lies in these folders (a copy that a file manager
made, a shard under another's two digits) is ignored by whatever lists them; ``strays`` tells of it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from cachestore.errors import StoreNotReadable

CONTENT: Final = {"shards": ".arrow", "chunks": ".arrow", "manifests": ".json"}
"""The folders of content files, and how the names of these end."""
_ID = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"[^\W_][\w.-]{0,127}")
_TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,39}")
_RUN = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,63}")


def is_id(text: str) -> bool:
    """Whether a text is the id of a content file."""
    return bool(_ID.fullmatch(text))


def is_name(text: str) -> bool:
    """Whether a text can be the name of a data set: it is no path and no manifest id."""
    # with its suffix it is the name of a file, and those have at most 255 bytes
    return bool(_NAME.fullmatch(text)) and len(text.encode()) <= 200 and not is_id(text)


def is_tag(text: str) -> bool:
    """Whether a text can be a tag: digits alone are the number of a version."""
    return bool(_TAG.fullmatch(text)) and not text.isdecimal()


def is_run(text: str) -> bool:
    """Whether a text can be the id of a run."""
    return bool(_RUN.fullmatch(text))


def content_path(root: Path, folder: str, name: str, suffix: str) -> Path:
    """Where the content file of that name lies."""
    return root / folder / name[:2] / f"{name}{suffix}"


def content_sizes(root: Path, folder: str, suffix: str) -> dict[str, int]:
    """All content files of a folder: name → size in bytes."""
    found = {}
    for bucket in entries(root / folder):
        if bucket.is_symlink():
            continue  # it leads out of the store
        for entry in entries(Path(bucket.path)):
            name = _content(f"{bucket.name}/{entry.name}", suffix)
            with reading(Path(entry.path)):
                if name is not None and entry.is_file(follow_symlinks=False):
                    found[name] = entry.stat(follow_symlinks=False).st_size
    return found


def names(root: Path) -> list[str]:
    """All names of data sets that have a log, sorted."""
    return _small(root, "names", _name)


def tags(root: Path) -> list[tuple[str, str]]:
    """All tags as (name, tag), sorted."""
    found = (label.partition("@") for label in _small(root, "tags", _label))
    return sorted((name, tag) for name, _, tag in found)


def runs(root: Path) -> list[str]:
    """The ids of all runs that have a pin, sorted."""
    return _small(root, "pins", _run)


def displaced(root: Path) -> dict[Path, str]:
    """Files that have the name of a shard and lie elsewhere below ``shards``, while its own place is empty: path → id of the shard.

    Whether their bytes are those of the id is not looked at.
    """
    suffix = CONTENT["shards"]
    found = {path: path.name.removesuffix(suffix) for path in _below(root / "shards") if path.name.endswith(suffix)}
    return {
        path: name
        for path, name in found.items()
        if is_id(name)
        and not os.path.lexists(content_path(root, "shards", name, suffix))
        and path.is_file()
        and not path.is_symlink()
    }


def strays(root: Path) -> list[Path]:
    """What lies in the folders above and is no file of the store, sorted; links are not followed."""
    forms: dict[str, Callable[[str], str | None]] = {"names": _name, "tags": _label, "pins": _run}
    found = []
    for folder, suffix in CONTENT.items():
        found += [path for path in _below(root / folder) if _content(_within(path, root / folder), suffix) is None]
    for folder, form in forms.items():
        found += [path for path in _below(root / folder) if form(_within(path, root / folder)) is None]
    return sorted(found)


def exists(path: Path) -> bool:
    """Whether something lies at a path of a store. Raises StoreNotReadable where this user may not know."""
    with reading(path):
        return path.exists()


def entries(folder: Path) -> list[os.DirEntry[str]]:
    """What lies in a folder, nothing when it is not there. Raises StoreNotReadable where this user may not look."""
    try:
        with reading(folder), os.scandir(folder) as found:
            return list(found)
    except (FileNotFoundError, NotADirectoryError):
        return []


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """For a body that reads a file or folder of a store: StoreNotReadable where this user may not."""
    try:
        yield
    except PermissionError as error:
        raise StoreNotReadable(
            f"Cannot read {path}: {error.strerror}. Change its permissions, or choose another store with --store."
        ) from error


def _content(path: str, suffix: str) -> str | None:
    """The id of a content file by its path below its folder, None where it is none."""
    bucket, _, file = path.partition("/")
    name = file.removesuffix(suffix)
    return name if file.endswith(suffix) and is_id(name) and bucket == name[:2] else None


def _name(path: str) -> str | None:
    name = path.removesuffix(".jsonl")
    return name if name != path and is_name(name) else None


def _label(path: str) -> str | None:
    label = path.removesuffix(".json")
    name, _, tag = label.partition("@")
    return label if label != path and is_name(name) and is_tag(tag) else None


def _run(path: str) -> str | None:
    run = path.removesuffix(".json")
    return run if run != path and is_run(run) else None


def _small(root: Path, folder: str, form: Callable[[str], str | None]) -> list[str]:
    return sorted(found for entry in entries(root / folder) if (found := form(entry.name)) is not None)


def _below(folder: Path) -> Iterator[Path]:
    """All files at any depth, and links."""
    for place, folders, files in os.walk(folder):
        linked = (name for name in folders if os.path.islink(os.path.join(place, name)))
        yield from (Path(place, name) for name in (*files, *linked))


def _within(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()
