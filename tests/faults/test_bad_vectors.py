"""B3 22: what an encoder returns is not believed. A vector that cannot be stored truthfully skips its rows and no others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from cachestore import open_store, verify
from cachestore.build import run
from cachestore.encoders import open_encoder
from cachestore.errors import EncoderError
from cachestore.fill import Limits
from cachestore.keys import fingerprint, keys
from cachestore.manifest import PRESENT, SKIPPED
from tests.faults.record import Record
from tests.store.counting import CountingEncoder

Recording = Callable[[str], Record]
TEXTS = [f"row {row}" for row in range(30)]
BAD = {3, 4, 17, 29}


class Faulty(CountingEncoder):
    """Returns what ``change`` makes of the truth."""

    def __init__(self, change: Callable[[NDArray[np.float32], Sequence[bytes]], Any], dtype: str = "float16") -> None:
        super().__init__(dtype)
        self.change = change

    def encode(self, payloads: Sequence[bytes]) -> Any:
        return self.change(super().encode(payloads).copy(), payloads)


def with_values(*values: float) -> Callable[[NDArray[np.float32], Sequence[bytes]], Any]:
    """Put values into the vectors of the bad rows."""

    def change(vectors: NDArray[np.float32], payloads: Sequence[bytes]) -> NDArray[np.float32]:
        for at, payload in enumerate(payloads):
            if int(payload.split()[1]) in BAD:
                vectors[at, : len(values)] = values
        return vectors

    return change


REFUSED = {
    "NaN": ((np.nan,), "float16", "NaN or infinity"),
    "one NaN among numbers": ((0.5, 0.5, np.nan), "float32", "NaN or infinity"),
    "infinity": ((np.inf,), "float16", "NaN or infinity"),
    "minus infinity": ((-np.inf,), "float32", "NaN or infinity"),
    "beyond float16": ((65520.0,), "float16", "exceeds float16"),
    "beyond float16, negative": ((1.0, -1e30), "float16", "exceeds float16"),
    "too small for float16": ((1e-9,) * 8, "float16", "zero in float16"),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_a_vector_that_cannot_be_stored_skips_its_rows_and_no_others(
    tmp_path: Path, record: Recording, fault: str
) -> None:
    values, dtype, why = REFUSED[fault]
    with record("22 bad vectors") as trial, open_store(tmp_path / "store") as store:
        built = run(store, {"text": TEXTS}, {"text": Faulty(with_values(*values), dtype)}, limits=Limits(window_rows=7))
        trial.trial()
        assert (built.counts.encoded, built.counts.skipped) == (len(TEXTS) - len(BAD), len(BAD))
        assert {cell.row for cell in built.skipped_cells} == BAD
        assert all(why in cell.why for cell in built.skipped_cells)
        vectors, reasons = store.column(built.manifest, "text")
        assert set(np.flatnonzero(reasons == SKIPPED)) == BAD
        truth = CountingEncoder().encode([text.encode() for text in TEXTS]).astype(vectors.dtype)
        good = reasons == PRESENT
        np.testing.assert_array_equal(vectors[good], truth[good])
        assert np.isfinite(vectors).all()
        names = keys(fingerprint(CountingEncoder(dtype).spec), [TEXTS[row].encode() for row in sorted(BAD)])
        assert store.missing([name for name in names if name is not None]) == names, "nothing is stored under its key"
        mended = run(store, {"text": TEXTS}, {"text": CountingEncoder(dtype)})
        assert (mended.counts.encoded, mended.counts.skipped) == (len(BAD), 0), "a mended encoder fills the gaps"
    assert not verify.verify(tmp_path / "store", read_data=True).damage


@pytest.mark.parametrize("value", [0.0, -0.0, 6e-8, 65504.0, -65504.0], ids=str)
def test_what_can_be_stored_is_stored_as_it_is(tmp_path: Path, value: float) -> None:
    """A vector of zeros is one: feature hashing gives it for an empty text. It is not taken for a row without a vector."""
    with open_store(tmp_path / "store") as store:
        built = run(store, {"text": TEXTS}, {"text": Faulty(with_values(*[value] * 8))})
        vectors, mask = store.vectors(built.manifest, "text")
    assert mask.all()
    assert {vectors[row].tobytes() for row in BAD} == {np.full(8, value, np.float16).tobytes()}


WRONG_SHAPES: dict[str, Callable[[NDArray[np.float32], Sequence[bytes]], Any]] = {
    "a row too few": lambda vectors, payloads: vectors[:-1],
    "a row too many": lambda vectors, payloads: np.concatenate([vectors, vectors[:1]]),
    "no rows": lambda vectors, payloads: vectors[:0],
    "a dimension too few": lambda vectors, payloads: vectors[:, :-1],
    "a dimension too many": lambda vectors, payloads: np.concatenate([vectors, vectors], axis=1),
    "flat": lambda vectors, payloads: vectors.reshape(-1),
    "tokens instead of a vector": lambda vectors, payloads: np.stack([vectors, vectors], axis=1),
    "one vector": lambda vectors, payloads: vectors[0],
    "turned around": lambda vectors, payloads: np.ascontiguousarray(vectors.T),
    "nothing": lambda vectors, payloads: None,
    "ragged lists": lambda vectors, payloads: [row[: 8 - at % 2].tolist() for at, row in enumerate(vectors)],
    "texts": lambda vectors, payloads: np.array([["a"] * 8] * len(payloads)),
    "complex numbers": lambda vectors, payloads: vectors.astype(np.complex64) + 1j,
    "objects": lambda vectors, payloads: np.array([[None] * 8] * len(payloads)),
}


@pytest.mark.parametrize("shape", WRONG_SHAPES)
def test_an_array_of_another_shape_or_kind_stores_nothing_of_its_batch(
    tmp_path: Path, record: Recording, shape: str
) -> None:
    class LaterWrong(Faulty):
        def encode(self, payloads: Sequence[bytes]) -> Any:
            return super().encode(payloads) if self.seen else CountingEncoder.encode(self, payloads)

    limits = Limits(window_rows=10, shard_rows=10)
    with record("22 bad vectors") as trial, open_store(tmp_path / "store") as store:
        with pytest.raises(EncoderError):
            run(store, {"text": TEXTS}, {"text": LaterWrong(WRONG_SHAPES[shape])}, limits=limits)
        trial.trial()
        assert [entry.rows for entry in store.index.shards().values()] == [10], "the batch before it is kept"
        encoder = CountingEncoder()
        built = run(store, {"text": TEXTS}, {"text": encoder})
        assert encoder.seen == [text.encode() for text in TEXTS[10:]]
        vectors, mask = store.vectors(built.manifest, "text")
    assert mask.all()
    np.testing.assert_array_equal(
        vectors, CountingEncoder().encode([text.encode() for text in TEXTS]).astype(vectors.dtype)
    )


GOOD_KINDS: dict[str, Callable[[NDArray[np.float32], Sequence[bytes]], Any]] = {
    "float64": lambda vectors, payloads: vectors.astype(np.float64),
    "big-endian": lambda vectors, payloads: vectors.astype(">f4"),
    "lists": lambda vectors, payloads: vectors.tolist(),
    "every second column of a wider array": lambda vectors, payloads: np.repeat(vectors, 2, axis=1)[:, ::2],
    "Fortran order": lambda vectors, payloads: np.asfortranarray(vectors),
    "read-only": lambda vectors, payloads: np.frombuffer(vectors.tobytes(), np.float32).reshape(-1, 8),
}


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("kind", GOOD_KINDS)
def test_arrays_of_every_layout_give_the_same_bytes(tmp_path: Path, kind: str, dtype: str) -> None:
    with open_store(tmp_path / "store") as store:
        found = store.embed(TEXTS, Faulty(GOOD_KINDS[kind], dtype))
    assert found.tobytes() == CountingEncoder().encode([text.encode() for text in TEXTS]).astype(dtype).tobytes()


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_an_encoder_may_use_its_buffer_again(tmp_path: Path, dtype: str) -> None:
    buffer = np.zeros((5, 8), np.dtype(dtype))

    def into_buffer(vectors: NDArray[np.float32], payloads: Sequence[bytes]) -> NDArray[Any]:
        buffer[: len(vectors)] = vectors
        return buffer[: len(vectors)]

    with open_store(tmp_path / "store") as store:
        built = run(store, {"text": TEXTS}, {"text": Faulty(into_buffer, dtype)}, limits=Limits(window_rows=5))
        vectors, _ = store.vectors(built.manifest, "text")
    np.testing.assert_array_equal(
        vectors, CountingEncoder().encode([text.encode() for text in TEXTS]).astype(vectors.dtype)
    )


def test_rows_in_another_order_are_found_by_encoding_some_again(tmp_path: Path, record: Recording) -> None:
    """Nothing in an array tells that its rows were shuffled; only the encoder can, asked again."""
    texts = [f"the parcel number {row} arrived on day {row * 7}" for row in range(40)]
    (tmp_path / "table.csv").write_text("text\n" + "\n".join(texts) + "\n")
    true = open_encoder("hashing")

    class Shuffling:
        spec, dim = true.spec, true.dim

        def encode(self, payloads: Sequence[bytes]) -> NDArray[np.float32]:
            return true.encode(payloads)[::-1]

    for encoder, wrong in ((true, False), (Shuffling(), True)):
        store = tmp_path / str(wrong)
        with record("22 bad vectors") as trial, open_store(store) as opened:
            run(opened, tmp_path / "table.csv", {"text": encoder})
            trial.trial()
        report = verify.verify(store, read_data=True, reencode=20)
        assert bool(report.damage) == wrong, report.findings
