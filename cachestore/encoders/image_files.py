"""What the directory of a vision model of transformers says: its weights, the length of a vector, how to prepare a picture."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cachestore.encoders import model_files
from cachestore.encoders import sentence_transformers_files as modules
from cachestore.errors import EncoderError
from cachestore.keys import Json

# config.json leaves out what is transformers' default
_DEFAULT_WIDTHS: Final = {
    "beit": 768, "clip": 768, "clip_vision_model": 768, "deit": 768, "dinov2": 768, "dinov2_with_registers": 768,
    "siglip": 768, "siglip_vision_model": 768, "vit": 768, "vit_mae": 768,
}  # fmt: skip
# Models whose pooler is trained for one task, and missing from weights that were saved with another head.
_CLS: Final = frozenset({"beit", "deit", "vit", "vit_mae", "vit_msn", "data2vec-vision"})
_NO_CLS: Final = frozenset({
    "convnext", "convnextv2", "mobilenet_v1", "mobilenet_v2", "regnet", "resnet", "siglip", "siglip_vision_model", "swin",
    "swinv2",
})  # fmt: skip
_PROCESSOR: Final = "preprocessor_config.json"
_RESAMPLE: Final = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}  # Pillow's numbers
_HALF: Final = (0.5, 0.5, 0.5)
_CLIP_MEAN, _CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
# Processors that resize, crop, rescale and normalise; what a file does not say is the class's default.
_PROCESSORS: Final[Mapping[str, Mapping[str, Any]]] = {
    "ViT": {"size": {"height": 224, "width": 224}, "resample": 2, "image_mean": _HALF, "image_std": _HALF},
    "DeiT": {
        "size": {"height": 256, "width": 256}, "resample": 3, "do_center_crop": True,
        "crop_size": {"height": 224, "width": 224}, "image_mean": _HALF, "image_std": _HALF,
    },
    "Bit": {
        "size": {"shortest_edge": 224}, "resample": 3, "do_center_crop": True,
        "crop_size": {"height": 224, "width": 224}, "image_mean": _CLIP_MEAN, "image_std": _CLIP_STD,
    },
    "CLIP": {
        "size": {"shortest_edge": 224}, "resample": 3, "do_center_crop": True,
        "crop_size": {"height": 224, "width": 224}, "image_mean": _CLIP_MEAN, "image_std": _CLIP_STD,
    },
    "Siglip": {"size": {"height": 224, "width": 224}, "resample": 3, "image_mean": _HALF, "image_std": _HALF},
    "ConvNext": {
        "size": {"shortest_edge": 384}, "resample": 3, "crop_pct": 224 / 256, "image_mean": _HALF, "image_std": _HALF,
    },
}  # fmt: skip


@dataclass(frozen=True)
class ImageFiles:
    """One model directory, read. ``picture`` says how a picture is prepared, ``pooling`` what is made a vector of."""

    model_type: str
    config_digest: str
    weights: tuple[str, ...]
    picture: Mapping[str, Json]
    dim: int
    has_cls: bool

    @property
    def pooling(self) -> str:
        """The pooling if none is asked for."""
        return "cls" if self.model_type in _CLS else "pooler"


def read(directory: Path, digest: Callable[[Path], str]) -> ImageFiles:
    """Read a model directory; ``digest`` gives the SHA-256 of a file. Raises EncoderError when it cannot be used."""
    config = _json(directory / "config.json", "it is not the directory of a transformers model")
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        raise EncoderError(f"{directory / 'config.json'} names no model_type, so transformers could not load it.")
    processor = _json(
        directory / _PROCESSOR, "so nothing says how to prepare a picture. Save the image processor into it"
    )
    return ImageFiles(
        model_type=model_type,
        config_digest=model_files.json_digest(config),
        weights=tuple(sorted({digest(file) for file in model_files.weight_files(directory)})),
        picture=_picture(processor, directory / _PROCESSOR),
        dim=_dim(config, model_type, directory),
        has_cls=model_type not in _NO_CLS,
    )


def require_same(spec: Mapping[str, Json], place: Path) -> None:
    """Raises EncoderError unless the model at ``place``, a directory or torchvision's file, is that of ``spec``; see ``model_files``."""
    if "architecture" in spec:
        same = spec["weights"] == [model_files.sha256_of_file(place)]
    else:
        files = read(place, model_files.sha256_of_file)
        same = (spec["config"], spec["weights"]) == (files.config_digest, list(files.weights))
    if not same:
        raise model_files.changed(place)


