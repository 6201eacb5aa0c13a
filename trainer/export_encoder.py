"""An encoder that was trained, written as a plain model directory: what the store freezes, and other libraries load.

A text model is written as sentence-transformers writes one, so that its files tell pooling, length, prompt and normalisation; a
vision model of transformers with its image processor; one of torchvision as a file of weights.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from safetensors.torch import save_file
from torch import nn

from cachestore import outside
from cachestore.encoders import exported, model_files, sentence_transformers_files, text_model, transformers_model
from cachestore.encoders.image_model import ImageModule
from cachestore.encoders.image_settings import TorchvisionSettings
from cachestore.encoders.text_model import TextModule
from cachestore.encoders.text_settings import TextSettings
from cachestore.keys import Json
from trainer.schema.inputs import EncodedInput

_PROCESSOR: Final = "preprocessor_config.json"
_POOLINGS: Final[Mapping[str, str]] = {"cls_pooled": "cls", "last": "lasttoken"}
_MODULES: Final[Mapping[str, str]] = {"dense": "Dense", "layer_norm": "LayerNorm", "normalize": "Normalize"}


def export(feature: EncodedInput, spec: Mapping[str, Json], place: Path, module: nn.Module, folder: Path) -> None:
    """Write the encoder of ``feature`` into ``folder``, which takes the place of what lies there.

    ``module`` is a whole one on one device, its adapter merged; ``spec`` and ``place`` are those of the encoder that it was
    before training, whose tokenizer or image processor is copied. What opens the folder makes the vectors that ``module`` makes.
    All its files may be read by whom the process's umask lets read.
    Raises UsageError when something cannot be written.
    """
    try:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        if isinstance(module, TextModule):
            settings = _text(feature, spec, place, module, folder)
        elif isinstance(module, ImageModule):
            settings = _image(feature, module, place, folder)
        else:
            raise TypeError(type(module).__name__)
        _write(folder / exported.SETTINGS, settings)
        mode = (folder / exported.SETTINGS).stat().st_mode
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                path.chmod(mode)  # safetensors leaves what it saves to its owner alone
            outside.sync(path)
        outside.sync(folder)
        outside.sync(folder.parent)
    except OSError as error:
        raise outside.unwritable(folder, error) from error


def _text(
    feature: EncodedInput, spec: Mapping[str, Json], place: Path, module: TextModule, folder: Path
) -> dict[str, Any]:
    source = sentence_transformers_files.read(place).directory
    _backbone(module.backbone, source, folder)
    for path in model_files.tokenizer_files(source):
        shutil.copyfile(path, folder / path.name)
    _write(
        folder / "sentence_bert_config.json",
        {"max_seq_length": spec["max_sequence_length"], "do_lower_case": bool(spec.get("do_lower_case", False))},
    )
    prompt, name = spec.get("prompt"), getattr(feature.encoder, "prompt_name", None) or "trained"
    _write(
        folder / "config_sentence_transformers.json",
        {
            "prompts": {} if prompt is None else {name: prompt},
            "default_prompt_name": None if prompt is None else name,
            "similarity_fn_name": "cosine",
        },
    )
    parts: list[tuple[str, str]] = [("", "Transformer")]
    for name, config, weights in _after(spec, module):
        parts.append((f"{len(parts)}_{name}", name))
        part = folder / parts[-1][0]
        part.mkdir()
        _write(part / "config.json", config)
        if weights is not None:
            _save(weights, part / exported.WEIGHTS)
    _write(
        folder / "modules.json",
        [
            {"idx": at, "name": str(at), "path": path, "type": f"sentence_transformers.models.{name}"}
            for at, (path, name) in enumerate(parts)
        ],
    )
    template = feature.encoder.prompt_template if isinstance(feature.encoder, TextSettings) else None
    return {"type": "auto_transformer", **({} if template is None else {"prompt": {"template": template}})}


def _after(spec: Mapping[str, Json], module: TextModule) -> Iterator[tuple[str, dict[str, Any], nn.Module | None]]:
    """What comes after the transformer: the name of each module, its settings and, where it has weights, itself."""
    poolings = [_POOLINGS.get(name, name) for name in module.head.poolings]
    config: Any = module.backbone.config
    projected = getattr(config, "word_embed_proj_dim", None) if module.layer is None else None  # OPT's
    pooling: dict[str, Any] = {
        "word_embedding_dimension": projected or config.hidden_size,
        "pooling_mode": poolings[0] if len(poolings) == 1 else poolings,
        "include_prompt": bool(spec.get("pools_prompt", True)),
    }
    yield "Pooling", pooling if module.layer is None else {**pooling, "layer": module.layer}, None
    settings: Any = spec.get("head", [])
    for each, layer in zip(settings, module.head.layers, strict=True):
        written = {key: value for key, value in each.items() if key not in ("type", "weights")}
        if each["type"] == "dense":
            activation: type[nn.Module] = getattr(nn, written.pop("activation"))
            written["activation_function"] = f"{activation.__module__}.{activation.__name__}"
            written["use_residual"] = bool(written.pop("residual", False))
        yield _MODULES[each["type"]], written, None if each["type"] == "normalize" else layer
    if module.head.normalize or (
        settings and settings[-1]["type"] == "normalize"
    ):  # readers take the last for the norm
        yield "Normalize", {}, None


def _image(feature: EncodedInput, module: ImageModule, place: Path, folder: Path) -> dict[str, Any]:
    if isinstance(feature.encoder, TorchvisionSettings):
        _save(module.backbone, folder / exported.WEIGHTS)
        return {
            "type": "torchvision",
            "model": feature.encoder.architecture,
            "weights": feature.encoder.weights_name,  # whose transform is used
        }
    with transformers_model.quiet():
        module.backbone.save_pretrained(folder)  # type: ignore[operator]
    shutil.copyfile(place / _PROCESSOR, folder / _PROCESSOR)
    (pooling,) = module.poolings
    return {"type": "auto_image_transformer", "reduce_output": pooling}


def _backbone(backbone: nn.Module, source: Path, folder: Path) -> None:
    whole = text_model.with_decoder(backbone, source)
    with transformers_model.quiet():
        whole.save_pretrained(folder)  # type: ignore[operator]


def _save(layer: nn.Module, path: Path) -> None:
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in layer.state_dict().items()}, path)


def _write(path: Path, value: Any) -> None:
    outside.write(path, (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode())
