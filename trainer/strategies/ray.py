"""Training by the workers of a Ray cluster, through Ray Train: each does the same work, and its state is kept where all of them reach it.

Every worker has a folder of its own. What the work saves there is reported as a checkpoint, from which Ray restarts all workers when
one dies; at the end the folder of rank 0 is the run's.
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, Protocol, cast

import ray
import ray.train
import ray.train.torch
from ray._private.utils import read_ray_address
from ray.train.torch import TorchConfig, TorchTrainer

from cachestore.errors import CachestoreError, ConfigError, ProcessLost, UsageError
from trainer import checkpoint, interrupts
from trainer.config import load_config
from trainer.events import Notice
from trainer.schema.backend import RayBackend
from trainer.strategies.ranks import Ranks
from trainer.strategies.scratch import Scratch
from trainer.work import Job, Outcome

_POLL: Final = 0.2  # seconds
_OF_RAY: Final = (ConnectionError, TimeoutError)  # which its own errors are as well, and files do not bring


class Work(Protocol):
    """What every rank does: ``tell`` is for events, ``saved`` is to be called by all ranks when the state of the run is saved."""

    def __call__(self, ranks: Ranks, tell: Callable[[Any], None], job: Job, saved: Callable[[], None]) -> Outcome: ...


def train(job: Job, work: Work, hear: Callable[[Any], None], remedy: str) -> Outcome:
    """What rank 0 returns of ``work``, which must be a function that a module has by its name; ``hear`` gets what it tells, and
    ``remedy`` says what to do when workers are lost.

    Workers that die are restarted with the last state that was saved, as often as ``max_failures`` says; what ``work`` raises of
    ours ends the run. Raises that, ProcessLost when workers died too often, UsageError for a cluster that cannot be had, and
    ConfigError for GPUs that this machine, where it is all of the cluster, has not.
    """
    backend = job.config.backend
    assert isinstance(backend, RayBackend)
    storage = _storage(backend, job.folder)
    with _cluster(backend) as grows:
        return _Run(job, backend, storage, remedy, grows).train(work, hear)


class _Run:
    """One run of Ray Train, named by the id of ours, so that it is found again when the run goes on. ``grows``: the cluster may."""

    def __init__(self, job: Job, backend: RayBackend, storage: str, remedy: str, grows: bool) -> None:
        self._job, self._backend, self._storage, self._remedy, self._grows = job, backend, storage, remedy, grows
        self._resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        gpus = int(self._resources.get("GPU", 0))
        chosen = backend.trainer
        self._gpu = gpus > 0 or "GPU" in chosen.resources_per_worker if chosen.use_gpu is None else chosen.use_gpu
        self._world = max(1, gpus if self._gpu else 1) if chosen.num_workers == "auto" else chosen.num_workers
        self._desk: Any = cast("Any", ray.remote(num_cpus=0))(_Desk).remote()

    def train(self, work: Work, hear: Callable[[Any], None]) -> Outcome:
        chosen = self._backend.trainer
        trainer = TorchTrainer(
            _rank,  # type: ignore[arg-type]  # what it returns is rank 0's result
            train_loop_config={
                "job": [ray.put(self._job)],
                "work": work,
                "desk": self._desk,
                "place": (self._storage, self._remedy),
            },
            torch_config=TorchConfig(backend="cpu:gloo,cuda:nccl" if self._gpu else "gloo"),
            scaling_config=ray.train.ScalingConfig(
                num_workers=self._world,
                use_gpu=self._gpu,
                resources_per_worker={str(name): of for name, of in chosen.resources_per_worker.items()} or None,
            ),
            run_config=ray.train.RunConfig(
                name=f"cachestore-{checkpoint.run_id(self._job.folder)}",
                storage_path=self._storage,
                failure_config=ray.train.FailureConfig(max_failures=self._backend.max_failures),
                checkpoint_config=ray.train.CheckpointConfig(num_to_keep=1),
            ),
        )
        fit = _Fit(trainer)
        self._check_resources(hear)
        trains = "worker trains" if self._world == 1 else "workers train"
        hear(Notice(f"{chosen.strategy or 'ddp'} on Ray: {self._world} {trains}."))
        if self._backend.storage_path is not None:
            (self._job.folder / checkpoint.RAY).mkdir(exist_ok=True)  # empty: a state may be elsewhere
        with interrupts.deferred() as interrupt:
            fit.start()
            over = False
            while not over:
                fit.join(_POLL)
                over = not fit.is_alive()
                if interrupt.signal is not None:
                    self._desk.stop.remote()
                events, failure = ray.get(self._desk.take.remote())
                for event in events:
                    hear(event)
                if failure is not None:  # before Ray restarts the workers, who would find it and return
                    raise failure
            if fit.error is not None:
                raise self._lost(fit.error)
            outcome = fit.result.return_value
            if outcome is None:
                interrupt.deliver()
        self._fetch(fit.result)
        return cast("Outcome", outcome)

    def _check_resources(self, hear: Callable[[Any], None]) -> None:
        """Say what a cluster that may grow has not yet. Raises ConfigError where it is this machine alone."""
        chosen, there = self._backend.trainer.resources_per_worker, self._resources
        wanted = {
            "CPU": self._world * chosen.get("CPU", 0 if self._gpu else 1),  # as Ray has it
            "GPU": self._world * chosen.get("GPU", 1) if self._gpu else 0,
        }
        for name, number in wanted.items():
            if number > there.get(name, 0):
                told = f"{self._world} workers take {number:g} {name}s, and"
                if not self._grows:
                    raise ConfigError(
                        f"backend.trainer: {told} this machine has {there.get(name, 0):g}. Set num_workers, or use_gpu: false and "
                        "no GPU in resources_per_worker; or name a cluster that has them by backend.address."
                    )
                hear(Notice(f"{told} the Ray cluster has {there.get(name, 0):g}: training waits until it has them."))

    def _lost(self, error: BaseException) -> BaseException:
        """The error for a run that Ray gave up."""
        failures: dict[int, Exception] = getattr(error, "worker_failures", {})
        dead = sorted(rank for rank, failure in failures.items() if type(failure).__module__.startswith("ray."))
        # the others hear of a death by their connection with it, and may be asked first
        if not dead and not any("Connection" in str(failure) for failure in failures.values()):
            return error
        who = f"Worker {dead[0]}" if dead else "One"
        tries = self._backend.max_failures
        return ProcessLost(
            f"{who} of the {self._world} that train died, and backend.max_failures lets Ray restart them {tries} times. {self._remedy}"
        )

    def _fetch(self, result: Any) -> None:
        """The files of rank 0 become those of the run, and Ray's are removed."""
        try:
            result.checkpoint.to_directory(str(self._job.folder))
        except OSError as error:
            raise _unkept(str(self._job.folder), error, self._remedy) from error
        result.filesystem.delete_dir(result.path)
        shutil.rmtree(self._job.folder / checkpoint.RAY, ignore_errors=True)


