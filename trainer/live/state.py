"""What an input whose encoder runs in the loop is to the model. Light: no torch, no transformers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

from cachestore.keys import Json, fingerprint


@final
@dataclass(frozen=True)
class LiveState:
    """What such an input is to the model. ``missing``: an indicator follows.

    ``spec``: its encoder before it is trained; ``place``: where that lies.
    """

    dim: int
    missing: bool
    spec: Mapping[str, Json]
    place: str
    kind: str = "text"

    def to_json(self) -> dict[str, Any]:
        """Plain values for a JSON file."""
        return {
            "type": self.kind,
            "live": True,
            "dim": self.dim,
            "missing": self.missing,
            "fingerprint": fingerprint(self.spec).hex(),
            "spec": self.spec,
            "place": self.place,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> LiveState:
        """What ``to_json`` gave."""
        return cls(value["dim"], value["missing"], value["spec"], value["place"], value["type"])
