"""What an input whose encoder runs in the loop is to the model. Light: no torch, no transformers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, final

from cachestore.keys import Json, fingerprint


@final
@dataclass(frozen=True)
class LiveState:
    """What such an input is to the model. ``missing``: an indicator follows.

    ``spec``: its encoder before training; ``place``: the files that it starts from. ``fill``: the tokens (1 or 2, length) of a
    missing text, with ``fill_with_mode``. ``adapter``: where the adapter lies that a run has trained, None for a new one.
    """

    dim: int
    missing: bool
    spec: Mapping[str, Json]
    place: str
    kind: Literal["text", "image"] = "text"
    fill: tuple[tuple[int, ...], ...] | None = None
    adapter: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values for a JSON file."""
        found = {
            "type": self.kind,
            "live": True,
            "dim": self.dim,
            "missing": self.missing,
            "fingerprint": fingerprint(self.spec).hex(),
            "spec": self.spec,
            "place": self.place,
        }
        return found if self.fill is None else {**found, "fill": [list(row) for row in self.fill]}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> LiveState:
        """What ``to_json`` gave."""
        fill = value.get("fill")
        return cls(
            value["dim"],
            value["missing"],
            value["spec"],
            value["place"],
            value["type"],
            None if fill is None else tuple(map(tuple, fill)),
        )
