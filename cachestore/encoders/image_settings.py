"""Settings of image encoders, and their resolution to a spec, without torch or torchvision.

What torchvision says of its models (names, dims, weights and their transforms) stands in torchvision_models.json; what a
transformers model says of itself is read from its directory.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Final, Literal, TypeAlias
from urllib.parse import urlsplit

from huggingface_hub import constants
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, field_validator, model_validator

from cachestore.encoders import image_files, locate, precision
from cachestore.encoders.image_specs import table
from cachestore.encoders.pictures import PICTURE_PREPROCESSING
from cachestore.encoders.resolved import Resolved
from cachestore.errors import EncoderError, nearest
from cachestore.keys import Fingerprint, Json

HUB_IDS: Final[Mapping[str, str]] = {
    "clip": "openai/clip-vit-base-patch32",
    "dinov2": "facebook/dinov2-base",
    "siglip": "google/siglip-base-patch16-224",
}
# Ludwig's types: how torchvision's names begin, and the variant that is meant when none is given.
FAMILIES: Final[Mapping[str, tuple[str, str]]] = {
    "alexnet": ("alexnet", ""),
    "convnext": ("convnext_", "base"),
    "densenet": ("densenet", "121"),
    "efficientnet": ("efficientnet_", "b0"),
    "googlenet": ("googlenet", ""),
    "inceptionv3": ("inception_v3", ""),
    "maxvit": ("maxvit_", "t"),
    "mnasnet": ("mnasnet", "0_5"),
    "mobilenetv2": ("mobilenet_v2", ""),
    "mobilenetv3": ("mobilenet_v3_", "small"),
    "regnet": ("regnet_", "x_1_6gf"),
    "resnet": ("resnet", "50"),
    "resnext": ("resnext", "50_32x4d"),
    "shufflenet_v2": ("shufflenet_v2_", "x0_5"),
    "squeezenet": ("squeezenet", "1_0"),
    "swin_transformer": ("swin_", "t"),
    "vit": ("vit_", "b_16"),
    "vgg": ("vgg", "11"),
    "wide_resnet": ("wide_resnet", "50_2"),
}
TRANSFORMERS_TYPES: Final = ("auto_image_transformer", *HUB_IDS)
TYPES: Final = ("torchvision", *FAMILIES, *TRANSFORMERS_TYPES)
POOLINGS: Final = ("pooler", "cls", "mean")


class TorchvisionSettings(BaseModel):
    """A classification model of torchvision, its last layer left off. None means unset: torchvision's default weights."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    type: Literal[
        "torchvision", "alexnet", "convnext", "densenet", "efficientnet", "googlenet", "inceptionv3", "maxvit",
        "mnasnet", "mobilenetv2", "mobilenetv3", "regnet", "resnet", "resnext", "shufflenet_v2", "squeezenet",
        "swin_transformer", "vit", "vgg", "wide_resnet",
    ]  # fmt: skip
    model: str | None = None
    model_variant: str | int | None = None
    use_pretrained: bool = True
    weights: str | None = None
    weights_path: Annotated[str, Field(min_length=1)] | None = None
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    dtype: Literal["float16", "float32"] = "float16"
    batch_size: PositiveInt | None = None

    @field_validator("use_pretrained")
    @classmethod
    def _pretrained(cls, value: bool) -> bool:
        if not value:
            raise ValueError(
                "cannot be false: encoders begin with trained weights, and vectors of random ones say little; "
                "set weights_path to use weights of your own"
            )
        return value

    @model_validator(mode="after")
    def _names(self) -> TorchvisionSettings:
        if self.type == "torchvision" and (self.model is None or self.model_variant is not None):
            raise ValueError(
                "torchvision needs model, one of torchvision's names such as convnext_tiny, and no model_variant"
            )
        if self.type != "torchvision" and self.model is not None:
            raise ValueError(f"{self.type} takes model_variant; write type: torchvision to give a whole name")
        name = self.architecture
        if name not in table():
            near = nearest(name, sorted(table())) or "."
            if self.type == "torchvision":
                raise ValueError(f"model: torchvision has no classification model {name!r}{near}")
            prefix = FAMILIES[self.type][0]
            variants = [known.removeprefix(prefix) for known in table() if known.startswith(prefix)]
            raise ValueError(
                f"model_variant: {self.model_variant!r} is none of {', '.join(filter(None, variants)) or 'base'}"
            )
        known = table()[name]["weights"]
        if self.weights not in (None, "DEFAULT", *known):
            raise ValueError(f"weights: {name} has {', '.join(known)}, not {self.weights!r}")
        return self

    @property
    def architecture(self) -> str:
        """torchvision's name of the model."""
        if self.type == "torchvision":
            return str(self.model)
        prefix, default = FAMILIES[self.type]
        variant = default if self.model_variant is None else str(self.model_variant)
        return prefix if not default and variant == "base" else prefix + variant

    @property
    def weights_name(self) -> str:
        """torchvision's name of the weights, whose transform is used for weights of the user's own, too."""
        entry = table()[self.architecture]
        return str(entry["default"]) if self.weights in (None, "DEFAULT") else str(self.weights)


