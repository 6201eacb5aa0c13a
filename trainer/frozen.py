"""The shape of every config class: frozen, strict, no unknown keys. ``trainer.faults`` words their faults."""

from __future__ import annotations

from typing import Any, Final

from pydantic import BaseModel, ConfigDict

NOT_WRITTEN: Final[dict[str, Any]] = {"written": False}
"""Marks a field that has no key of its own in a config."""


def keys_of(section: type[BaseModel]) -> list[str]:
    """The keys that a section may have in a config."""
    return [name for name, field in section.model_fields.items() if field.json_schema_extra != NOT_WRITTEN]


class Frozen(BaseModel):
    """Base of the config classes; a component's own sits in the component's file.

    Strict: ``"3"`` and ``true`` are no integers (an integer is a float, though), NaN and infinity are no settings.
    Sequences are tuples; ``load_config`` turns YAML lists into them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
