"""Which trials are of the same rows, and which of those may train together."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from trainer.schema.preparation import Preprocessing
from trainer.schema.training import LBFGS
from trainer.sweep.plan import Trial

# what trials of one stack may differ in: the optimizer of each steps its own parameters, at its own rate
_OWN: Final = (
    *("learning_rate", "optimizer", "learning_rate_scheduler", "early_stop", "gradient_clipping"),
    *("regularization_type", "regularization_lambda"),
)
_DROPOUT: Final = ("dropout", "fc_dropout")
_AMONG_ITSELF: Final = 4  # trials of one seed: fewer join those of other seeds
_STACK_BYTES: Final = 1 << 29
_COPIES: Final = 5  # of every parameter: itself, its gradient, two moments, the best one so far


def by_data(trials: Iterable[Trial]) -> list[list[Trial]]:
    """Trials in groups that prepare() gives the same rows."""
    found: dict[str, list[Trial]] = {}
    for trial in trials:
        config = trial.config
        outputs = [output.model_dump(mode="json", exclude={"decoder", "loss"}) for output in config.output_features]
        inputs = [feature.model_dump(mode="json") for feature in config.input_features]
        seed = config.random_seed if _draws(config.preprocessing) else None
        key = json.dumps([inputs, outputs, config.preprocessing.model_dump(mode="json"), seed])
        found.setdefault(key, []).append(trial)
    return list(found.values())


def by_shape(trials: Iterable[Trial]) -> list[list[Trial]]:
    """Trials of the same rows in groups that may differ only in what a stack lets each have of its own."""
    found: dict[str, list[Trial]] = {}
    for trial in trials:
        settings = trial.config.resolved()
        del settings["random_seed"]
        settings["trainer"] = {key: value for key, value in settings["trainer"].items() if key not in _OWN}
        settings["by_steps"] = not isinstance(
            trial.config.trainer.optimizer, LBFGS
        )  # it has no steps in common with others
        found.setdefault(json.dumps(_without_rates(settings), sort_keys=True), []).append(trial)
    return list(found.values())


def by_order(trials: Sequence[Trial], parameters: int) -> list[list[Trial]]:
    """Stacks of trials of one shape with so many ``parameters`` each: of one seed, for which the inputs of a step are the
    same and are read once, where there are enough of each."""
    by_seed: dict[int, list[Trial]] = {}
    for trial in trials:
        by_seed.setdefault(trial.seed, []).append(trial)
    stacks = list(by_seed.values()) if min(map(len, by_seed.values())) >= _AMONG_ITSELF else [list(trials)]
    most = max(2, _STACK_BYTES // (4 * _COPIES * max(1, parameters)))
    return [stack[first : first + most] for stack in stacks for first in range(0, len(stack), most)]


def _draws(preprocessing: Preprocessing) -> bool:
    """Whether rows are chosen by the config's random_seed: unless the split has a seed, or needs none, and all rows are used."""
    split = preprocessing.split
    if preprocessing.model_dump(exclude={"split"}) != Preprocessing().model_dump(exclude={"split"}):
        return True
    return (
        split is not None and split.type not in ("fixed", "hash", "datetime") and getattr(split, "seed", None) is None
    )


def _without_rates(value: Any) -> Any:
    """``value`` with every dropout rate above 0 as true: masks of any rate have the same shape."""
    if isinstance(value, Mapping):
        return {
            key: item > 0 if key in _DROPOUT and isinstance(item, int | float) else _without_rates(item)
            for key, item in value.items()
        }
    return [_without_rates(item) for item in value] if isinstance(value, list | tuple) else value
