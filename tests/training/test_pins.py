"""What a run keeps in the store, and what it says of the data that it was trained on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import cachestore
from cachestore import references
from cachestore.errors import StoreError, StoreLocked
from cachestore.manifest import FORGOTTEN, MISSING, SKIPPED
from cachestore.store import Store
from trainer import Run, evaluate, load_config, predict, rows, stored_inputs, train
from trainer.events import Event, Notice, PhaseBegun

CONFIG = {
    "input_features": [{"name": "text", "type": "text", "encoder": {"type": "hashing", "dim": 16}}],
    "output_features": [{"name": "stars", "type": "number"}],
    "trainer": {"epochs": 1},
}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with cachestore.open_store(tmp_path / "store") as opened:
        yield opened


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write(tmp_path / "reviews.csv", 40)


def write(path: Path, count: int) -> Path:
    path.write_text("text,stars\n" + "".join(f"text {number},{number % 5}\n" for number in range(count)))
    return path


def mark(run: Run) -> str:
    return str(json.loads((run.path / "run.json").read_text())["id"])


def test_a_run_pins_what_it_was_trained_on_and_names_its_versions(tmp_path: Path, store: Store, data: Path) -> None:
    test = write(tmp_path / "test.csv", 10)
    train(CONFIG, write(tmp_path / "reviews.csv", 30), store, output=tmp_path / "older")
    run = train(CONFIG, write(data, 40), store, test=test, output=tmp_path / "run")
    assert run.references == {"train": ["reviews@2"], "test": ["test@1"]}
    assert Run.load(run.path).references == run.references
    assert len(references.pins(store.root)) == 2
    pin = references.read_pin(store.root, mark(run))
    assert pin is not None
    assert pin.path == str(tmp_path / "run")
    assert pin.manifests == (store.manifest("reviews@2").id, store.manifest("test").id)
    assert pin.manifests == tuple(identity for listed in run.manifests.values() for identity in listed)
    assert not pin.missing()
    shutil.rmtree(run.path)
    assert pin.missing()


def test_a_run_is_pinned_before_it_trains_and_complete_only_when_it_is(
    store: Store, data: Path, tmp_path: Path
) -> None:
    seen = []

    def listen(event: Event) -> None:
        if event == PhaseBegun("write"):
            seen.extend(references.pins(store.root))
            assert not (tmp_path / "run" / "summary.json").exists()

    train(CONFIG, data, store, output=tmp_path / "run", progress=listen)
    assert seen == references.pins(store.root)
    assert len(seen) == 1


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("replacing", [False, True])
def test_a_run_that_fails_leaves_no_pin(
    store: Store, data: Path, tmp_path: Path, error: type[BaseException], replacing: bool
) -> None:
    if replacing:
        train(CONFIG, data, store, output=tmp_path / "run")
    before = references.pins(store.root)

    def listen(event: Event) -> None:
        if event == PhaseBegun("write"):
            raise error

    with pytest.raises(error):
        train(CONFIG, data, store, output=tmp_path / "run", progress=listen)
    assert references.pins(store.root) == before
    assert not any(pin.missing() for pin in before)


def test_a_run_that_replaces_another_takes_its_pin_away(store: Store, data: Path, tmp_path: Path) -> None:
    first = mark(train(CONFIG, data, store, output=tmp_path / "run"))
    missing = []

    def listen(event: Event) -> None:
        if event == PhaseBegun("write"):
            missing.extend(pin.missing() for pin in references.pins(store.root))

    second = mark(train(CONFIG, data, store, output=tmp_path / "run", progress=listen))
    assert missing == [False, False]  # the old one is still in its place, the new one beside it
    assert first != second
    assert [pin.run for pin in references.pins(store.root)] == [second]
    assert not references.pins(store.root)[0].missing()


def test_a_run_without_an_id_is_replaced_and_read(store: Store, data: Path, tmp_path: Path) -> None:
    old = train(CONFIG, data, store, output=tmp_path / "run")
    for name, field in (("run.json", "id"), ("summary.json", "references")):
        content = json.loads((old.path / name).read_text())
        del content[field]
        (old.path / name).write_text(json.dumps(content))
    assert Run.load(old.path).references == {}
    assert evaluate(old.path, data, store).rows == 40
    new = train(CONFIG, data, store, output=tmp_path / "run")
    assert mark(new) in [pin.run for pin in references.pins(store.root)]


def test_a_read_only_store_trains_without_a_pin_and_says_so(store: Store, data: Path, tmp_path: Path) -> None:
    train(CONFIG, data, store, output=tmp_path / "first")
    before = references.pins(store.root)
    said = []
    with cachestore.open_store(store.root, "r") as reading:
        run = train(CONFIG, data, reading, output=tmp_path / "first", progress=said.append)
    assert [event for event in said if isinstance(event, Notice) and "is not pinned" in event.text]
    assert run.references == {"train": ["reviews@1"]}  # found by its content
    assert references.pins(store.root) == before


def test_a_run_on_a_table_in_memory_is_pinned_by_the_manifest_that_has_no_name(store: Store, tmp_path: Path) -> None:
    table = {"text": [f"text {number}" for number in range(40)], "stars": list(range(40))}
    run = train(CONFIG, table, store, output=tmp_path / "run")
    (pin,) = references.pins(store.root)
    assert run.references == {"train": list(pin.manifests)}


def test_a_run_without_texts_needs_nothing_of_the_store(store: Store, tmp_path: Path) -> None:
    table = {"size": list(range(40)), "stars": list(range(40))}
    config = {**CONFIG, "input_features": [{"name": "size", "type": "number"}]}
    run = train(config, table, store, output=tmp_path / "run")
    assert (run.references, references.pins(store.root)) == ({"train": []}, [])


def test_a_run_that_cannot_be_pinned_does_not_begin_to_train(
    store: Store, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise StoreLocked("somebody is alone in the store")

    monkeypatch.setattr(references, "write_pin", refuse)
    with pytest.raises(StoreError, match="alone"):
        train(CONFIG, data, store, output=tmp_path / "run")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_the_pin_of_a_replaced_run_that_cannot_be_dropped_is_told_and_the_new_run_is_whole(
    store: Store, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(CONFIG, data, store, output=tmp_path / "run")

    def refuse(*_: object) -> None:
        raise StoreLocked("somebody is alone in the store")

    monkeypatch.setattr(references, "drop_pin", refuse)
    said: list[Event] = []
    run = train(CONFIG, data, store, output=tmp_path / "run", progress=said.append)
    assert [event for event in said if isinstance(event, Notice) and "stays pinned" in event.text]
    assert Run.load(run.path).epochs == 1
    assert [pin.missing() for pin in references.pins(store.root)].count(True) == 1


def test_rows_that_were_forgotten_are_left_out_and_are_no_skipped_input() -> None:
    reasons = np.array([0, MISSING, SKIPPED, FORGOTTEN], np.uint8)
    vectors = stored_inputs.Vectors(np.zeros((4, 2), np.float32), reasons, {})
    states = {"text": stored_inputs.FittedText(2, True, {})}
    joined = rows.join(load_config(CONFIG), None, {"text": vectors}, {}, states, "data")
    assert joined.drop.tolist() == ["", "", "text: skipped", "text: forgotten"]
    assert joined.dropped() == {"text: skipped": 1, "text: forgotten": 1}
    assert joined.missing["text"][:, 0].tolist() == [0, 1, 0, 0]


@pytest.mark.parametrize("dropped", [False, True])
def test_a_run_that_was_moved_is_pinned_where_it_is_used_and_said_so_once(
    tmp_path: Path, store: Store, data: Path, dropped: bool
) -> None:
    run = train(CONFIG, data, store, output=tmp_path / "run")
    old = references.read_pin(store.root, mark(run))
    assert old is not None
    (place := tmp_path / "elsewhere").mkdir()
    moved = place / "run"
    run.path.rename(moved)
    if dropped:
        references.drop_pin(store.root, old.run)
    told: list[Event] = []
    evaluate(moved, data, store, progress=told.append)
    pin = references.read_pin(store.root, old.run)
    assert pin is not None
    assert (pin.path, pin.manifests, pin.missing()) == (str(moved), old.manifests, False)
    assert [event.text for event in told if isinstance(event, Notice)] == [
        f"The store at {store.root} now keeps what the run at {moved} was trained on: it had no pin there."
    ]
    told.clear()
    predict(moved, data, store, progress=told.append)
    assert not [event for event in told if isinstance(event, Notice)]


def test_a_copy_of_a_run_and_a_store_that_lacks_its_data_change_no_pin(
    tmp_path: Path, store: Store, data: Path
) -> None:
    run = train(CONFIG, data, store, output=tmp_path / "run")
    before = references.pins(store.root)
    shutil.copytree(run.path, tmp_path / "copy")
    predict(tmp_path / "copy", data, store)
    assert references.pins(store.root) == before
    with cachestore.open_store(tmp_path / "other") as other:
        predict(run, write(tmp_path / "other.csv", 3), other)
        assert references.pins(other.root) == []
