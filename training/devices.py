"""Where a run computes: one CPU, one GPU, or one of several processes that torchrun started."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import distributed

from training.errors import ConfigError


@dataclass(frozen=True)
class Place:
    """This process's device, its rank among the processes of the run, and how many there are."""

    device: torch.device
    rank: int = 0
    world_size: int = 1

    @classmethod
    def find(cls, device: str) -> Place:
        """device: `auto` (a GPU when there is one), `cpu`, `cuda` or `cuda:1`.

        Under torchrun (its RANK, WORLD_SIZE and LOCAL_RANK) the processes join: over nccl, each on its own GPU, or
        over gloo on the CPU. Raises ConfigError for a device that is not there.
        """
        world_size, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
        kind = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        try:
            chosen = torch.device(kind)
            if world_size > 1 and chosen.type == "cuda":
                chosen = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
            torch.zeros(1, device=chosen)
        except (RuntimeError, AssertionError) as error:
            raise ConfigError(f"device {device}: {str(error).splitlines()[0]}") from None
        if world_size > 1 and not distributed.is_initialized():
            distributed.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
        return cls(chosen, rank, world_size)

    @property
    def is_first(self) -> bool:
        """Whether this process writes the run's files and lines."""
        return self.rank == 0

    def wait_for_all(self) -> None:
        """Return when every process has got here."""
        if self.world_size > 1:
            distributed.barrier()

    def mean(self, values: Sequence[float]) -> list[float]:
        """Each value's mean over the processes."""
        if self.world_size == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        distributed.all_reduce(total)
        return [float(value) for value in total / self.world_size]
