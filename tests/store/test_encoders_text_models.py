"""Text encoders by architecture: hidden layers, encoders of encoder and decoder models, prompts, and batches by measuring."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from numpy.typing import NDArray

from cachestore import keys
from cachestore.encoders import Encoder, open_encoder, text
from cachestore.encoders.batches import Budget, batches, windows
from cachestore.errors import ConfigError, EncoderError
from tests.store import tiny_models
from tests.store.tiny_models import TEXTS, edit_json

PAYLOADS = [value.encode() for value in TEXTS]
LENGTH = 32


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(autouse=True)
def _no_shared_models() -> Iterator[None]:
    yield
    text.release()


def saved(models: Path, kind: str) -> Path:
    """The directory of a tiny model of a kind, saved once."""
    return models / kind if (models / kind).exists() else tiny_models.save(models / kind, kind)


def opened(directory: Path, **settings: Any) -> Any:
    base = {"type": "auto_transformer", "pretrained_model_name_or_path": str(directory), "max_sequence_length": LENGTH}
    return open_encoder({**base, "precision": "float32", "dtype": "float32", **settings})


def all_hidden_states(directory: Path) -> list[list[NDArray[np.float32]]]:
    """By layer and by text the states (tokens, width), by transformers alone, one text at a time."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    model = transformers.AutoModel.from_pretrained(directory, dtype=torch.float32).eval()
    model = model.get_encoder() if model.config.is_encoder_decoder else model
    found = []
    for value in TEXTS:
        inputs = dict(tokenizer(value, truncation=True, max_length=LENGTH, return_tensors="pt"))
        if not inputs["input_ids"].numel():
            inputs = {"input_ids": torch.tensor([[tokenizer.eos_token_id]])}
        with torch.no_grad():
            output = model(**inputs, output_hidden_states=True)
        states = [*output.hidden_states[:-1], output.last_hidden_state]
        found.append([layer[0].numpy() for layer in states])
    return [list(layer) for layer in zip(*found, strict=True)]


def assert_alike(found: NDArray[Any], expected: NDArray[Any]) -> None:
    assert found.shape == expected.shape
    lengths = np.linalg.norm(found, axis=1) * np.linalg.norm(expected, axis=1)
    assert ((found * expected).sum(1) / lengths).min() >= 0.99999
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


# -- layers ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", tiny_models._SIZES)
def test_every_layer_is_that_of_an_unpadded_forward(models: Path, kind: str) -> None:
    layers = all_hidden_states(saved(models, kind))
    for at, states in enumerate(layers):
        expected = np.stack([state.mean(0) for state in states])
        encoder = opened(models / kind, layer=at, reduce_output="mean")
        assert encoder.dim == expected.shape[1]
        assert_alike(encoder.encode(PAYLOADS), expected)
        assert opened(models / kind, layer=at - len(layers), reduce_output="mean").spec == encoder.spec


def test_only_another_layer_than_the_last_is_in_the_fingerprint(models: Path) -> None:
    bert = saved(models, "bert")
    found = {layer: keys.fingerprint(opened(bert, layer=layer).spec) for layer in (None, -1, 2, 1, -2, 0)}
    assert found[None] == found[-1] == found[2]
    assert found[1] == found[-2]
    assert len(set(found.values())) == 3
    for layer in (3, -4):
        with pytest.raises(
            EncoderError, match=rf"layer {layer} is not one of .* it has 0 \(its embeddings\) to 2, or -1"
        ):
            opened(bert, layer=layer)


def test_a_config_without_its_number_of_layers_is_asked_for_none(models: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(saved(models, "bert"), tmp_path / "model"))
    edit_json(model / "config.json", num_hidden_layers=None)
    assert "layer" not in opened(model, layer=-1).spec
    with pytest.raises(EncoderError, match=r"does not say how many layers there are .* Leave layer unset"):
        opened(model, layer=1)


