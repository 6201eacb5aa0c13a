"""Texts whose encoder is trained: runs of every family, put to use again, beside inputs of other kinds."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from cachestore.dataset import open_dataset
from cachestore.encoders import text as text_encoders
from cachestore.errors import ConfigError, DamageError, DataError, EncoderError, UsageError
from cachestore.store import Store, open_store
from tests.store import tiny_models
from tests.training import live
from trainer import evaluate, load_config, predict, resume, streaming, train
from trainer.batches import digest
from trainer.events import Clock
from trainer.live.batches import LiveBatches
from trainer.live.encoder import LiveEncoder
from trainer.prepare import prepare
from trainer.run import resume_run
from trainer.sweep import sweep

TUNINGS: dict[str, dict[str, Any]] = {
    "full": {"trainable": True},
    "lora": {"adapter": "lora"},
    "top": {"trainable": True, "trainable_layers": 1},
}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(tmp_path / "store") as opened:
        yield opened
    text_encoders.release()


def first_and_last(run: Any) -> tuple[float, float]:
    found = [loss for _, split, loss in live.losses(run) if split == "train"]
    return found[0], found[-1]


@pytest.mark.parametrize("tuning", ["full", "lora"])
@pytest.mark.parametrize("kind", live.FAMILIES)
def test_a_model_of_every_family_learns_and_is_put_to_use_as_it_was_left(
    tmp_path: Path, models: Path, store: Store, kind: str, tuning: str
) -> None:
    feature = live.text_input(live.saved(models, kind), **TUNINGS[tuning])
    wanted = live.config(feature, trainer={"epochs": 4, "bucket_by_length": True})
    held = live.columns(live.texts(21))
    run = train(wanted, live.columns(live.texts(60)), store, test=held, output=tmp_path / "run")
    first, last = first_and_last(run)
    assert last < first
    measured = evaluate(run, held, store)
    assert measured.metrics["topic"]["loss"] == pytest.approx(run.metrics["test"]["topic"]["loss"], abs=1e-4)
    found = predict(run, held, store)
    assert found.predicted.all()
    assert np.mean(found["topic_predictions"] == held["topic"]) == pytest.approx(measured.metrics["topic"]["accuracy"])
    assert (run.encoded, run.hits, measured.encoded, found.encoded) == (0, 0, 0, 0)


def test_rows_that_are_held_out_are_encoded_once_when_training_is_over(
    tmp_path: Path, models: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[int] = []
    usual = LiveEncoder._in_chunks

    def counted(self: LiveEncoder, cells: Any) -> Any:
        rows.append(len(cells))
        return usual(self, cells)

    monkeypatch.setattr(LiveEncoder, "_in_chunks", counted)
    wanted = live.config(live.text_input(live.saved(models), trainable=True), trainer={"epochs": 1})
    wanted["output_features"][0]["calibration"] = True
    held = {"validation": live.columns(live.texts(9)), "test": live.columns(live.texts(12))}
    train(wanted, live.columns(live.texts(30)), store, output=tmp_path / "run", **held)
    assert sum(rows) == 9 + 9 + 12


def test_the_last_blocks_alone_move(tmp_path: Path, models: Path, store: Store) -> None:
    directory = live.saved(models)
    run = train(
        live.config(live.text_input(directory, **TUNINGS["top"])),
        live.columns(live.texts(40)),
        store,
        output=tmp_path / "run",
    )
    before, after = (load_file(place / "model.safetensors") for place in (directory, run.path / "encoders" / "text"))
    moved = {name for name, tensor in after.items() if not tensor.equal(before[name])}
    assert moved
    assert all("layer.1." in name for name in moved)


def test_a_run_trained_whole_needs_its_base_no_more_and_one_with_an_adapter_refuses_another(
    tmp_path: Path, store: Store
) -> None:
    data, runs = live.columns(live.texts(40)), {}
    for name, settings in {**TUNINGS, "frozen": {"live": True}}.items():
        if name == "top":
            continue
        directory = tiny_models.save(tmp_path / f"model-{name}", **live.NO_DROPOUT["bert"])
        wanted = live.config(live.text_input(directory, **settings), trainer={"epochs": 1})
        runs[name] = train(wanted, data, store, output=tmp_path / name)
        before = predict(runs[name], data, store)["topic_probability"]
        kept = directory.rename(tmp_path / f"kept-{name}")
        if name == "full":
            np.testing.assert_allclose(predict(runs[name], data, store)["topic_probability"], before, rtol=0, atol=1e-5)
            continue
        with pytest.raises(EncoderError, match="needs the model it began with"):
            predict(runs[name], data, store)
        tiny_models.save(directory, seed=1, **live.NO_DROPOUT["bert"])
        with pytest.raises(EncoderError, match=r"'text' is not the one this run was trained with: .*changed"):
            predict(runs[name], data, store)
        shutil.rmtree(directory)
        kept.rename(directory)
        np.testing.assert_allclose(predict(runs[name], data, store)["topic_probability"], before, rtol=0, atol=1e-5)
    for name, folder in (("full", "encoders"), ("lora", "adapters")):
        shutil.rmtree(runs[name].path / folder)
        with pytest.raises(DamageError, match=f"{folder}/text is not there"):
            predict(runs[name], data, store)


@pytest.mark.parametrize(
    "settings", [{}, {"layer": 1, "reduce_output": "max+mean", "prompt": "say: "}], ids=["head", "layer"]
)
def test_what_surrounds_an_encoder_is_there_without_its_base(
    tmp_path: Path, store: Store, settings: dict[str, Any]
) -> None:
    directory = tiny_models.save(tmp_path / "model", **live.NO_DROPOUT["bert"])
    if not settings:
        live.with_layers_after_pooling(directory)
    data = live.columns(live.texts(40))
    data["text"][3] = None
    feature = live.text_input(directory, trainable=True, **settings)
    feature["preprocessing"] = {"missing_value_strategy": "fill_with_mode"}
    run = train(live.config(feature, trainer={"epochs": 1}), data, store, test=data, output=tmp_path / "run")
    shutil.rmtree(directory)
    measured = evaluate(run, data, store)
    assert measured.metrics["topic"]["loss"] == pytest.approx(run.metrics["test"]["topic"]["loss"], abs=1e-5)
    assert measured.rows == 40


def test_one_config_has_inputs_from_the_store_and_in_the_loop_beside_those_of_a_table(
    tmp_path: Path, models: Path, store: Store
) -> None:
    data = live.columns(live.texts(60))
    data["title"][4] = None
    data["text"][9] = None
    bert, llama = live.saved(models), live.saved(models, "llama")
    inputs = [
        live.text_input(bert, name="cached"),
        live.text_input(llama, name="adapted", column="title", adapter="lora"),
        live.text_input(bert, name="whole", prompt={"template": "{title}: {text}"}, trainable=True),
        {"name": "wait", "type": "number"},
        {"name": "title", "type": "category"},
    ]
    data["cost"] = [10 * wait + 5 for wait in data["wait"]]
    outputs = [{"name": "topic", "type": "category"}, {"name": "cost", "type": "number"}]
    run = train(live.config(*inputs, output_features=outputs), data, store, output=tmp_path / "run")
    assert (run.encoded, run.skipped) == (len({text for text in data["text"] if text}), 0)
    states = json.loads((run.path / "model.json").read_text())["features"]
    assert [states[name].get("live", False) for name in ("cached", "adapted", "whole")] == [False, True, True]
    assert [states[name]["missing"] for name in ("cached", "adapted", "whole")] == [True, True, False]
    assert sorted(place.name for place in (run.path / "encoders").iterdir()) == ["adapted", "whole"]
    data["text"][9] = "never seen before"
    found = predict(run, data, store)
    assert found.predicted.all()
    assert found.encoded == 1  # the frozen encoder's vector of it; the other two keep none
    again = predict(run, data, store)
    np.testing.assert_allclose(again["topic_probability"], found["topic_probability"], rtol=0, atol=1e-6)
    assert evaluate(run, data, store).rows == 60


@pytest.mark.parametrize(
    "preprocessing",
    [
        {"sample_ratio": 0.5},
        {"oversample_minority": 1.0},
        {"undersample_majority": 1.0},
        {"split": {"type": "stratify", "column": "topic"}},
        {"split": {"type": "hash", "column": "text"}},
        {"split": {"type": "kfold", "folds": 3}},
    ],
    ids=lambda preprocessing: next(iter(preprocessing)),
)
def test_rows_are_chosen_in_the_loop_as_from_the_store(
    tmp_path: Path, models: Path, store: Store, preprocessing: dict[str, Any]
) -> None:
    rows = [row for place, row in enumerate(live.texts(90)) if row["topic"] != "card" or place % 2]
    runs = []
    for in_loop in (False, True):
        wanted = live.config(live.text_input(live.saved(models), live=in_loop), preprocessing=preprocessing)
        runs.append(train(wanted, live.columns(rows), store, output=tmp_path / f"live-{in_loop}"))
    live.assert_same_losses(*runs)
    assert runs[0].rows == runs[1].rows


def test_vectors_that_stay_in_the_store_go_with_texts_in_the_loop(
    tmp_path: Path, models: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming, "_IN_MEMORY", 0.0)
    monkeypatch.setattr(streaming, "_BLOCK", 16 * 64 / 8e9)
    monkeypatch.setattr(streaming, "_NEIGHBOURS", 4)
    data = live.columns(live.texts(60))
    bert = live.saved(models)
    inputs = [
        live.text_input(bert, name="cached"),
        live.text_input(bert, trainable=True),
        {"name": "wait", "type": "number"},
    ]
    config = live.config(*inputs, trainer={"memory_limit": "8GB"})
    loaded = load_config({**config, "preprocessing": {"split": {"type": "random"}}})
    streamed = prepare(loaded, {"train": open_dataset(data)}, store, Clock(None)).batches["train"]
    run = train(config, data, store, output=tmp_path / "run")
    measured = evaluate(run, data, store)
    monkeypatch.undo()
    whole = prepare(loaded, {"train": open_dataset(data)}, store, Clock(None)).batches["train"]
    assert isinstance(streamed, LiveBatches)
    assert isinstance(whole, LiveBatches)
    assert list(streamed.streamed) == ["cached"]
    assert not whole.streamed
    (every,) = whole.in_order(whole.rows)
    at = {number: place for place, number in enumerate(whole.numbers.tolist())}
    seen = []
    for batch in chain(streamed.shuffled(8, torch.Generator().manual_seed(0)), streamed.in_order(8)):
        assert batch.numbers is not None
        seen += batch.numbers.tolist()
        for place, number in enumerate(batch.numbers.tolist()):
            other = at[number]
            assert batch.inputs["text"].texts()[place].tolist() == every.inputs["text"].texts()[other].tolist()  # type: ignore[union-attr]
            assert all(batch.inputs[name][place].equal(every.inputs[name][other]) for name in ("cached", "wait"))  # type: ignore[index]
            assert batch.targets["topic"][place] == every.targets["topic"][other]
            assert not batch.missing
    assert sorted(seen) == sorted([*at, *at])
    assert digest({"train": streamed}) != digest({"train": whole})  # by keys, and by vectors
    assert evaluate(run, data, store).metrics["topic"]["loss"] == pytest.approx(
        measured.metrics["topic"]["loss"], abs=1e-5
    )


def test_trials_of_a_sweep_train_an_encoder_each(tmp_path: Path, models: Path, store: Store) -> None:
    adapter = {"type": "lora", "dropout": 0.0}
    grid = {"trainer.learning_rate": [0.01, 0.001]}
    config = live.config(live.text_input(live.saved(models), adapter=adapter), trainer={"epochs": 1})
    data, told = live.columns(live.texts(40)), []
    found = sweep(
        {**config, "hyperopt": {"parameters": grid}}, data, store, output=tmp_path / "sweep", progress=told.append
    )
    assert [result.error for result in found.results] == [None, None]
    losses = [result.metrics["train"]["topic"]["loss"] for result in found.results]
    assert losses[0] != losses[1]
    assert any("2 trials train one by one: an encoder runs in the loop" in str(event) for event in told)
    alone = train(
        {**config, "trainer": {**config["trainer"], "learning_rate": 0.001}}, data, store, output=tmp_path / "run"
    )
    assert losses[1] == pytest.approx(alone.metrics["train"]["topic"]["loss"], abs=1e-6)
    assert found.winner is not None
    assert predict(found.winner, data, store).predicted.all()


def test_a_cell_that_is_no_text_is_skipped_and_told(tmp_path: Path, models: Path, store: Store) -> None:
    path = tmp_path / "rows.csv"
    lines = [f"{row['text']},{row['topic']}" for row in live.texts(30)]
    path.write_bytes("\n".join(["text,topic", *lines]).encode() + b"\nbroken \xff\xfe,card\n")
    run = train(live.config(live.text_input(live.saved(models), trainable=True)), path, store, output=tmp_path / "run")
    assert run.skipped == 1
    assert [(cell.row, cell.column) for cell in run.skipped_cells] == [(30, "text")]
    assert run.dropped == {"text: skipped": 1}
    found = predict(run, path, store)
    assert found.predicted.tolist() == [True] * 30 + [False]
    assert found.skipped == 1


def test_a_text_that_is_missing_everywhere_in_training_cannot_be_filled_by_the_most_frequent(
    tmp_path: Path, models: Path, store: Store
) -> None:
    data = live.columns(live.texts(20))
    data["text"] = [None] * 20
    feature = live.text_input(live.saved(models), trainable=True)
    feature["preprocessing"] = {"missing_value_strategy": "fill_with_mode"}
    with pytest.raises(DataError, match="column 'text' has no value in any training row"):
        train(live.config(feature, preprocessing={"split": {"type": "random"}}), data, store)


def test_a_pattern_of_weights_to_freeze_must_name_some(tmp_path: Path, models: Path, store: Store) -> None:
    feature = live.text_input(live.saved(models), trainable=True)
    data = live.columns(live.texts(20))
    for regex, why in (("nothing like it", "is in the name of no weight"), ("backbone", "leaves no weight")):
        with pytest.raises(ConfigError, match=why):
            train(live.config(feature, trainer={"layers_to_freeze_regex": regex}), data, store)


def test_a_run_does_not_go_on_with_other_texts(
    tmp_path: Path, models: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resume, "SAVE_SECONDS", 0.0)
    path = tmp_path / "rows.csv"
    lines = [f"{row['text']},{row['topic']}" for row in live.texts(30)]
    path.write_text("\n".join(["text,topic", *lines]) + "\n")

    class Stop(Exception):
        pass

    def stop(event: Any) -> None:
        if getattr(event, "epoch", 0) == 3 and hasattr(event, "chosen_by"):
            raise Stop

    wanted = live.config(live.text_input(live.saved(models), trainable=True), trainer={"epochs": 5})
    with pytest.raises(Stop):
        train(wanted, path, store, output=tmp_path / "run", progress=stop)
    kept = path.read_text()
    path.write_text(kept.replace("arrived late", "arrived soon"))
    with pytest.raises(UsageError, match="its rows changed since"):
        resume_run(tmp_path / "run")
    path.write_text(kept)
    resumed = resume_run(tmp_path / "run")
    live.assert_same_losses(resumed, train(wanted, path, store, output=tmp_path / "whole"), 1e-5)
