"""Cells → arrays: what is learnt from the training rows alone, what a missing cell becomes, what is refused and where."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.preprocessing import RobustScaler

from cachestore.dataset import KEPT_SKIPPED, open_dataset
from cachestore.errors import DataError
from trainer import features
from trainer.config import load_config
from trainer.encoders import input_encoder
from trainer.features import Filled, Fitted, FittedBinary, FittedCategory, FittedNumber
from trainer.features.read import read_columns
from trainer.schema.inputs import BinaryInput, CategoryInput, DenseCategory, NumberInput, OnehotCategory
from trainer.schema.outputs import (
    BinaryOutput,
    BinaryTargetPreprocessing,
    CategoryOutput,
    CategoryTargetPreprocessing,
    NumberOutput,
    NumberTargetPreprocessing,
)
from trainer.schema.preprocessing import BinaryPreprocessing, CategoryPreprocessing, NumberPreprocessing

_ENCODERS: dict[str, Any] = {
    "onehot": OnehotCategory(),
    "sparse": OnehotCategory(type="sparse"),
    "dense": DenseCategory(),
}


CONFIG = load_config(
    {"input_features": [{"name": "c", "type": "category"}], "output_features": [{"name": "y", "type": "binary"}]}
)


def marked(rows: int, train: Sequence[int] | None) -> NDArray[np.bool_]:
    mask = np.zeros(rows, np.bool_)
    mask[list(range(rows) if train is None else train)] = True
    return mask


def learnt(feature: Any, cells: Any, train: Sequence[int] | None = None) -> tuple[Fitted, Filled]:
    """The state and every row, with the state taken through JSON on the way."""
    column = cells if isinstance(cells, pa.Array | pa.ChunkedArray) else pa.array(cells)
    output = isinstance(feature, NumberOutput | CategoryOutput | BinaryOutput)
    fit: Any = features.fit_output if output else features.fit_input
    transform: Any = features.transform_output if output else features.transform_input
    fitted = fit(feature, column, marked(len(column), train), "d.csv")
    state = features.fitted_from_json(json.loads(json.dumps(fitted.to_json())))
    assert state == fitted
    return state, transform(feature, state, column, "d.csv")


def refused(feature: Any, cells: Any, train: Sequence[int] | None = None) -> str:
    with pytest.raises(DataError) as error:
        learnt(feature, cells, train)
    assert "\n" not in str(error.value)
    return str(error.value)


def number(**preprocessing: Any) -> NumberInput:
    return NumberInput(name="age", preprocessing=NumberPreprocessing(**{"normalization": None, **preprocessing}))


def category(**preprocessing: Any) -> CategoryInput:
    return CategoryInput(name="c", preprocessing=CategoryPreprocessing(**preprocessing))


def binary(**preprocessing: Any) -> BinaryInput:
    return BinaryInput(name="b", preprocessing=BinaryPreprocessing(**preprocessing))


# numbers


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=30))
def test_numbers_written_as_text_are_read_back_exactly(numbers: list[float]) -> None:
    array = features.number.c.numbers(pa.array([repr(value) for value in numbers]), "d.csv", "age")
    assert array.tolist() == numbers


@pytest.mark.parametrize(
    ("cell", "value"),
    [("+5", 5), (" 7\t", 7), (".5", 0.5), ("5.", 5), ("1E+2", 100), ("-0", 0), ("007", 7), ("1e-3", 0.001)],
)
def test_forms_of_a_number(cell: str, value: float) -> None:
    _, column = learnt(number(), [cell])
    assert column.values.tolist() == [pytest.approx(value)]
    assert column.values.dtype == np.float32


@pytest.mark.parametrize("cell", ["abc", "1,5", "1 000", "1_000", "0x10", "12:30", "1d", "--1", "e5", "."])
def test_text_in_a_number_column_is_refused_with_its_row(cell: str) -> None:
    message = refused(number(), ["1", None, cell, "x"])
    assert message.startswith("d.csv, column 'age', data row 2 (counted from 0): ")
    assert f"{cell!r} is not a number" in message


@pytest.mark.parametrize("cell", ["inf", "-Infinity", "1e999"])
def test_infinite_text_is_refused(cell: str) -> None:
    message = refused(number(), ["1", cell])
    assert "data row 1" in message
    assert "number" in message


@pytest.mark.parametrize("cell", [None, "", "  ", "nan", "NaN", "NA", "n/a", "null", "None"])
def test_missing_numbers(cell: str | None) -> None:
    _, column = learnt(number(fill_value=9.0), ["1", cell])
    assert column.values.tolist() == [1, 9]
    assert column.keep.all()


def test_a_long_cell_is_cut_in_the_message() -> None:
    assert len(refused(number(), ["x" * 10_000])) < 250


@pytest.mark.parametrize(
    "cells",
    [
        pa.array([1, None, 3], pa.int64()),
        pa.array([1, None, 3], pa.uint8()),
        pa.array([1.0, float("nan"), 3.0], pa.float32()),
        pa.array([np.float16(1), None, np.float16(3)], pa.float16()),
        pa.array([Decimal("1.00"), None, Decimal("3.00")]),
        pa.array(["1", None, "3"]).dictionary_encode(),
        pa.array(["1", None, "3"], pa.large_string()),
        pa.array([b"1", None, b"3"]),
        pa.chunked_array([["1"], [], [None, "3"]]),
        pa.array(["0", "1", None, "3"]).slice(1),
        pa.array([0, 1, None, 3]).slice(1),
    ],
    ids=lambda cells: str(cells.type),
)
def test_typed_number_columns(cells: Any) -> None:
    _, column = learnt(number(missing_value_strategy="fill_with_mean"), cells)
    assert column.values.tolist() == [1, 2, 3]


def test_types_that_are_no_numbers_are_refused() -> None:
    assert "make it a binary feature" in refused(number(), [True, False])
    assert "date32" in refused(number(), pa.array([1, 2], pa.date32()))
    assert "list" in refused(number(), [[1], [2]])


def test_infinity_in_a_typed_column_is_refused() -> None:
    assert "data row 1 (counted from 0): 'inf' is not a finite number" in refused(number(), [1.0, float("inf")])


def test_a_number_beyond_float32_is_refused() -> None:
    assert "data row 1" in refused(number(), ["1", "1e300"])


@pytest.mark.parametrize("normalization", ["zscore", "minmax", "log1p", None])
@pytest.mark.parametrize("large", ["1.797e308", "1e200"])
def test_a_number_beyond_float32_is_refused_and_nothing_else_is_said(normalization: Any, large: str) -> None:
    # warnings are errors here; a spread that overflows must not turn all other rows into zeros either
    message = refused(number(normalization=normalization), ["1", "2", large])
    assert "data row 2 (counted from 0)" in message
    assert "is too large for a 32-bit float" in message
    assert refused(NumberOutput(name="age"), ["1", "2", large]) == message


def test_zscore_of_the_training_rows_with_ddof_0() -> None:
    cells = ["1", "2", "6", None, "1000"]
    state, column = learnt(number(normalization="zscore"), cells, [0, 1, 2, 3])
    seen = np.array([1.0, 2.0, 6.0])
    assert isinstance(state, FittedNumber)
    assert (state.shift, state.scale) == (seen.mean(), seen.std())
    assert column.values[:3] == pytest.approx((seen - seen.mean()) / seen.std())
    assert column.values[3] == pytest.approx((0 - seen.mean()) / seen.std())  # the fill value, as any other value


@pytest.mark.parametrize("normalization", ["zscore", "minmax"])
@pytest.mark.parametrize("value", ["5", "0.1", "1e30"])
def test_a_constant_column_becomes_zeros(normalization: str, value: str) -> None:
    _, column = learnt(number(normalization=normalization), [value] * 7)
    assert column.values.tolist() == [0.0] * 7


def test_minmax_and_log1p() -> None:
    _, column = learnt(number(normalization="minmax"), ["10", "20", "30", "40"], [0, 1, 2])
    assert column.values.tolist() == [0, 0.5, 1, 1.5]
    _, column = learnt(number(normalization="log1p"), ["0", "9"])
    assert column.values == pytest.approx(np.log([1, 10]))
    message = refused(number(normalization="log1p"), ["1", "2", "-3"], [0, 1])
    assert "data row 2 (counted from 0): -3 is negative" in message


@pytest.mark.parametrize("normalization", [None, "zscore", "minmax", "log1p"])
def test_restore_undoes_normalize(normalization: Any) -> None:
    target = NumberOutput(name="y", preprocessing=NumberTargetPreprocessing(normalization=normalization))
    state, column = learnt(target, ["1", "2", "9"])
    assert isinstance(state, FittedNumber)
    assert state.restore(column.values) == pytest.approx([1, 2, 9], rel=1e-6)


def test_number_strategies() -> None:
    cells = [None, "4", None, "4", "10", None]
    expected = {
        "fill_with_const": [7, 4, 7, 4, 10, 7],
        "fill_with_mean": [6, 4, 6, 4, 10, 6],
        "fill_with_mode": [4, 4, 4, 4, 10, 4],
        "bfill": [4, 4, 4, 4, 10, 10],
        "ffill": [4, 4, 4, 4, 10, 10],
        "drop_row": [0, 4, 0, 4, 10, 0],
    }
    for strategy, values in expected.items():
        _, column = learnt(number(missing_value_strategy=strategy, fill_value=7.0), cells)
        assert column.values.tolist() == values, strategy
        assert column.keep.tolist() == [strategy != "drop_row" or cell is not None for cell in cells]


def test_a_mode_of_equals_is_the_least() -> None:
    _, column = learnt(number(missing_value_strategy="fill_with_mode"), ["3", "1", None])
    assert column.values.tolist() == [3, 1, 1]


def test_statistics_come_from_the_training_rows_alone() -> None:
    state, column = learnt(number(missing_value_strategy="fill_with_mean"), ["1", "3", None, "1000"], [0, 1])
    assert isinstance(state, FittedNumber)
    assert state.fill == 2
    assert column.values.tolist() == [1, 3, 2, 1000]


def test_a_row_without_neighbours_is_filled_from_training() -> None:
    feature = number(missing_value_strategy="bfill")
    state, _ = learnt(feature, ["1", "3"])
    column = features.transform_input(feature, state, pa.array([None], pa.string()), "new.csv")
    assert column.values.tolist() == [2]


def test_no_number_to_learn_from() -> None:
    assert "no number in any training row" in refused(number(missing_value_strategy="bfill"), [None, "1"], [0])
    assert "no number in any training row" in refused(NumberOutput(name="y"), [None, "1"], [0])
    _, column = learnt(number(normalization="zscore"), pa.array([None, None], pa.null()))
    assert column.values.tolist() == [0, 0]


# categories


def test_vocabulary_by_frequency_then_code_point() -> None:
    state, column = learnt(category(), ["b", "é", "a", "c", "c", "z"], [0, 1, 2, 3, 4])
    assert isinstance(state, FittedCategory)
    assert state.vocabulary == ("<UNK>", "c", "a", "b", "é")
    assert column.values.tolist() == [3, 4, 2, 1, 1, 0]  # z is in no training row
    assert column.values.dtype == np.int64


def test_most_common_and_lowercase() -> None:
    state, column = learnt(category(most_common=1, lowercase=True), ["A", "a", "B"])
    assert isinstance(state, FittedCategory)
    assert state.vocabulary == ("<UNK>", "a")
    assert column.values.tolist() == [1, 1, 0]


def test_a_value_called_unk_is_the_unknown() -> None:
    state, column = learnt(category(most_common=2), ["<UNK>", "<UNK>", "a", "b"])
    assert isinstance(state, FittedCategory)
    assert state.vocabulary == ("<UNK>", "a", "b")
    assert column.values.tolist() == [0, 0, 1, 2]


@pytest.mark.parametrize(
    ("cells", "texts"),
    [
        (pa.array([3, 7]), ("3", "7")),
        (pa.array([3.0, 7.5]), ("3", "7.5")),
        (pa.array([0.1, 3.0], pa.float32()), ("0.1", "3")),
        (pa.array([False, True]), ("False", "True")),
        (pa.array([0, 1], pa.date32()), ("1970-01-01", "1970-01-02")),
        (pa.array([" x", "x y "]), ("x", "x y")),
        (pa.array(["a", "b"]).dictionary_encode(), ("a", "b")),
    ],
    ids=str,
)
def test_text_forms(cells: Any, texts: tuple[str, ...]) -> None:
    state, column = learnt(category(), cells)
    assert isinstance(state, FittedCategory)
    assert state.vocabulary == ("<UNK>", *texts)
    assert column.values.tolist() == [1, 2]


def test_floats_that_are_whole_read_as_the_integers_of_another_file() -> None:
    state, _ = learnt(category(), [1.0, 2.0, None])
    column = features.transform_input(category(), state, pa.array(["2", "1"]), "new.csv")
    assert column.values.tolist() == [2, 1]


def test_category_strategies() -> None:
    cells = [None, "a", "a", "", "b"]
    expected = {
        "fill_with_const": [0, 1, 1, 0, 2],
        "fill_with_mode": [1, 1, 1, 1, 2],
        "bfill": [1, 1, 1, 2, 2],
        "ffill": [1, 1, 1, 1, 2],
        "drop_row": [0, 1, 1, 0, 2],
    }
    for strategy, values in expected.items():
        _, column = learnt(category(missing_value_strategy=strategy), cells)
        assert column.values.tolist() == values, strategy
        assert column.keep.all() == (strategy != "drop_row")


def test_a_constant_fill_is_a_value_where_training_rows_miss_it() -> None:
    state, column = learnt(category(fill_value="none"), [None, None, "a"])
    assert isinstance(state, FittedCategory)
    assert state.vocabulary == ("<UNK>", "none", "a")
    assert column.values.tolist() == [1, 1, 2]
    state, column = learnt(category(fill_value="none"), ["a", None], [0])
    assert column.values.tolist() == [1, 0]


def test_no_category_to_fill_with() -> None:
    assert "no value in any training row" in refused(
        category(missing_value_strategy="fill_with_mode"), [None, "a"], [0]
    )


def test_invalid_utf8_is_refused_with_its_row() -> None:
    assert "data row 1 (counted from 0): is not UTF-8" in refused(category(), pa.array([b"a", b"\xff"]))


def test_nested_cells_are_refused() -> None:
    assert "list" in refused(category(), [["a"], ["b"]])


def test_classes_of_an_output() -> None:
    state, column = learnt(CategoryOutput(name="y"), ["b", "a", "b", None])
    assert isinstance(state, FittedCategory)
    assert state.vocabulary == ("b", "a")
    assert column.values.tolist() == [0, 1, 0, 0]
    assert column.keep.tolist() == [True, True, True, False]


def test_a_class_in_no_training_row_is_refused() -> None:
    message = refused(CategoryOutput(name="y", column="topic"), ["card", "loan", "crad", "x"], [0, 1])
    assert message.startswith(
        "d.csv, column 'topic', data row 2 (counted from 0): the class 'crad' is in no row of the training data"
    )
    assert "did you mean 'card'?" in message
    assert "'card', 'loan'" in message


def test_an_output_needs_two_classes() -> None:
    assert "only the class 'a'" in refused(CategoryOutput(name="y"), ["a", "a", "b"], [0, 1])
    assert "no class" in refused(CategoryOutput(name="y"), [None, "a"], [0])


def test_a_constant_class_for_missing_targets() -> None:
    filled = CategoryTargetPreprocessing(missing_value_strategy="fill_with_const", fill_value="other")
    feature = CategoryOutput(name="y", preprocessing=filled)
    state, column = learnt(feature, ["a", None, "a"])
    assert isinstance(state, FittedCategory)
    assert state.vocabulary == ("a", "other")
    assert column.values.tolist() == [0, 1, 0]
    assert "the class 'other' is in no row of the training data" in refused(feature, ["a", "b", None], [0, 1])


def test_a_class_that_no_training_row_has_is_behind_the_others_and_fills_nothing() -> None:
    filled = CategoryTargetPreprocessing(missing_value_strategy="fill_with_mode")
    column = pa.array(["a", "b", "b", "z", "z", "z", None])
    state = features.fit_output(
        CategoryOutput(name="y", preprocessing=filled), column, marked(7, [0, 1, 2]), "d.csv", marked(7, None)
    )
    assert isinstance(state, FittedCategory)
    assert (state.vocabulary, state.fill) == (("b", "a", "z"), 0)


@pytest.mark.parametrize(("strategy", "value"), [("fill_with_mode", 0), ("bfill", 1), ("ffill", 0)])
def test_missing_targets_filled(strategy: Any, value: int) -> None:
    filled = CategoryTargetPreprocessing(missing_value_strategy=strategy)
    _, column = learnt(CategoryOutput(name="y", preprocessing=filled), ["a", "a", None, "b"])
    assert column.values.tolist() == [0, 0, value, 1]
    assert column.keep.all()


# true and false


# outliers, quartiles, unknown values and indicators


def test_iq_is_the_robust_scaler_of_scikit_learn() -> None:
    values = np.random.default_rng(0).normal(5, 3, 101) ** 3
    _, column = learnt(number(normalization="iq"), values.tolist())
    assert column.values == pytest.approx(RobustScaler().fit_transform(values[:, None])[:, 0], rel=1e-5, abs=1e-5)
    assert "normalization iq has nothing to divide by" in refused(number(normalization="iq"), [1, 1, 1, 1, 9])
    assert learnt(number(normalization="iq"), [4, 4])[1].values.tolist() == [0, 0]


NUMBERS = [1.0, 2.0, None, 3.0, 2.0, 2.0, 1.0, 3.0, 2.0, 1000.0, 4.0]


@pytest.mark.parametrize(
    ("strategy", "value"),
    [("fill_with_const", -7), ("fill_with_mean", 20 / 9), ("fill_with_mode", 2), ("bfill", 4), ("ffill", 2)],
)
def test_outliers_are_replaced_by_what_the_others_are(strategy: Any, value: float) -> None:
    settings = {"outlier_strategy": strategy, "outlier_replacement_value": -7.0, "outlier_threshold": 2.5}
    state, column = learnt(number(missing_value_strategy="fill_with_mean", **settings), NUMBERS)
    seen = np.array([one for one in NUMBERS if one is not None])
    assert isinstance(state, FittedNumber)
    assert state.outliers is not None
    assert state.outliers.low == pytest.approx(seen.mean() - 2.5 * seen.std())
    assert state.outliers.high == pytest.approx(seen.mean() + 2.5 * seen.std())
    assert column.values[9] == pytest.approx(value)
    assert column.values[2] == pytest.approx(20 / 9)  # the mean of what is no outlier
    assert column.missing.tolist() == [place == 2 for place in range(11)]
    assert column.keep.all()


def test_statistics_are_those_without_outliers() -> None:
    state, _ = learnt(number(normalization="zscore", outlier_strategy="drop_row", outlier_threshold=2.5), NUMBERS)
    sound = np.array([one for one in NUMBERS if one is not None and one < 100])
    assert isinstance(state, FittedNumber)
    assert (state.shift, state.scale) == (pytest.approx(sound.mean()), pytest.approx(sound.std()))


def test_outliers_dropped_are_not_missing() -> None:
    _, column = learnt(number(outlier_strategy="drop_row", outlier_threshold=2.5), NUMBERS)
    assert column.keep.tolist() == [place != 9 for place in range(11)]
    assert not column.missing[9]


def test_bounds_of_outliers_come_from_the_training_rows() -> None:
    _, column = learnt(number(outlier_strategy="fill_with_const"), [1, 2, 3, 50], train=[0, 1, 2])
    assert column.values.tolist() == [1, 2, 3, 0]


def test_a_threshold_that_leaves_nothing_is_refused() -> None:
    assert "raise it" in refused(number(outlier_strategy="fill_with_mean", outlier_threshold=0.1), [1, 2])


def test_a_negative_outlier_is_no_fault_of_log1p() -> None:
    cells = [*[1.0, 2.0] * 10, -500.0]
    _, column = learnt(number(normalization="log1p", outlier_strategy="fill_with_mode"), cells)
    assert column.values[-1] == pytest.approx(np.log(2))


def test_a_value_first_seen_later_is_a_vector_of_zeros() -> None:
    state, column = learnt(category(), ["a", "b", "a", "new"], train=[0, 1, 2])
    assert isinstance(state, FittedCategory)
    assert not state.unknown
    index = torch.from_numpy(column.values)
    for encoder in ("onehot", "sparse", "dense"):
        feature = CategoryInput(name="c", encoder=_ENCODERS[encoder])
        module, dim = input_encoder(feature, state, CONFIG)
        vectors = module(index)
        assert vectors.shape == (4, dim)
        assert (vectors[3] == 0).all()
        assert (vectors[:3] != 0).any(dim=1).all()
    assert dim == 3


def test_a_value_unknown_in_training_too_is_learnt_of() -> None:
    state, column = learnt(category(most_common=1), ["a", "b", "a"])
    assert isinstance(state, FittedCategory)
    assert state.unknown
    module, dim = input_encoder(CategoryInput(name="c", encoder=OnehotCategory()), state, CONFIG)
    assert module(torch.from_numpy(column.values)).tolist() == [[0, 1], [1, 0], [0, 1]]
    assert dim == 2
    assert learnt(category(), ["a", None])[0] == FittedCategory(("<UNK>", "a"), 0, unknown=True)
    assert learnt(category(missing_value_strategy="drop_row"), ["a", None])[0] == FittedCategory(
        ("<UNK>", "a"), None, unknown=False
    )


@pytest.mark.parametrize(
    ("feature", "cells"),
    [
        (number(missing_value_indicator=True), ["1", None, "2"]),
        (category(missing_value_indicator=True), ["a", None, "b"]),
        (binary(missing_value_indicator=True), ["yes", None, "no"]),
    ],
    ids=["number", "category", "binary"],
)
def test_an_indicator_needs_missing_cells_in_training(feature: Any, cells: list[Any]) -> None:
    state, column = learnt(feature, cells)
    assert state.missing
    assert column.missing.tolist() == [False, True, False]
    assert not learnt(feature, cells, train=[0, 2])[0].missing


@pytest.mark.parametrize(
    ("cells", "labels"),
    [
        ([True, False], ("False", "True")),
        ([1, 0], ("0", "1")),
        ([1.0, 0.0], ("0", "1")),
        (["1.0", "0.0"], ("0.0", "1.0")),
        (["1", "0"], ("0", "1")),
        (["yes", "no"], ("no", "yes")),
        ([" Y", "N "], ("N", "Y")),
        (["TRUE", "false"], ("false", "TRUE")),
        (["t", "F"], ("F", "t")),
    ],
    ids=str,
)
def test_words_for_true_and_false(cells: list[Any], labels: tuple[str, str]) -> None:
    state, column = learnt(binary(), cells)
    assert state == FittedBinary(labels, words=True, fill=0.0)
    assert column.values.tolist() == [1, 0]
    assert column.values.dtype == np.float32


def test_two_other_values_need_to_be_told_apart() -> None:
    message = refused(binary(), ["spam", "ham"])
    assert "'ham', 'spam'" in message
    assert "fallback_true_label" in message
    state, column = learnt(binary(fallback_true_label="spam"), ["spam", "ham", None])
    assert isinstance(state, FittedBinary)
    assert state.labels == ("ham", "spam")
    assert column.values.tolist() == [1, 0, 0]
    assert "did you mean 'spam'?" in refused(binary(fallback_true_label="spm"), ["spam", "ham"])


def test_a_label_that_says_a_word_for_false_is_true_is_refused() -> None:
    assert "word for false" in refused(binary(fallback_true_label="no"), ["yes", "no"])


def test_one_value_and_its_label() -> None:
    assert learnt(binary(fallback_true_label="spam"), ["spam", "spam"])[1].values.tolist() == [1, 1]
    assert learnt(binary(fallback_true_label="spam"), ["ham", "ham"])[1].values.tolist() == [0, 0]


def test_more_than_two_values_are_refused_by_name() -> None:
    message = refused(binary(), ["a", "b", "c", "d", "e", "f"])
    assert "'a', 'b', 'c', 'd', 'e', …" in message
    assert "category" in message


def test_a_third_value_outside_training_is_refused_with_its_row() -> None:
    assert "data row 2 (counted from 0): 'maybe'" in refused(binary(), ["yes", "no", "maybe"], [0, 1])
    message = refused(binary(fallback_true_label="spam"), ["spam", "ham", "eggs"], [0, 1])
    assert "'eggs' is not 'ham' or 'spam'" in message


def test_binary_strategies() -> None:
    cells = ["yes", None, "no", "yes"]
    expected = {"fill_with_false": 0, "fill_with_true": 1, "fill_with_mode": 1, "bfill": 0, "ffill": 1, "drop_row": 0}
    for strategy, value in expected.items():
        _, column = learnt(binary(missing_value_strategy=strategy), cells)
        assert column.values.tolist() == [1, value, 0, 1], strategy
        assert column.keep.all() == (strategy != "drop_row")


def test_a_binary_output_needs_both() -> None:
    assert "only 'yes'" in refused(BinaryOutput(name="b"), ["yes", "yes", "no"], [0, 1])
    _, column = learnt(BinaryOutput(name="b"), ["yes", "no", None])
    assert column.keep.tolist() == [True, True, False]
    filled = BinaryTargetPreprocessing(missing_value_strategy="fill_with_true")
    _, column = learnt(BinaryOutput(name="b", preprocessing=filled), ["yes", "no", None])
    assert column.values.tolist() == [1, 0, 1]


def test_a_binary_input_may_be_constant_or_empty() -> None:
    assert learnt(binary(), ["no", "no"])[1].values.tolist() == [0, 0]
    assert learnt(binary(), pa.array([None, None], pa.string()))[1].values.tolist() == [0, 0]
    assert "no value in any training row" in refused(
        binary(missing_value_strategy="fill_with_mode"), pa.array([None, "no"]), [0]
    )


# all of them


@given(st.lists(st.one_of(st.none(), st.text(max_size=4)), min_size=1, max_size=30), st.data())
def test_transform_never_depends_on_rows_that_do_not_train(cells: list[str | None], data: st.DataObject) -> None:
    train = data.draw(st.lists(st.booleans(), min_size=len(cells), max_size=len(cells)))
    feature = category()
    mask = np.array(train)
    whole = features.fit_input(feature, pa.array(cells, pa.string()), mask, "d.csv")
    alone = [cell for cell, used in zip(cells, train, strict=True) if used]
    assert whole == features.fit_input(feature, pa.array(alone, pa.string()), np.ones(len(alone), np.bool_), "d.csv")


def test_a_state_of_another_type_is_refused() -> None:
    state, _ = learnt(category(), ["a"])
    with pytest.raises(TypeError, match="FittedCategory"):
        features.transform_input(number(), state, pa.array(["1"]), "d.csv")
    with pytest.raises(ValueError, match="no type"):
        features.fitted_from_json({"type": "colour"})


def test_features_and_splits_load_no_pandas() -> None:
    # it costs a warm run 0.3 s where it is installed
    program = """
