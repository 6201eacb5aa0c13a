"""The report of a run: what it says of training, predictions, mistakes and lineage, and that data cannot break out of it."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn import metrics as sk

from cachestore.errors import DamageError, UsageError
from cachestore.store import Store, open_store
from tests.training.test_run import config, everything, messages, with_free, write
from trainer import report, train
from trainer.report import charts, curves, files, kept, mistakes, numbers
from trainer.report.comparison import compare, document
from trainer.report.figures import Bars


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(tmp_path / "store") as opened:
        yield opened


class _Checked(HTMLParser):
    """Tags that were opened and not closed, and what the page would load or run."""

    VOID = ("meta", "img", "br", "wbr")

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.foreign: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag not in self.VOID and not tag.startswith("!"):
            self.open.append(tag)
        for name, value in attrs:
            if name.startswith("on") or (
                name in ("src", "href") and not str(value).startswith(("data:image/jpeg", "#"))
            ):
                self.foreign.append(f"{tag} {name}={value}")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def checked(path: Path) -> _Checked:
    page = _Checked(path.read_text(encoding="utf-8"))
    assert page.open == []
    assert page.foreign == []
    assert not page.tags & {"script", "link", "iframe", "object", "base", "form"}
    return page


def test_a_run_of_every_type_has_a_whole_page_that_loads_nothing(tmp_path: Path, store: Store) -> None:
    data = write(tmp_path / "all.csv", with_free(messages(240)))
    run = train(everything(), data, store, output=tmp_path / "run")
    page = checked(run.path / "report.html")
    for words in ("Confusion matrix", "ROC", "Precision and recall", "Calibration", "Residuals", "Worst mistakes"):
        assert words in page.text
    for words in (
        "Loss: all outputs",
        "Output: topic",
        "Output: urgent",
        "Output: cost",
        "Features",
        "Targets",
        "Config",
    ):
        assert words in page.text
    assert run.manifests["train"][0] in page.text
    assert str(data) in page.text
    assert "url(" not in (run.path / "report.html").read_text(encoding="utf-8")


def test_the_page_says_how_many_rows_percentage_errors_leave_out(tmp_path: Path, store: Store) -> None:
    data = write(tmp_path / "all.csv", [{**row, "cost": str(place % 4)} for place, row in enumerate(messages(240))])
    output = {"name": "cost", "type": "number", "preprocessing": {"normalization": "zscore"}}
    run = train(config(output_features=[output]), data, store, output=tmp_path / "run")
    found = json.loads((run.path / "evaluation.json").read_bytes())["test"]["outputs"]["cost"]
    assert found["zero_targets"] == found_zeros(run.path)
    assert found["metrics"]["mean_absolute_percentage_error"]["value"] < 100
    note = f"Percentage errors of cost leave out {found['zero_targets']} test rows whose value is 0."
    assert note in checked(run.path / "report.html").text


def found_zeros(run: Path) -> int:
    """How many of the kept targets are 0, but for rounding."""
    held = kept.read(run)[1]
    assert held is not None
    return int((np.abs(held.outputs["cost"].target) < 1e-3).sum())


def test_labels_of_a_set_are_counted() -> None:
    counts = {"train": {"counts": [5, 9]}, "test": {"counts": [1, 2]}}
    figure = charts.targets("tags", "set", {"vocabulary": ["a", "b"]}, counts)
    assert isinstance(figure, Bars)
    assert (figure.title, figure.labels) == ("Rows by label: tags", ["b", "a"])
    assert figure.values == {"train": [9, 5], "test": [2, 1]}


def test_texts_that_look_like_markup_are_shown_as_texts(tmp_path: Path, store: Store) -> None:
    evil = "<script>alert('1')</script>\"><img src=x onerror=alert(2)>"
    rows = messages(120)
    for number, row in enumerate(rows):
        row["text"] = f"{evil} {number}\u0001"
        row["topic"] = ("<u>bold</u>", 'quo"te', "</svg><script>x()</script>")[number % 3]
    output = [{"name": "<i>topic</i>", "column": "topic", "type": "category"}]
    run = train(
        config(output_features=output, trainer={"epochs": 1}),
        write(tmp_path / "<u>data.csv", rows),
        store,
        output=tmp_path / "run<s>",
    )
    page = checked(run.path / "report.html")
    assert evil in page.text
    assert "</svg><script>x()</script>" in page.text
    assert not page.tags & {"u", "s"}
    assert "\u0001" not in page.text
    checked_comparison = tmp_path / "compare.html"
    checked_comparison.write_text(document(compare([run.path, run.path])), encoding="utf-8")
    assert not checked(checked_comparison).tags & {"u", "s"}


def test_the_worst_mistakes_are_the_surest_wrong_ones_with_the_text_of_their_row(tmp_path: Path, store: Store) -> None:
    rows = messages(150)
    for row in rows[::5]:
        row["topic"] = "billing"  # whatever the text says
    data = write(tmp_path / "messages.csv", rows)
    run = train(config(), data, store, output=tmp_path / "run")
    _, held = kept.read(run.path)
    assert held is not None
    outcome = held.outputs["topic"]
    wrong = np.flatnonzero(outcome.target != outcome.predicted)
    assert len(wrong)
    assert outcome.probability is not None
    worst = mistakes.worst("category", outcome)
    assert worst[0] == wrong[outcome.probability[wrong].argmax()]
    page = checked(run.path / "report.html")
    labels = json.loads((run.path / "model.json").read_text())["features"]["topic"]["vocabulary"]
    for place in worst.tolist():
        row = rows[held.rows[place]]
        assert row["text"] in page.text
        assert row["topic"] == labels[outcome.target[place]]
        assert f"row {held.rows[place]}" in page.text


def test_kept_predictions_are_those_of_the_test_file_where_there_is_one(tmp_path: Path, store: Store) -> None:
    test_rows = messages(30, 200)
    test = write(tmp_path / "test.csv", [{**row, "topic": row["topic"]} for row in test_rows])
    run = train(config(), write(tmp_path / "train.csv", messages(90)), store, test=test, output=tmp_path / "run")
    facts, held = kept.read(run.path)
    assert facts is not None
    assert held is not None
    assert (facts.split, facts.held_by, held.of) == ("test", "test", 30)
    assert facts.sources["test"].path == str(test)
    classes = json.loads((run.path / "model.json").read_text())["features"]["topic"]["vocabulary"]
    assert [classes[place] for place in held.outputs["topic"].target] == [test_rows[row]["topic"] for row in held.rows]
    right = (held.outputs["topic"].target == held.outputs["topic"].predicted).mean()
    assert right == pytest.approx(run.metrics["test"]["topic"]["accuracy"])


def test_of_many_rows_some_at_even_distances_are_kept(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, held_out = (
        write(tmp_path / "a.csv", with_free(messages(90))),
        write(tmp_path / "b.csv", with_free(messages(50))),
    )
    given = everything()
    given["trainer"] |= {"epochs": 2, "eval_batch_size": 7}
    monkeypatch.setattr(sys.modules["trainer.report.collect"], "ROWS", 20)
    run = train(given, data, store, test=held_out, output=tmp_path / "run")
    _, held = kept.read(run.path)
    assert held is not None
    assert (held.rows.tolist(), held.of) == (list(range(0, 50, 3)), 50)
    said = run.predict(held_out, store).columns
    np.testing.assert_allclose(held.outputs["cost"].predicted, said["cost_predictions"][::3], rtol=1e-5)
    np.testing.assert_allclose(held.outputs["topic"].probability, said["topic_probability"][::3], rtol=1e-5)
    assert [row["cost"] for row in messages(50)][::3] == [f"{cost:.0f}" for cost in held.outputs["cost"].target]


def test_a_file_that_is_gone_changed_or_too_large_is_said_to_be_so(tmp_path: Path, store: Store) -> None:
    rows = messages(120)
    for row in rows[::4]:
        row["topic"] = "billing"
    data = write(tmp_path / "messages.csv", rows)
    run = train(config(), data, store, output=tmp_path / "run")
    shown = re.compile(r"case \d+")
    assert shown.search(checked(run.path / "report.html").text)
    page = checked(report.write(run.path, largest=10))
    assert "too many to be read again after each training" in page.text
    assert not shown.search(page.text)
    moved = tmp_path / "moved.csv"
    shutil.move(data, moved)
    assert "The rows cannot be shown" in checked(report.write(run.path)).text
    assert shown.search(checked(report.write(run.path, moved)).text)
    write(moved, messages(119))
    assert "not what the run was trained on any more" in checked(report.write(run.path, moved)).text


def test_a_table_in_memory_has_its_rows_in_the_report(tmp_path: Path, store: Store) -> None:
    rows = messages(120)
    for row in rows[::4]:
        row["topic"] = "billing"
    table = {name: [row[name] for row in rows] for name in rows[0]}
    run = train(config(), table, store, output=tmp_path / "run")
    assert re.search(r"case \d+", checked(run.path / "report.html").text)
    assert "in memory" in checked(report.write(run.path)).text


def test_pictures_that_are_mistaken_are_small_and_inside_the_page(tmp_path: Path) -> None:
    cells = []
    for number in range(4):
        Image.new("RGB", (300, 200), (number * 60, 90, 10)).save(tmp_path / f"{number}.png")
        cells.append(f"{number}.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    data = tmp_path / "pictures.csv"
    data.write_text("image,wait\n" + "".join(f"{cell},1\n" for cell in [*cells, "broken.png"]))
    features = {
        "input_features": [{"name": "image", "type": "image", "encoder": {"type": "resnet"}}],
        "output_features": [{"name": "wait", "type": "number"}],
    }
    facts = kept.Facts("", "", {"test": kept.Source(str(data), str(data), None)}, "test", "test", {}, 0, "cpu")
    found = mistakes.contents(features, facts, np.array([1, 4]))
    assert found.absent == ""
    assert found.rows[1][0].picture.startswith("data:image/jpeg;base64,")
    assert len(found.rows[1][0].picture) < 20_000
    assert "is not a picture" in found.rows[4][0].text


def test_without_held_out_rows_the_page_says_so(tmp_path: Path, store: Store) -> None:
    split = {"split": {"type": "random", "probabilities": [1.0, 0.0, 0.0]}}
    data = write(tmp_path / "messages.csv", messages(60))
    run = train(config(preprocessing=split), data, store, output=tmp_path / "run")
    assert "no row was held out" in checked(run.path / "report.html").text
    assert not (run.path / "predictions.safetensors").exists()


def test_a_run_without_what_reports_need_still_has_a_page(tmp_path: Path, store: Store) -> None:
    run = train(config(), write(tmp_path / "messages.csv", messages(60)), store, output=tmp_path / "run")
    for name in ("report.json", "predictions.safetensors", "evaluation.json", "report.html"):
        (run.path / name).unlink(missing_ok=True)
    page = checked(report.write(run.path))
    assert "an older version trained it" in page.text
    (run.path / "report.json").write_text("{}")
    with pytest.raises(DamageError, match="damaged"):
        report.write(run.path)
    with pytest.raises(UsageError, match="no run at"):
        report.write(tmp_path / "none")


def test_rows_without_a_probability_leave_the_page_without_a_calibration(tmp_path: Path, store: Store) -> None:
    run = train(config(), write(tmp_path / "messages.csv", messages(60)), store, output=tmp_path / "run")
    path = run.path / "evaluation.json"
    path.write_text(re.sub(r'"confidence": [^,}]*', '"confidence": null', path.read_text()))
    assert "Calibration" in checked(run.path / "report.html").text
    assert "Calibration" not in checked(report.write(run.path)).text


def test_curves_are_those_of_scikit_learn() -> None:
    generator = np.random.default_rng(0)
    truth = generator.random(400) < 0.4
    scores = np.round(truth * 0.3 + generator.random(400), 1).astype(np.float32)  # with ties
    x, y, area = curves.roc(scores, truth)
    expected_x, expected_y, _ = sk.roc_curve(truth, scores, drop_intermediate=False)
    np.testing.assert_allclose(x, expected_x)
    np.testing.assert_allclose(y, expected_y)
    assert area == pytest.approx(sk.roc_auc_score(truth, scores))
    recall, precision, average = curves.precision_recall(scores, truth)
    assert average == pytest.approx(sk.average_precision_score(truth, scores))
    expected_precision, expected_recall, _ = sk.precision_recall_curve(truth, scores)
    np.testing.assert_allclose(recall[1:], expected_recall[::-1][1:])
    np.testing.assert_allclose(precision[1:], expected_precision[::-1][1:])


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.92861, "0.9286"),
        (12.345678, "12.35"),
        (1234.6, "1,235"),
        (1.2e-5, "1.20e-05"),
        (None, "–"),
        (40.0, "40"),
        (0, "0"),
    ],
)
def test_numbers_are_short(value: float | None, shown: str) -> None:
    assert numbers.short(value) == shown


@pytest.mark.parametrize(
    ("low", "high", "labels"),
    [
        (0.0, 1.0, ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]),
        (0.31, 0.34, ["0.310", "0.315", "0.320", "0.325", "0.330", "0.335", "0.340"]),
        (0.0, 60000.0, ["0", "10k", "20k", "30k", "40k", "50k", "60k"]),
        (5.0, 5.0, ["5"]),
    ],
)
def test_ticks_are_round_and_tell_each_other_apart(low: float, high: float, labels: list[str]) -> None:
    found = numbers.tick_labels(numbers.ticks(low, high, 7))
    assert len(set(found)) == len(found)
    assert all(label in labels for label in found), found


def test_every_figure_is_a_png_too(tmp_path: Path, store: Store) -> None:
    pytest.importorskip("matplotlib")
    rows = with_free(messages(90))
    for row in rows:
        row["topic"] = f"${row['topic']}$/<x>"  # neither mathematics nor a folder
    run = train(
        everything() | {"trainer": {"epochs": 2}}, write(tmp_path / "all.csv", rows), store, output=tmp_path / "run"
    )
    (run.path / "plots").mkdir()
    (run.path / "plots" / "of_an_older_version.png").write_bytes(b"old")
    paths = report.write_plots(run.path)
    assert set(paths) == set((run.path / "plots").iterdir())
    assert len(paths) == len(report.figures(run.path)) > 8
    for path in paths:
        with Image.open(path) as picture:
            assert picture.format == "PNG"
            assert min(picture.size) > 200


def test_plots_without_matplotlib_say_what_to_install(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = train(config(), write(tmp_path / "messages.csv", messages(60)), store, output=tmp_path / "run")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(UsageError, match=r"pip install 'cachestore\[plots\]'"):
        report.write_plots(run.path)


def test_a_run_that_is_replaced_leaves_no_plots_of_the_old_one(tmp_path: Path, store: Store) -> None:
    data = write(tmp_path / "messages.csv", messages(60))
    run = train(config(), data, store, output=tmp_path / "run")
    (run.path / "plots").mkdir()
    (run.path / "plots" / "old.png").write_bytes(b"old")
    (run.path / "notes.txt").write_text("mine")
    report.write_tensorboard(run.path)
    train(config(), data, store, output=tmp_path / "run")
    assert not (run.path / "plots").exists()
    assert not (run.path / "tensorboard").exists()
    assert (run.path / "notes.txt").exists()
    assert (run.path / "report.html").exists()


def test_tensorboard_reads_the_event_files(tmp_path: Path, store: Store) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run = train(config(), write(tmp_path / "messages.csv", messages(60)), store, output=tmp_path / "run")
    for _ in range(2):  # a second time replaces the first
        folder = report.write_tensorboard(run.path)
    assert {path.name for path in folder.iterdir()} == {"train", "validation", "test"}
    found = accumulator.EventAccumulator(str(folder / "train"))
    found.Reload()
    curve = files.read(run.path).curves["train"]
    events = found.Scalars("topic/loss")
    assert [event.step for event in events] == list(curve.epochs)
    np.testing.assert_allclose([event.value for event in events], curve.values["topic"]["loss"], rtol=1e-6)
    assert "learning_rate" in found.Tags()["scalars"]


def test_a_report_needs_no_matplotlib(tmp_path: Path, store: Store) -> None:
    before = set(sys.modules)
    train(config(), write(tmp_path / "messages.csv", messages(60)), store, output=tmp_path / "run")
    assert not {name for name in set(sys.modules) - before if name.startswith(("matplotlib", "tensorboard"))}


def two_runs(tmp_path: Path, store: Store) -> tuple[Path, Path]:
    data = write(tmp_path / "messages.csv", messages(120))
    first: Any = train(config(), data, store, output=tmp_path / "a" / "run")
    slow = config(trainer={"epochs": 3, "batch_size": 16, "learning_rate": 0.001})
    second = train(slow, data, store, output=tmp_path / "b" / "run")
    return first.path, second.path


def test_runs_side_by_side_have_differences_and_the_settings_that_differ(tmp_path: Path, store: Store) -> None:
    first, second = two_runs(tmp_path, store)
    found = compare([first, second])
    assert list(found.names) == ["a/run", "b/run"]
    assert found.split == "test"
    assert found.same_data is True
    assert found.config == {"trainer.epochs": [12, 3], "trainer.learning_rate": [0.05, 0.001]}
    loss = next(line for line in found.lines if line.metric == "loss")
    assert loss.values[0] is not None
    assert loss.values[1] is not None
    assert loss.against_first(1) == pytest.approx(loss.values[1] - loss.values[0])
    assert list(loss.best) == [0]
    accuracy = next(line for line in found.lines if line.metric == "accuracy")
    assert accuracy.values[0] == max(value for value in accuracy.values if value is not None)
    page = tmp_path / "compare.html"
    page.write_text(document(found), encoding="utf-8")
    assert "trainer.learning_" in checked(page).text


def test_runs_of_other_rows_are_said_to_be_so(tmp_path: Path, store: Store) -> None:
    data = write(tmp_path / "messages.csv", messages(120))
    first = train(config(), data, store, output=tmp_path / "first")
    second = train(config(random_seed=7), data, store, output=tmp_path / "second")
    assert compare([first.path, second.path]).same_data is False
    with pytest.raises(UsageError, match="at least two"):
        compare([first.path])
    with pytest.raises(UsageError, match="no run at"):
        compare([first.path, tmp_path / "none"])
