"""Pictures, and what plain transformers and torchvision make of them, one by one."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
from numpy.typing import NDArray
from PIL import Image

from cachestore.encoders import _torchvision
from tests.store import tiny_image_models

_torchvision.make_importable()

import torch  # noqa: E402
import torchvision  # noqa: E402
import transformers  # noqa: E402

_NO_CLASS_TOKEN = ("siglip", "convnext")
POOLINGS = tuple(
    (kind, pooling)
    for kind in tiny_image_models.CONFIGS
    for pooling in ("pooler", "mean", *(() if kind in _NO_CLASS_TOKEN else ("cls",)))
)
ARCHITECTURES = ("shufflenet_v2_x0_5", "resnet18")


def picture(size: tuple[int, int], kind: str = "PNG", mode: str = "RGB", seed: int = 0) -> bytes:
    """A picture file of waves and noise, width × height."""
    y, x = np.mgrid[0 : size[1], 0 : size[0]]
    rng = np.random.default_rng(seed)
    bands = [np.sin(x / (3 + seed + band)) + np.cos(y / (5 + seed * band)) for band in range(3)]
    values = (np.stack(bands, axis=-1) + 2) / 4 * 200 + rng.uniform(0, 55, (size[1], size[0], 3))
    file = io.BytesIO()
    Image.fromarray(values.astype(np.uint8)).convert(mode).save(file, kind)
    return file.getvalue()


PICTURES = (
    picture((40, 60)),
    picture((32, 32), seed=1),
    picture((300, 200), "JPEG", seed=2),
    picture((24, 90), mode="L", seed=3),
    picture((33, 31), "BMP", seed=4),
    picture((40, 60)),
)
LONG = (picture((1200, 900), seed=5), picture((1, 1)))


def tower(directory: Path, kind: str, payloads: Sequence[bytes], pooling: str) -> NDArray[np.float64]:
    """Vectors (n, dim) by plain transformers."""
    # Pillow resizes for the store, too; torchvision's resizing differs by a step of 255 here and there
    processor = transformers.AutoImageProcessor.from_pretrained(directory, backend="pil")
    model = tiny_image_models.MODELS[kind].from_pretrained(directory, dtype=torch.float32).eval()
    found = []
    for payload in payloads:
        with torch.no_grad():
            output = model(**processor(_opened(payload), return_tensors="pt"))
        state = output.last_hidden_state[0]
        match pooling:
            case "pooler":
                vector = output.pooler_output[0].flatten()
            case "cls":
                vector = state[0]
            case _:
                vector = state.mean((1, 2)) if state.ndim == 3 else state.mean(0)
        found.append(vector.double().numpy())
    return np.stack(found)


def save_weights(path: Path, architecture: str) -> Path:
    """Save random weights of a model of torchvision, its running statistics those of some pictures."""
    torch.manual_seed(0)
    model = torchvision.models.get_model(architecture, weights=None).train()
    with torch.no_grad():
        model(torch.stack([_transform(architecture)(_opened(payload)) for payload in PICTURES]))
    safetensors.torch.save_file(model.state_dict(), path)
    return path


def features(path: Path, architecture: str, payloads: Sequence[bytes]) -> NDArray[np.float64]:
    """Inputs (n, dim) of the last layer by plain torchvision, one picture at a time."""
    model = torchvision.models.get_model(architecture, weights=None)
    model.load_state_dict(safetensors.torch.load_file(path))
    model.eval().fc = torch.nn.Identity()
    transform = _transform(architecture)
    with torch.no_grad():
        return np.stack([model(transform(_opened(payload))[None])[0].double().numpy() for payload in payloads])


def _opened(payload: bytes) -> Image.Image:
    return Image.open(io.BytesIO(payload)).convert("RGB")


def _transform(architecture: str) -> Any:
    return torchvision.models.get_model_weights(architecture).DEFAULT.transforms()
