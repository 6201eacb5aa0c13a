"""Directories of sentence-transformers: what their files settle, in the old spelling and the new, and what is refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cachestore.encoders import locate, open_encoder, text
from cachestore.errors import EncoderError
from tests.store import tiny_models
from tests.store.tiny_models import edit_json, make_sentence_model, write_json

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
    ],
    ids=str,
)
def test_pooling_is_read_in_both_spellings(model: Path, config: dict[str, Any], pooling: str) -> None:
    assert settled(make_sentence_model(model, config))["reduce_output"] == pooling


@pytest.mark.parametrize(
    "config",
    [
        {"pooling_mode_mean_sqrt_len_tokens": True},
        {"pooling_mode": "weightedmean"},
        {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True},
        {"pooling_mode": ["cls", "mean"]},
    ],
    ids=str,
)
def test_other_poolings_are_refused_unless_one_is_asked_for(model: Path, config: dict[str, Any]) -> None:
    make_sentence_model(model, config)
    with pytest.raises(EncoderError, match=r"1_Pooling/config\.json: pooling .* is not supported yet"):
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
    "dense": (_modules("Transformer", "Pooling", "Dense"), "Transformer, Pooling, Dense are not supported yet"),
    "layer norm": (_modules("Transformer", "Pooling", "LayerNorm"), "LayerNorm are not supported yet"),
    "static": (_modules("StaticEmbedding"), "StaticEmbedding are not supported yet"),
    "own code": (_modules("Transformer", prefix="custom_st."), "'custom_st.Transformer' is code of the model's own"),
    "not a list": (lambda m: write_json(m / "modules.json", {}), "not supported yet"),
    "outside": (
        lambda m: write_json(
            m / "modules.json", [{"type": "sentence_transformers.models.Transformer", "path": "../x"}]
        ),
        "does not lie in that directory",
    ),
    "prompt": (
        lambda m: write_json(
            m / "config_sentence_transformers.json", {"prompts": {"q": "query: "}, "default_prompt_name": "q"}
        ),
        r"a default prompt \('query: '\) is not supported yet",
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


def test_prompts_that_are_empty_or_not_the_default_are_no_matter(model: Path) -> None:
    make_sentence_model(model, MEAN)
    prompts = {"query": "", "document": "doc: "}
    for default in (None, "query"):
        write_json(model / "config_sentence_transformers.json", {"prompts": prompts, "default_prompt_name": default})
        assert settled(model)["reduce_output"] == "mean"


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