def test_layers_share_a_forward_and_only_they_ask_for_hidden_states(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoders = [opened(saved(models, "bert"), layer=layer) for layer in (-1, 0, 1)]
    alone = [encoder.encode(PAYLOADS) for encoder in encoders]
    asked: list[bool] = []
    original = transformers.BertModel.forward

    def forward(self: Any, **inputs: Any) -> Any:
        asked.append("output_hidden_states" in inputs)
        return original(self, **inputs)

    monkeypatch.setattr(transformers.BertModel, "forward", forward)
    together = text.encode_many([e.spec for e in encoders], models / "bert", [16] * 3, PAYLOADS)
    assert asked == [True]
    for found, expected in zip(together, alone, strict=True):
        assert_alike(found, expected)
    encoders[0].encode(PAYLOADS)
    assert asked == [True, False]


# -- architectures -----------------------------------------------------------------------------------------------------


def test_an_encoder_of_speech_is_refused(models: Path, tmp_path: Path) -> None:
    directory = Path(shutil.copytree(saved(models, "bert"), tmp_path / "whisper"))
    sizes = dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads", "num_mel_bins"), 2)
    config = transformers.AutoConfig.for_model(
        "whisper", d_model=16, encoder_layers=1, decoder_layers=1, vocab_size=8, pad_token_id=0, **sizes
    )
    transformers.AutoModel.from_config(config).save_pretrained(directory)
    with pytest.raises(EncoderError, match="models of type 'whisper' do not encode texts"):
        opened(directory).encode([b"a"])


def test_a_model_of_fewer_states_than_tokens_is_refused(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = transformers.BertModel.forward

    def half(self: Any, **inputs: Any) -> Any:
        output = original(self, **inputs)
        output.last_hidden_state = output.last_hidden_state[:, ::2]
        return output

    monkeypatch.setattr(transformers.BertModel, "forward", half)
    with pytest.raises(EncoderError, match=r"'bert' are not supported as text encoders: for \d+ tokens they give \d+"):
        opened(saved(models, "bert")).encode([b"how long does a transfer take"])


def test_encoding_says_nothing(models: Path, capfd: pytest.CaptureFixture[str]) -> None:
    encoder = opened(saved(models, "longformer"))
    capfd.readouterr()
    encoder.encode(PAYLOADS)
    assert capfd.readouterr() == ("", "")


# -- prompts -----------------------------------------------------------------------------------------------------------


def test_a_prompt_stands_before_every_text(models: Path) -> None:
    bert = saved(models, "bert")
    found = opened(bert, prompt="query: ").encode(PAYLOADS)
    assert_alike(found, opened(bert).encode([b"query: " + payload for payload in PAYLOADS]))
    assert text.share_key(opened(bert, prompt="query: ").spec) != text.share_key(opened(bert).spec)
    assert opened(bert, prompt="").spec == opened(bert).spec


def test_a_prompt_counts_in_the_length(models: Path) -> None:
    found = opened(saved(models, "bert"), prompt="refund the card ", max_sequence_length=5).encode([b"late", b"open"])
    np.testing.assert_allclose(found[0], found[1], rtol=0, atol=1e-6)


def test_a_template_is_no_part_of_the_spec(models: Path) -> None:
    bert = saved(models, "bert")
    settings = {"type": "bert", "pretrained_model_name_or_path": str(bert), "prompt": {"template": "{a}: {b c} {a}"}}
    assert opened(bert, prompt=settings["prompt"]).spec == opened(bert).spec
    parsed: Any = open_settings(settings)
    assert (parsed.prompt_template, parsed.template_columns) == ("{a}: {b c} {a}", ("a", "b c"))
    plain: Any = open_settings({**settings, "prompt": "query: {a}"})
    assert (plain.prompt_template, plain.template_columns) == (None, ())


def open_settings(settings: dict[str, Any]) -> Any:
    from cachestore.encoders import parse_settings

    return parse_settings(settings)


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({"prompt": {"template": "no column"}}, "encoder.prompt: it names no column; write one in braces"),
        ({"prompt": {"template": "{} and {a}"}}, "encoder.prompt: {} names no column"),
        ({"prompt": {"template": "{a"}}, "write {{ and }} for braces that are text"),
        ({"prompt": {"template": "{a:>3}"}}, "encoder.prompt: {a} is followed by a format"),
        ({"prompt": {"template": "{a!r}"}}, "encoder.prompt: {a} is followed by a format"),
        ({"prompt": {"template": 3}}, "encoder.prompt: template must be a text"),
        ({"prompt": {"templat": "{a}"}}, "encoder.prompt: unknown key 'templat'; the only one is template"),
        ({"prompt": 3}, "encoder.prompt: must be a text that stands before each cell, or {template: …}, not int"),
        ({"prompt": "a", "prompt_name": "b"}, "encoder: prompt and prompt_name are two ways"),
        ({"layer": "last"}, "encoder.layer: "),
        ({"batch_tokens": 0}, "encoder.batch_tokens: "),
        ({"reduce_output": "mean+median"}, "encoder.reduce_output: 'mean+median' is not a pooling"),
    ],
    ids=str,
)
def test_faulty_settings_say_what_is_wrong(settings: dict[str, Any], fault: str) -> None:
    with pytest.raises(ConfigError) as caught:
        open_settings({"type": "bert", **settings})
    assert fault in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_poolings_are_joined_in_the_order_asked(models: Path) -> None:
    joined = opened(saved(models, "bert"), reduce_output="cls_pooled+avg", normalize=True)
    assert (joined.dim, joined.spec["reduce_output"]) == (32, "cls_pooled+mean")
    parts = [opened(models / "bert", reduce_output=how).encode(PAYLOADS) for how in ("cls_pooled", "mean")]
    expected = np.concatenate(parts, axis=1)
    assert_alike(joined.encode(PAYLOADS), expected / np.linalg.norm(expected, axis=1, keepdims=True))


