"""scikit-learn estimators: a head on stored vectors that works in ``cross_val_score``, ``Pipeline`` and ``GridSearchCV``.

Needs scikit-learn, which is imported with this module alone: ``from trainer import CachedClassifier``. A fitted estimator holds its model
and needs no directory; the vectors are in the store, so that another split, grid or fold encodes nothing twice.

``X``: a list, array or Series of texts; or a frame, a mapping of columns, a table or an array (rows, columns). What those columns
hold is told by looking at them, unless ``features`` says:
``{"title": "text", "age": "number", "kind": {"type": "category", "encoder": "onehot"}}``.

``encoder``: of every text or image column that has none of its own. ``store``: a path, an open store, or None for the default one.
``validation_fraction``: of the rows of ``fit``, which choose the epoch that is kept and end the training early; where that is
less than a row, or 0, all epochs are run on all rows. ``output``: settings of the output feature, as in ``{"loss": {"type": "huber"}}``.
``config``: sections of a config that win over the parameters, as in ``{"trainer": {"optimizer": "adamw"}, "combiner": {"dropout": 0.1}}``.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.utils import assert_all_finite, check_consistent_length, column_or_1d
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted

from cachestore.dataset import open_dataset
from cachestore.encoders import exported
from cachestore.errors import DataError
from cachestore.tables import is_frame
from trainer import apply, checkpoint, pins
from trainer.features.look import Column, look
from trainer.record import Predictions
from trainer.rows import reasons
from trainer.run import train
from trainer.runs import StoreLike, opened

_TEXT: Final = "text"
_TARGET: Final = "target"


class _CachedEstimator(BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """What classifier and regressor share."""

    def __init__(
        self,
        encoder: Any = "minilm",
        *,
        store: StoreLike = None,
        features: Mapping[str, Any] | None = None,
        learning_rate: float | str = "auto",
        batch_size: int | str = "auto",
        epochs: int = 50,
        early_stop: int = 5,
        num_fc_layers: int = 0,
        fc_output_size: int = 256,
        validation_fraction: float = 0.1,
        output: Mapping[str, Any] | None = None,
        config: Mapping[str, Any] | None = None,
        random_state: int = 42,
    ) -> None:
        self.encoder = encoder
        self.store = store
        self.features = features
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.epochs = epochs
        self.early_stop = early_stop
        self.num_fc_layers = num_fc_layers
        self.fc_output_size = fc_output_size
        self.validation_fraction = validation_fraction
        self.output = output
        self.config = config
        self.random_state = random_state

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.string = True
        tags.input_tags.allow_nan = True  # a missing cell is filled, or marked, as in a config
        tags.non_deterministic = False
        return tags

    def _fit(self, X: Any, targets: Sequence[Any], output: Mapping[str, Any], split: str) -> Self:
        columns = _columns(X)
        self.n_features_in_ = len(columns)
        if is_frame(X):
            self.feature_names_in_ = np.array(list(columns), object)
        elif hasattr(self, "feature_names_in_"):
            del self.feature_names_in_
        count = len(targets)
        check_consistent_length(next(iter(columns.values())), targets)
        if count < 2:
            raise ValueError(f"{type(self).__name__} needs at least 2 rows, and n_samples={count}")
        inputs = self._inputs(columns)
        target = _TARGET
        while target in columns:
            target += "_"
        validated = round(count * self.validation_fraction) >= 1
        share = self.validation_fraction if validated else 0.0
        split = split if share else "random"
        chosen = {"column": target} if split == "stratify" else {}
        config = {
            "input_features": inputs,
            "output_features": [_merged({**output, "name": target}, self.output or {})],
            "combiner": {"type": "concat", "num_fc_layers": self.num_fc_layers, "output_size": self.fc_output_size},
            "trainer": {
                "epochs": self.epochs,
                "early_stop": self.early_stop,
                "learning_rate": self.learning_rate,
                "batch_size": self.batch_size,
                "validation_metric": "loss",  # of few rows, the accuracy hardly moves
            },
            "preprocessing": {"split": {"type": split, "probabilities": [1 - share, share, 0.0], **chosen}},
            "random_seed": self.random_state,
        }
        used = {feature["name"] for feature in inputs}
        data = {**{name: cells for name, cells in columns.items() if name in used}, target: targets}
        with opened(self.store) as store, tempfile.TemporaryDirectory(prefix="cachestore-") as folder:
            run = train(_merged(config, self.config or {}), data, store, output=Path(folder) / "run")
            pins.release(store, run.path)
            mark = json.loads((run.path / checkpoint.MARK).read_bytes())
            del mark["id"]  # a run without one is pinned nowhere
            self.model_ = {
                checkpoint.MARK: json.dumps(mark).encode(),
                **{path.relative_to(run.path).as_posix(): path.read_bytes() for path in _kept(run.path)},
            }
        self.target_, self.columns_ = target, tuple(columns)
        self.metrics_, self.n_iter_ = run.metrics, run.epochs
        return self

    def _inputs(self, columns: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The input features: as ``features`` says, else as the columns look."""
        if self.features is not None:
            asked = {
                name: {"type": said} if isinstance(said, str) else dict(said) for name, said in self.features.items()
            }
        elif list(columns) == [_TEXT]:
            asked = {_TEXT: {"type": "text"}}
        else:
            seen = look(open_dataset(dict(columns)))
            asked = {name: {"type": _kind(column)} for name, column in seen.items() if column.kind is not None}
            if not asked:
                why = "; ".join(f"{name}: {column.why}" for name, column in seen.items())
                raise DataError(f"No column of X can be learnt from ({why}). Say with features what they are.")
        for settings in asked.values():
            if settings.get("type") in ("text", "image"):
                settings.setdefault("encoder", self.encoder)
        return [{"name": name, **settings} for name, settings in asked.items()]

    def _predicted(self, X: Any) -> Predictions:
        check_is_fitted(self)
        columns = _columns(X)
        if len(columns) != self.n_features_in_:
            raise ValueError(
                f"X has {len(columns)} features, but {type(self).__name__} is expecting {self.n_features_in_} features as input"
            )
        if isinstance(X, np.ndarray | list | tuple):  # which have no names
            columns = dict(zip(self.columns_, columns.values(), strict=True))
        with opened(self.store) as store, tempfile.TemporaryDirectory(prefix="cachestore-") as folder:
            run = Path(folder)
            for name, data in self.model_.items():
                (run / name).parent.mkdir(parents=True, exist_ok=True)
                (run / name).write_bytes(data)
            found = apply.predict(run, dict(columns), store)
        if not found.predicted.all():
            unused = int((~found.predicted).sum())
            raise DataError(f"{unused} rows of X cannot be predicted: {reasons(found.dropped)}.")
        return found


