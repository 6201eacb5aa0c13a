"""Vision models as one module: pixels as they come from a picture → one vector per pooling that is asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from cachestore.encoders import image_specs
from cachestore.errors import EncoderError
from cachestore.keys import Json

_TOWERS = {"clip": "CLIPVisionModel", "siglip": "SiglipVisionModel", "siglip2": "Siglip2VisionModel"}


class ImageModule(nn.Module):
    """uint8 pixels (batch, height, width, 3) → {pooling: (batch, dim) float32}; torchvision's models know one, ""."""

    mean: Tensor
    factor: Tensor

    def __init__(
        self, backbone: nn.Module, picture: Mapping[str, Any], precision: torch.dtype, poolings: Set[str]
    ) -> None:
        super().__init__()
        self.poolings = frozenset(poolings)
        self.backbone = backbone
        self.precision = precision
        mean, std = torch.tensor(picture["mean"]), torch.tensor(picture["std"])
        self.register_buffer("mean", mean / picture["scale"], persistent=False)
        self.register_buffer("factor", picture["scale"] / std, persistent=False)

    def forward(self, pixels: Tensor, poolings: Sequence[str]) -> dict[str, Tensor]:
        # one picture's channels lie side by side, as they came: what convolutions are fastest with
        images = pixels.to(torch.float32).sub_(self.mean).mul_(self.factor).to(self.precision).permute(0, 3, 1, 2)
        if self.poolings == {""}:
            return {"": self.backbone(images).flatten(1).float()}
        output = self.backbone(pixel_values=images)
        return {pooling: pool(output, pooling).float() for pooling in poolings}


def pool(output: Any, how: str) -> Tensor:
    """One vector per picture from what a transformers model returns.

    ``pooler`` is its own pooling, ``cls`` the first token of the last hidden state, ``mean`` that state's mean over all
    positions, a class token among them. Raises EncoderError when the model has no such thing.
    """
    hidden: Tensor = output.last_hidden_state
    if how == "pooler":
        pooled: Tensor | None = getattr(output, "pooler_output", None)
        if pooled is None:
            raise EncoderError("the model has no pooler. Set reduce_output to cls or mean.")
        return pooled.flatten(1)
    if hidden.ndim == 4:  # a map of channels
        if how == "mean":
            return hidden.float().mean((2, 3))
        raise EncoderError("the model has no class token. Set reduce_output to pooler or mean.")
    return hidden[:, 0] if how == "cls" else hidden.float().mean(1)


class OneVector(ImageModule):
    """uint8 pixels (batch, height, width, 3) → (batch, dim) float32: a model of one pooling, as it is trained.

    Batch normalisation keeps the statistics of its weights in train mode, too: they are part of what the store computes, a batch of
    few pictures has poor ones, and each process of several would have its own.
    """

    def __init__(
        self, backbone: nn.Module, picture: Mapping[str, Any], precision: torch.dtype, poolings: Set[str]
    ) -> None:
        super().__init__(backbone, picture, precision, poolings)
        (self.pooling,) = self.poolings
        self.size: tuple[int, int] = tuple(picture["crop"] or picture["resize"])

    def forward(self, pixels: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(pixels, [self.pooling])[self.pooling]

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self


def load(spec: Mapping[str, Json], place: Path, poolings: Sequence[str]) -> ImageModule:
    """The model of a spec on the CPU, in eval mode; ``poolings`` are those that will be asked of it.

    Raises EncoderError when its files are not such a model, or lack weights that a pooling needs.
    """
    return ImageModule(_backbone(spec, place, poolings), *_settings(spec), set(poolings)).eval()


def load_one(spec: Mapping[str, Json], place: Path, *, weights: bool = True) -> OneVector:
    """A model of its own with the one pooling of a spec, in train mode: what an encoder that is trained starts from.

    Its layers are those of its files. Without ``weights`` it is made on the meta device, and their files are not read.
    Raises EncoderError as ``load``.
    """
    pooling = str(spec.get("reduce_output", ""))
    backbone = _backbone(spec, place, [pooling], plain=True, weights=weights)
    module = OneVector(backbone, *_settings(spec), {pooling})
    return (module if weights else module.to("meta")).train()


def _settings(spec: Mapping[str, Json]) -> tuple[Mapping[str, Any], torch.dtype]:
    picture: Any = spec["picture"]
    return picture, getattr(torch, str(spec["precision"]))


def _backbone(
    spec: Mapping[str, Json], place: Path, poolings: Sequence[str], *, plain: bool = False, weights: bool = True
) -> nn.Module:
    picture, precision = _settings(spec)
    if "architecture" in spec:
        from cachestore.encoders import torchvision_models  # torchvision, which other models do not need

        architecture = str(spec["architecture"])
        head = image_specs.table()[architecture]["head"]
        if weights:
            backbone = torchvision_models.load(architecture, head, picture["crop"][0], place, fused=not plain)
        else:
            backbone = torchvision_models.empty(architecture, head, picture["crop"][0])
    else:
        backbone = _tower(place, "pooler" in poolings, weights=weights)
    backbone = backbone.to(precision)
    if plain:  # FSDP shards no weight that lies otherwise
        return backbone
    return backbone.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def _tower(directory: Path, needs_pooler: bool, *, weights: bool = True) -> nn.Module:
    from cachestore.encoders import transformers_model  # slow to import, and torchvision's models do not need it

    with transformers_model.loading(directory):
        transformers = transformers_model.transformers
        config: Any = transformers.AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
        found = _class(transformers, config, directory)
        if not weights:
            if hasattr(config, "vision_config") and found.config_class is type(config.vision_config):
                config = config.vision_config
            with torch.device("meta"):
                made: nn.Module = transformers_model.empty(found, config, pooler=needs_pooler, dtype=torch.float32)
            return made
        backbone, missing = transformers_model.load(found, directory, pooler=needs_pooler, dtype=torch.float32)
    if missing and all("pooler" in name for name in missing):
        raise EncoderError(f"{directory} holds no weights of a pooler. Set reduce_output to cls or mean.")
    transformers_model.require_whole(directory, missing)
    tower: nn.Module = backbone
    return tower


def _class(transformers: Any, config: Any, directory: Path) -> Any:
    if config.model_type in _TOWERS:
        return getattr(transformers, _TOWERS[config.model_type])
    model = transformers.MODEL_MAPPING.get(type(config), None)
    if model is None or getattr(model, "main_input_name", "") != "pixel_values" or hasattr(config, "text_config"):
        raise EncoderError(
            f"{directory}: models of type {config.model_type!r} are not supported yet as image encoders."
        )
    return model
