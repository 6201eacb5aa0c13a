"""The version of this package; reading it from the installed metadata would take milliseconds."""

from __future__ import annotations

__version__ = "0.1.0"
