"""What specs of image encoders name: torchvision's models, and what those share that one forward serves. No torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final

from cachestore import keys
from cachestore.keys import Fingerprint, Json

_TABLE: Final = Path(__file__).with_name("torchvision_models.json")
_SHARED_BY: Final = ("architecture", "model_type", "config", "weights", "picture", "precision", "preprocessing")


@cache
def table() -> Mapping[str, Any]:
    """Of each classification model of torchvision: dim, head (its last layer), default weights, and all its weights."""
    found: Mapping[str, Any] = json.loads(_TABLE.read_text(encoding="utf-8"))
    return found


def share_key(spec: Mapping[str, Json]) -> Fingerprint:
    """Equal for specs that one forward serves: they differ in pooling and in what vectors are stored as."""
    return keys.fingerprint({name: spec[name] for name in _SHARED_BY if name in spec})
