"""The scikit-learn estimators in scikit-learn's own tools."""

from __future__ import annotations

import pickle
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone, is_classifier, is_regressor
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils.estimator_checks import check_estimator

from cachestore.errors import ConfigError, DataError
from cachestore.store import open_store
from tests.training import live
from trainer import CachedClassifier, CachedRegressor

WORDS = ("invoice charged twice", "password does not work", "parcel never arrived")
ENCODER = {"type": "hashing", "dim": 64}


def texts(count: int = 60) -> tuple[list[str], list[str]]:
    """Messages and their topics."""
    return [f"{WORDS[n % 3]}, case {n}" for n in range(count)], [
        ("money", "access", "post")[n % 3] for n in range(count)
    ]


def classifier(store: Path, **settings: Any) -> CachedClassifier:
    return CachedClassifier(ENCODER, store=store, epochs=20, learning_rate=0.05, batch_size=16, **settings)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "store"


def test_a_classifier_learns_texts(place: Path) -> None:
    X, y = texts()
    model = classifier(place).fit(X, y)
    assert is_classifier(model)
    assert model.classes_.tolist() == ["access", "money", "post"]
    assert model.score(X, y) == 1.0
    probabilities = model.predict_proba(["my parcel never arrived"])
    assert probabilities.shape == (1, 3)
    assert probabilities.sum() == pytest.approx(1, abs=1e-5)
    assert model.predict(np.array(["password does not work"])).tolist() == ["access"]
    assert model.metrics_["validation"]["target"]["loss"] < 1.0
    for form in (np.array(X), np.array(X, object), pd.Series(X, index=range(5, 65))):
        assert model.predict(form).tolist() == model.predict(X).tolist()


def test_classes_of_one_row_each_need_not_be_in_both_parts(place: Path) -> None:
    X, labels = texts(10)[0], [0, 0, 1, 1, *range(2, 8)]
    model = classifier(place).fit(X, labels)
    assert model.predict_proba(X).shape == (10, 8)


def test_labels_of_any_type_come_back_as_they_are(place: Path) -> None:
    X, y = texts()
    numbers = np.array([{"money": 30, "access": 7, "post": 5}[label] for label in y])
    model = classifier(place).fit(X, numbers)
    assert model.classes_.tolist() == [5, 7, 30]
    assert model.predict(X).dtype == numbers.dtype
    assert model.score(X, numbers) == 1.0
    flags = numbers == 30
    assert classifier(place).fit(X, flags).predict(X).dtype == np.bool_


def test_folds_and_grids_encode_nothing_twice(place: Path) -> None:
    X, y = texts()
    assert cross_val_score(classifier(place), X, y, cv=3).min() > 0.9
    grid = {"encoder": [ENCODER, {"type": "hashing", "dim": 32}], "num_fc_layers": [0, 1]}
    search = GridSearchCV(classifier(place), grid, cv=2).fit(X, y)
    assert search.best_score_ > 0.9
    with open_store(place) as store:
        assert sum(len(keys) for keys, _ in store.index.entries()) == 2 * len(X)
    assert not list((place / "pins").glob("*"))


def test_in_a_pipeline_after_a_step_that_makes_the_texts(place: Path) -> None:
    X, y = texts()
    frame = pd.DataFrame({"subject": [text[:10] for text in X], "body": X})
    joined = FunctionTransformer(lambda rows: (rows["subject"] + " " + rows["body"]).to_numpy())
    pipeline = make_pipeline(joined, classifier(place)).fit(frame, y)
    assert pipeline.score(frame, y) == 1.0
    assert pipeline.set_params(cachedclassifier__epochs=1)["cachedclassifier"].epochs == 1


def test_clone_has_the_parameters_and_nothing_learnt(place: Path) -> None:
    X, y = texts()
    model = classifier(place, config={"combiner": {"dropout": 0.1}}).fit(X, y)
    copy = clone(model)
    assert copy.get_params() == model.get_params()
    with pytest.raises(NotFittedError):
        copy.predict(X)


def test_a_pickled_estimator_needs_no_directory(place: Path) -> None:
    X, y = texts()
    model = classifier(place).fit(X, y)
    again = pickle.loads(pickle.dumps(model))
    assert np.array_equal(again.predict_proba(X), model.predict_proba(X))


def test_a_regressor_learns_a_frame_of_texts_numbers_and_categories(place: Path) -> None:
    count = 120
    X, _ = texts(count)
    frame = pd.DataFrame(
        {
            "text": X,
            "weight": [float(n % 7) if n % 11 else None for n in range(count)],
            "plan": [("free", "team")[n % 2] for n in range(count)],
            "same": ["x"] * count,
        },
        index=range(1000, 1000 + count),
    )
    cost = np.array([10 * (n % 3) + (n % 7) + 5 * (n % 2) for n in range(count)], float)
    model = CachedRegressor(ENCODER, store=place, epochs=60, learning_rate=0.03, batch_size=16).fit(frame, cost)
    assert is_regressor(model)
    assert model.score(frame, cost) > 0.9
    assert model.predict(frame).shape == (count,)
    assert model.feature_names_in_.tolist() == ["text", "weight", "plan", "same"]
    with pytest.raises(ValueError, match="X has 3 features"):
        model.predict(frame.drop(columns="plan"))