import sys, numpy as np
from trainer import features, split
from trainer.features.cells import strings
from trainer.schema.inputs import BinaryInput, CategoryInput, DateInput, NumberInput, SetInput, VectorInput
from trainer.schema.preparation import DatetimeSplit, GroupSplit, HashSplit, KFoldSplit, StratifySplit
train = np.ones(3, bool)
for feature, cells in ((NumberInput(name="x"), ["1", "nan", None]), (CategoryInput(name="x"), ["a", "b", None]),
                       (BinaryInput(name="x"), ["yes", "no", ""]), (SetInput(name="x"), ["a b", "b", None]),
                       (VectorInput(name="x"), ["1 2", "[3, 4]", None]), (DateInput(name="x"), ["2024-01-31", "", "2023-01-01"])):
    column = strings(cells)
    features.transform_input(feature, features.fit_input(feature, column, train, "d"), column, "d")
shares = (1.0, 0.0, 0.0)
column = strings(["2024-01-31", "2023-01-31", "2022-01-31"])
for kind in (HashSplit, StratifySplit, DatetimeSplit, GroupSplit):
    split.split(kind(column="x", probabilities=shares), {"x": column}, 3, 1, "d")
split.split(KFoldSplit(folds=2, column="x", group="x", validation=0), {"x": column}, 3, 1, "d")
assert "pandas" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


