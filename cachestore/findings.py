"""What a check of a store found, one by one: damage, which needs something to be done, and notices, which do not."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal, TypeAlias

from cachestore.errors import CachestoreError

Kind: TypeAlias = Literal[
    "header",
    "name",
    "log",
    "tag",
    "pin",
    "superseded",
    "forget",
    "manifest",
    "chunk",
    "vector",
    "shard",
    "index",
    "encoder",
    "leftover",
]


@dataclass(frozen=True)
class Finding:
    """One thing that is not as it should be."""

    severity: Literal["damage", "notice"]
    kind: Kind
    what: str
    """a path relative to the store, ``NAME@VERSION``, or the id of a manifest"""
    detail: str
    advice: str

    def summary(self) -> dict[str, str]:
        """As a JSON object."""
        return asdict(self)

    def __str__(self) -> str:
        what = self.what if self.what.isprintable() else repr(self.what)[1:-1]  # one finding is one line
        return f"{self.severity}: {what}: {self.detail}" + (f" {self.advice}" if self.advice else "")


class Findings:
    """Collects findings; the same thing is reported once."""

    def __init__(self) -> None:
        self.all: list[Finding] = []

    def damage(self, kind: Kind, what: str, detail: str, advice: str) -> None:
        """Something is broken."""
        self._add(Finding("damage", kind, what, detail, advice))

    def notice(self, kind: Kind, what: str, detail: str, advice: str = "") -> None:
        """Something that harms nothing."""
        self._add(Finding("notice", kind, what, detail, advice))

    def _add(self, finding: Finding) -> None:
        if finding not in self.all:
            self.all.append(finding)


def reason(error: CachestoreError) -> str:
    """What is wrong, in a sentence: what the library below said, else the error's own words."""
    if error.__cause__ is None:
        return str(error)
    said = str(error.__cause__).strip().rstrip(".") or type(error.__cause__).__name__
    return f"It cannot be read: {said}."
