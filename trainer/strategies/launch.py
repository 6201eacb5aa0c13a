"""In which processes a run trains: in this one, in several that it starts, or in those that torchrun started."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, TypeVar, cast

import torch

from cachestore.errors import ConfigError, ProcessLost, UsageError
from trainer.events import Clock, PhaseBegun
from trainer.precision import half
from trainer.schema import Config
from trainer.schema.backend import BackendTrainer, RayBackend
from trainer.strategies import Strategy
from trainer.strategies.ranks import Ranks, others_ended
from trainer.strategies.single import Single
from trainer.work import Job, Outcome, work

_T = TypeVar("_T")
_PATIENCE: Final = timedelta(hours=24)  # of the other processes, while the first prepares the data


def train(job: Job, clock: Clock, torchrun: Ranks | None, path: Path) -> Outcome:
    """Do ``job`` as its config says; what the ranks tell goes to the listener of ``clock``. ``path``: where the run is to be.

    Raises ConfigError for more workers than there are GPUs, ProcessLost when a worker is killed, and what the work raises.
    """
    config = job.config
    chosen = config.backend.trainer
    remedy = f"Go on with: cachestore train --resume {path}"
    if torchrun is not None:
        _check_torchrun(torchrun, chosen, config, clock)
    if not config.live:
        several = chosen.strategy is not None and (torchrun is not None or chosen.num_workers != 1)
        if several or isinstance(config.backend, RayBackend):
            what = "backend: ray" if isinstance(config.backend, RayBackend) else f"strategy: {chosen.strategy}"
            clock.say(f"{what} does nothing: no encoder runs in the loop. One process trains.")
        return work(job, Single(), clock)
    if torchrun is not None:
        torchrun.first(("job", job))
        return _work(torchrun, _hearing(clock), job)
    if isinstance(config.backend, RayBackend):
        from trainer.strategies import ray  # not without need: it takes seconds to import

        return ray.train(job, _work, _hearing(clock), remedy)
    world = _workers(chosen)
    if chosen.strategy is None or (chosen.strategy == "ddp" and world == 1):
        if chosen.strategy is not None:
            clock.say("strategy: ddp has one process to train in: set num_workers to have more.")
        return work(job, Single(), clock)
    from trainer.strategies.processes import Processes

    clock.say(f"{chosen.strategy}: {world} {'process trains' if world == 1 else 'processes train'}.")
    with Processes(world) as processes:
        return processes.run(_work, job, tell=_hearing(clock), remedy=remedy)


def strategy_of(config: Config, ranks: Ranks) -> Strategy:
    """The strategy of ``config`` for a process that has met the others."""
    chosen = config.backend.trainer
    if chosen.strategy == "fsdp":
        from trainer.strategies.fsdp import Fsdp

        mixed = config.trainer.use_mixed_precision
        return Fsdp(ranks, half=half(ranks.device) if mixed else None, offload=chosen.cpu_offload)
    from trainer.strategies.ddp import Ddp

    return Ddp(ranks)


def lead(body: Callable[[Ranks | None], _T]) -> _T:
    """What ``body`` returns. Under torchrun the first process alone calls it, with its ranks; the others do their part of what it
    trains, and return what it returned. Raises ProcessLost where one of these ends before.
    """
    if follows():
        return cast("_T", follow())
    if not by_torchrun():
        return body(None)
    ranks = _join()
    try:
        value = body(ranks)
    except RuntimeError as error:
        if others_ended(str(error)):
            raise ProcessLost(
                "Another of the processes that torchrun started has ended, and says why. Go on with: cachestore train --resume RUN"
            ) from error
        raise
    ranks.first(("end", value))
    _leave()
    return value


def by_torchrun() -> bool:
    """Whether torchrun started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ and "RANK" in os.environ


def follows() -> bool:
    """Whether another process, the first that torchrun started, leads this one."""
    return by_torchrun() and os.environ["RANK"] != "0"


def follow() -> Any:
    """Do what the first process that torchrun started is at, where that needs several; returns what it does at its end."""
    with _ended_at_once():
        ranks = _join()
        kind, value = _told(ranks)
    if kind == "job":
        _work(ranks, None, value)
        _, value = _told(ranks)
    _leave()
    return value


@contextlib.contextmanager
def _ended_at_once() -> Iterator[None]:
    """A signal ends this process while it waits for the first, which no handler of Python's would see the end of."""
    before = {}
    if threading.current_thread() is threading.main_thread():  # only there may handlers be set
        before = {number: signal.signal(number, signal.SIG_DFL) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def _told(ranks: Ranks) -> tuple[str, Any]:
    try:
        return ranks.first(cast("tuple[str, Any]", None))
    except RuntimeError:  # the first failed, and has said why
        raise SystemExit(1) from None


def _work(
    ranks: Ranks, tell: Callable[[Any], None] | None, job: Job, saved: Callable[[], None] | None = None
) -> Outcome:
    return work(job, strategy_of(job.config, ranks), Clock(tell if ranks.rank == 0 else None), saved)


def _hearing(clock: Clock) -> Callable[[Any], None]:
    def hear(event: Any) -> None:
        if isinstance(event, PhaseBegun):
            clock.begin(event.phase)
        elif clock.listener is not None:
            clock.listener(event)

    return hear


def _workers(chosen: BackendTrainer) -> int:
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if chosen.num_workers == "auto":
        return max(1, gpus)
    if gpus and chosen.num_workers > gpus:
        raise ConfigError(
            f"trainer.num_workers: {chosen.num_workers} is more than the {gpus} GPUs of this machine. Set {gpus}, or train on the "
            "CPU by CUDA_VISIBLE_DEVICES=''"
        )
    return chosen.num_workers


def _check_torchrun(ranks: Ranks, chosen: BackendTrainer, config: Config, clock: Clock) -> None:
    if isinstance(config.backend, RayBackend):
        raise UsageError("torchrun cannot start a run whose backend is ray. Start it without torchrun.")
    if config.live and chosen.strategy is None and ranks.world > 1:
        raise UsageError(
            f"torchrun started {ranks.world} processes, but the config names no strategy. Set trainer.strategy to ddp or fsdp, or "
            "start one process."
        )
    if chosen.num_workers not in ("auto", ranks.world):
        clock.say(
            f"num_workers: {chosen.num_workers} does nothing: torchrun decides, and started {ranks.world} processes."
        )


def _leave() -> None:
    import torch.distributed as dist  # not where one process trains

    dist.destroy_process_group()


def _join() -> Ranks:
    from trainer.strategies.joining import join

    rank, world, local = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    return join(rank, world, local, init_method="env://", timeout=_PATIENCE)