# cells that are not UTF-8


def test_a_row_with_a_cell_that_is_not_utf8_is_empty_in_every_column() -> None:
    kinds: dict[str, Any] = {
        "bytes": pa.chunked_array([[b"a", b"\xff", b"c"], [b"d", None]]),
        "other": pa.chunked_array([["p", "q", "r"], ["s", "t"]]).dictionary_encode(),
        "view": pa.chunked_array([pa.array(["a", "b", "c", "d", "e"], pa.string_view())]),
        "number": pa.chunked_array([[1, 2, 3, 4, 5]]),
        "day": pa.chunked_array([pa.array([1, 2, 3, 4, 5], pa.date32())]),
        "packed": pa.chunked_array([pa.array([b"\xc3\xa9", b"ab", b"cd", b"\xe9a", b"ef"], pa.binary(2))]),
    }
    table = read_columns(open_dataset(pa.table(kinds)), list(kinds))
    assert table.reasons.tolist() == ["", "bytes: skipped", "", "packed: skipped", ""]
    assert table.skipped == 2
    assert [(cell.row, cell.column) for cell in table.skipped_cells] == [(1, "bytes"), (3, "packed")]
    assert table.usable.tolist() == [True, False, True, False, True]
    assert table.columns["bytes"].to_pylist() == ["a", None, "c", None, None]
    for name in ("other", "view", "number", "day"):
        whole = kinds[name].to_pylist()
        assert table.columns[name].to_pylist() == [whole[0], None, whole[2], None, whole[4]]


def test_cells_that_are_utf8_are_left_as_they_are() -> None:
    table = read_columns(open_dataset({"a": ["é", None], "b": [1, 2]}), ["a", "b"])
    assert (table.skipped, table.skipped_cells, table.usable.all()) == (0, (), True)
    assert table.columns["a"].to_pylist() == ["é", None]


def test_only_the_first_skipped_cells_are_kept() -> None:
    table = read_columns(open_dataset({"a": [b"\xff"] * (KEPT_SKIPPED + 1)}), ["a"])
    assert (table.skipped, len(table.skipped_cells)) == (KEPT_SKIPPED + 1, KEPT_SKIPPED)
