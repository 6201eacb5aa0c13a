"""Kinds of value that several sections have."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from pydantic import Field

Share: TypeAlias = Annotated[float, Field(ge=0.0, le=1.0)]
Name: TypeAlias = Annotated[str, Field(min_length=1)]
Column: TypeAlias = Annotated[str, Field(default_factory=lambda data: data.get("name", ""), min_length=1)]