def _json(path: Path, without: str) -> Mapping[str, Any]:
    if not path.is_file():
        raise EncoderError(f"{path.parent} holds no {path.name}: {without}.")
    content = modules.load_json(path)
    if not isinstance(content, dict):
        raise EncoderError(f"{path} is not a JSON object.")
    return content


def _dim(config: Mapping[str, Any], model_type: str, directory: Path) -> int:
    # of a pair of towers (CLIP) the image's
    tower = config.get("vision_config")
    for part in (tower, config) if isinstance(tower, Mapping) else (config,):
        sizes = part.get("hidden_sizes")
        width = part.get("hidden_size", sizes[-1] if isinstance(sizes, list) and sizes else None)
        if isinstance(width, int) and width > 0:
            return width
    if model_type in _DEFAULT_WIDTHS:
        return _DEFAULT_WIDTHS[model_type]
    raise EncoderError(f"{directory / 'config.json'} does not say how wide the hidden states are (hidden_size).")


def _picture(processor: Mapping[str, Any], path: Path) -> Mapping[str, Json]:
    """The rules of an image processor, as those of every image encoder. Raises EncoderError when they are other ones."""
    kind = str(processor.get("image_processor_type") or processor.get("feature_extractor_type"))
    name = kind.removesuffix("Fast").removesuffix("Pil").removesuffix("ImageProcessor").removesuffix("FeatureExtractor")
    if name not in _PROCESSORS:
        raise EncoderError(
            f"{path}: the image processor {kind} is not supported yet; those that are: {', '.join(sorted(_PROCESSORS))}."
        )
    rules: dict[str, Any] = {
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "rescale_factor": 1 / 255,
        "do_center_crop": False,
    }
    rules |= {key: value for key, value in {**_PROCESSORS[name], **processor}.items() if value is not None}
    try:
        resize, crop = _sizes(rules, name == "ConvNext")
        normalize = bool(rules["do_normalize"])
        picture: dict[str, Json] = {
            "resize": resize,
            "interpolation": _RESAMPLE[rules["resample"]],
            "crop": crop,
            "odd": "floor",
            "scale": float(rules["rescale_factor"]) if rules["do_rescale"] else 1.0,
            "mean": [float(value) for value in rules["image_mean"]] if normalize else [0.0, 0.0, 0.0],
            "std": [float(value) for value in rules["image_std"]] if normalize else [1.0, 1.0, 1.0],
        }
    except (KeyError, TypeError, ValueError) as error:
        raise EncoderError(f"{path}: its rules for pictures are not supported yet ({error!r}).") from error
    return picture


def _sizes(rules: Mapping[str, Any], by_share: bool) -> tuple[Json, Json]:
    """(resize, crop) as picture_worker takes them. Raises KeyError, TypeError or ValueError when they are of another form."""
    crop = _rectangle(rules["crop_size"]) if rules["do_center_crop"] else None
    if not rules["do_resize"]:
        if crop is None:
            raise ValueError("neither do_resize nor do_center_crop, so pictures would differ in size")
        return None, crop
    size = rules["size"]
    if by_share:
        edge = size if isinstance(size, int) else size["shortest_edge"]
        return (int(edge / rules["crop_pct"]), [edge, edge]) if edge < 384 else ([edge, edge], None)
    if isinstance(size, Mapping) and "shortest_edge" in size:
        if "longest_edge" in size or crop is None:
            raise ValueError("pictures would differ in size")
        return int(size["shortest_edge"]), crop
    if isinstance(size, int) and crop is not None:  # how processors with a crop were once saved
        return size, crop
    return _rectangle(size), crop


def _rectangle(size: Any) -> list[int]:
    return [size, size] if isinstance(size, int) else [int(size["height"]), int(size["width"])]
