"""Sweeps from config to leaderboard."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from cachestore.errors import ConfigError, UsageError
from cachestore.store import Store, open_store
from tests.training.test_run import config, everything, messages, write
from trainer import train
from trainer.events import EpochDone, Event, Notice
from trainer.schema.hyperopt import Hyperopt
from trainer.schema.preparation import KFoldSplit, RandomSplit
from trainer.sweep import Sweep, sweep
from trainer.sweep.plan import make_plan, parse_grid
from trainer.sweep.space import draw, points

RATES = "trainer.learning_rate=0.001,0.05"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(tmp_path / "store") as opened:
        yield opened


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write(tmp_path / "messages.csv", messages(90))


def short_config(**changes: Any) -> dict[str, Any]:
    return config(**{"trainer": {"epochs": 3, "batch_size": 16, "learning_rate": 0.05}, **changes})


def with_section(**section: Any) -> dict[str, Any]:
    return short_config(hyperopt={"parameters": {"trainer.learning_rate": [0.001, 0.05]}, **section})


def losses(folder: Path) -> list[tuple[int, str, float]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [(line["epoch"], line["split"], line["metrics"]["topic"]["loss"]) for line in lines]


def test_every_combination_of_grids_is_a_candidate_with_draws_of_the_rest() -> None:
    parameters = {
        "trainer.learning_rate": {"space": "loguniform", "lower": 1e-3, "upper": 1e-1},
        "trainer.epochs": [2, 3],
        "combiner.dropout": {"space": "quniform", "lower": 0.1, "upper": 0.5, "q": 0.1},
    }
    plan = make_plan(short_config(hyperopt={"parameters": parameters, "executor": {"num_samples": 4}}))
    assert [trial.config.trainer.epochs for trial in plan.trials] == [2, 3] * 4
    assert len({trial.config.trainer.learning_rate for trial in plan.trials}) == 8
    assert all(1e-3 <= trial.config.trainer.learning_rate <= 1e-1 for trial in plan.trials)
    assert (
        plan.trials
        == make_plan(short_config(hyperopt={"parameters": parameters, "executor": {"num_samples": 4}})).trials
    )


@pytest.mark.parametrize(
    ("space", "allowed"),
    [
        ({"space": "choice", "categories": ["a", "b"]}, lambda value: value in ("a", "b")),
        ({"space": "uniform", "lower": 1.0, "upper": 2.0}, lambda value: 1 <= value <= 2),
        ({"space": "quniform", "lower": 0.0, "upper": 1.0, "q": 0.1}, lambda value: value == round(value, 1)),
        ({"space": "loguniform", "lower": 0.1, "upper": 10.0}, lambda value: 0.1 <= value <= 10),
        ({"space": "qloguniform", "lower": 1.0, "upper": 9.0, "q": 2.0}, lambda value: value % 2 == 0),
        ({"space": "randint", "lower": 0, "upper": 2}, lambda value: value in (0, 1)),
        ({"space": "qrandint", "lower": 3, "upper": 9, "q": 4}, lambda value: value in (4, 8)),
        ({"space": "lograndint", "lower": 1, "upper": 9}, lambda value: value in range(1, 9)),
        ({"space": "int", "lower": 1, "upper": 3}, lambda value: value in (1, 2, 3)),
        ({"space": "randn", "mean": 100.0}, lambda value: 90 < value < 110),
    ],
    ids=lambda case: case["space"] if isinstance(case, dict) else "",
)
def test_draws_stay_in_their_space(space: dict[str, Any], allowed: Any) -> None:
    settings = Hyperopt.model_validate(
        {"parameters": {"p": {key: tuple(v) if isinstance(v, list) else v for key, v in space.items()}}}
    )
    values = [draw(settings.parameters["p"], random.Random(seed)) for seed in range(200)]
    assert all(allowed(value) for value in values)
    assert len(set(values)) > 1
    assert [point["p"] for point in points(settings, 7)] == [point["p"] for point in points(settings, 7)]


def test_a_grid_of_the_command_line_holds_any_yaml() -> None:
    path, values = parse_grid("input_features.text.encoder=hashing,{type: hashing, dim: 32}")
    assert (path, values) == ("input_features.text.encoder", ("hashing", {"type": "hashing", "dim": 32}))
    for text in ("trainer.epochs", "=1", "trainer.epochs="):
        with pytest.raises(ConfigError, match="is no grid"):
            parse_grid(text)


def test_ludwigs_short_paths_name_features() -> None:
    plan = make_plan(short_config(), grids=["text.encoder.dim=32,64", "topic.top_k=1"])
    assert [trial.config.input_features[0].encoder.dim for trial in plan.trials] == [32, 64]
    assert plan.trials[0].config.output_features[0].top_k == 1


def test_all_faults_of_a_sweep_are_named_in_one_go() -> None:
    parameters = {
        "trainer.epochs": {"space": "ranint", "lower": 1, "upper": 3},
        "combiner.dropout": {"space": "uniform", "lower": 0.5, "upper": 0.1},
        "trianer.epochs": [1],
        "trainer.batch_size": 3,
    }
    wrong = short_config(hyperopt={"parameters": parameters, "gaol": "minimize", "executor": {"num_samples": 0}})
    with pytest.raises(ConfigError) as error:
        make_plan(wrong)
    text = str(error.value)
    for part in (
        "hyperopt.parameters.trainer.epochs.space: there is no 'ranint'; did you mean 'randint'?",
        "hyperopt.parameters.combiner.dropout: lower must be less than upper",
        "hyperopt.parameters.trianer.epochs: no section or feature is called 'trianer'; did you mean 'trainer'?",
        "hyperopt.parameters.trainer.batch_size: must be a list of values or a mapping with a space",
        "hyperopt.gaol: unknown key; did you mean 'goal'?",
        "hyperopt.executor.num_samples: must be greater than 0",
    ):
        assert part in text
    with pytest.raises(ConfigError, match=r"trainer.epochs: must be greater than 0, not -4 \(with trainer.epochs=-4\)"):
        make_plan(short_config(), grids=["trainer.epochs=1,-4"])
    with pytest.raises(ConfigError, match="repeat trials with --seeds"):
        make_plan(with_section(executor={"num_samples": 3}))
    with pytest.raises(ConfigError, match="nothing varies"):
        make_plan(short_config())
    section = {"parameters": {"combiner.dropout": {"space": "uniform", "lower": 0.1, "upper": 0.2}}}
    with pytest.raises(ConfigError, match="is drawn at random"):
        make_plan(short_config(hyperopt={**section, "search_alg": {"type": "grid"}}))


def test_seeds_and_folds_repeat_each_candidate_on_the_rows_they_share() -> None:
    plan = make_plan(short_config(), grids=[RATES], seeds=2)
    assert [(trial.candidate, trial.seed) for trial in plan.trials] == [(0, 42), (0, 43), (1, 42), (1, 43)]
    assert {trial.config.preprocessing.split for trial in plan.trials} == {RandomSplit(seed=42)}
    plan = make_plan(short_config(preprocessing={"split": {"type": "stratify", "column": "topic"}}), folds=3)
    splits = [trial.config.preprocessing.split for trial in plan.trials]
    assert [(split.fold, split.column) for split in splits if isinstance(split, KFoldSplit)] == [
        (n, "topic") for n in range(3)
    ]
    assert plan.finals[0].preprocessing.split != splits[0]
    assert plan.objective.split == "test"
    for wrong in ({"folds": 1}, {"seeds": 0}, {"folds": 3, "files": True}):
        with pytest.raises(UsageError):
            make_plan(short_config(), **wrong)


def test_a_sweep_ranks_its_trials_and_the_winner_is_a_run_of_its_config(
    tmp_path: Path, store: Store, data: Path
) -> None:
    done = sweep(short_config(), data, store, grids=[RATES, "text.encoder.dim=32,64"], output=tmp_path / "sweep")
    assert len(done.results) == 4
    assert {result.together for result in done.results} == {2}
    best = done.leaderboard.best
    assert best is not None
    assert best.values["trainer.learning_rate"] == 0.05
    means = [standing.mean for standing in done.leaderboard.standings]
    assert means == sorted(means, reverse=True)
    won = done.results[best.trials[0]]
    assert done.winner.metrics["test"]["topic"]["loss"] == pytest.approx(won.metrics["test"]["topic"]["loss"], rel=1e-4)
    rows = list(csv.DictReader((tmp_path / "sweep" / "leaderboard.csv").read_text(encoding="utf-8").splitlines()))
    assert [row["rank"] for row in rows] == ["1", "2", "3", "4"]
    assert float(rows[0]["mean"]) == pytest.approx(best.mean, rel=1e-5)
    assert json.loads((tmp_path / "sweep" / "leaderboard.json").read_text(encoding="utf-8"))["metric"] == "accuracy"
    assert (tmp_path / "sweep" / "leaderboard.svg").read_text(encoding="utf-8").count("<circle") == 4


@pytest.mark.parametrize("together", [True, False])
def test_a_trials_config_gives_its_curve_alone(tmp_path: Path, store: Store, data: Path, together: bool) -> None:
    hidden = {"num_fc_layers": 1, "output_size": 8, "dropout": 0.2}
    grids = [RATES, "trainer.optimizer.weight_decay=0.0,0.1"]
    done = sweep(
        short_config(combiner=hidden), data, store, grids=grids, seeds=2, output=tmp_path / "sweep", together=together
    )
    assert {result.together for result in done.results} == {4 if together else 1}
    for number in (1, 6):
        folder = tmp_path / "sweep" / "trials" / f"{number:03}"
        run = train(folder / "config.yaml", data, store, output=tmp_path / f"lone{number}")
        for (epoch, split, loss), (theirs, other, expected) in zip(losses(folder), losses(run.path), strict=True):
            assert (epoch, split) == (theirs, other)
            assert loss == pytest.approx(expected, rel=1e-4)


def test_inputs_and_outputs_of_several_types_train_together(tmp_path: Path, store: Store) -> None:
    rows = [{**row, "free": "1" if row["plan"] == "free" else "0"} for row in messages(90)]
    for row in rows[::7]:
        row["text"] = ""
    data = write(tmp_path / "gaps.csv", rows)
    mixed = everything()
    mixed["trainer"] |= {"epochs": 3}
    grids = ["trainer.learning_rate=0.01,0.05", "random_seed=1,2"]
    found = [
        sweep(mixed, data, store, grids=grids, output=tmp_path / f"together-{together}", together=together).results
        for together in (True, False)
    ]
    assert {result.together for result in found[0]} == {4}
    for ours, theirs in zip(*found, strict=True):
        for split, outputs in theirs.metrics.items():
            for name, metrics in outputs.items():
                assert ours.metrics[split][name]["loss"] == pytest.approx(metrics["loss"], rel=1e-4)


def test_folds_are_ranked_on_the_parts_held_out(tmp_path: Path, store: Store, data: Path) -> None:
    done = sweep(short_config(), data, store, grids=[RATES], folds=3, output=tmp_path / "sweep")
    assert done.leaderboard.split == "test"
    best = done.leaderboard.best
    assert best is not None
    assert len(best.trials) == 3
    held_out = [done.results[number].metrics["test"]["topic"]["accuracy"] for number in best.trials]
    assert best.mean == pytest.approx(sum(held_out) / 3)
    assert best.lowest == min(held_out)
    assert best.spread >= 0


def test_an_interrupted_sweep_goes_on_where_it_was(tmp_path: Path, store: Store, data: Path) -> None:
    def run(progress: Any = None) -> Sweep:
        return sweep(
            short_config(),
            data,
            store,
            grids=[RATES, "text.encoder.dim=32,64"],
            output=tmp_path / "sweep",
            progress=progress,
        )

    def interrupt(event: Event) -> None:
        if isinstance(event, Notice) and "001, 003" in event.text:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(interrupt)
    finished = sorted((tmp_path / "sweep").glob("trials/*/trial.json"))
    assert [path.parent.name for path in finished] == ["000", "002"]
    before = [path.stat().st_mtime_ns for path in finished]
    done = run()
    assert done.reused == 2
    assert [path.stat().st_mtime_ns for path in finished] == before
    whole = sweep(short_config(), data, store, grids=[RATES, "text.encoder.dim=32,64"], output=tmp_path / "whole")
    assert [result.metrics for result in done.results] == [result.metrics for result in whole.results]
    winner = (tmp_path / "sweep" / "winner" / "run.json").read_bytes()
    assert run().reused == 4
    assert (tmp_path / "sweep" / "winner" / "run.json").read_bytes() == winner


def test_another_sweep_or_anything_else_at_the_place_is_refused(tmp_path: Path, store: Store, data: Path) -> None:
    sweep(short_config(), data, store, grids=["trainer.epochs=1"], output=tmp_path / "sweep")
    with pytest.raises(UsageError, match="holds another sweep"):
        sweep(short_config(), data, store, grids=["trainer.epochs=2"], output=tmp_path / "sweep")
    with pytest.raises(UsageError, match="holds no sweep"):
        sweep(short_config(), data, store, grids=[RATES], output=tmp_path)


def test_trials_of_changed_data_are_trained_again(tmp_path: Path, store: Store, data: Path) -> None:
    sweep(short_config(), data, store, grids=["trainer.epochs=1"], output=tmp_path / "sweep")
    write(data, messages(91))
    assert sweep(short_config(), data, store, grids=["trainer.epochs=1"], output=tmp_path / "sweep").reused == 0


def test_a_trial_that_fails_is_told_and_the_others_go_on(tmp_path: Path, store: Store, data: Path) -> None:
    wild = short_config()
    wild["trainer"] |= {"optimizer": {"type": "sgd"}}
    grids = [
        "trainer.learning_rate=0.1,1e60",
        "text.encoder=hashing,{type: bert, pretrained_model_name_or_path: /nowhere}",
    ]
    done = sweep(wild, data, store, grids=grids, output=tmp_path / "sweep")
    errors = [result.error for result in done.results]
    assert errors[0] is None
    assert all(error is not None for error in errors[1:])
    assert errors[2] is not None
    assert "not finite" in errors[2]
    assert done.to_json()["failed"] == 3
    assert [standing.rank for standing in done.leaderboard.standings] == [1, None, None, None]
    with pytest.raises(ConfigError, match="Every trial failed"):
        sweep(wild, data, store, grids=["trainer.learning_rate=1e60"], output=tmp_path / "none")


def test_what_trials_are_ranked_by_is_looked_at_before_they_are_trained(
    tmp_path: Path, store: Store, data: Path
) -> None:
    for section, why in (
        ({"metric": "acuracy"}, "acuracy"),
        ({"metric": "accuracy", "goal": "minimize"}, "more accuracy is better"),
        ({"output_feature": "nobody", "metric": "accuracy"}, "nobody"),
        ({"output_feature": "topik"}, r"hyperopt.output_feature: there is no output 'topik'; did you mean 'topic'\?"),
        ({"metric": "acuracy"}, r"hyperopt.metric: the output 'topic' has no 'acuracy'; did you mean 'accuracy'\?"),
    ):
        with pytest.raises(ConfigError, match=why):
            sweep(with_section(**section), data, store, output=tmp_path / "sweep")
    with pytest.raises(ConfigError, match="there are no validation rows"):
        sweep(with_section(), data, store, test=data, output=tmp_path / "other")
    assert not list(tmp_path.glob("*/trials/*/trial.json"))


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ({"metric": "mcc"}, ("topic", "mcc", "maximize")),
        ({"metric": "accuracy_micro"}, ("topic", "accuracy", "maximize")),
        ({"metric": "loss", "goal": "minimize", "output_feature": "combined"}, ("topic", "loss", "minimize")),
        ({"output_feature": "topic"}, ("topic", "accuracy", "maximize")),
    ],
)
def test_trials_are_ranked_by_any_metric_under_any_of_its_names(
    tmp_path: Path, store: Store, data: Path, section: dict[str, Any], expected: tuple[str, str, str]
) -> None:
    given = with_section(**section)
    given["trainer"]["validation_metric"] = "accuracy"  # what picks epochs need not be what ranks
    board = sweep(given, data, store, output=tmp_path / "sweep").leaderboard
    assert (board.field, board.metric, board.goal) == expected
    assert [standing.rank for standing in board.standings] == [1, 2]


@pytest.mark.parametrize(
    ("section", "trainer", "expected"),
    [
        ({"output_feature": "combined"}, {}, ("combined", "loss")),
        ({}, {"validation_field": "combined"}, ("combined", "loss")),
        ({"output_feature": "cost"}, {}, ("cost", "mean_squared_error")),
        ({"output_feature": "cost", "metric": "r2"}, {"validation_field": "topic"}, ("cost", "r2")),
    ],
)
def test_trials_of_several_outputs_are_ranked_by_one_or_all(
    tmp_path: Path, store: Store, data: Path, section: Any, trainer: Any, expected: tuple[str, str]
) -> None:
    outputs = [{"name": "topic", "type": "category"}, {"name": "cost", "type": "number"}]
    given = {**with_section(**section), "output_features": outputs}
    given["trainer"] |= trainer
    board = sweep(given, data, store, output=tmp_path / "sweep").leaderboard
    assert (board.field, board.metric) == expected
    assert [standing.rank for standing in board.standings] == [1, 2]
    with pytest.raises(ConfigError, match=r"hyperopt.metric: 'combined' has no 'accuracy'"):
        make_plan({**given, "hyperopt": {**given["hyperopt"], "metric": "accuracy", "output_feature": "combined"}})


def test_an_older_trainer_section_keeps_its_validation_metric() -> None:
    given = with_section(metric="mcc")
    given["training"] = {**given.pop("trainer"), "validation_metric": "accuracy"}
    plan = make_plan(given)
    assert {trial.config.trainer.validation_metric for trial in plan.trials} == {"accuracy"}
    assert plan.objective.metric == "mcc"


def test_the_section_can_be_changed_as_any_other() -> None:
    section = {"parameters": {"trainer.learning_rate": {"space": "uniform", "lower": 0.1, "upper": 0.2}}}
    plan = make_plan(short_config(hyperopt=section), overrides=["hyperopt.executor.num_samples=3"])
    assert len(plan.trials) == 3


def test_columns_that_the_data_lacks_are_told_beside_other_faults(tmp_path: Path, store: Store, data: Path) -> None:
    wrong = short_config(output_features=[{"name": "topik", "type": "category"}])
    with pytest.raises(ConfigError) as error:
        sweep(wrong, data, store, grids=["trainer.epochs=-1,-2"], output=tmp_path / "sweep")
    assert "has no column 'topik'; did you mean 'topic'?" in str(error.value)
    assert "trainer.epochs: must be greater than 0" in str(error.value)


def test_lbfgs_trains_alone_and_the_others_together(tmp_path: Path, store: Store, data: Path) -> None:
    given = short_config()
    del given["trainer"]["learning_rate"]
    done = sweep(given, data, store, grids=["trainer.optimizer.type=adam,lbfgs,adamw"], output=tmp_path / "sweep")
    assert [result.together for result in done.results] == [2, 1, 2]


@pytest.mark.parametrize("together", [True, False])
def test_epochs_are_told_as_long_as_a_trial_trains(tmp_path: Path, store: Store, data: Path, together: bool) -> None:
    told: list[int] = []

    def tell(event: Event) -> None:
        if isinstance(event, EpochDone):
            told.append(event.epoch)

    grids = ["trainer.early_stop=1,-1"]
    given = short_config(trainer={"epochs": 6, "batch_size": 16, "learning_rate": 1e-9})
    done = sweep(given, data, store, grids=grids, output=tmp_path / "sweep", together=together, progress=tell)
    first, second = (result.epochs for result in done.results)
    assert first < second == 6
    expected = range(1, 7) if together else [*range(1, first + 1), *range(1, 7)]
    assert told[: len(expected)] == list(expected)


def test_a_config_file_of_a_sweep_is_read_and_train_names_the_command(tmp_path: Path, store: Store, data: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(with_section(split="training", metric="loss")), encoding="utf-8")
    done = sweep(path, data, store, output=tmp_path / "sweep")
    assert (done.leaderboard.split, done.leaderboard.metric, done.leaderboard.goal) == ("train", "loss", "minimize")
    with pytest.raises(ConfigError, match="cachestore sweep"):
        train(path, data, store, output=tmp_path / "run")
