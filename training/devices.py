"""Where a run computes: one CPU, one GPU, or one of several processes that torchrun started."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import distributed

from training.errors import ConfigError

T = TypeVar("T")


@dataclass(frozen=True)
class Place:
    """This process's device, its rank among the processes of the run, and how many there are."""

    device: torch.device
    rank: int = 0
    world_size: int = 1

    @classmethod
    @contextmanager
    def joined(cls, device: str) -> Iterator[Place]:
        """The place while the block runs; the processes part at its end, unless an outer block joined them.

        device: `auto` (a GPU when there is one), `cpu`, `cuda` or `cuda:1`.
        Under torchrun (its RANK, WORLD_SIZE and LOCAL_RANK) the processes join: over nccl, each on its own GPU, or
        over gloo on the CPU. Torch cannot join the processes of a launch a second time: several runs of one launch
        need a block around them. Raises ConfigError for a device that is not there, or processes that do not join.
        """
        world_size, rank, local_rank = _launched()
        kind = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        try:
            chosen = torch.device(kind)
            if world_size > 1 and chosen.type == "cuda":
                chosen = torch.device("cuda", local_rank)
                torch.cuda.set_device(chosen)
            torch.zeros(1, device=chosen)
        except (RuntimeError, AssertionError) as error:
            raise ConfigError(f"device {device}: {str(error).splitlines()[0]}") from None
        joins = world_size > 1 and not distributed.is_initialized()
        if joins:
            try:
                distributed.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
            except (RuntimeError, ValueError) as error:
                raise ConfigError(f"{world_size} processes: {str(error).splitlines()[0]}") from None
        try:
            yield cls(chosen, rank, world_size)
        finally:
            if joins:
                distributed.destroy_process_group()

    @property
    def is_first(self) -> bool:
        """Whether this process writes the run's files and lines."""
        return self.rank == 0

    def wait_for_all(self) -> None:
        """Return when every process has got here."""
        if self.world_size > 1:
            distributed.barrier()

    def from_first(self, compute: Callable[[], T]) -> T:
        """What the first process computes, in every process. The others do not compute."""
        if self.world_size == 1:
            return compute()
        box: list[T | None] = [compute() if self.is_first else None]
        distributed.broadcast_object_list(box, src=0)
        (value,) = box
        return value  # type: ignore[return-value]

    def mean(self, values: Sequence[float]) -> list[float]:
        """Each value's mean over the processes."""
        if self.world_size == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        distributed.all_reduce(total)
        return [float(value) for value in total / self.world_size]


def is_first_process() -> bool:
    """Whether this process writes the run's files and lines, before it joined the others. Raises ConfigError."""
    return _launched()[1] == 0


def _launched() -> tuple[int, int, int]:
    """World size, rank and local rank as torchrun sets them; a process alone is the first, whatever its RANK."""
    try:
        world_size, rank, local_rank = (
            int(os.environ.get(name, default))
            for name, default in (("WORLD_SIZE", "1"), ("RANK", "0"), ("LOCAL_RANK", "0"))
        )
    except ValueError:
        raise ConfigError("WORLD_SIZE, RANK and LOCAL_RANK: whole numbers, as torchrun sets them") from None
    if world_size == 1:
        return 1, 0, 0
    if not 0 <= rank < world_size:
        raise ConfigError(f"RANK: {rank} of WORLD_SIZE {world_size}; expected 0 to {world_size - 1}")
    return world_size, rank, local_rank