# -- batches -----------------------------------------------------------------------------------------------------------


def measure(speeds: dict[int, float], default: int, **options: Any) -> tuple[Budget, list[int]]:
    """A budget after as many batches as it asks for, where each size does that many tokens a second."""
    budget, used = Budget(default, **options), list[int]()
    while budget.measuring:
        used.append(budget.tokens)
        budget.took(budget.tokens, budget.tokens / speeds[budget.tokens])
        assert len(used) < 100
    return budget, used


def test_the_fastest_budget_is_kept_and_the_default_unless_it_is_clearly_slower() -> None:
    assert measure({32: 10, 64: 10, 128: 20}, 64)[0].tokens == 128
    assert measure({32: 20, 64: 10, 128: 10}, 64)[0].tokens == 32
    assert measure({32: 10.4, 64: 10, 128: 10.4}, 64)[0].tokens == 64


def test_each_budget_is_timed_as_often_and_the_first_batch_is_not_counted() -> None:
    _, used = measure({32: 1, 64: 1, 128: 1}, 64)
    assert used[0] == 64
    assert {size: used[1:].count(size) for size in (32, 64, 128)} == {32: 4, 64: 4, 128: 4}


def test_a_budget_is_bounded_by_memory_and_one_that_is_given_is_not_measured() -> None:
    assert 128 not in measure({32: 1, 64: 1}, 64, most=100)[1]
    assert measure({25: 1, 50: 1}, 64, most=50)[0].tokens == 50
    fixed = Budget(7, fixed=True)
    assert (fixed.tokens, fixed.measuring) == (7, False)


def test_what_had_no_room_is_halved_and_not_tried_again() -> None:
    budget = Budget(64)
    budget.too_much(128)
    assert (budget.tokens, budget.measuring) == (64, False)
    budget.too_much(40)
    assert budget.tokens == 20


def test_a_few_texts_are_not_measured_on_so_that_they_come_out_the_same_to_the_bit() -> None:
    budget = Budget(64)
    assert budget.on(4 * 64) is budget
    assert (budget.on(4 * 64 - 1).tokens, budget.on(4 * 64 - 1).measuring) == (64, False)
    measured = measure({32: 1, 64: 1, 128: 2}, 64)[0]
    assert measured.on(1).tokens == 128


def test_batches_hold_every_row_once_longest_first_and_within_the_budget() -> None:
    lengths = [3, 9, 1, 9, 4, 100, 2]
    found = list(batches(lengths, Budget(18, fixed=True)))
    assert sorted(row for rows in found for row in rows) == list(range(7))
    assert found[0] == [5], "a text longer than the budget goes alone"
    assert all(max(lengths[row] for row in rows) * len(rows) <= 18 for rows in found[1:])


@pytest.mark.parametrize("rows", [1, 3, 6, 7, 8, 20, 21])
def test_windows_cover_every_row_once(rows: int) -> None:
    found = windows(rows, 3, 7)
    assert [row for start, end in found for row in range(start, end)] == list(range(rows))
    assert max(end - start for start, end in found) <= 7


def test_a_budget_is_measured_once_per_model_and_changes_no_vector(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text._budgets.clear()
    payloads = [payload + b" %d" % i for i in range(60) for payload in PAYLOADS]
    encoder: Encoder = opened(saved(models, "bert"))
    assert opened(models / "bert", batch_tokens=64).spec == encoder.spec
    monkeypatch.setattr(text, "_CPU_TOKENS", 32)
    first = encoder.encode(payloads)
    (budget,) = text._budgets.values()
    assert not budget.measuring
    assert_alike(np.asarray(encoder.encode(payloads)), np.asarray(first))
    assert list(text._budgets.values()) == [budget]
    given = text.encode(encoder.spec, models / "bert", 16, payloads, batch_tokens=500)
    assert_alike(given, np.asarray(first))
    text._budgets.clear()


def test_the_next_window_is_tokenised_while_one_is_encoded(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model waits for the second window's tokens: it would for ever if they were made afterwards."""
    started = threading.Event()
    original = text._forward
    tokens = text.text_model.Tokenizer.tokens
    calls: list[int] = []

    def tokenise(self: Any, payloads: Any) -> Any:
        calls.append(len(payloads))
        if len(calls) == 2:
            started.set()
        return tokens(self, payloads)

    def forward(*args: Any) -> Any:
        assert started.wait(20)
        return original(*args)

    monkeypatch.setattr(text.text_model.Tokenizer, "tokens", tokenise)
    monkeypatch.setattr(text, "_forward", forward)
    monkeypatch.setattr(text, "_WINDOW", 3)
    opened(saved(models, "bert")).encode(PAYLOADS)
    assert calls == [3, 3]
