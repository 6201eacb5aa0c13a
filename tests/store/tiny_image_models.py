"""Real vision models of a few thousand weights with their image processor, saved as transformers saves them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cachestore.encoders import _torchvision

_torchvision.make_importable()

import torch  # noqa: E402
import transformers  # noqa: E402

SIDE = 32
_VIT = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": SIDE,
}
_TEXT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 20}
CONFIGS: dict[str, Any] = {
    "vit": lambda: transformers.ViTConfig(**_VIT, patch_size=8),
    "dinov2": lambda: transformers.Dinov2Config(**_VIT, patch_size=8),
    "clip": lambda: transformers.CLIPConfig(
        text_config=_TEXT, vision_config={**_VIT, "patch_size": 8}, projection_dim=8
    ),
    "siglip": lambda: transformers.SiglipConfig(text_config=_TEXT, vision_config={**_VIT, "patch_size": 8}),
    "convnext": lambda: transformers.ConvNextConfig(hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1]),
}
MODELS: dict[str, Any] = {
    "vit": transformers.ViTModel,
    "dinov2": transformers.AutoModel,
    "clip": transformers.CLIPVisionModel,
    "siglip": transformers.SiglipVisionModel,
    "convnext": transformers.AutoModel,
}
_SQUARE = {"height": SIDE, "width": SIDE}
_PROCESSORS: dict[str, Any] = {
    "vit": lambda: transformers.ViTImageProcessor(size=_SQUARE),
    "dinov2": lambda: transformers.BitImageProcessor(size={"shortest_edge": 40}, crop_size=_SQUARE),
    "clip": lambda: transformers.CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=_SQUARE),
    "siglip": lambda: transformers.SiglipImageProcessor(size=_SQUARE),
    "convnext": lambda: transformers.ConvNextImageProcessor(size={"shortest_edge": SIDE}),
}


def save(directory: Path, kind: str, seed: int = 0, **options: Any) -> Path:
    """Save a tiny model of that kind and its image processor; ``options`` go to the model."""
    torch.manual_seed(seed)
    config = CONFIGS[kind]()
    make = transformers.ViTModel if kind == "vit" else transformers.AutoModel.from_config
    model = make(config, **options)
    with torch.no_grad():
        for weight in model.parameters():  # the usual start is so close to zero that poolings hardly differ
            weight.add_(torch.randn_like(weight) * 0.2)
    transformers.utils.logging.disable_progress_bar()
    model.save_pretrained(directory)
    _PROCESSORS[kind]().save_pretrained(directory)
    return directory
