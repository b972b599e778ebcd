import os
from collections.abc import Callable
from functools import partial

import pytest

from benchmarks.workers import Worker, WorkerError


class Counter:
    def __init__(self, start: int) -> None:
        self._count = start

    def add(self, number: int) -> int:
        self._count += number
        return self._count

    def process(self) -> int:
        return os.getpid()

    def fail(self) -> None:
        raise ValueError("as asked")

    def die(self) -> None:
        os._exit(3)


def test_an_object_lives_in_another_process_between_calls() -> None:
    with Worker(partial(Counter, 10)) as worker:
        assert worker.run("process") != os.getpid()
        assert [worker.run("add", 1), worker.run("add", 2)] == [11, 13]


def test_two_workers_work_at_the_same_time() -> None:
    with Worker(partial(Counter, 0)) as one, Worker(partial(Counter, 5)) as other:
        one.ask("add", 1)
        other.ask("add", 1)
        assert (one.answer(), other.answer()) == (1, 6)


def test_a_failure_comes_back_and_the_worker_goes_on() -> None:
    with Worker(partial(Counter, 0)) as worker:
        with pytest.raises(WorkerError, match="ValueError: as asked"):
            worker.run("fail")
        assert worker.run("add", 1) == 1


@pytest.mark.parametrize(
    ("load", "method", "reason"), [(Counter, "process", "TypeError"), (partial(Counter, 0), "die", "ended")]
)
def test_a_worker_that_cannot_go_on_says_so(load: Callable[[], object], method: str, reason: str) -> None:
    with Worker(load) as worker, pytest.raises(WorkerError, match=reason):
        worker.run(method)