def _kept(run: Path) -> list[Path]:
    """The files of a run that its predictions need: of an encoder that has an adapter, that alone."""
    adapters = run / exported.ADAPTERS
    adapted = {folder.name for folder in adapters.glob("*")}
    encoders = [folder for folder in (run / exported.FOLDER).glob("*") if folder.name not in adapted]
    trained = [path for folder in (adapters, *encoders) for path in sorted(folder.rglob("*")) if path.is_file()]
    return [run / checkpoint.WEIGHTS, run / checkpoint.MODEL, *trained]


def _kind(column: Column) -> str | None:
    """Sentences are texts however few there are: rows to come may hold others."""
    return "text" if column.kind == "category" and column.words[0] > 2 else column.kind


class CachedClassifier(ClassifierMixin, _CachedEstimator):  # type: ignore[misc]
    """A classifier on stored vectors, with the parameters that ``trainer.estimators`` describes.

    After ``fit``: ``classes_``, ``metrics_`` by split as of a Run, ``n_iter_`` epochs, ``n_features_in_`` and ``feature_names_in_``.
    """

    def fit(self, X: Any, y: Any) -> Self:
        """Learn the classes ``y`` (rows,) of the rows of ``X``."""
        labels = _labels(y, self)
        check_classification_targets(labels)
        self.classes_, codes = np.unique(labels, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"{type(self).__name__} needs samples of at least 2 classes; y has 1 class")
        output: dict[str, Any] = {"type": "category", "top_k": min(3, len(self.classes_))}
        counts = np.bincount(codes)
        shared = round(int(counts[counts > 1].sum()) * self.validation_fraction)  # a class of one row has none to spare
        return self._fit(X, [str(code) for code in codes.tolist()], output, "stratify" if shared else "random")

    def predict(self, X: Any) -> NDArray[Any]:
        """The class of every row (rows,)."""
        chosen = self.predict_proba(X).argmax(axis=1)
        classes: NDArray[Any] = self.classes_[chosen]
        return classes

    def predict_proba(self, X: Any) -> NDArray[np.float32]:
        """The probability of every class (rows, classes), in the order of ``classes_``."""
        found = self._predicted(X)
        columns = [found[f"{self.target_}_probabilities_{code}"] for code in range(len(self.classes_))]
        return np.stack(columns, axis=1)


