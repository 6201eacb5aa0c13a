"""cachestore/encoders/torchvision_models.json, made from the installed torchvision.

Run ``python -m tests.store.torchvision_table`` to write it anew after torchvision gained models or weights.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import nn

import cachestore.encoders
from cachestore.encoders import torchvision_models
from cachestore.encoders.torchvision_models import models

TABLE = Path(cachestore.encoders.__file__).with_name("torchvision_models.json")


def head(model: nn.Module) -> tuple[str, nn.Module]:
    """The last layer that holds weights: what makes classes of the features."""
    return [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)][-1]


def entry(name: str) -> dict[str, Any]:
    """What the table says of one model."""
    path, layer = head(torchvision_models.skeleton(name))
    found: dict[str, Any] = {
        "dim": layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels,
        "head": path,
        "default": models.get_model_weights(name)["DEFAULT"].name,
        "weights": {},
    }
    for weights in models.get_model_weights(name):
        if weights.meta["categories"] is None:  # vgg16 as the start of a detector: its last layers are not numbers
            continue
        transform = weights.transforms()
        found["weights"][weights.name] = {
            "url": weights.url,
            "resize": transform.resize_size[0],
            "crop": transform.crop_size[0],
            "interpolation": transform.interpolation.value,
            "mean": transform.mean,
            "std": transform.std,
        }
        assert len(transform.resize_size) == len(transform.crop_size) == 1
        assert transform.antialias is True
    return found


def table() -> dict[str, Any]:
    """Of all classification models."""
    return {name: entry(name) for name in models.list_models(module=models)}


if __name__ == "__main__":
    TABLE.write_text(json.dumps(table(), indent=1) + "\n", encoding="utf-8")