def test_columns_are_what_features_says(place: Path) -> None:
    frame = pd.DataFrame({"a": [1, 2, 3, 4] * 10, "b": ["x", "y"] * 20})
    y = [0, 1, 1, 0] * 10
    model = classifier(place, features={"a": {"type": "category", "encoder": "onehot"}}).fit(frame, y)
    assert model.score(frame, y) == 1.0
    with pytest.raises(ConfigError, match=r"input_features\.a\.type: there is no 'nmber'"):
        classifier(place, features={"a": "nmber"}).fit(frame, y)


def test_arrays_of_numbers_do_without_texts(place: Path) -> None:
    X = np.random.default_rng(0).normal(size=(200, 3))
    X[0, 0] = np.nan
    y = (X[:, 1] > 0).astype(int)
    model = classifier(place).fit(X, y)
    assert model.score(X, y) > 0.95
    assert model.n_features_in_ == 3


def test_output_and_config_win_over_the_parameters(place: Path) -> None:
    X, y = texts()
    model = classifier(
        place, output={"loss": {"class_weights": {"0": 1, "1": 1, "2": 0.5}}}, config={"trainer": {"epochs": 2}}
    )
    model.fit(X, y)
    assert model.n_iter_ <= 2
    with pytest.raises(ConfigError, match=r"trainer\.epoch: unknown key"):
        classifier(place, config={"trainer": {"epoch": 2}}).fit(X, y)


def test_equal_seeds_give_equal_models(place: Path) -> None:
    X, y = texts()
    first, second = classifier(place).fit(X, y), classifier(place).fit(X, y)
    assert np.array_equal(first.predict_proba(X), second.predict_proba(X))


@pytest.mark.parametrize(
    ("X", "y", "says"),
    [
        (WORDS, ["a", "a", "a"], "at least 2 classes"),
        (WORDS, None, "y to be passed"),
        (WORDS, ["a", "b"], "inconsistent numbers of samples"),
        (np.zeros((3, 0)), ["a", "b", "a"], r"0 feature\(s\)"),
        (np.zeros(3), ["a", "b", "a"], "Expected 2D array"),
        (np.full((3, 1), np.inf), ["a", "b", "a"], "infinity"),
        (WORDS, [0.5, 1.5, 2.25], "continuous"),
    ],
)
def test_what_cannot_be_learnt_is_refused(place: Path, X: Any, y: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        classifier(place).fit(X, y)


def test_columns_that_teach_nothing_are_no_features(place: Path) -> None:
    with pytest.raises(DataError, match="No column of X can be learnt from"):
        classifier(place).fit(pd.DataFrame({"a": ["x"] * 9}), ["p", "q", "q"] * 3)


@pytest.mark.timeout(300)  # some fifty fits
@pytest.mark.parametrize("kind", [CachedClassifier, CachedRegressor])
def test_scikit_learns_own_checks_pass(kind: type[CachedClassifier | CachedRegressor], place: Path) -> None:
    estimator = kind(ENCODER, store=place, epochs=20, learning_rate=0.05, batch_size=16)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the checks themselves
        check_estimator(estimator, on_skip=None)


def test_the_trainer_alone_imports_no_scikit_learn() -> None:
    code = "import sys, trainer; print('sklearn' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_few_sentences_in_a_frame_are_texts_and_not_labels(place: Path) -> None:
    texts = ["soft fabric and a good fit", "the seam tore on the first day", "too short for me sent it back"] * 10
    frame = pd.DataFrame({"t": texts})
    head = CachedClassifier(encoder={"type": "hashing", "dim": 64}, store=place, epochs=3).fit(frame, [0, 1, 1] * 10)
    new = pd.DataFrame({"t": ["soft and warm, a good one", "the zip tore at once"]})
    first, second = head.predict_proba(new)
    assert not np.allclose(first, second)


@pytest.mark.parametrize("tuning", [{"trainable": True}, {"adapter": "lora"}], ids=["full", "lora"])
def test_an_estimator_whose_encoder_is_trained_holds_what_was_learnt_of_it(
    tmp_path: Path, place: Path, tuning: dict[str, Any]
) -> None:
    X, y = texts(30)
    encoder = {**live.encoder(live.saved(tmp_path)), **tuning}
    model = CachedClassifier(encoder, store=place, epochs=2, learning_rate=0.01, batch_size=8).fit(X, y)
    kept = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(kept.predict_proba(X), model.predict_proba(X))
    folders = {name.split("/")[0] for name in model.model_ if "/" in name}
    assert folders == {"encoders" if "trainable" in tuning else "adapters"}