class _Fit(threading.Thread):
    """The driver's part of a run, in a thread: the main one hears what it tells, and signals."""

    def __init__(self, trainer: TorchTrainer) -> None:
        super().__init__(daemon=True, name="ray-train")
        self._trainer = trainer
        self.result: Any = None
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self.result = self._trainer.fit()
        except BaseException as error:  # it is raised where the thread is waited for
            self.error = error


class _Desk:
    """An actor through which ranks and the driver speak. It outlives ranks that die."""

    def __init__(self) -> None:
        self._events: list[Any] = []
        self._failure: CachestoreError | None = None
        self._stopped = False

    def exchange(self, events: list[Any]) -> bool:
        """Take what rank 0 tells; returns whether it is to stop."""
        self._events += events
        return self._stopped

    def take(self) -> tuple[list[Any], CachestoreError | None]:
        """What came since the last time, and what ``fail`` was told."""
        events, self._events = self._events, []
        return events, self._failure

    def stop(self) -> None:
        self._stopped = True

    def fail(self, error: CachestoreError) -> None:
        """An error that would come again: no restart helps."""
        self._failure = self._failure or error

    def failure(self) -> CachestoreError | None:
        return self._failure


def _rank(settings: dict[str, Any]) -> Outcome | None:
    """The work of one worker; None where it was interrupted, or failed before."""
    desk = settings["desk"]
    if ray.get(desk.failure.remote()) is not None:
        return None
    job: Job = ray.get(settings["job"][0])
    context = ray.train.get_context()
    ranks = Ranks(context.get_world_rank(), context.get_world_size(), ray.train.torch.get_device())
    # in the worker's own directory, which Ray removes also where the worker was killed
    with tempfile.TemporaryDirectory(prefix="run-", dir=Path.cwd()) as scratch:
        folder = Path(scratch)
        before = ray.train.get_checkpoint()
        if before is not None:
            before.to_directory(scratch)
        if (folder / checkpoint.CONFIG).exists():  # what was automatic is settled
            config = load_config(checkpoint.read_config(folder))
            job = replace(job, config=config, description={**job.description, "config": config.resolved()})
        job = replace(job, folder=folder)
        line = _Line(desk)
        if ranks.rank == 0:
            line.start()
        try:
            outcome = cast("Work", settings["work"])(
                ranks, line.tell, job, lambda: _report(folder, ranks, *settings["place"])
            )
            _keep(folder if ranks.rank == 0 else None, *settings["place"])
        except KeyboardInterrupt:
            return None
        except CachestoreError as error:
            ray.get(desk.fail.remote(error))
            raise
        finally:
            line.end()
        return outcome


