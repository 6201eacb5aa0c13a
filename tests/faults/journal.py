"""A power cut, played: what a process asks of the system is written down, and any moment's disk is made of what was synced by then.

``record`` watches one process (os.open, write, fsync, rename, unlink, mkdir, rmdir as Python calls them). ``rebuild`` makes the
folder that a power cut leaves after the first n events: content that was synced, under names whose folder was synced; what was not
synced is there or not as ``lucky`` says. LMDB syncs its file itself, at each commit, so its file counts as synced then and only then.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cachestore.environment import Environment


@dataclass
class Node:
    """A file or folder, whatever it is called: as the process sees it, and as the disk does."""

    folder: bool
    data: bytearray = field(default_factory=bytearray)
    synced: bytes | None = None
    copy: str = ""
    """where a copy of what LMDB had synced lies, instead of data"""
    names: dict[str, int] = field(default_factory=dict)
    synced_names: dict[str, int] = field(default_factory=dict)


@dataclass
class Journal:
    """Everything that happened below ``root``, in order: (what, arguments)."""

    root: Path
    events: list[tuple[Any, ...]] = field(default_factory=list)
    open: bool = True

    def note(self, *event: Any) -> None:
        if self.open:
            self.events.append(event)

    def inside(self, path: Any) -> str | None:
        """A path below the root as text, else None."""
        text = os.fspath(path) if isinstance(path, str | os.PathLike) else None
        return text if text is not None and str(text).startswith(f"{self.root}/") else None


def record(root: Path, copies: Path) -> Journal:
    """Watch this process from now on. ``copies`` is a folder for the states of LMDB's file."""
    journal = Journal(root)
    opened: dict[int, str] = {}

    def watch(name: str, after: Callable[..., None]) -> None:
        real = getattr(os, name)

        def call(*args: Any, **settings: Any) -> Any:
            result = real(*args, **settings)
            after(result, *args)
            return result

        setattr(os, name, call)

    def on_open(descriptor: int, path: Any, flags: int, *_: Any) -> None:
        opened.pop(descriptor, None)
        if (place := journal.inside(path)) is not None or str(path) == str(root):
            opened[descriptor] = place or str(root)
            if flags & os.O_CREAT:
                journal.note("create", opened[descriptor])

    def on_write(count: int, descriptor: int, data: Any) -> None:
        if descriptor in opened:
            journal.note("write", opened[descriptor], bytes(data[:count]))

    def on_fsync(_: None, descriptor: int) -> None:
        if descriptor in opened:
            for entry in os.scandir(opened[descriptor]) if os.path.isdir(opened[descriptor]) else ():
                journal.note(
                    "mkdir" if entry.is_dir() else "create", entry.path
                )  # those that LMDB made are not known yet
            journal.note("fsync", opened[descriptor])

    def on_two(name: str) -> Callable[..., None]:
        def note(_: None, source: Any, target: Any, **__: Any) -> None:
            if journal.inside(target):
                journal.note(name, str(source), str(target))

        return note

    def on_path(name: str) -> Callable[..., None]:
        def note(_: None, path: Any, *__: Any) -> None:
            if journal.inside(path):
                journal.note(name, str(path))

        return note

    watch("open", on_open)
    watch("write", on_write)
    watch("fsync", on_fsync)
    watch("rename", on_two("rename"))
    for name in ("unlink", "mkdir", "rmdir"):
        watch(name, on_path(name))
    _watch_lmdb(journal, copies)
    return journal


def _watch_lmdb(journal: Journal, copies: Path) -> None:
    begin, write = Environment.__init__, Environment.write

    def copy(environment: Environment) -> None:
        if not journal.open:
            return
        # by another process: LMDB's locks would go if this one closed the file
        target = copies / str(len(journal.events))
        subprocess.run(["cp", environment.folder / "data.mdb", target], check=True)
        journal.note("commit", str(environment.folder / "data.mdb"), str(target))

    def noted_begin(self: Environment, *args: Any, **settings: Any) -> None:
        begin(self, *args, **settings)
        copy(self)

    def noted_write(self: Environment, body: Any, *wait: float) -> Any:
        result = write(self, body, *wait)
        copy(self)
        return result

    Environment.__init__ = noted_begin  # type: ignore[method-assign]
    Environment.write = noted_write  # type: ignore[method-assign]


def rebuild(journal: Journal, count: int, target: Path, lucky: Callable[[], bool]) -> None:
    """Make at ``target`` what a power cut after ``count`` events leaves of the root.

    ``lucky`` is asked for every name and every content that was not synced, whether it reached the disk all the same.
    """
    nodes = [Node(folder=True)]
    for event in journal.events[:count]:
        _replay(nodes, journal.root, event)
    target.mkdir(parents=True)
    _write(nodes, nodes[0], target, lucky)


def _replay(nodes: list[Node], root: Path, event: tuple[Any, ...]) -> None:
    what, path, *rest = event
    if what in ("create", "mkdir"):
        names, name = _place(nodes, root, path)
        if name not in names:
            nodes.append(Node(folder=what == "mkdir"))
            names[name] = len(nodes) - 1
    elif what == "write":
        _node(nodes, root, path).data += rest[0]
    elif what == "fsync":
        node = _node(nodes, root, path)
        node.synced = bytes(node.data)
        node.synced_names = dict(node.names)
    elif what == "commit":
        names, name = _place(nodes, root, path)
        if name not in names:
            nodes.append(Node(folder=False))
            names[name] = len(nodes) - 1
        nodes[names[name]].copy = rest[0]
    elif what == "rename":
        names, name = _place(nodes, root, path)
        moved = names.pop(name)
        names, name = _place(nodes, root, rest[0])
        names[name] = moved
    else:
        names, name = _place(nodes, root, path)
        names.pop(name, None)


def _node(nodes: list[Node], root: Path, path: str) -> Node:
    node = nodes[0]
    for name in Path(path).relative_to(root).parts:
        node = nodes[node.names[name]]
    return node


def _place(nodes: list[Node], root: Path, path: str) -> tuple[dict[str, int], str]:
    return _node(nodes, root, str(Path(path).parent)).names, Path(path).name


def _write(nodes: list[Node], node: Node, target: Path, lucky: Callable[[], bool]) -> None:
    for name, number in _survivors(node, lucky).items():
        child = nodes[number]
        if child.folder:
            (target / name).mkdir()
            _write(nodes, child, target / name, lucky)
            continue
        if child.copy:
            subprocess.run(["cp", "--sparse=always", child.copy, target / name], check=True)
            continue
        synced = child.synced or b""
        (target / name).write_bytes(bytes(child.data) if synced != child.data and lucky() else synced)


def _survivors(node: Node, lucky: Callable[[], bool]) -> Mapping[str, int]:
    """The names that a folder has on disk: the synced ones, each of which may have been changed since."""
    names = dict(node.synced_names)
    for name in {*node.names, *names}:
        if node.names.get(name) != names.get(name) and lucky():
            if name in node.names:
                names[name] = node.names[name]
            else:
                del names[name]
    return names
