"""Joining the process group: which device a process has, and over what it speaks."""

from __future__ import annotations

import os
import sys
from datetime import timedelta

import torch
import torch.distributed as dist

from trainer.strategies.ranks import Ranks


def join(rank: int, world: int, local: int, *, init_method: str, timeout: timedelta) -> Ranks:
    """Meet the others. ``local``: which of this machine's processes it is, and so which GPU it has, where there are any."""
    if torch.cuda.is_available():
        device, backend = torch.device("cuda", local % torch.cuda.device_count()), "cpu:gloo,cuda:nccl"
        torch.cuda.set_device(device)
    else:
        device, backend = torch.device("cpu"), "gloo"
    if init_method.startswith("file:") and sys.platform == "linux":
        # all ranks are here: nothing of them is to be reached from other machines
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group(backend, init_method=init_method, rank=rank, world_size=world, timeout=timeout)
    return Ranks(rank, world, device)
