"""What every encoder promises of its vectors: the reference's, of the payload alone, finite, in order, the same again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from cachestore import open_store
from cachestore.build import run
from cachestore.encoders import image, open_encoder, text
from cachestore.errors import EncoderError
from tests.conformance import references, specs, vision
from tests.conformance.specs import Case


def cosines(found: NDArray[Any], expected: NDArray[Any]) -> NDArray[np.float64]:
    """Of each row (n,); 1 where both are zero."""
    found, expected = found.astype(np.float64), expected.astype(np.float64)
    lengths = np.linalg.norm(found, axis=1) * np.linalg.norm(expected, axis=1)
    both_zero = ~found.any(axis=1) & ~expected.any(axis=1)
    return np.where(both_zero, 1.0, (found * expected).sum(axis=1) / np.where(lengths == 0, 1.0, lengths))


def assert_agree(found: NDArray[Any], expected: NDArray[Any]) -> None:
    """The same directions to 1e-5 and the same values to 1e-4 of the largest of their row."""
    assert found.shape == expected.shape
    assert cosines(found, expected).min() >= 0.99999
    scale = np.abs(expected).max(axis=1, keepdims=True)
    assert (np.abs(found - expected) <= 1e-4 * scale + 1e-7).all()


def test_vectors_are_those_of_the_reference(case: Case) -> None:
    assert_agree(case.encode(case.payloads), case.reference(case.payloads))


@pytest.mark.parametrize("pooling", references.POOLED)
@pytest.mark.parametrize("kind", specs.TEXT_KINDS)
def test_each_pooling_is_that_of_an_unpadded_forward(folder: Path, kind: str, pooling: str) -> None:
    case = specs.text(folder, kind, pooling)
    assert_agree(case.encode(case.payloads), case.reference(case.payloads))


@pytest.mark.parametrize(("kind", "pooling"), vision.POOLINGS)
def test_each_pooling_of_an_image_is_that_of_plain_transformers(folder: Path, kind: str, pooling: str) -> None:
    case = specs.tower(folder, kind, pooling)
    assert_agree(case.encode(case.payloads), case.reference(case.payloads))


def test_a_vector_depends_on_its_own_payload_alone(case: Case) -> None:
    together = case.encode(case.payloads)
    assert_agree(np.concatenate([case.encode([payload]) for payload in case.payloads]), together)

    order = np.random.default_rng(0).permutation(len(case.payloads))
    assert_agree(case.encode([case.payloads[row] for row in order]), together[order])

    among_long = [payload for row in case.payloads for payload in (*case.long, row)]
    assert_agree(case.encode(among_long)[len(case.long) :: len(case.long) + 1], together)

    repeated = case.encode(case.payloads * 3)
    assert_agree(repeated, np.tile(together, (3, 1)))


def test_the_same_again_is_the_same_to_the_bit(case: Case) -> None:
    first = case.encode(case.payloads)
    text.release()
    image.release()
    np.testing.assert_array_equal(case.encode(case.payloads), first)


def test_vectors_are_finite_numbers_of_the_length_promised(case: Case) -> None:
    vectors = case.encode(case.payloads)
    assert vectors.shape == (len(case.payloads), case.open("float32").dim)
    assert vectors.dtype == np.float32
    assert np.isfinite(vectors).all()
    empty = case.encode([])
    assert (empty.shape, empty.dtype) == ((0, vectors.shape[1]), np.float32)


def test_what_is_stored_is_what_was_computed_in_the_order_of_the_rows(case: Case, tmp_path: Path) -> None:
    computed = case.encode(case.payloads)
    order = np.random.default_rng(1).permutation(len(case.payloads))
    # a column is read for its encoder: cells as text, pictures as the bytes of their files
    pictures = getattr(case.open("float32"), "payload", "text") == "image"
    cells = np.array([payload if pictures else payload.decode() for payload in case.payloads], object)
    with open_store(tmp_path / "store") as store:
        exact = run(store, {"text": cells[order].tolist()}, {"text": case.open("float32")})
        assert (exact.counts.skipped, exact.counts.duplicates) == (0, 1)
        assert_agree(store.vectors(exact.manifest, "text")[0], computed[order])

        rounded = run(store, {"text": cells.tolist()}, {"text": case.open("float16")})
        assert rounded.counts.skipped == 0
        stored, mask = store.vectors(rounded.manifest, "text")
        assert mask.all()
        assert stored.dtype == np.float16
        assert_rounded(stored, computed)


def assert_rounded(stored: NDArray[Any], computed: NDArray[Any]) -> None:
    """float16 keeps 11 bits of a value, and multiples of 2^-24 of one below 2^-14; nothing else is lost."""
    errors = np.linalg.norm(stored.astype(np.float64) - computed, axis=1)
    lengths = np.linalg.norm(computed.astype(np.float64), axis=1)
    # 1e-5: two runs of one model in batches of other widths
    assert (errors <= (2**-11 + 1e-5) * lengths + computed.shape[1] ** 0.5 * 2**-25).all()
    assert cosines(stored, computed).min() >= 0.999999


@pytest.mark.parametrize("scale", [2.0**-14, 1e-3, 1.0, 100.0, 60000.0])
def test_float16_keeps_values_of_every_normal_size(tmp_path: Path, scale: float) -> None:
    signs = np.random.default_rng(2).choice([-1.0, 1.0], (200, 32))
    values = (np.random.default_rng(3).uniform(1.0, 1.09, (200, 32)) * signs * scale).astype(np.float32)

    class Known:
        spec = {"kind": "known", "dtype": "float16"}  # noqa: RUF012
        dim = 32

        def encode(self, payloads: Any) -> NDArray[np.float32]:
            return values[[int(payload) for payload in payloads]]

    with open_store(tmp_path / "store") as store:
        stored = store.embed([str(row) for row in range(200)], Known())
    assert (np.abs(stored - values.astype(np.float64)) <= 2**-11 * np.abs(values)).all()
    assert_rounded(stored, values)


def test_imported_vectors_are_refused_an_encoding(tmp_path: Path) -> None:
    imported = open_encoder({"type": "imported", "spec": {"model": "api", "dim": 4}})
    assert np.asarray(imported.encode([])).shape == (0, 4)
    with open_store(tmp_path / "store") as store, pytest.raises(EncoderError, match=r"no imported vector .*\(api\)"):
        run(store, {"text": ["a"]}, {"text": imported})
