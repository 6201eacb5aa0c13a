"""Temperature scaling (Guo et al. 2017): scores divided by one number per output, fitted on the validation rows.

It changes no order of classes, only how sure probabilities are. As Platt 1999 has it, of ``rows`` validation rows each is
taken to be what it is with probability 1 - 1 / (rows + 2): few rows, all of them right, do not make predictions certain.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

from trainer import loop
from trainer.batches import Batches
from trainer.decoders import Classifier, Decoder
from trainer.model import Model

_LEAST, _MOST = 0.02, 50.0  # of 1 / temperature
_STEPS: Final = 30
_CLOSE: Final = 1e-5  # relative


def calibrate(
    model: Model, validation: Batches, batch_size: int | None = None, mixed_precision: bool = False
) -> dict[str, float]:
    """Set the temperature of every output with ``calibration: true`` to that of the least log loss; returns them by output.

    The log loss is convex in 1 / temperature, so Newton's steps, kept between the bounds of a bisection, find its minimum.
    Scores are computed anew for each step: some ten passes over the rows, and none of them is kept.
    """
    names = [name for name in model.outputs if model.decoder(name).temperature is not None]
    if not names:
        return {}
    with loop.threads_for(0):
        return _calibrate(model, validation, names, batch_size, mixed_precision)


def _calibrate(
    model: Model, validation: Batches, names: list[str], batch_size: int | None, mixed_precision: bool
) -> dict[str, float]:
    for name in names:
        _set(model.decoder(name), 1.0)
    low, high = dict.fromkeys(names, _LEAST), dict.fromkeys(names, _MOST)
    sharpness = dict.fromkeys(names, 1.0)
    open_names = set(names)
    for _ in range(_STEPS):
        for name, (slope, bend) in _derivatives(model, validation, sharpness, batch_size, mixed_precision).items():
            here = sharpness[name]
            if slope > 0:
                high[name] = here
            else:
                low[name] = here
            step = here - slope / bend if bend > 0 else low[name]
            inside = low[name] < step < high[name]
            sharpness[name] = step if inside else (low[name] * high[name]) ** 0.5
            if abs(sharpness[name] - here) <= _CLOSE * here:
                open_names.discard(name)
        if not open_names:
            break
    temperatures = {name: 1 / sharpness[name] for name in names}
    for name, temperature in temperatures.items():
        _set(model.decoder(name), temperature)
    return temperatures


def _set(decoder: Decoder, temperature: float) -> None:
    assert decoder.temperature is not None
    decoder.temperature.fill_(temperature)


def _derivatives(
    model: Model,
    validation: Batches,
    sharpness: dict[str, float],
    batch_size: int | None,
    mixed_precision: bool,
) -> dict[str, tuple[float, float]]:
    """The first and second derivative by 1 / temperature of the summed log loss, of every output."""
    doubt = 1 / (validation.rows + 2)
    sums = {name: torch.zeros(2, dtype=torch.float64, device=validation.device) for name in sharpness}
    for batch, output in loop.outputs(model, validation, batch_size, mixed_precision):
        for name, here in sharpness.items():
            found = _slope_and_bend(model.decoder(name), output.scores[name], batch.targets[name], here, doubt)
            sums[name] = sums[name] + found
    return {name: (float(total[0].item()), float(total[1].item())) for name, total in sums.items()}


def _slope_and_bend(decoder: Decoder, scores: Tensor, targets: Tensor, sharpness: float, doubt: float) -> Tensor:
    scores = scores.double()
    if isinstance(decoder, Classifier):
        probabilities = functional.softmax(scores * sharpness, dim=1)
        expected = (probabilities * scores).sum(dim=1)
        right = scores.gather(1, targets[:, None]).squeeze(1)
        slope = expected - (1 - doubt) * right - doubt * scores.mean(dim=1)
        bend = (probabilities * scores.square()).sum(dim=1) - expected.square()
    else:  # log odds: of true, or of each label of a set
        probabilities = torch.sigmoid(scores * sharpness)
        slope = (probabilities - (1 - doubt) * targets - doubt / 2) * scores
        bend = probabilities * (1 - probabilities) * scores.square()
    return torch.stack([slope.sum(), bend.sum()])
