"""A content-addressed store of embeddings: each is computed once, versioned, and shared by every dataset and experiment."""

from __future__ import annotations

from cachestore import errors
from cachestore.build import build
from cachestore.encoders import Encoder
from cachestore.manifest import Manifest
from cachestore.store import Store, open_store
from cachestore.version import __version__ as __version__

__all__ = ["Encoder", "Manifest", "Store", "build", "errors", "open_store"]
