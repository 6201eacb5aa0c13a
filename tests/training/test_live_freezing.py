"""What of an encoder in the loop is trained: in every family of models, by last blocks and by the names of weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cachestore.encoders import never, sha256_of_file, text_model
from cachestore.encoders.spec import parse_settings, resolve
from cachestore.errors import ConfigError
from tests.store import tiny_models
from trainer.live.freezing import blocks, freeze, require_names
from trainer.schema.tuning import Tuning

TEXTS = [b"the parcel", b"please refund the card that I used"]
FULL = Tuning(trainable=True)


def loaded(models: Path, kind: str, layer: int | None = None) -> tuple[text_model.Collate, text_model.TextModule]:
    place = models / kind
    if not place.exists():
        tiny_models.save(place, kind)
    written = {"type": "auto_transformer", "pretrained_model_name_or_path": str(place), "precision": "float32"}
    found = resolve(parse_settings({**written, "layer": layer}), digest=sha256_of_file, known=never)
    return text_model.load(found.spec, found.directory)


def trained(module: torch.nn.Module) -> set[str]:
    return {name for name, parameter in module.named_parameters() if parameter.requires_grad}


def with_gradient(collate: text_model.Collate, module: text_model.TextModule) -> set[str]:
    module(**collate.pad(collate.tokenizer.tokens(TEXTS))).square().sum().backward()
    return {name for name, parameter in module.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("kind", tiny_models._SIZES)
def test_every_weight_that_is_trained_has_a_gradient_and_blocks_are_those_of_the_config(
    models: Path, kind: str
) -> None:
    collate, module = loaded(models, kind)
    config = module.backbone.config
    count = config.encoder_layers if kind == "bart" else config.num_hidden_layers
    assert len(blocks(module)) == (1 if kind == "albert" else count)  # whose layers share their weights
    freeze(module, FULL, None, "here")
    assert with_gradient(collate, module) == trained(module)


@pytest.mark.parametrize("kind", ["bert", "gpt2", "bloom", "opt", "t5", "deberta-v2", "modernbert", "bart"])
def test_the_last_blocks_and_what_comes_after_them_are_trained_alone(models: Path, kind: str) -> None:
    collate, module = loaded(models, kind)
    freeze(module, Tuning(trainable=True, trainable_layers=1), None, "here")
    last = {id(parameter) for parameter in blocks(module)[-1].parameters()}
    rest = {
        name for name, parameter in module.named_parameters() if parameter.requires_grad and id(parameter) not in last
    }
    assert last <= {id(parameter) for parameter in module.parameters() if parameter.requires_grad}
    assert all("norm" in name.lower() or ".ln_f." in name for name in rest)
    assert bool(rest) == (kind in ("gpt2", "bloom", "opt", "t5", "modernbert"))
    assert with_gradient(collate, module) == trained(module)


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama"])
def test_blocks_above_the_layer_that_is_pooled_play_no_part(models: Path, kind: str) -> None:
    collate, module = loaded(models, kind, layer=0 if kind == "llama" else 1)
    freeze(module, FULL, None, "here")
    assert with_gradient(collate, module) == trained(module)
    if kind == "bert":
        freeze(module, Tuning(trainable=True, trainable_layers=1), None, "here")
        assert trained(module)
        assert all(".layer.0." in name for name in trained(module))
        with pytest.raises(ConfigError, match=r"here\.trainable_layers: 2 is more than the 1 blocks"):
            freeze(module, Tuning(trainable=True, trainable_layers=2), None, "here")


def test_weights_are_frozen_by_their_names(models: Path) -> None:
    _, module = loaded(models, "bert")
    freeze(module, FULL, r"embeddings|layer\.0\.", "here")
    assert trained(module)
    assert all(".layer.1." in name for name in trained(module))
    with pytest.raises(ConfigError, match="here: layers_to_freeze_regex leaves no weight of it to train"):
        freeze(module, FULL, "backbone", "here")
    require_names("embeddings", [module])
    with pytest.raises(ConfigError, match=r"is in the name of no weight .* backbone\.embeddings"):
        require_names(r"h\.0", [module])


def test_a_frozen_encoder_trains_nothing(models: Path) -> None:
    _, module = loaded(models, "bert")
    freeze(module, Tuning(), None, "here")
    assert trained(module) == set()


def test_an_adapter_above_the_layer_that_is_pooled_is_told_by_the_layer(models: Path) -> None:
    _, module = loaded(models, "bert", layer=1)
    module.requires_grad_(False)
    blocks(module)[1].requires_grad_(True)
    with pytest.raises(ConfigError, match="here: nothing that is trained comes before layer 1, which is pooled"):
        freeze(module, Tuning.model_validate({"adapter": {"type": "lora"}}), None, "here")
