"""Makes torchvision importable where its compiled operators do not fit the installed torch.

transformers imports torchvision whenever it is installed, and torchvision's import fails when its library of operators
cannot be loaded (a CUDA build beside a CPU build of torch, for one), because it describes two of them right away. Their
schemas, declared here, let the import pass; calling them still fails, and nothing here does.
"""

from __future__ import annotations

import importlib.util
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES, ExtensionFileLoader, FileFinder
from pathlib import Path

import torch

_SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}


@cache
def make_importable() -> torch.library.Library | None:
    """Declare the operators that torchvision lacks; call it before anything imports transformers or torchvision.

    Returns the library that holds the declarations: they live as long as it does, so it is kept by the cache.
    """
    package = importlib.util.find_spec("torchvision")
    if package is None or package.origin is None or _operators_load(Path(package.origin).parent):
        return None
    library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    for name, schema in _SCHEMAS.items():
        if not hasattr(torch.ops.torchvision, name):
            library.define(schema)  # type: ignore[no-untyped-call]
    return library


def _operators_load(directory: Path) -> bool:
    extension = FileFinder(str(directory), (ExtensionFileLoader, EXTENSION_SUFFIXES), (ExtensionFileLoader, [".so"]))
    found = extension.find_spec("_C")
    if found is None or found.origin is None:
        return False
    try:
        torch.ops.load_library(found.origin)  # type: ignore[no-untyped-call]
    except OSError:
        return False
    return True
