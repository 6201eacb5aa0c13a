"""Diff: rows by their keys and order, encoders setting by setting."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import cachestore
from cachestore.diff import diff, spec_changes
from cachestore.errors import DamageError
from cachestore.matching import match
from tests.store.counting import CountingEncoder


@pytest.fixture
def store(tmp_path):
    with cachestore.open_store(tmp_path / "store") as opened:
        yield opened


def found(store, old, new, encoder=None):
    encoder = encoder or CountingEncoder()
    before, after = (cachestore.build(store, {"text": texts}, {"text": encoder}) for texts in (old, new))
    return diff(store.root, before, after).rows


def codes(values):
    return np.array(values, np.uint64)


def common(old, new):
    """Length of a longest common subsequence."""
    lengths = [0] * (len(new) + 1)
    for item in old:
        before = 0
        for at, other in enumerate(new, start=1):
            before, lengths[at] = lengths[at], before + 1 if item == other else max(lengths[at], lengths[at - 1])
    return lengths[-1]


def test_rows_appended_removed_changed_and_moved_are_told_apart(store):
    old = [f"text {number}" for number in range(20)]
    rows = found(store, old, [*old, "new", "newer"])
    assert (rows.kept, rows.added.tolist()) == (20, [20, 21])
    rows = found(store, old, old[:7] + old[9:])
    assert (rows.kept, rows.removed.tolist(), len(rows.added)) == (18, [7, 8], 0)
    rows = found(store, old, [*old[:3], "other", *old[4:]])
    assert (rows.kept, rows.changed.tolist(), len(rows.removed)) == (19, [[3, 3]], 0)
    rows = found(store, old, [old[15], *old[:15], *old[16:]])
    assert (rows.kept, rows.moved.tolist(), len(rows.changed)) == (19, [[15, 0]], 0)
    rows = found(store, old, ["first", *old[:5], "a", "b", *old[7:12], *old[13:]])
    assert (rows.added.tolist(), rows.changed.tolist(), rows.removed.tolist()) == ([0], [[5, 6], [6, 7]], [12])
    assert rows.kept == 17


def test_rows_without_a_text_are_rows_and_missing_is_not_empty(store):
    rows = found(store, ["a", None, "", None], ["a", None, None, None])
    assert (rows.kept, rows.changed.tolist()) == (3, [[2, 2]])


def test_a_text_that_repeats_is_changed_in_its_place_not_moved_to_another(store):
    old = [None if number in (3, 90) else f"text {number}" for number in range(100)]
    new = [None if number in (40, 90) else f"text {number}" for number in range(100)]
    rows = found(store, old, new)
    assert (rows.kept, rows.changed.tolist(), len(rows.moved)) == (98, [[3, 3], [40, 40]], 0)


def test_versions_that_share_chunks_are_compared_after_them(store, monkeypatch):
    monkeypatch.setattr(sys.modules["cachestore.build"], "CHUNK_ROWS", 4)  # the package has a function of that name
    old = [f"text {number}" for number in range(18)]
    before = cachestore.build(store, {"text": old}, {"text": CountingEncoder()})
    after = cachestore.build(store, {"text": [*old[:9], *old[10:], "new"]}, {"text": CountingEncoder()})
    assert before.chunks[:2] == after.chunks[:2] != before.chunks[1:3]
    # what both share is not even read
    for path in (store.root / "chunks").rglob(f"{before.chunks[0][0]}.arrow"):
        path.unlink()
    rows = diff(store.root, before, after).rows
    assert (rows.kept, rows.removed.tolist(), rows.added.tolist()) == (17, [9], [17])
    for path in (store.root / "chunks").rglob(f"{before.chunks[2][0]}.arrow"):
        path.unlink()
    with pytest.raises(DamageError, match="gone"):
        diff(store.root, before, after)


def test_columns_and_encoders_are_compared_and_rows_by_what_both_share(store):
    old = {"title": ["a", "b"], "text": ["c", "d"], "gone": ["x", "x"]}
    new = {"title": ["a", "b"], "text": ["e", "e"], "fresh": ["x", "x"]}
    plain, other = CountingEncoder(pool={"kind": "mean"}, layer=1), CountingEncoder(pool={"kind": "max"}, tokens=9)
    before = cachestore.build(store, old, {"title": plain, "text": plain, "gone": plain})
    after = cachestore.build(store, new, {"title": plain, "text": other, "fresh": plain})
    made = diff(store.root, before, after)
    assert (made.columns_added, made.columns_removed, made.compared) == (("fresh",), ("gone",), ("title",))
    assert [change.to_json() for change in made.encoders["text"]] == [
        {"field": "layer", "old": 1},
        {"field": "pool.kind", "old": "mean", "new": "max"},
        {"field": "tokens", "new": 9},
    ]
    assert made.rows.kept == 2  # the texts of "text" say nothing: their keys are of different encoders
    assert not made.same


def test_rows_cannot_be_compared_without_an_encoder_in_common(store):
    before = cachestore.build(store, {"text": ["a"]}, {"text": CountingEncoder(pool="mean")})
    after = cachestore.build(store, {"text": ["a"]}, {"text": CountingEncoder(pool="max")})
    assert diff(store.root, before, after).rows is None
    assert diff(store.root, before, before).same


def test_a_row_is_the_same_when_all_its_compared_cells_are(store):
    encoders = {"a": CountingEncoder(), "b": CountingEncoder()}
    before = cachestore.build(store, {"a": ["1", "2", "3"], "b": ["x", "y", "z"]}, encoders)
    after = cachestore.build(store, {"a": ["1", "y", "3"], "b": ["x", "2", "z"]}, encoders)
    assert diff(store.root, before, after).rows.changed.tolist() == [[1, 1]]


def test_settings_differ_by_type_and_presence():
    changes = list(spec_changes({"a": 1, "b": None, "c": [1], "d": {"e": 1}}, {"a": 1.0, "c": [1], "d": 2}))
    assert [(change.field, change.old, change.new, change.absent) for change in changes] == [
        ("a", 1, 1.0, ""),
        ("b", None, None, "new"),
        ("d", {"e": 1}, 2, ""),
    ]


@given(st.lists(st.integers(0, 6), max_size=30), st.lists(st.integers(0, 6), max_size=30))
def test_every_row_is_told_once_and_as_what_it_is(old, new):
    rows = match(codes(old), codes(new))
    before = [*rows.removed.tolist(), *rows.moved[:, 0].tolist(), *rows.changed[:, 0].tolist()]
    after = [*rows.added.tolist(), *rows.moved[:, 1].tolist(), *rows.changed[:, 1].tolist()]
    assert len(set(before)) == len(before) == len(old) - rows.kept
    assert len(set(after)) == len(after) == len(new) - rows.kept
    # what is left of both is the same rows in the same order
    kept = [[value for at, value in enumerate(side) if at not in told] for side, told in ((old, before), (new, after))]
    assert kept[0] == kept[1]
    assert all(old[here] == new[there] for here, there in rows.moved.tolist())
    assert all(old[here] != new[there] for here, there in rows.changed.tolist())


@given(st.permutations(range(25)), st.permutations(range(30)))
def test_as_many_rows_as_possible_are_kept_where_none_repeats(old, new):
    rows = match(codes(old), codes(new))
    assert rows.kept == common(old, new)
    assert len(rows.moved) == 25 - rows.kept


@pytest.mark.parametrize("distinct", [3, 1 << 40])
def test_a_large_dataset_with_scattered_edits_is_matched_row_by_row(distinct):
    random = np.random.default_rng(0)
    old = random.integers(0, distinct, 100_000).astype(np.uint64)
    gone = np.unique(random.integers(0, len(old), 100))
    rows = match(old, np.delete(old, gone))
    assert len(old) - rows.kept < 2 * len(gone)  # among three values, which one went is a guess
    assert len(rows.changed) < len(gone) / 10