def _report(folder: Path, ranks: Ranks, storage: str, remedy: str) -> None:
    """Have Ray keep the state that is in the folders of the ranks: all of rank 0's, and of the others their rows."""
    if ranks.rank > 0:
        rows = sorted(
            (folder / checkpoint.STATES).glob(f"*-{ranks.rank}-of-{ranks.world}.safetensors"),
            key=lambda path: path.stat().st_mtime_ns,
        )
        for path in folder.rglob("*"):
            if path.is_file() and path not in rows[-1:]:
                path.unlink()
        if not rows:
            _keep(None, storage, remedy)
            return
    _keep(folder, storage, remedy)


def _keep(folder: Path | None, storage: str, remedy: str) -> None:
    """Have Ray keep the files of a rank, None where it has none. All ranks call it; raises UsageError where they cannot be written."""
    try:
        ray.train.report({}, checkpoint=None if folder is None else ray.train.Checkpoint.from_directory(str(folder)))
    except _OF_RAY:  # it has lost another worker
        raise
    except OSError as error:
        raise _unkept(storage, error, remedy) from error


def _unkept(place: str, error: OSError, remedy: str) -> UsageError:
    reason = str(error) if error.errno is None else os.strerror(error.errno)  # pyarrow has words of its own around it
    return UsageError(
        f"The state of the run cannot be kept at {place} ({reason}). Make room there, or see that it can be written. {remedy}"
    )


class _Line(threading.Thread):
    """Brings what rank 0 tells to the desk, and asks there whether to stop."""

    def __init__(self, desk: Any) -> None:
        super().__init__(daemon=True, name="desk")
        self._desk = desk
        self._events: list[Any] = []
        self._ended = threading.Event()

    def tell(self, event: Any) -> None:
        self._events.append(event)

    def run(self) -> None:
        while not self._ended.wait(_POLL):
            self._exchange()

    def end(self) -> None:
        """Bring the last events."""
        if self.is_alive():
            self._ended.set()
            self.join()
            self._exchange()

    def _exchange(self) -> None:
        events, self._events = self._events, []
        if ray.get(self._desk.exchange.remote(events)):
            interrupts.ask()


def _storage(backend: RayBackend, folder: Path) -> str:
    """Where Ray keeps the state: in the run's folder, which the nodes of one machine reach, or where the config says.

    Raises UsageError where no folder can be made there.
    """
    named = backend.storage_path
    if named is None:
        return str((folder / checkpoint.RAY).absolute())
    if "://" in named:
        return named
    place = Path(named).expanduser().absolute()
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"backend.storage_path: {place} cannot be a folder ({error.strerror}). Name another place that all nodes reach."
        ) from error
    return str(place)


@contextlib.contextmanager
def _cluster(backend: RayBackend) -> Iterator[bool]:
    """A cluster for the body: the one that this process uses, that of ``address``, that which `ray start` began on this machine, or a
    new one that ends with it. Gives whether other machines may join it.
    """
    if ray.is_initialized():
        yield True
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    terminate = signal.getsignal(signal.SIGTERM)  # Ray takes its place
    with contextlib.ExitStack() as stack:
        grows = _connect(backend, stack)
        stack.callback(ray.shutdown)
        if terminate is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, terminate)
        yield grows


def _connect(backend: RayBackend, stack: contextlib.ExitStack) -> bool:
    """Whether the cluster is one that this process did not start."""
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    address = backend.address or os.environ.get("RAY_ADDRESS")
    if address is not None:
        try:
            ray.init(address=address, **quiet)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise UsageError(
                f"backend.address: there is no Ray cluster at {address} that can be used ({error}). Start it, or leave address out."
            ) from error
        return True
    # as `ray start` notes it: by "auto" Ray finds those of other runs too, which end with them
    address = read_ray_address()
    if address is not None:
        with contextlib.suppress(ConnectionError):
            ray.init(address=address, **quiet)
            return True
    chosen = backend.trainer
    wanted = 1 if chosen.num_workers == "auto" else chosen.num_workers
    cpus = math.ceil(wanted * chosen.resources_per_worker.get("CPU", 1))
    # Ray's sockets lie there, and the path of a socket is short
    scratch = Scratch("ray-", Path("/tmp") if Path("/tmp").is_dir() else None)
    stack.callback(scratch.close)
    ray.init(
        address="local",
        num_cpus=max(cpus, os.cpu_count() or 1),
        include_dashboard=False,
        _temp_dir=str(scratch.path),
        **quiet,
    )
    return False
