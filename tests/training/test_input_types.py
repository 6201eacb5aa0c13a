"""Sets, vectors and dates: cells → columns, against scikit-learn and pandas, and what is refused and where."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import date
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from sklearn.preprocessing import MultiLabelBinarizer

from cachestore.errors import DataError
from trainer import features
from trainer.features import Filled, Fitted, FittedDate, FittedSet, FittedVector
from trainer.schema.inputs import DateInput, SetInput, VectorInput
from trainer.schema.outputs import SetOutput, VectorOutput
from trainer.schema.preprocessing import (
    DatePreprocessing,
    SetPreprocessing,
    SetTargetPreprocessing,
    VectorPreprocessing,
    VectorTargetPreprocessing,
)


def learnt(feature: Any, cells: Any, train: Sequence[int] | None = None) -> tuple[Any, Filled]:
    """The state and every row, with the state taken through JSON on the way."""
    column = cells if isinstance(cells, pa.Array | pa.ChunkedArray) else pa.array(cells)
    mask = np.zeros(len(column), np.bool_)
    mask[list(range(len(column)) if train is None else train)] = True
    output = isinstance(feature, SetOutput | VectorOutput)
    fit: Any = features.fit_output if output else features.fit_input
    transform: Any = features.transform_output if output else features.transform_input
    fitted = fit(feature, column, mask, "d.csv")
    state: Fitted = features.fitted_from_json(json.loads(json.dumps(fitted.to_json())))
    assert state == fitted
    return state, transform(feature, state, column, "d.csv")


def refused(feature: Any, cells: Any, train: Sequence[int] | None = None) -> str:
    with pytest.raises(DataError) as error:
        learnt(feature, cells, train)
    assert "\n" not in str(error.value)
    return str(error.value)


def items(**preprocessing: Any) -> SetInput:
    return SetInput(name="s", preprocessing=SetPreprocessing(**preprocessing))


def labels(**preprocessing: Any) -> SetOutput:
    return SetOutput(name="s", preprocessing=SetTargetPreprocessing(**preprocessing))


def vector(**preprocessing: Any) -> VectorInput:
    return VectorInput(name="v", preprocessing=VectorPreprocessing(**preprocessing))


def day(**preprocessing: Any) -> DateInput:
    return DateInput(name="d", preprocessing=DatePreprocessing(**preprocessing))


# sets


WORDS = st.lists(st.sampled_from(["a", "b", "c", "dd", "é"]), max_size=6)


@given(st.lists(WORDS, min_size=1, max_size=12).filter(any))
def test_a_list_column_is_what_scikit_learn_makes_of_it(rows: list[list[str]]) -> None:
    state, column = learnt(items(), pa.array(rows, pa.list_(pa.string())))
    binarizer = MultiLabelBinarizer(classes=list(state.vocabulary))
    assert (column.values == binarizer.fit_transform(rows)).all()
    assert column.keep.all()
    assert not column.missing.any()


@pytest.mark.parametrize(
    ("tokenizer", "cells"),
    [
        ("space", ["a b", " b\t a  a", "c"]),
        ("comma", ["a,b", "b , a,,a", "c,"]),
        ("semicolon", ["a;b", "b ; a;a", "c"]),
        ("pipe", ["a|b", "b | a|a", "|c"]),
        ("underscore", ["a_b", "b_a", "c"]),
    ],
)
def test_a_text_holds_items_one_after_another(tokenizer: Any, cells: list[str]) -> None:
    state, column = learnt(items(tokenizer=tokenizer), cells)
    assert state.vocabulary == ("a", "b", "c")
    assert column.values.tolist() == [[1, 1, 0], [1, 1, 0], [0, 0, 1]]


def test_an_untokenized_text_is_one_item() -> None:
    state, _ = learnt(items(tokenizer="untokenized"), ["a b", "a b", "c"])
    assert state.vocabulary == ("a b", "c")


@pytest.mark.parametrize(
    "cells",
    [
        pa.array([[1, 2], [2], None, []], pa.list_(pa.int64())),
        pa.array([["1", "2"], ["2", None], None, []], pa.large_list(pa.string())),
        pa.chunked_array([[["1", "2"]], [["2"], None, []]]),
        pa.array([["0"], ["1", "2"], ["2"], None, []]).slice(1),
        pa.array([["1", "2"], ["2", "2"], None, ["1", "2"]], pa.list_(pa.string(), 2)),
    ],
    ids=lambda cells: str(cells.type),
)
def test_typed_set_columns(cells: Any) -> None:
    state, column = learnt(labels(), cells, train=[0, 1])
    assert state.vocabulary == ("2", "1")
    assert column.values[:3].tolist() == [[1, 1], [1, 0], [0, 0]]
    assert column.keep.tolist() == [True, True, False, True]


def test_items_are_counted_once_a_row() -> None:
    state, _ = learnt(items(), ["b b b", "a", "a b", "a"])
    assert state.vocabulary == ("a", "b")


def test_unknown_items_have_a_column_only_where_training_rows_hold_some() -> None:
    state, column = learnt(items(), ["a", "b a", "a new"], train=[0, 1])
    assert state.vocabulary == ("a", "b")
    assert column.values.tolist() == [[1, 0], [1, 1], [1, 0]]
    state, column = learnt(items(most_common=1), ["a", "b a", "new"], train=[0, 1])
    assert state.vocabulary == ("<UNK>", "a")
    assert column.values.tolist() == [[0, 1], [1, 1], [1, 0]]


def test_set_strategies() -> None:
    cells = ["a b", None, "c", "b a", ""]
    filled = {
        "fill_with_const": [0, 0, 0, 1],
        "fill_with_mode": [1, 1, 0, 0],
        "bfill": [0, 0, 1, 0],
        "ffill": [1, 1, 0, 0],
    }
    for strategy, values in filled.items():
        state, column = learnt(items(missing_value_strategy=strategy, fill_value="z"), cells)
        there = [state.vocabulary.index(item) for item in "abc"]
        own = [*there, *([state.vocabulary.index("z")] if "z" in state.vocabulary else [])]
        assert column.values[1, own].tolist() == values[: len(own)]
        assert column.missing.tolist() == [False, True, False, False, True]
    _, column = learnt(items(missing_value_strategy="drop_row"), cells)
    assert column.keep.tolist() == [True, False, True, True, False]
    state, _ = learnt(items(), cells)
    assert state.vocabulary[0] == "<UNK>"


def test_a_constant_for_missing_cells_does_not_take_the_place_of_unknown_items() -> None:
    cells = ["a b", "a b", "c", None]
    state, column = learnt(items(most_common=2, fill_value="z", missing_value_strategy="fill_with_const"), cells)
    assert state.vocabulary == ("<UNK>", "a", "b", "z")
    assert column.values.tolist() == [[0, 1, 1, 0], [0, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 1]]


def test_the_most_frequent_set_has_no_item_that_the_rows_have_not() -> None:
    cells = ["a b", "a b", "a b", "c d", "c d", "e", "e", None]
    state, column = learnt(items(most_common=2, missing_value_strategy="fill_with_mode"), cells)
    assert state.vocabulary == ("<UNK>", "a", "b")
    assert column.values[-1].tolist() == [1, 0, 0]  # unknown items, one or two of them
    state, column = learnt(labels(most_common=2, missing_value_strategy="fill_with_mode"), ["c d", *cells])
    assert state.vocabulary == ("a", "b")
    assert column.values[-1].tolist() == [0.0, 0.0]  # what most rows hold of the labels that are left


def test_labels_that_no_training_row_has_are_behind_and_fill_nothing() -> None:
    column = pa.array(["a", "b", "b", "z", "z", "z", None])
    train, known = np.arange(7) < 3, np.ones(7, np.bool_)
    for most, vocabulary in ((9, ("b", "a", "z")), (2, ("b", "a"))):
        feature = labels(missing_value_strategy="fill_with_mode", most_common=most)
        state = features.fit_output(feature, column, train, "d.csv", known)
        assert isinstance(state, FittedSet)
        assert (state.vocabulary, state.fill) == (vocabulary, (0,))


def test_an_indicator_is_asked_for_and_only_where_training_rows_miss_the_cell() -> None:
    assert learnt(items(missing_value_indicator=True), ["a", None])[0].missing
    assert not learnt(items(missing_value_indicator=True), ["a", None], train=[0])[0].missing
    assert not learnt(items(), ["a", None])[0].missing


def test_a_target_set_of_an_item_that_no_training_row_has_is_refused_with_its_row() -> None:
    message = refused(labels(), ["a b", "a", "a bb"], train=[0, 1])
    assert message.startswith("d.csv, column 's', data row 2 (counted from 0): the item 'bb' is in no row")
    _, column = learnt(labels(most_common=2), ["a b", "a b", "a c"])  # cut: c is one of those left out
    assert column.values.tolist() == [[1, 1], [1, 1], [1, 0]]
    assert column.values.dtype == np.float32


def test_a_set_column_without_an_item_is_refused() -> None:
    assert "no item in any training row" in refused(items(missing_value_strategy="drop_row"), ["", None])
    assert "a set output needs one" in refused(labels(), ["", None])


# vectors


@pytest.mark.parametrize(
    "cells",
    [
        ["1 2.5", "-3e1 4", None],
        ["[1, 2.5]", "[-30.0,4.0]", ""],
        ["1;2.5", "(-30\t4)", " "],
        pa.array([[1, 2.5], [-30, 4], None]),
        pa.array([[1, 2.5], [-30, 4], None], pa.list_(pa.float32(), 2)),
        pa.array([[9, 9], [1, 2.5], [-30, 4], None], pa.large_list(pa.float64())).slice(1),
        pa.chunked_array([[[1, 2.5]], [[-30, 4], None]]),
    ],
    ids=str,
)
def test_forms_of_a_vector(cells: Any) -> None:
    state, column = learnt(vector(missing_value_indicator=True), cells)
    assert state == FittedVector(2, (0.0, 0.0), missing=True)
    assert column.values.tolist() == [[1, 2.5], [-30, 4], [0, 0]]
    assert column.values.dtype == np.float32


@given(st.lists(st.tuples(*[st.floats(width=32, allow_nan=False, allow_infinity=False)] * 3), min_size=1, max_size=10))
def test_vectors_written_as_text_are_read_back_exactly(rows: list[tuple[float, float, float]]) -> None:
    _, column = learnt(vector(), [str(list(row)) for row in rows])
    assert (column.values == np.array(rows, np.float32)).all()


@pytest.mark.parametrize(
    ("cells", "why"),
    [
        (["1 2", "1 2 3"], "data row 1 (counted from 0): has 3 numbers, and the vectors of this feature have 2"),
        (["1 2", "1 x"], "data row 1 (counted from 0): 'x' is not a number"),
        (["1 2", "[]"], "data row 1"),
        (["1 2", "1 nan"], "data row 1 (counted from 0): the vector has a missing number"),
        ([[1.0, 2.0], [None, 1.0]], "data row 1 (counted from 0): the vector has a missing number"),
        ([[1.0, 2.0], None, [float("inf"), 1.0]], "data row 2 (counted from 0): the vector has inf"),
        (["1 2", "1e39 1"], "data row 1 (counted from 0): the vector has 1e+39, which is too large"),
        ([None, ""], "no vector in any training row"),
    ],
    ids=str,
)
def test_what_is_no_vector_is_refused_with_its_row(cells: Any, why: str) -> None:
    assert why in refused(vector(), cells)


def test_vector_strategies() -> None:
    cells = ["1 2", None, "3 4", "1 2"]
    for strategy, value in (("bfill", [3, 4]), ("ffill", [1, 2]), ("fill_with_mode", [1, 2])):
        assert learnt(vector(missing_value_strategy=strategy), cells)[1].values[1].tolist() == value
    assert learnt(vector(fill_value="7, 8"), cells)[1].values[1].tolist() == [7, 8]
    assert learnt(vector(fill_value=5.0), cells)[1].values[1].tolist() == [5, 5]
    assert "write 2, or one number for all" in refused(vector(fill_value="7"), cells)
    assert "vectors of this feature have 3" in refused(vector(vector_size=3), cells)
    target = VectorOutput(name="v", preprocessing=VectorTargetPreprocessing())
    assert learnt(target, cells)[1].keep.tolist() == [True, False, True, True]


# dates


def expected(moments: pd.Series, train: Sequence[int]) -> np.ndarray[Any, Any]:
    """The columns of a date input by pandas, of the fields that vary in ``train``."""
    fields = {
        "month": (moments.dt.month - 1, 12),
        "day": (moments.dt.day - 1, 31),
        "weekday": (moments.dt.day_of_week, 7),
        "yearday": (moments.dt.day_of_year - 1, 366),
        "hour": (moments.dt.hour, 24),
        "minute": (moments.dt.minute, 60),
        "second": (moments.dt.second, 60),
    }
    years = moments.dt.year
    seen = years.iloc[list(train)]
    columns = [(years - seen.mean()) / seen.std(ddof=0)] if seen.nunique() > 1 else []
    for values, period in fields.values():
        if values.iloc[list(train)].nunique() > 1:
            columns += [np.sin(2 * np.pi * values / period), np.cos(2 * np.pi * values / period)]
    return np.stack([np.asarray(column, np.float64) for column in columns], axis=1)


@given(st.lists(st.datetimes(), min_size=2, max_size=20, unique_by=lambda moment: moment.year))
def test_dates_are_the_fields_that_pandas_reads(moments: list[Any]) -> None:
    moments = [moment.replace(microsecond=0) for moment in moments]
    state, column = learnt(day(), [moment.isoformat(sep=" ") for moment in moments])
    wanted = expected(pd.Series(pd.array(moments, dtype="datetime64[s]")), range(len(moments)))
    assert column.values.shape[1] == state.dim
    assert column.values == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize(
    "cells",
    [
        ["2024-02-29 13:05:09", "1969-12-31 23:59:59", None],
        ["2024-02-29T13:05:09.25", " 1969-12-31T23:59:59 ", "NaT"],
        pa.array([1709211909, -1, None], pa.timestamp("s")),
        pa.array([1709211909_250, -1, None], pa.timestamp("ms")),
        pa.array([1709211909, -1, None], pa.timestamp("s")).dictionary_encode(),
        pa.array([1709211909, -1, None], pa.timestamp("s", "UTC")),
        pa.array([1709211909 + 5 * 3600, -1 + 5 * 3600, None], pa.timestamp("s", "-05:00")),
    ],
    ids=lambda cells: str(getattr(cells, "type", cells)),
)
def test_forms_of_a_date(cells: Any) -> None:
    state, column = learnt(day(missing_value_strategy="drop_row"), cells)
    wanted = expected(pd.Series(pd.to_datetime(["2024-02-29 13:05:09", "1969-12-31 23:59:59"])), (0, 1))
    assert isinstance(state, FittedDate)
    assert column.values[:2] == pytest.approx(wanted, abs=1e-6)
    assert column.keep.tolist() == [True, True, False]


def test_days_alone_have_no_time_of_day() -> None:
    state, column = learnt(day(), pa.array([date(2024, 1, 31), date(2023, 12, 1)]))
    assert state.fields == ("year", "month", "day", "weekday", "yearday")
    assert column.values.shape == (2, 9)


def test_december_is_next_to_january() -> None:
    state, column = learnt(day(), [f"2023-{month:02}-15" for month in range(1, 13)])
    at = 2 * state.fields.index("month")
    months = column.values[:, at : at + 2]
    assert np.linalg.norm(months[11] - months[0]) == pytest.approx(np.linalg.norm(months[1] - months[0]), abs=1e-6)


def test_a_form_reads_other_dates() -> None:
    _, column = learnt(day(datetime_format="%d.%m.%Y"), ["31.01.2024", "01.12.2023"])
    assert (column.values == learnt(day(), ["2024-01-31", "2023-12-01"])[1].values).all()
    _, column = learnt(day(datetime_format="%Y%m%d"), [20240131, 20231201])
    assert (column.values == learnt(day(), ["2024-01-31", "2023-12-01"])[1].values).all()


def test_a_form_with_a_zone_reads_in_utc() -> None:
    zoned = ["2024-01-31 23:30:00+0200", "2023-12-01 00:00:00-0500"]
    _, column = learnt(day(datetime_format="%Y-%m-%d %H:%M:%S%z"), zoned)
    assert (column.values == learnt(day(), ["2024-01-31 21:30", "2023-12-01 05:00"])[1].values).all()


@pytest.mark.parametrize(
    ("cell", "form", "why"),
    [
        ("2024-02-30", None, "'2024-02-30' is not a date such as 2024-01-31"),
        ("31.01.2024", None, "set preprocessing.datetime_format to its form"),
        ("2024-01-31 10:00:00Z", None, "has a time zone"),
        ("2024-01-31T10:00:00.5+02:00", None, "has a time zone"),
        ("30.02.2024", "%d.%m.%Y", "'30.02.2024' is not a date of the form '%d.%m.%Y'"),
    ],
)
def test_what_is_no_date_is_refused_with_its_row(cell: str, form: str | None, why: str) -> None:
    good = "2024-01-01" if form is None else "01.01.2024"
    message = refused(day(datetime_format=form), [good, None, cell, "x"])
    assert message.startswith("d.csv, column 'd', data row 2 (counted from 0): ")
    assert why in message


@pytest.mark.parametrize("form", ["%Q", "no directive", "%Y %Y", "%", "%%"])
def test_a_form_that_python_does_not_have_is_refused(form: str) -> None:
    with pytest.raises(ValidationError, match="made of Python's directives"):
        DatePreprocessing(datetime_format=form)


def test_date_strategies() -> None:
    cells = ["2024-01-01", None, "2023-05-05", "2024-01-01"]
    for strategy, like in (("bfill", 2), ("ffill", 0), ("fill_with_mode", 0)):
        values = learnt(day(missing_value_strategy=strategy), cells)[1].values
        assert (values[1] == values[like]).all()
    values = learnt(day(missing_value_strategy="fill_with_const", fill_value="2023-05-05"), cells)[1].values
    assert (values[1] == values[2]).all()
    assert "no date in any training row" in refused(day(), [None, ""])


@given(st.lists(st.sampled_from(["a b", "c", None, "a"]), min_size=4, max_size=12), st.data())
def test_transform_never_depends_on_rows_that_do_not_train(cells: list[str | None], data: st.DataObject) -> None:
    train = [0, 1]
    cells[0] = "a b"
    state: FittedSet = learnt(items(), cells, train)[0]
    other = [*cells[:2], *data.draw(st.permutations(cells[2:]))]
    assert learnt(items(), other, train)[0] == state
