"""What a step of the optimizer takes more where encoders run in the loop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cachestore.errors import OutOfMemory, TrainingDiverged
from trainer.batches import Batch
from trainer.live.cells import TextCells
from trainer.model import Model
from trainer.optim import Optimizer
from trainer.strategies import Strategy

_ROWS_NAMED = 10


@dataclass(frozen=True)
class StepDone:
    """One optimizer step is over: its number from 1, of how many, and the epoch it is of.

    ``loss`` is that of its ``rows``, which have ``tokens`` in the texts of encoders in the loop; ``gradient_norm`` is that of all
    gradients before they are clipped.
    """

    step: int
    steps: int
    epoch: int
    loss: float
    gradient_norm: float
    learning_rate: float
    rows: int
    tokens: int
    seconds: float


class LiveSteps:
    """The steps of ``model`` under ``strategy``; all ranks do the same. ``encoders``: as of ``diverged``."""

    def __init__(
        self,
        model: Model,
        strategy: Strategy,
        steps: int,
        encoders: Mapping[str, float],
        on_step: Callable[[StepDone], None] | None = None,
    ) -> None:
        self._model, self._strategy, self._steps, self._on_step = model, strategy, steps, on_step
        self._encoders = encoders
        self._batches: list[Batch] = []  # of the step under way
        self._complete = True
        self._loss = 0.0
        self._began = 0.0
        # by name: PEFT is imported where there is an adapter
        self._adalora = any(type(module).__name__ == "AdaLoraModel" for module in model.modules())
        if self._adalora:
            from trainer import adapters

            adapters.set_steps(model, steps)

    def begin(self, batch: Batch, last: bool) -> None:
        """Before the forward pass of a batch; ``last`` of those whose gradients make a step."""
        if self._complete:
            self._began, self._loss = time.perf_counter(), 0.0
            self._batches.clear()
        self._complete = last
        self._batches.append(batch)
        self._strategy.sync(last)

    def checked(self, loss: Tensor, share: float, epoch: int, step: int, rate: float) -> Tensor:
        """What the backward pass of a batch begins from, ``loss`` being its ``share`` of the step's.

        Raises TrainingDiverged when it is not finite.
        """
        value = float(loss.detach())
        if not math.isfinite(value):
            raise diverged(epoch, step + 1, rate, self._encoders, self._rows())
        self._loss += value
        if self._adalora:
            from trainer import adapters

            penalty = adapters.penalty(self._model)
            assert penalty is not None
            loss = loss + share * penalty
        return loss

    def settle(self) -> None:
        """After the last backward pass of a step: the gradients are those of all ranks."""
        self._strategy.settle()

    def step(self, optimizer: Optimizer, norm: Tensor | None, epoch: int, step: int, within: int, rate: float) -> None:
        """Step ``step`` of all, from 0, and ``within`` the epoch. Raises TrainingDiverged when the gradients are not finite."""
        found = 0.0 if norm is None else float(norm)
        if not math.isfinite(found):
            raise diverged(epoch, within + 1, rate, self._encoders, self._rows(), "The gradients are")
        held = [(parameter, parameter.grad) for parameter in optimizer.parameters] if self._adalora else []
        optimizer.step(rate)
        if held:
            from trainer import adapters

            for parameter, gradient in held:  # by which AdaLoRA finds what matters
                parameter.grad = gradient
            adapters.after_step(self._model, step + 1)
            for parameter, _ in held:
                parameter.grad = None
        rows, tokens = sum(batch.rows for batch in self._batches), sum(map(_tokens, self._batches))
        seconds = time.perf_counter() - self._began
        if self._on_step is not None:
            self._on_step(StepDone(step + 1, self._steps, epoch, self._loss, found, rate, rows, tokens, seconds))

    def adapter_state(self) -> dict[str, Tensor]:
        """What adapters know beside their weights."""
        if not self._adalora:
            return {}
        from trainer import adapters

        return adapters.state(self._model)

    def load_adapter_state(self, state: Mapping[str, Tensor]) -> None:
        """Take up what ``adapter_state`` gave."""
        if state:
            from trainer import adapters

            adapters.load_state(self._model, state)

    def too_large(self, epoch: int, *, mixed_precision: bool) -> OutOfMemory:
        """The error of a step that did not fit into memory."""
        batch = self._batches[-1]
        longest = max((int(cells.lengths().max()) for cells in _texts(batch)), default=0)
        size = f"{batch.rows} rows at once" + (f", the longest of {longest} tokens" if longest else "")
        half = "" if mixed_precision else "use_mixed_precision: true, "
        return OutOfMemory(
            f"There is not enough memory for a step of epoch {epoch}: {size}. Set a smaller trainer.batch_size, and "
            "effective_batch_size to what it is now so that the curves stay the same; or trainer.enable_gradient_checkpointing: "
            f"true, {half}an adapter such as lora in place of trainable: true, a smaller max_sequence_length, or "
            "trainer.strategy: fsdp, which shards what is trained among workers."
        )

    def _rows(self) -> list[int]:
        return [row for batch in self._batches if batch.numbers is not None for row in batch.numbers.tolist()]


def out_of_memory(error: RuntimeError) -> bool:
    """Whether a GPU or the allocator of the CPU had too little memory."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _texts(batch: Batch) -> list[TextCells]:
    return [cells for cells in batch.inputs.values() if isinstance(cells, TextCells)]


def _tokens(batch: Batch) -> int:
    return sum(int(cells.lengths().sum()) for cells in _texts(batch))


def diverged(
    epoch: int,
    step: int,
    rate: float,
    encoders: Mapping[str, float],
    rows: Sequence[int] = (),
    what: str = "The loss is",
) -> TrainingDiverged:
    """The error of a step, counted from 1 within its epoch; ``rows`` are those of the data that it saw.

    ``encoders``: by input whose encoder learns at another rate, that rate as a multiple of ``rate``.
    """
    named = ", ".join(map(str, rows[:_ROWS_NAMED])) + (
        f" and {len(rows) - _ROWS_NAMED} more" if len(rows) > _ROWS_NAMED else ""
    )
    seen = f" (data rows {named}, counted from 0)" if rows else ""
    others = "".join(f", {rate * factor:g} of the encoder of {name!r}" for name, factor in encoders.items())
    setting = "trainer.learning_rate" + (", a lower trainer.encoder_learning_rate" if others else "")
    return TrainingDiverged(
        f"{what} not finite at epoch {epoch}, step {step} of it{seen}, at learning rate {rate:g}{others}. "
        f"Set a lower {setting}, or a normalization for number features with very large values."
    )