class CachedRegressor(RegressorMixin, _CachedEstimator):  # type: ignore[misc]
    """A regressor on stored vectors; ``y`` is scaled to mean 0 and deviation 1 for training. Else as the classifier."""

    def fit(self, X: Any, y: Any) -> Self:
        """Learn the numbers ``y`` (rows,) of the rows of ``X``."""
        numbers = np.asarray(_labels(y, self), np.float64)
        output = {"type": "number", "preprocessing": {"normalization": "zscore"}}
        return self._fit(X, numbers.tolist(), output, "random")

    def predict(self, X: Any) -> NDArray[np.float32]:
        """The number of every row (rows,)."""
        found: NDArray[np.float32] = self._predicted(X)[f"{self.target_}_predictions"]
        return found


def _columns(X: Any) -> dict[str, Any]:
    """The columns of ``X`` by name: ``text`` for a list of texts, ``x0`` and so on for those of an array."""
    if hasattr(X, "toarray"):  # of scipy; one kind is a mapping as well
        raise TypeError("Sparse data was passed, but a dense array is required. Use X.toarray() to convert it")
    if is_frame(X):
        names = [str(name) for name in X.columns]
        if len(set(names)) < len(names):
            raise ValueError("X has two columns of one name; rename one")
        return {name: X.iloc[:, place] for place, name in enumerate(names)}
    if isinstance(X, Mapping):
        return {str(name): cells for name, cells in X.items()}
    if hasattr(X, "column_names"):  # of pyarrow
        return {name: X[name] for name in X.column_names}
    if hasattr(X, "iloc") or (
        isinstance(X, list | tuple) and X and all(cell is None or isinstance(cell, str) for cell in X)
    ):
        return {_TEXT: X}
    array = np.asarray(X)
    if array.dtype.kind == "c":
        raise ValueError("Complex data not supported")
    if array.ndim == 1 and array.dtype.kind in "OUT":
        return {_TEXT: array.tolist()}
    if array.ndim != 2:
        raise ValueError(
            f"Expected 2D array, or texts, got {array.ndim}D array instead. Reshape your data with "
            "array.reshape(-1, 1) if it is one column, or array.reshape(1, -1) if it is one row"
        )
    for count, noun in zip(array.shape, ("sample", "feature"), strict=True):
        if count == 0:
            raise ValueError(f"Found array with 0 {noun}(s) (shape={array.shape}) while a minimum of 1 is required.")
    if array.dtype.kind == "f":
        assert_all_finite(array, allow_nan=True)
    return {f"x{place}": cells.tolist() if cells.dtype.kind in "OUT" else cells for place, cells in enumerate(array.T)}


def _labels(y: Any, estimator: BaseEstimator) -> NDArray[Any]:
    if y is None:
        raise ValueError(f"This {type(estimator).__name__} estimator requires y to be passed, but the target y is None")
    labels: NDArray[Any] = column_or_1d(y, warn=True)
    assert_all_finite(labels)
    return labels


def _merged(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """``over`` on ``under``, section by section; a section of another type takes nothing from the one under it."""
    merged = dict(under)
    for key, value in over.items():
        below = merged.get(key)
        if (
            isinstance(value, Mapping)
            and isinstance(below, Mapping)
            and value.get("type", below.get("type")) == below.get("type")
        ):
            value = _merged(below, value)  # noqa: PLW2901
        merged[key] = value
    return merged
