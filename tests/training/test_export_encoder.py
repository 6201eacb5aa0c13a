"""An encoder is written as a plain model: what opens it makes the vectors that the module makes, and the store freezes it."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cachestore.encoders import exported, open_encoder, text_model
from cachestore.encoders.spec import parse_settings
from cachestore.encoders.text_model import Collate, TextModule
from cachestore.errors import ConfigError, DamageError
from tests.store import tiny_models
from tests.store.tiny_models import TEXTS
from tests.training import live
from trainer.export_encoder import export
from trainer.schema.inputs import TextInput

FAMILIES = (*live.FAMILIES, "roberta", "distilbert", "deberta-v2", "bart", "modernbert")
PAYLOADS = [text.encode() for text in TEXTS]


def trained(directory: Path, **settings: Any) -> tuple[TextInput, dict[str, Any], Collate, TextModule]:
    """A text input, its spec, and its module with weights that training moved."""
    feature = TextInput(name="text", column="text", encoder=parse_settings(live.encoder(directory, **settings)))
    spec = dict(open_encoder(feature.encoder).spec)
    collate, module = text_model.load(spec, directory)
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in module.parameters():
            weight.add_(torch.randn_like(weight) * 0.1)
    return feature, spec, collate, module


def exported_run(
    run: Path, feature: TextInput, spec: dict[str, Any], directory: Path, module: TextModule, name: str = "text"
) -> str:
    """Export into a run's directory; returns the reference."""
    export(feature, spec, directory, module, exported.folder(run, name))
    return f"{run}#{name}"


def vectors_of(collate: Collate, module: TextModule) -> np.ndarray[Any, Any]:
    with torch.no_grad():
        return module.eval()(**collate(PAYLOADS)).numpy()


def stored(encoder: str | dict[str, Any]) -> np.ndarray[Any, Any]:
    """The vectors that the store would keep, in float32."""
    opened = open_encoder(
        {"type": encoder, "precision": "float32", "dtype": "float32"} if isinstance(encoder, str) else encoder
    )
    return np.asarray(opened.encode(PAYLOADS))


@pytest.mark.parametrize("kind", FAMILIES)
def test_what_is_exported_makes_the_vectors_of_the_module(models: Path, tmp_path: Path, kind: str) -> None:
    directory = tiny_models.save(models / kind, kind)
    feature, spec, collate, module = trained(directory)
    reference = exported_run(tmp_path / "run", feature, spec, directory, module)
    np.testing.assert_allclose(stored(reference), vectors_of(collate, module), atol=1e-6)
    # and the module itself comes back, to predict with
    _, again = text_model.load(spec, exported.folder(tmp_path / "run", "text"))
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), module.parameters(), strict=True))


