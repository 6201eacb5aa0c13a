"""Feature hashing: the vectors of scikit-learn's HashingVectorizer, the same in every process."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.feature_extraction.text import HashingVectorizer
from sklearn.utils import murmurhash3_32

from cachestore.encoders import hashing, open_encoder
from cachestore.errors import DataError

TEXTS = [
    "The parcel arrived late, and the box was open!",
    "",
    "a",
    "Café crème: größer, naïve façade; 1234567890 !?",
    "日本語の テキスト を 分ける",
    "again again again again",
    "under_scores and-hyphens don't  split\nlines\ttabs",
    "İstanbul STRASSE ſ",
    "word " * 5000,
]


def encode(texts: list[str], **settings: Any) -> Any:
    return open_encoder({"type": "hashing", **settings}).encode([text.encode() for text in texts])


@pytest.mark.parametrize("ngrams", [(1, 1), (1, 2), (2, 3)], ids=str)
@pytest.mark.parametrize("dim", [1, 7, 256, 1024])
@pytest.mark.parametrize(("lowercase", "norm"), [(True, "l2"), (False, None)])
def test_vectors_are_those_of_scikit_learn(
    ngrams: tuple[int, int], dim: int, lowercase: bool, norm: str | None
) -> None:
    vectorizer = HashingVectorizer(
        n_features=dim, ngram_range=ngrams, alternate_sign=True, norm=norm, lowercase=lowercase
    )
    found = encode(TEXTS, dim=dim, ngram_range=list(ngrams), lowercase=lowercase, normalize=norm == "l2")
    assert (found.shape, found.dtype) == ((len(TEXTS), dim), np.float32)
    np.testing.assert_allclose(found, vectorizer.transform(TEXTS).toarray(), rtol=0, atol=1e-6)


@given(st.lists(st.binary(max_size=40), max_size=20))
def test_murmur3_is_that_of_scikit_learn(values: list[bytes]) -> None:
    expected = [murmurhash3_32(value, seed=0, positive=True) for value in values]
    assert hashing.murmur3_32(values).tolist() == expected


def test_murmur3_of_published_test_vectors() -> None:
    known = {b"": 0, b"test": 0xBA6BD213, b"Hello, world!": 0xC0363E43}
    assert dict(zip(known, hashing.murmur3_32(list(known)).tolist(), strict=True)) == known


def test_a_vector_does_not_depend_on_its_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    together = encode(TEXTS)
    np.testing.assert_array_equal(together, np.concatenate([encode([text]) for text in TEXTS]))
    np.testing.assert_array_equal(together[::-1], encode(TEXTS[::-1]))
    monkeypatch.setattr(hashing, "_ROWS_PER_BLOCK", 2)
    np.testing.assert_array_equal(together, encode(TEXTS))
    monkeypatch.setattr(hashing, "_BYTES_PER_BLOCK", 10)
    np.testing.assert_array_equal(together, encode(TEXTS))
    assert encode([]).shape == (0, 1024)


def test_vectors_are_the_same_in_every_process_and_need_no_model() -> None:
    program = """
import sys, zlib
from cachestore.encoders import open_encoder
print(zlib.crc32(open_encoder("hashing").encode([b"the parcel arrived late", b"refund"]).tobytes()))
assert not {"torch", "transformers", "sklearn"} & set(sys.modules)
"""
    sums = set()
    for seed in ("0", "1"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        ran = subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False
        )
        assert ran.returncode == 0, ran.stderr
        sums.add(ran.stdout)
    assert len(sums) == 1


def test_a_payload_that_is_not_utf8_is_a_data_error() -> None:
    with pytest.raises(DataError, match="not UTF-8"):
        open_encoder("hashing").encode([b"\xff"])
