"""The backend section: in which processes training runs, and how they share the encoders that are trained."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator
from pydantic_core import PydanticCustomError

from trainer.frozen import Frozen


def _strategy(data: dict[str, Any]) -> Literal["ddp"] | None:
    return None if data.get("num_workers", "auto") in ("auto", 1) else "ddp"


class BackendTrainer(Frozen):
    """``strategy``: ``ddp`` (each worker has all of the model) or ``fsdp`` (each has a shard of the encoders); None: one process.

    Several workers without a strategy are ``ddp``. ``num_workers``: ``auto`` is one for every GPU. ``cpu_offload``: what ``fsdp``
    shards is kept in main memory while it is not computed with.
    """

    num_workers: PositiveInt | Literal["auto"] = "auto"
    strategy: Literal["ddp", "fsdp"] | None = Field(default_factory=_strategy)
    cpu_offload: bool = False

    @model_validator(mode="after")
    def _makes_sense(self) -> BackendTrainer:
        if self.cpu_offload and self.strategy != "fsdp":
            raise PydanticCustomError("offload", "cpu_offload needs strategy: fsdp; leave it out")
        if self.strategy is None and self.num_workers not in ("auto", 1):
            raise PydanticCustomError(
                "workers", "several workers need a strategy: ddp or fsdp; or leave num_workers out"
            )
        return self


class RayTrainer(BackendTrainer):
    """``use_gpu`` None: where the cluster has GPUs. ``resources_per_worker``: of CPU and GPU, by default 1 and, with GPUs, 1."""

    use_gpu: bool | None = None
    resources_per_worker: dict[Literal["CPU", "GPU"], PositiveFloat] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _agrees_on_gpus(self) -> RayTrainer:
        if self.use_gpu is False and "GPU" in self.resources_per_worker:
            raise PydanticCustomError(
                "gpus", "resources_per_worker asks for GPUs that use_gpu: false does without; leave one of them out"
            )
        return self


class LocalBackend(Frozen):
    """Processes of this machine, which the command starts; or, under torchrun, those that there are."""

    type: Literal["local"] = "local"
    trainer: BackendTrainer = BackendTrainer()


class RayBackend(Frozen):
    """Workers of a Ray cluster: that at ``address``, or the one of this machine.

    Checkpoints go to ``storage_path``, which all nodes can reach. After ``max_failures`` failures of a worker the run is given up.
    """

    type: Literal["ray"] = "ray"
    trainer: RayTrainer = RayTrainer()
    storage_path: Annotated[str, Field(min_length=1)] | None = None
    address: Annotated[str, Field(min_length=1)] | None = None
    max_failures: NonNegativeInt = 3


Backend: TypeAlias = Annotated[LocalBackend | RayBackend, Field(discriminator="type")]
