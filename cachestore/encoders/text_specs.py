"""What the spec of a text encoder says of what it can share with others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from cachestore import keys
from cachestore.keys import Fingerprint, Json

_WEIGHTS: Final = ("config", "weights", "tokenizer", "precision", "do_lower_case")
# All that changes the states of a model for a text; what is pooled from them may differ.
_STATES: Final = (*_WEIGHTS, "prompt", "max_sequence_length")


def weights_key(spec: Mapping[str, Json]) -> Fingerprint:
    """Equal for specs that can use one loaded model."""
    return _of(spec, _WEIGHTS)


def share_key(spec: Mapping[str, Json]) -> Fingerprint:
    """Equal for specs whose vectors can come from one forward: same model, tokens and precision."""
    return _of(spec, _STATES)


def _of(spec: Mapping[str, Json], names: tuple[str, ...]) -> Fingerprint:
    return keys.fingerprint({name: spec[name] for name in names if name in spec})