class ImageTransformerSettings(BaseModel):
    """A vision model of transformers, in a directory or on the hub. None means unset: taken from the model."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    type: Literal["auto_image_transformer", "clip", "dinov2", "siglip"]
    pretrained_model_name_or_path: Annotated[str, Field(min_length=1)] | None = None
    reduce_output: Literal["pooler", "cls", "mean"] | None = None
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    dtype: Literal["float16", "float32"] = "float16"
    batch_size: PositiveInt | None = None

    @model_validator(mode="after")
    def _model_name(self) -> ImageTransformerSettings:
        if self.type == "auto_image_transformer" and self.pretrained_model_name_or_path is None:
            raise ValueError(
                "auto_image_transformer needs pretrained_model_name_or_path: a model directory or a hub id"
            )
        return self


ImageSettings: TypeAlias = TorchvisionSettings | ImageTransformerSettings


def class_of(kind: str) -> type[ImageSettings]:
    """The settings of a type of ``TYPES``."""
    return ImageTransformerSettings if kind in TRANSFORMERS_TYPES else TorchvisionSettings


def resolve(
    settings: ImageSettings, *, digest: Callable[[Path], str], known: Callable[[Fingerprint], bool]
) -> Resolved:
    """Settle everything the settings leave open; the directory of torchvision's models is their file of weights.

    Raises EncoderError when the model cannot be found, trusted or used as asked.
    """
    spec, dim, place = (
        _torchvision(settings, digest) if isinstance(settings, TorchvisionSettings) else _transformers(settings, digest)
    )
    if settings.precision == "auto":
        spec["precision"] = precision.choose(spec, dim, place, known)
    else:
        spec["precision"] = settings.precision
    return Resolved(spec, dim, place)


def _torchvision(settings: TorchvisionSettings, digest: Callable[[Path], str]) -> tuple[dict[str, Json], int, Path]:
    entry = table()[settings.architecture]
    transform = entry["weights"][settings.weights_name]
    path = _weights_file(settings, str(transform["url"]))
    spec: dict[str, Json] = {
        "kind": "image",
        "architecture": settings.architecture,
        "weights": [digest(path)],
        "picture": {
            "resize": transform["resize"],
            "interpolation": transform["interpolation"],
            "crop": [transform["crop"], transform["crop"]],
            "odd": "round",
            "scale": 1 / 255,
            "mean": transform["mean"],
            "std": transform["std"],
        },
        "dtype": settings.dtype,
        "preprocessing": PICTURE_PREPROCESSING,
    }
    return spec, int(entry["dim"]), path


def _weights_file(settings: TorchvisionSettings, url: str) -> Path:
    if settings.weights_path is not None:
        path = Path(settings.weights_path).expanduser()
        if not path.is_file():
            raise EncoderError(f"weights_path: {path} is no file.{_beside(path)}")
        return path
    # where torch.hub keeps them, too
    home = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "torch"
    cache = Path(os.environ.get("TORCH_HOME", home)).expanduser() / "hub" / "checkpoints"
    path = cache / Path(urlsplit(url).path).name
    if path.is_file():
        return path
    instead = f"Or set weights_path to a file that holds weights of {settings.architecture}."
    if constants.HF_HUB_OFFLINE:
        raise EncoderError(
            f"the weights {settings.weights_name} of {settings.architecture} are not in {path}, and HF_HUB_OFFLINE is set. "
            f"Unset it to download them, or put {url} there. {instead}"
        )
    return _download(url, path, instead)


def _download(url: str, path: Path, instead: str) -> Path:
    from torch.hub import download_url_to_file  # checks the digest that is part of the name

    digest = path.stem.rpartition("-")[2]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        download_url_to_file(url, str(path), digest, progress=False)
    except (OSError, RuntimeError) as error:  # no network, no such file, no room; another digest
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise EncoderError(f"{url} could not be downloaded into {path.parent}: {reason} {instead}") from error
    return path


def _beside(path: Path) -> str:
    if not path.parent.is_dir():
        return f" There is no directory {path.parent.absolute()}."
    return nearest(path.name, sorted(child.name for child in path.parent.iterdir())) or ""


def directory_of(settings: ImageTransformerSettings) -> Path:
    """Where the files of the model lie. Raises EncoderError when it cannot be had."""
    return locate.locate(settings.pretrained_model_name_or_path or HUB_IDS[settings.type])


def _transformers(
    settings: ImageTransformerSettings, digest: Callable[[Path], str]
) -> tuple[dict[str, Json], int, Path]:
    directory = directory_of(settings)
    files = image_files.read(directory, digest)
    spec: dict[str, Json] = {
        "kind": "image",
        "model_type": files.model_type,
        "config": files.config_digest,
        "weights": list(files.weights),
        "reduce_output": settings.reduce_output or files.pooling,
        "picture": files.picture,
        "dtype": settings.dtype,
        "preprocessing": PICTURE_PREPROCESSING,
    }
    return spec, files.dim, directory
