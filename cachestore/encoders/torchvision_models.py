"""Classification models of torchvision without their last layer: pixels → the features it would make classes of."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.overrides import TorchFunctionMode

from cachestore.encoders import _torchvision
from cachestore.errors import EncoderError

_torchvision.make_importable()

from torchvision import models  # noqa: E402  after the line above

# The released weights of these two were trained on pixels scaled otherwise, which the model makes up for itself.
_RESCALING: Final = frozenset({"googlenet", "inception_v3"})
_AUXILIARY: Final = ("aux1.", "aux2.", "AuxLogits.")  # heads that only training uses
# densenet's released weights name layers as torch once did
_OLD_DENSENET: Final = re.compile(r"^(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\.(?:weight|bias|running_\w+))$")


class _Empty(TorchFunctionMode):
    """Weights that are about to be loaded take neither memory nor time to make; numbers that shape the model are real."""

    def __torch_function__(
        self, function: Any, types: Any, arguments: tuple[Any, ...] = (), keywords: dict[str, Any] | None = None
    ) -> Any:
        keywords = dict(keywords or {})
        if function in (torch.empty, torch.zeros, torch.ones):
            keywords["device"] = "meta"
        return function(*arguments, **keywords)


def skeleton(architecture: str, crop: int | None = None) -> nn.Module:
    """The whole model in eval mode, its weights on the meta device; ``crop`` is the side of its pictures in pixels."""
    options: dict[str, Any] = {}
    if architecture in _RESCALING:
        options = {"transform_input": True, "aux_logits": False, "init_weights": False}
    elif architecture.startswith("vit_") and crop is not None:
        options = {"image_size": crop}
    with _Empty():
        model: nn.Module = models.get_model(architecture, weights=None, **options)
    return model.eval()


def behead(model: nn.Module, head: str) -> nn.Module:
    """Replace the last layer (and in squeezenet's case the class-wise steps after it) so that features come out."""
    parent, _, last = head.rpartition(".")
    holder = model.get_submodule(parent)
    if isinstance(model, models.SqueezeNet):
        holder[int(last) + 1] = nn.Identity()  # type: ignore[operator]  # ReLU of the classes
    setattr(holder, last, nn.Identity())
    return model


def empty(architecture: str, head: str, crop: int) -> nn.Module:
    """What ``load`` gives, its layers as they are in the files, on the meta device."""
    return behead(skeleton(architecture, crop), head).to("meta")


def load(architecture: str, head: str, crop: int, path: Path, *, fused: bool = True) -> nn.Module:
    """Features of a torchvision model with the weights in ``path``: (n, 3, crop, crop) → (n, dim), float32, eval mode.

    ``fused`` is faster, but its layers are no longer those of the files. The number of classes of the weights does not matter.
    Raises EncoderError when they are not of that model.
    """
    weights = {name: tensor for name, tensor in _read(path).items() if not name.startswith((*_AUXILIARY, f"{head}."))}
    model = behead(skeleton(architecture, crop), head)
    if architecture.startswith("densenet"):
        weights = {_OLD_DENSENET.sub(r"\1\2", name): tensor for name, tensor in weights.items()}
    # what torch notes beside the weights it saves, and other formats drop; mnasnet will not load without it
    metadata = {"": {"version": getattr(model, "_version", None)}}
    state = _State(weights)
    state._metadata = metadata
    try:
        model.load_state_dict(state, strict=True, assign=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise EncoderError(f"{path} does not hold the weights of {architecture}: {reason}") from error
    model = model.float().eval()
    return _fused(model) if fused else model


def _fused(model: nn.Module) -> nn.Module:
    """Batch normalisation right after a convolution becomes part of it: one pass over the pixels less, the same sums."""
    for chain in [module for module in model.modules() if type(module).forward is nn.Sequential.forward]:
        for (name, layer), (after, norm) in pairwise(list(chain.named_children())):
            if type(layer) is nn.Conv2d and type(norm) is nn.BatchNorm2d:
                chain.register_module(name, fuse_conv_bn_eval(layer, norm))
                chain.register_module(after, nn.Identity())
    return model


class _State(dict[str, Tensor]):
    _metadata: Mapping[str, Any]


def _read(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))
    except Exception as error:  # a pickle that is refused, a torn file, another format: each raises its own
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise EncoderError(
            f"{path} cannot be read as weights (a .safetensors file, or a state dict by torch.save): {reason}"
        ) from error
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping) or not all(isinstance(tensor, Tensor) for tensor in content.values()):
        raise EncoderError(f"{path} is not a state dict. Save model.state_dict() with torch.save, or as safetensors.")
    return dict(content)


def _is_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"PK"
