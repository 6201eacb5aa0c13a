"""Text encoders: how they cut, batch, load and share; what their vectors are is tested in tests/conformance."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from numpy.typing import NDArray
from safetensors.torch import save_file

from cachestore import keys
from cachestore.encoders import open_encoder, text, text_model, tokens
from cachestore.encoders.batches import Budget
from cachestore.errors import DataError, EncoderError
from tests.store import tiny_models
from tests.store.tiny_models import TEXTS
from tests.training import live

PAYLOADS = [text.encode() for text in TEXTS]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The directory of a tiny model of a kind, saved once."""
    root, made = tmp_path_factory.mktemp("models"), set[str]()

    def directory(kind: str) -> Path:
        if kind not in made:
            tiny_models.save(root / kind, kind)
            made.add(kind)
        return root / kind

    return directory


@pytest.fixture(autouse=True)
def _no_shared_models() -> Any:
    yield
    text.release()


def encode(directory: Path, payloads: list[bytes], **settings: Any) -> NDArray[np.float32]:
    settings = {"precision": "float32", "dtype": "float32", "max_sequence_length": 32, **settings}
    encoder = open_encoder({"type": "auto_transformer", "pretrained_model_name_or_path": str(directory), **settings})
    return encoder.encode(payloads)


def test_many_batches_and_windows_keep_the_callers_order(
    saved: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    payloads = [PAYLOADS[i % len(PAYLOADS)] + b" %d" % i for i in range(40)]
    expected = encode(saved("bert"), payloads)
    monkeypatch.setattr(text, "_FIRST_WINDOW", 3)
    monkeypatch.setattr(text, "_WINDOW", 7)
    for most in (1, 24):
        monkeypatch.setattr(text, "_budget", lambda *_, most=most: Budget(most))
        np.testing.assert_allclose(encode(saved("bert"), payloads), expected, rtol=0, atol=1e-5)


def test_normalize_gives_unit_vectors_in_the_same_direction(saved: Callable[[str], Path]) -> None:
    plain, unit = encode(saved("bert"), PAYLOADS), encode(saved("bert"), PAYLOADS, normalize=True)
    np.testing.assert_allclose(unit, plain / np.linalg.norm(plain, axis=1, keepdims=True), rtol=0, atol=1e-6)


def test_tokens_after_max_sequence_length_change_nothing(saved: Callable[[str], Path]) -> None:
    start = "please refund the card that I used yesterday "
    short, long = encode(saved("bert"), [start.encode(), (start * 50).encode()], max_sequence_length=8)
    np.testing.assert_allclose(short, long, rtol=0, atol=1e-5)
    assert not np.allclose(*encode(saved("bert"), [start.encode(), (start * 50).encode()]), atol=1e-3)


def test_a_huge_cell_is_cut_before_it_is_tokenised(
    saved: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    original = tokens.Tokenizer._encode
    monkeypatch.setattr(
        tokens.Tokenizer, "_encode", lambda self, texts: seen.extend(map(len, texts)) or original(self, texts)
    )
    encode(saved("bert"), [b"refund " * 1_500_000])
    assert seen == [32 * 256]


def test_bfloat16_is_near_float32_and_another_fingerprint(saved: Callable[[str], Path]) -> None:
    exact = encode(saved("bert"), PAYLOADS, normalize=True)
    close = encode(saved("bert"), PAYLOADS, normalize=True, precision="bfloat16")
    assert close.dtype == np.float32
    assert 0.98 < (exact * close).sum(1).min() < 0.999999


def test_the_weights_own_dtype_does_not_decide(saved: Callable[[str], Path], tmp_path: Path) -> None:
    model = transformers.AutoModel.from_pretrained(saved("bert"), dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "half")
    for path in saved("bert").glob("tokenizer*"):
        shutil.copy(path, tmp_path / "half")
    spec = {"reduce_output": "mean", "normalize": False, "max_sequence_length": 32, "precision": "float32"}
    _, module = text.load(spec, tmp_path / "half")
    assert {weight.dtype for weight in module.parameters()} == {torch.float32}


def test_no_texts_give_no_vectors_and_load_nothing(saved: Callable[[str], Path]) -> None:
    assert encode(saved("bert"), []).shape == (0, 16)
    assert not text_model._loaded


def test_a_payload_that_is_not_utf8_is_a_data_error(saved: Callable[[str], Path]) -> None:
    with pytest.raises(DataError, match="not UTF-8"):
        encode(saved("bert"), [b"fine", b"\xff"])


def test_specs_of_the_same_weights_share_one_model(saved: Callable[[str], Path]) -> None:
    encode(saved("bert"), [b"a"], reduce_output="mean")
    encode(saved("bert"), [b"a"], reduce_output="max", max_sequence_length=8)
    assert len(text_model._loaded) == 1
    encode(saved("bert"), [b"a"], precision="bfloat16")
    assert len(text_model._loaded) == 2
    text.release()
    assert not text_model._loaded


def test_an_encoder_can_cross_processes(saved: Callable[[str], Path]) -> None:
    encoder = open_encoder(
        {"type": "auto_transformer", "pretrained_model_name_or_path": str(saved("bert")), "precision": "float32"}
    )
    expected = encoder.encode(PAYLOADS)
    again = pickle.loads(pickle.dumps(encoder))
    assert keys.fingerprint(again.spec) == keys.fingerprint(encoder.spec)
    np.testing.assert_array_equal(again.encode(PAYLOADS), expected)


def test_the_module_to_train_gives_the_vectors_of_encode(saved: Callable[[str], Path]) -> None:
    settings = {"type": "auto_transformer", "pretrained_model_name_or_path": str(saved("bert")), "precision": "float32"}
    encoder = open_encoder(settings)
    collate, module = text.load(encoder.spec, saved("bert"))
    assert module.training
    live = module.eval()(**collate(PAYLOADS))
    np.testing.assert_allclose(live.detach().numpy(), encoder.encode(PAYLOADS), rtol=0, atol=1e-5)
    live.sum().backward()
    assert all(weight.grad is not None for weight in module.parameters()), "a weight is never used"


def test_float32_stays_exact_and_the_setting_of_the_process_is_kept(saved: Callable[[str], Path]) -> None:
    torch.set_float32_matmul_precision("medium")
    try:
        loose = encode(saved("bert"), PAYLOADS)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
    np.testing.assert_array_equal(loose, encode(saved("bert"), PAYLOADS))


def test_missing_weights_are_an_error_not_random_values(saved: Callable[[str], Path], tmp_path: Path) -> None:
    directory = Path(shutil.copytree(saved("bert"), tmp_path / "cut"))
    tiny_models.edit_json(directory / "config.json", num_hidden_layers=3)
    with pytest.raises(EncoderError, match=r"lacks weights .*encoder\.layer\.2"):
        encode(directory, [b"a"])


def test_a_model_that_is_replaced_before_it_is_loaded_is_not_taken_for_the_one_that_was_opened(tmp_path: Path) -> None:
    directory = tiny_models.save(tmp_path / "model")
    settings = {"type": "auto_transformer", "pretrained_model_name_or_path": str(directory), "precision": "float32"}
    for change in (
        lambda: tiny_models.save(directory, seed=1),
        lambda: tiny_models.edit_json(directory / "config.json", hidden_act="relu"),
        lambda: tiny_models.edit_json(directory / "tokenizer.json", normalizer=None),
    ):
        text.release()
        encoder = open_encoder(settings)
        change()
        with pytest.raises(EncoderError, match="was changed while it was in use"):
            encoder.encode(PAYLOADS)
        assert open_encoder(settings).encode(PAYLOADS).any()


def test_layers_after_the_pooling_are_those_that_were_opened(tmp_path: Path) -> None:
    directory = live.with_layers_after_pooling(tiny_models.save(tmp_path / "model"))
    settings = {"type": "auto_transformer", "pretrained_model_name_or_path": str(directory), "precision": "float32"}
    encoder = open_encoder(settings)
    encoder.encode(PAYLOADS)
    save_file(
        {"linear.weight": torch.ones(8, 16), "linear.bias": torch.ones(8)}, directory / "2_Dense" / "model.safetensors"
    )
    with pytest.raises(EncoderError, match="was changed while it was in use"):
        encoder.encode(PAYLOADS)


def test_damaged_weights_are_an_encoder_error(saved: Callable[[str], Path], tmp_path: Path) -> None:
    directory = Path(shutil.copytree(saved("bert"), tmp_path / "damaged"))
    (directory / "model.safetensors").write_bytes(b"\x10" * 1000)
    with pytest.raises(EncoderError, match="cannot be loaded as a transformers model"):
        encode(directory, [b"a"])


def test_a_width_other_than_the_configs_is_an_error(saved: Callable[[str], Path]) -> None:
    encoder = open_encoder({"type": "auto_transformer", "pretrained_model_name_or_path": str(saved("bert"))})
    with pytest.raises(EncoderError, match=r"config\.json says vectors of 8 values, the model gives 16"):
        text.encode({**encoder.spec, "precision": "float32"}, saved("bert"), 8, [b"a"])


def test_a_length_of_special_tokens_only_is_refused(saved: Callable[[str], Path]) -> None:
    with pytest.raises(EncoderError, match=r"max_sequence_length 2 leaves no room .* Set it to 3 or more"):
        encode(saved("bert"), [b"a"], max_sequence_length=2)


def test_loading_says_nothing(saved: Callable[[str], Path], capfd: pytest.CaptureFixture[str]) -> None:
    directory = saved("gpt2")
    capfd.readouterr()  # what making the model said
    encode(directory, [b"a"])
    assert capfd.readouterr() == ("", "")


def test_a_gpu_without_room_gets_smaller_batches() -> None:
    texts = [np.full((1, 2), i) for i in range(7)]
    budget = Budget(100)

    def forward(part: Any) -> list[torch.Tensor]:
        if len(part) > 2:
            raise torch.OutOfMemoryError("no room")
        return [torch.tensor([[float(ids[0, 0])] for ids in part]), torch.zeros(len(part), 3)]

    first, second = text._within_memory(forward, texts, budget)
    assert (first.flatten().tolist(), second.shape) == (list(range(7)), (7, 3))
    assert budget.tokens <= 7, "later batches are smaller from the start"
    assert not budget.measuring

    def full(part: Any) -> list[torch.Tensor]:
        raise torch.OutOfMemoryError("no room")

    with pytest.raises(EncoderError, match="no room for one text of 2 tokens"):
        text._within_memory(full, texts, budget)


# -- several encoders in one pass --------------------------------------------------------------------------------------


def specs_of(directory: Path, *settings: dict[str, Any]) -> list[Any]:
    base = {"type": "auto_transformer", "pretrained_model_name_or_path": str(directory), "precision": "float32"}
    return [open_encoder({**base, "max_sequence_length": 32, **each}).spec for each in settings]


def test_encoders_that_share_weights_take_one_forward_per_distinct_text(
    saved: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = [{"reduce_output": "mean"}, {"reduce_output": "max", "normalize": True}, {"dtype": "float32"}]
    specs = specs_of(saved("bert"), *settings)
    alone = [text.encode(spec, saved("bert"), 16, PAYLOADS) for spec in specs]
    seen: list[int] = []
    original = text._forward
    monkeypatch.setattr(text, "_forward", lambda *args: seen.append(len(args[-1])) or original(*args))
    together = text.encode_many(specs, saved("bert"), [16] * 3, [*PAYLOADS, *PAYLOADS[::-1]])
    assert sum(seen) == len(PAYLOADS)
    for found, expected in zip(together, alone, strict=True):
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, np.concatenate([expected, expected[::-1]]), rtol=0, atol=1e-5)


def test_specs_share_a_forward_unless_model_tokens_or_precision_differ(saved: Callable[[str], Path]) -> None:
    base, *same = specs_of(saved("bert"), {}, {"reduce_output": "max"}, {"normalize": True}, {"dtype": "float32"})
    assert {text.share_key(spec) for spec in same} == {text.share_key(base)}
    others = specs_of(saved("bert"), {"max_sequence_length": 31}, {"precision": "bfloat16"})
    assert text.share_key(base) not in {text.share_key(spec) for spec in others}
    with pytest.raises(ValueError, match="one share_key"):
        text.encode_many([base, *others], saved("bert"), [16] * 3, PAYLOADS)
    assert [array.shape for array in text.encode_many([base, *same], saved("bert"), [16] * 4, [])] == [(0, 16)] * 4
