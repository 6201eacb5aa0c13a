"""``precision: auto``: what the store holds decides, then the hardware, then the calibration texts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cachestore import keys
from cachestore.encoders import open_encoder, precision, text, text_model, text_specs
from cachestore.keys import Fingerprint
from tests.store import tiny_models


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.save(tmp_path_factory.mktemp("models") / "bert")


@pytest.fixture(autouse=True)
def _nothing_chosen_yet() -> Iterator[None]:
    precision._chosen.clear()
    yield
    precision._chosen.clear()
    text.release()


def settled(model: Path, asked: str = "auto", known: set[Fingerprint] | None = None) -> dict[str, Any]:
    settings = {"type": "auto_transformer", "pretrained_model_name_or_path": str(model), "precision": asked}
    return dict(open_encoder(settings, known=lambda fingerprint: fingerprint in (known or set())).spec)


@pytest.fixture
def bfloat16_hardware(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "cpu_has_bfloat16", lambda: True)
    monkeypatch.setattr(text, "uses_cuda", lambda: False)


@pytest.mark.parametrize(
    ("held", "chosen"),
    [(["float32"], "float32"), (["bfloat16"], "bfloat16"), (["float32", "bfloat16"], "float32")],
    ids=str,
)
@pytest.mark.usefixtures("bfloat16_hardware")
def test_what_the_store_holds_decides(model: Path, held: list[str], chosen: str) -> None:
    known = {keys.fingerprint(settled(model, asked)) for asked in held}
    assert settled(model, known=known) == settled(model, chosen)
    assert not precision._chosen, "nothing needed calibrating"


def test_without_bfloat16_hardware_it_is_float32(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "cpu_has_bfloat16", lambda: False)
    monkeypatch.setattr(precision, "_GPU_DEVICES", ())
    assert settled(model)["precision"] == "float32"
    assert not precision._chosen


def test_a_gpu_that_torch_cannot_use_does_not_count(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "cpu_has_bfloat16", lambda: False)
    monkeypatch.setattr(precision, "_GPU_DEVICES", ("/dev/null",))
    monkeypatch.setattr(text, "uses_cuda", lambda: False)
    assert settled(model)["precision"] == "float32"


@pytest.mark.parametrize(("noise", "chosen"), [(0.0, "bfloat16"), (0.02, "bfloat16"), (0.3, "float32")], ids=str)
@pytest.mark.usefixtures("bfloat16_hardware")
def test_the_worst_calibration_text_decides(
    model: Path, monkeypatch: pytest.MonkeyPatch, noise: float, chosen: str
) -> None:
    counts: list[int] = []

    def encode(spec: Any, directory: Path, dim: int, payloads: list[bytes]) -> np.ndarray[Any, Any]:
        counts.append(len(payloads))
        vectors = np.ones((len(payloads), dim), np.float32)
        if spec["precision"] == "bfloat16":
            vectors[-1, 0] += noise * dim**0.5
        return vectors

    monkeypatch.setattr(text, "encode", encode)
    assert settled(model)["precision"] == chosen
    assert settled(model)["precision"] == chosen
    assert counts == [96, 96], "calibrated once, on the whole set"


@pytest.mark.usefixtures("bfloat16_hardware")
def test_calibration_keeps_only_the_model_it_chose(model: Path) -> None:
    chosen = settled(model)
    assert set(text_model._loaded) == {text_specs.weights_key(chosen)}


@pytest.mark.parametrize(
    ("cpuinfo", "has"),
    [
        ("processor : 0\nflags\t\t: fpu avx2 avx512_bf16 amx_tile\n", True),
        ("flags : fpu amx_bf16\n", True),
        ("Features\t: fp asimd bf16\n", True),
        ("flags : fpu avx2 avx512f\nmodel name : bf16\n", False),
        (None, False),
    ],
)
def test_cpu_flags(tmp_path: Path, cpuinfo: str | None, has: bool) -> None:
    if cpuinfo is not None:
        (tmp_path / "cpuinfo").write_text(cpuinfo)
    assert precision.cpu_has_bfloat16(tmp_path / "cpuinfo") is has


def test_min_cosine_counts_a_vector_that_is_not_one_as_zero() -> None:
    a = np.array([[1, 0], [1, 1]], np.float32)
    assert precision.min_cosine(a, np.array([[2, 0], [1, 1]], np.float32)) == pytest.approx(1)
    assert precision.min_cosine(a, np.array([[1, 0], [1, 0]], np.float32)) == pytest.approx(0.5**0.5)
    assert precision.min_cosine(a, np.array([[0, 0], [1, 1]], np.float32)) == 0
    assert precision.min_cosine(a, np.array([[np.inf, 0], [1, 1]], np.float32)) == 0