@pytest.mark.parametrize(
    "settings",
    [
        {"reduce_output": "sum"},
        {"reduce_output": "cls_pooled+max"},
        {"reduce_output": "last", "normalize": True},
        {"layer": 1, "reduce_output": "weightedmean"},
        {"layer": 0},
        {"prompt": "refund: "},
        {"max_sequence_length": 5},
    ],
    ids=str,
)
def test_the_files_tell_pooling_layer_length_prompt_and_norm(
    models: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    directory = live.saved(models / "plain")
    feature, spec, collate, module = trained(directory, **settings)
    reference = exported_run(tmp_path / "run", feature, spec, directory, module)
    np.testing.assert_allclose(stored(reference), vectors_of(collate, module), atol=1e-6)
    plain = {
        "type": "auto_transformer",
        "pretrained_model_name_or_path": str(exported.folder(tmp_path / "run", "text")),
    }
    assert np.array_equal(stored({**plain, "precision": "float32", "dtype": "float32"}), stored(reference))


def test_sentence_transformers_reads_what_is_exported(models: Path, tmp_path: Path) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    directory = live.saved(models / "plain")
    feature, spec, collate, module = trained(directory, reduce_output="max+cls_pooled", normalize=True)
    exported_run(tmp_path / "run", feature, spec, directory, module)
    other = sentence_transformers.SentenceTransformer(str(exported.folder(tmp_path / "run", "text")), device="cpu")
    found = other.encode([text for text in TEXTS if text], show_progress_bar=False)
    mine = vectors_of(collate, module)[[row for row, text in enumerate(TEXTS) if text]]
    np.testing.assert_allclose(found, mine, atol=1e-6)


def test_the_layers_after_the_pooling_are_exported_as_trained(models: Path, tmp_path: Path) -> None:
    directory = Path(shutil.copytree(live.saved(models / "plain"), tmp_path / "model"))
    tiny_models.make_sentence_model(
        directory, {"pooling_mode": "mean"}, normalize=False, transformer={"do_lower_case": True}
    )
    modules = json.loads((directory / "modules.json").read_text())
    parts = [("2_Dense", "Dense"), ("3_LayerNorm", "LayerNorm"), ("4_Normalize", "Normalize")]
    added = [{"path": path, "type": f"sentence_transformers.models.{name}"} for path, name in parts]
    tiny_models.write_json(directory / "modules.json", [*modules, *added])
    from safetensors.torch import save_file

    for path, config, weights in (
        ("2_Dense", {"in_features": 16, "out_features": 8, "activation_function": "torch.nn.modules.activation.Tanh"},
         {"linear.weight": torch.randn(8, 16), "linear.bias": torch.randn(8)}),
        ("3_LayerNorm", {"dimension": 8}, {"norm.weight": torch.ones(8), "norm.bias": torch.zeros(8)}),
    ):  # fmt: skip
        (directory / path).mkdir()
        tiny_models.write_json(directory / path / "config.json", config)
        save_file(weights, directory / path / "model.safetensors")
    feature, spec, collate, module = trained(directory)
    reference = exported_run(tmp_path / "run", feature, spec, directory, module)
    np.testing.assert_allclose(stored(reference), vectors_of(collate, module), atol=1e-6)
    assert open_encoder(reference).dim == 8


def test_a_template_goes_with_the_encoder(models: Path, tmp_path: Path) -> None:
    directory = live.saved(models / "plain")
    feature, spec, _, module = trained(directory, prompt={"template": "{title}: {text}"})
    settings: Any = parse_settings(exported_run(tmp_path / "run", feature, spec, directory, module))
    assert settings.prompt_template == "{title}: {text}"


def test_what_is_trained_has_a_fingerprint_of_its_own_that_its_place_does_not_change(
    models: Path, tmp_path: Path
) -> None:
    directory = live.saved(models / "plain")
    feature, spec, _, module = trained(directory)
    one = exported_run(tmp_path / "run", feature, spec, directory, module)
    other = exported_run(tmp_path / "a #1 run", feature, spec, directory, module, "the/text.")
    assert open_encoder(one).spec == open_encoder(other).spec
    assert open_encoder(one).spec["weights"] != spec["weights"]
    assert (tmp_path / "a #1 run" / "encoders").is_dir()


def test_settings_may_be_written_over_those_of_a_reference(models: Path, tmp_path: Path) -> None:
    directory = live.saved(models / "plain")
    feature, spec, _, module = trained(directory, normalize=True)
    reference = exported_run(tmp_path / "run", feature, spec, directory, module)
    given = {
        "type": "auto_transformer",
        "pretrained_model_name_or_path": reference,
        "normalize": False,
        "dtype": "float32",
    }
    found = open_encoder(given).spec
    assert (found["normalize"], found["dtype"]) == (False, "float32")
    with pytest.raises(ConfigError, match=r"encoder\.type: .* is an encoder of type auto_transformer, not 'bert'"):
        parse_settings({**given, "type": "bert"})


@pytest.mark.parametrize("key", ["pretrained_model_name_or_path", "weights_path"])
def test_a_reference_beside_the_place_of_another_model_is_refused(models: Path, tmp_path: Path, key: str) -> None:
    directory = live.saved(models / "plain")
    feature, spec, _, module = trained(directory)
    reference = exported_run(tmp_path / "run", feature, spec, directory, module)
    with pytest.raises(ConfigError, match=rf"encoder\.{key}: .*#text is a model already; leave one of them out"):
        parse_settings({"type": reference, key: str(directory)})


@pytest.mark.parametrize(
    "name", ["客户对我们产品和服务的整体满意度以及他们愿意向朋友推荐的可能性", "a/b", "..", "50 %", "a\\b", "a:b"]
)
def test_a_feature_of_any_name_has_a_folder_of_its_own(tmp_path: Path, name: str) -> None:
    place = exported.folder(tmp_path, name)
    place.mkdir(parents=True)
    (place / "encoder.json").write_text("{}")
    assert place.parent == tmp_path / "encoders"
    assert exported.folders(tmp_path) == {name: place}


def test_whoever_may_read_a_run_may_read_its_encoder(tmp_path: Path) -> None:
    directory = live.with_layers_after_pooling(tiny_models.save(tmp_path / "dense", "bert"))
    feature, spec, _, module = trained(directory)
    before = os.umask(0o027)
    try:
        exported_run(tmp_path / "run", feature, spec, directory, module)
    finally:
        os.umask(before)
    files = [path for path in exported.folder(tmp_path / "run", "text").rglob("*") if path.is_file()]
    assert len([path for path in files if path.suffix == ".safetensors"]) == 3
    assert {path.stat().st_mode & 0o777 for path in files} == {0o640}


def test_a_reference_that_leads_nowhere_says_why(models: Path, tmp_path: Path) -> None:
    directory = live.saved(models / "plain")
    feature, spec, _, module = trained(directory)
    run = tmp_path / "run"
    exported_run(run, feature, spec, directory, module, "review")
    with pytest.raises(ConfigError, match=r"no directory .*gone"):
        parse_settings(f"{tmp_path / 'gone'}#review")
    with pytest.raises(ConfigError, match=r"trained no encoder of 'reviews'; did you mean 'review'\?"):
        parse_settings(f"{run}#reviews")
    with pytest.raises(ConfigError, match="is not a finished run that trained an encoder"):
        parse_settings(f"{directory}#review")
    adapter = exported.adapter_folder(run, "title")
    adapter.mkdir(parents=True)
    (adapter / "adapter_config.json").write_text('{"peft_type": "PROMPT_TUNING"}')
    with pytest.raises(ConfigError, match="cannot be merged into its encoder"):
        parse_settings(f"{run}#title")
    with pytest.raises(ConfigError, match="name the feature after #; the run trained review"):
        parse_settings(f"{run}#")


def test_an_exported_encoder_that_is_gone_is_damage(tmp_path: Path) -> None:
    adapter = exported.adapter_folder(tmp_path, "title")
    adapter.mkdir(parents=True)
    (adapter / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    with pytest.raises(ConfigError, match="is not finished; go on with: cachestore train --resume"):
        parse_settings(f"{tmp_path}#title")
    (tmp_path / "summary.json").touch()
    with pytest.raises(DamageError, match=r"title is not there any more; restore it, or train again"):
        parse_settings(f"{tmp_path}#title")
    (adapter / "adapter_config.json").write_text("{}")
    with pytest.raises(DamageError, match=r"adapter_config\.json cannot be read"):
        parse_settings(f"{tmp_path}#title")
