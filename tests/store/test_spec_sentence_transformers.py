"""Directories of sentence-transformers: what their files settle, in the old spelling and the new, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from cachestore import keys
from cachestore.encoders import locate, open_encoder, text
from cachestore.errors import EncoderError
from tests.store import tiny_models
from tests.store.tiny_models import edit_json, make_sentence_model, write_json

ACTIVATION = "torch.nn.modules.activation.ReLU"
MEAN = {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.save(tmp_path_factory.mktemp("models") / "bert", positions=64)


@pytest.fixture
def model(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "model"))


def settled(directory: Path, **settings: Any) -> dict[str, Any]:
    encoder = open_encoder(
        {
            "type": "auto_transformer",
            "pretrained_model_name_or_path": str(directory),
            "precision": "float32",
            **settings,
        }
    )
    return dict(encoder.spec)


def make_dense(model: Path, *, weights: str | None = "linear", **config: Any) -> None:
    """Make a model whose third and last module is a Dense; ``config`` goes to its config.json."""
    modules = json.loads((model / "modules.json").read_text())[:2]
    write_json(model / "modules.json", [*modules, {"type": "sentence_transformers.models.Dense", "path": "2_Dense"}])
    (model / "2_Dense").mkdir()
    given = {"in_features": 16, "out_features": 8, "bias": True, "activation_function": ACTIVATION, **config}
    write_json(model / "2_Dense" / "config.json", given)
    if weights is not None:
        torch.manual_seed(1)
        tensors = {f"{weights}.weight": torch.randn(8, 16), f"{weights}.bias": torch.randn(8)}
        save_file(tensors, model / "2_Dense" / "model.safetensors")


@pytest.mark.parametrize(
    ("config", "pooling"),
    [
        (MEAN, "mean"),
        ({"pooling_mode_cls_token": True}, "cls_pooled"),
        ({"pooling_mode_max_tokens": True, "pooling_mode_mean_tokens": False}, "max"),
        ({"pooling_mode_lasttoken": True}, "last"),
        ({}, "mean"),
        ({"pooling_mode": "cls", "include_prompt": True}, "cls_pooled"),
        ({"pooling_mode": "lasttoken"}, "last"),
        ({"pooling_mode": ["max"]}, "max"),
        ({"pooling_mode_mean_sqrt_len_tokens": True, "pooling_mode_mean_tokens": False}, "mean_sqrt_len_tokens"),
        ({"pooling_mode": "weightedmean"}, "weightedmean"),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}, "cls_pooled+mean"),
        ({"pooling_mode": ["mean", "cls"]}, "mean+cls_pooled"),
    ],
    ids=str,
)
def test_pooling_is_read_in_both_spellings(model: Path, config: dict[str, Any], pooling: str) -> None:
    assert settled(make_sentence_model(model, config))["reduce_output"] == pooling


def test_an_unknown_pooling_is_refused_unless_one_is_asked_for(model: Path) -> None:
    make_sentence_model(model, {"pooling_mode": ["cls", "median"]})
    with pytest.raises(EncoderError, match=r"1_Pooling/config\.json: pooling cls \+ median is not supported"):
        settled(model)
    assert settled(model, reduce_output="mean")["reduce_output"] == "mean"


def test_normalisation_is_the_third_module(model: Path) -> None:
    assert settled(make_sentence_model(model, MEAN))["normalize"] is True
    assert settled(make_sentence_model(model, MEAN, normalize=False))["normalize"] is False


def test_what_is_set_wins_over_the_directory(model: Path) -> None:
    make_sentence_model(model, MEAN, transformer={"max_seq_length": 48})
    found = settled(model, reduce_output="max", normalize=False, max_sequence_length=20)
    assert (found["reduce_output"], found["normalize"], found["max_sequence_length"]) == ("max", False, 20)


def test_the_length_is_the_transformers_then_the_tokenizers_then_the_default(model: Path) -> None:
    make_sentence_model(model, MEAN, transformer={"max_seq_length": 48})
    assert settled(model)["max_sequence_length"] == 48
    make_sentence_model(model, MEAN, transformer={"max_seq_length": None})
    edit_json(model / "tokenizer_config.json", model_max_length=40)
    assert settled(model)["max_sequence_length"] == 40
    edit_json(model / "tokenizer_config.json", model_max_length=int(1e30))
    edit_json(model / "config.json", max_position_embeddings=1000)
    assert settled(model)["max_sequence_length"] == 256


def test_a_length_above_the_positions_is_cut_to_them(model: Path) -> None:
    make_sentence_model(model, MEAN, transformer={"max_seq_length": 512})
    assert settled(model)["max_sequence_length"] == 64


def test_a_transformer_in_a_folder_of_its_own(saved: Path, model: Path, tmp_path: Path) -> None:
    outer = tmp_path / "outer"
    outer.mkdir()
    shutil.copytree(saved, outer / "0_Transformer")
    make_sentence_model(outer, MEAN)
    modules = [{"type": f"sentence_transformers.models.{kind}", "path": path} for kind, path in
               (("Transformer", "0_Transformer"), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize"))]  # fmt: skip
    write_json(outer / "modules.json", modules)
    assert settled(outer) == settled(make_sentence_model(model, MEAN))


def _modules(*names: str, prefix: str = "sentence_transformers.models.") -> Callable[[Path], None]:
    def change(model: Path) -> None:
        write_json(model / "modules.json", [{"type": prefix + name, "path": f"{i}"} for i, name in enumerate(names)])

    return change


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "word weights": (
        _modules("Transformer", "Pooling", "WordWeights"),
        "Transformer, Pooling, WordWeights are not supported yet",
    ),
    "nothing to pool": (_modules("Transformer", "Dense", "Pooling"), "Transformer, Dense, Pooling are not supported"),
    "no weights": (
        lambda m: make_dense(m, weights=None),
        r"2_Dense holds no model\.safetensors\. If its weights are a pickle that you trust",
    ),
    "own activation": (
        lambda m: make_dense(m, activation_function="custom.code.Swish"),
        r"'custom\.code\.Swish' is not supported, .* code that a model names is never run",
    ),
    "an activation with arguments": (
        lambda m: make_dense(m, activation_function="torch.nn.modules.activation.MultiheadAttention"),
        "MultiheadAttention' is not supported",
    ),
    "dense on tokens": (
        lambda m: make_dense(m, module_input_name="token_embeddings"),
        "anything but the sentence embedding is not supported yet",
    ),
    "dense of another width": (
        lambda m: make_dense(m, in_features=12),
        "the dense module after pooling takes 12 values, and pooling gives 16",
    ),
    "pooling that is no name": (
        lambda m: write_json(m / "1_Pooling" / "config.json", {"pooling_mode": [{"cls": 1}]}),
        r"pooling \{'cls': 1\} is not supported",
    ),
    "a list for settings": (
        lambda m: write_json(m / "1_Pooling" / "config.json", [1]),
        r"1_Pooling/config\.json holds list where an object of settings belongs",
    ),
    "prompts that are no mapping": (
        lambda m: write_json(m / "config_sentence_transformers.json", {"prompts": ["a"]}),
        "its prompts are no mapping of names to texts",
    ),
    "a prompt that is no text": (
        lambda m: write_json(
            m / "config_sentence_transformers.json", {"prompts": {"a": 3}, "default_prompt_name": "a"}
        ),
        "the prompt 'a' is no text",
    ),
    "dense without a size": (lambda m: make_dense(m, out_features=None), "out_features is None"),
    "static": (_modules("StaticEmbedding"), "StaticEmbedding are not supported yet"),
    "own code": (_modules("Transformer", prefix="custom_st."), "'custom_st.Transformer' is code of the model's own"),
    "not a list": (lambda m: write_json(m / "modules.json", {}), "not supported yet"),
    "outside": (
        lambda m: write_json(
            m / "modules.json", [{"type": "sentence_transformers.models.Transformer", "path": "../x"}]
        ),
        "does not lie in that directory",
    ),
    "task": (
        lambda m: write_json(m / "sentence_bert_config.json", {"transformer_task": "text-generation"}),
        "text-generation .* is not supported yet",
    ),
    "arguments": (
        lambda m: write_json(m / "sentence_bert_config.json", {"processor_kwargs": {"padding_side": "left"}}),
        "processor_kwargs are not supported yet",
    ),
    "token normalisation": (
        lambda m: [
            (m / "2_Normalize").mkdir(),
            write_json(m / "2_Normalize" / "config.json", {"module_input_name": "token_embeddings"}),
        ],
        "anything but the sentence embedding is not supported yet",
    ),
}


@pytest.mark.parametrize("feature", REFUSED)
def test_what_would_change_vectors_is_refused(model: Path, feature: str) -> None:
    change, message = REFUSED[feature]
    change(make_sentence_model(model, MEAN))
    with pytest.raises(EncoderError, match=message):
        settled(model)


PROMPTS = {"query": "query: ", "document": "doc: ", "none": ""}


def with_prompts(model: Path, default: str | None) -> Path:
    write_json(model / "config_sentence_transformers.json", {"prompts": PROMPTS, "default_prompt_name": default})
    return model


def test_the_default_prompt_is_applied_unless_another_is_asked_for(model: Path) -> None:
    with_prompts(make_sentence_model(model, MEAN), "query")
    assert settled(model)["prompt"] == "query: "
    assert settled(model, prompt_name="document") == settled(model, prompt="doc: ")
    for none in ({"prompt": ""}, {"prompt_name": "none"}):
        assert "prompt" not in settled(model, **none)
    assert settled(model, prompt={"template": "{title}: {body}"})["prompt"] == "query: "
    with pytest.raises(EncoderError, match=r"prompt_name 'passage': the prompts of the model .* 'query', 'document'"):
        settled(model, prompt_name="passage")


def test_without_a_default_no_prompt_is_applied(model: Path) -> None:
    before = settled(make_sentence_model(model, MEAN))
    for default in (None, "none", "gone"):
        assert settled(with_prompts(model, default)) == before
    assert settled(model, prompt_name="query")["prompt"] == "query: "


@pytest.fixture
def sentence_transformer() -> Any:
    import sentence_transformers  # after tiny_models has made torchvision importable

    yield sentence_transformers.SentenceTransformer
    text.release()


TEXTS = [
    "I lost my card, what now?",
    "",
    "  spaces \t and\nlines ",
    "Zażółć gęślą jaźń – 日本語のテキスト 🙂",
    "[SEP] special [CLS] tokens [MASK]",
    "word " * 400,
    "x" * 3000,
    *(f"how long does transfer number {i} take" + ", please" * (i % 7) for i in range(30)),
]


def test_minilm_is_sentence_transformers_whatever_the_batch(sentence_transformer: Any) -> None:
    expected = sentence_transformer(str(locate.packaged_minilm()), device="cpu").encode(TEXTS)
    minilm = open_encoder({"type": "minilm", "precision": "float32", "dtype": "float32"})
    payloads = [value.encode() for value in TEXTS]
    found = minilm.encode(payloads)
    assert (expected * found).sum(1).min() >= 0.99999
    alone = np.concatenate([minilm.encode([payload]) for payload in payloads[:8]])
    assert (alone * found[:8]).sum(1).min() >= 0.99999


def test_a_model_saved_by_the_installed_sentence_transformers_is_read(
    model: Path, tmp_path: Path, sentence_transformer: Any
) -> None:
    make_sentence_model(
        model, {"pooling_mode_cls_token": True}, transformer={"max_seq_length": 24, "do_lower_case": True}
    )
    theirs = sentence_transformer(str(model), device="cpu")
    theirs.save(str(tmp_path / "saved"))
    expected = theirs.encode(TEXTS)
    for directory in (model, tmp_path / "saved"):
        spec = settled(directory)
        assert (spec["reduce_output"], spec["max_sequence_length"], spec["normalize"]) == ("cls_pooled", 24, True)
        found = text.encode(spec, directory, 16, [value.encode() for value in TEXTS])
        assert (expected * found).sum(1).min() >= 0.99999


def test_do_lower_case_lowers_what_the_tokenizer_does_not(model: Path, sentence_transformer: Any) -> None:
    edit_json(model / "tokenizer.json", normalizer=None)
    make_sentence_model(model, MEAN, transformer={"max_seq_length": 24, "do_lower_case": True})
    upper, lower = text.encode(settled(model), model, 16, [b"REFUND THE CARD [SEP]", b"refund the card [SEP]"])
    np.testing.assert_allclose(upper, lower, rtol=0, atol=1e-6)
    theirs = sentence_transformer(str(model), device="cpu").encode(["REFUND THE CARD [SEP]"])
    np.testing.assert_allclose(upper, theirs[0], rtol=0, atol=1e-5)


def opened(directory: Path, **settings: Any) -> Any:
    base = {"type": "auto_transformer", "pretrained_model_name_or_path": str(directory), "precision": "float32"}
    return open_encoder({**base, "dtype": "float32", **settings})


def assert_alike(encoder: Any, expected: Any) -> None:
    """Row by row cosine 0.99999 or more, and lengths that agree."""
    found = encoder.encode([value.encode() for value in TEXTS])
    assert found.shape == expected.shape == (len(TEXTS), encoder.dim)
    lengths = np.linalg.norm(found, axis=1), np.linalg.norm(expected, axis=1)
    np.testing.assert_allclose(*lengths, rtol=1e-4)
    assert ((found * expected).sum(1) / (lengths[0] * lengths[1])).min() >= 0.99999


@pytest.mark.parametrize(
    "modes",
    [
        "cls",
        "max",
        "mean",
        "mean_sqrt_len_tokens",
        "weightedmean",
        "lasttoken",
        ["mean", "cls"],
        ["max", "weightedmean"],
    ],
    ids=str,
)
@pytest.mark.parametrize("include_prompt", [True, False])
@pytest.mark.filterwarnings("ignore")
def test_each_pooling_is_that_of_sentence_transformers(
    model: Path, sentence_transformer: Any, modes: Any, include_prompt: bool
) -> None:
    make_sentence_model(model, {"pooling_mode": modes, "include_prompt": include_prompt}, normalize=False)
    edit_json(model / "1_Pooling" / "config.json", embedding_dimension=16)
    with_prompts(model, "query")
    theirs = sentence_transformer(str(model), device="cpu")
    assert_alike(opened(model), theirs.encode(TEXTS))
    assert_alike(opened(model, prompt_name="document"), theirs.encode(TEXTS, prompt_name="document"))
    assert_alike(opened(model, prompt="Represent this: "), theirs.encode(TEXTS, prompt="Represent this: "))
    assert_alike(opened(model, prompt=""), theirs.encode(TEXTS, prompt=""))


def save_chain(theirs: Any, path: Path, *modules: Any) -> Any:
    """A model of sentence-transformers with ``modules`` after the first two of ``theirs``, saved at ``path``."""
    whole = type(theirs)(modules=[theirs[0], theirs[1], *modules], device="cpu")
    whole.save(str(path))
    return whole


@pytest.mark.filterwarnings("ignore")
def test_dense_layer_norm_and_normalize_are_those_of_sentence_transformers(
    model: Path, tmp_path: Path, sentence_transformer: Any
) -> None:
    from sentence_transformers.sentence_transformer import modules as st

    make_sentence_model(model, {"pooling_mode": ["mean", "max"]}, normalize=False)
    theirs = sentence_transformer(str(model), device="cpu")
    torch.manual_seed(2)
    norm = st.LayerNorm(8)
    torch.nn.init.normal_(norm.norm.weight)
    chains = {
        "tanh": [st.Dense(32, 8)],
        "no bias": [st.Dense(32, 8, bias=False, activation_function=torch.nn.Identity()), st.Normalize()],
        "two": [st.Dense(32, 8, activation_function=torch.nn.GELU()), norm, st.Dense(8, 4), st.Normalize()],
        "normal first": [st.Normalize(), st.Dense(32, 8, use_residual=True), st.Dropout(0.5)],
        "same width": [st.Dense(32, 32, activation_function=torch.nn.ReLU(), use_residual=True)],
    }
    fingerprints = set()
    for name, chain in chains.items():
        whole = save_chain(theirs, tmp_path / name, *chain).eval()
        encoder = opened(tmp_path / name)
        assert encoder.spec["normalize"] is isinstance(chain[-1], st.Normalize)
        assert_alike(encoder, whole.encode(TEXTS))
        fingerprints.add(keys.fingerprint(encoder.spec))
    assert len(fingerprints) == len(chains)


def test_weights_of_a_dense_are_in_the_fingerprint_and_must_be_its_weights(model: Path) -> None:
    make_dense(make_sentence_model(model, MEAN))
    before = opened(model)
    assert (before.dim, before.encode([b"a"]).shape) == (8, (1, 8))
    half = {"linear.weight": torch.ones(8, 16), "linear.bias": torch.ones(8)}
    save_file({name: weight.half() for name, weight in half.items()}, model / "2_Dense" / "model.safetensors")
    assert opened(model).encode([b"a"]).dtype == np.float32
    assert keys.fingerprint(opened(model).spec) != keys.fingerprint(before.spec)
    save_file({"dense.weight": torch.ones(8, 16)}, model / "2_Dense" / "model.safetensors")
    with pytest.raises(
        EncoderError, match=r"2_Dense/model\.safetensors does not hold the weights that its config\.json"
    ):
        opened(model).encode([b"a"])
    edit_json(model / "2_Dense" / "config.json", out_features=1 << 40)
    with pytest.raises(EncoderError, match="does not hold the weights"):
        text.encode(opened(model).spec, model, 8, [b"a"])  # and takes no room for what it says
    (model / "2_Dense" / "model.safetensors").write_bytes(b"no")
    with pytest.raises(EncoderError, match="does not hold the weights"):
        opened(model).encode([b"a"])
    text.release()


def test_a_prompt_that_fills_the_text_leaves_its_last_token_to_pool(model: Path) -> None:
    make_sentence_model(model, {"pooling_mode": "mean", "include_prompt": False}, normalize=False)
    encoder = opened(model, prompt="please refund the card that I used", max_sequence_length=4)
    assert np.isfinite(encoder.encode([b"", b"late"])).all()
    text.release()
