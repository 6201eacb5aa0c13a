"""Identity: injective, exact, and the same in every process."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachestore.keys import Fingerprint, canonical, fingerprint, key, keys, prefixes

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner, max_size=4)
    ),
    max_leaves=12,
)


def same(left: object, right: object) -> bool:
    """Equality that tells 1 from True and 1.0, and 0.0 from -0.0, as an identity must."""
    if type(left) is not type(right):
        return False
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(same(left[name], right[name]) for name in left)
    if isinstance(left, float) and isinstance(right, float):
        return left == right and math.copysign(1, left) == math.copysign(1, right)
    return left == right


@given(json_values, json_values)
def test_different_values_never_have_the_same_encoding(left, right):
    assert (canonical(left) == canonical(right)) == same(left, right)


@pytest.mark.parametrize(
    ("left", "right"),
    [(["ab"], ["a", "b"]), ({"a": "b"}, {"ab": ""}), (1, True), (1, 1.0), ("1", 1), (None, ""), ([], {})],
)
def test_values_that_a_join_would_confuse_differ(left, right):
    assert canonical(left) != canonical(right)


def test_a_mapping_has_one_encoding_whatever_its_order():
    assert canonical({"a": 1, "b": [2.5, None]}) == canonical({"b": [2.5, None], "a": 1})


@pytest.mark.parametrize("value", [b"bytes", float("nan"), {1: 2}, {"a": object()}, {"a": {2}}])
def test_what_json_lacks_is_refused(value):
    with pytest.raises(TypeError):
        canonical(value)


def test_keys_agree_with_key_and_pass_none_through():
    encoder = fingerprint({"kind": "test"})
    payloads = [b"a", None, b"", "ä".encode()]
    assert keys(encoder, payloads) == [None if payload is None else key(encoder, payload) for payload in payloads]


def test_golden_identities_do_not_move():
    """Keys written by this version are looked up by later ones: if this fails, every store in the field misses."""
    encoder = fingerprint(
        {"type": "hashing", "dim": 256, "ngram_range": [1, 2], "scale": 0.5, "lowercase": True, "prompt": None}
    )
    assert encoder.hex() == "053f217085de7097e01506a42b70325eecd6a8fcfba9a7bf23720849e10bb1b2"
    assert (
        key(encoder, "naïve café".encode()).hex() == "e18866be2b511e2cb6425bb57da85d10085f3be738a1f4d1dee4f62349297112"
    )
    assert key(Fingerprint(bytes(32)), b"") != key(encoder, b"")


def test_prefixes_order_as_the_keys_do():
    rng = np.random.default_rng(0)
    found = np.sort(np.frombuffer(rng.bytes(32 * 200), "V32").view("S32")).view("V32")
    starts = prefixes(found)
    assert starts.dtype == np.uint64
    assert [int(start) for start in starts] == [int.from_bytes(key[:8], "big") for key in found.tolist()]
    assert (np.diff(starts.astype(object)) >= 0).all()
    assert len(prefixes(found[:0])) == 0
