import socket
import threading

import pytest

from scoring.crew_channel import CrewEnd, WorkerEnd, packed
from tests.scoring.test_crew import until


@pytest.fixture
def pair() -> tuple[CrewEnd, socket.socket]:
    ours, theirs = socket.socketpair()
    return CrewEnd(ours), theirs


def test_messages_go_both_ways_whole_and_in_order(pair: tuple[CrewEnd, socket.socket]) -> None:
    crew, worker = pair[0], WorkerEnd(pair[1])
    crew.send({"a": b"x" * 1000})
    crew.send("na\udcffme")  # as in a path that is no UTF-8
    assert [worker.receive(), worker.receive()] == [{"a": b"x" * 1000}, "na\udcffme"]
    worker.send(1)
    worker.send([2])
    assert crew.receive() == [1, [2]]
    assert crew.receive() == []
    assert not crew.ended


def test_a_message_that_comes_in_pieces_is_one(pair: tuple[CrewEnd, socket.socket]) -> None:
    crew, worker = pair
    data = packed("hello") + packed("there")
    for byte in data[:-1]:
        worker.sendall(bytes([byte]))
        assert crew.receive() in ([], ["hello"])
    worker.sendall(data[-1:])
    assert crew.receive() == ["there"]


def test_a_worker_that_does_not_read_does_not_hold_the_crew_up(pair: tuple[CrewEnd, socket.socket]) -> None:
    crew, worker = pair[0], WorkerEnd(pair[1])
    large = b"x" * 2_000_000
    crew.send(large)
    crew.send("after")
    assert crew.has_unsent
    received: list[object] = []
    reader = threading.Thread(target=lambda: received.extend([worker.receive(), worker.receive()]))
    reader.start()
    until(lambda: (crew.flush(), not crew.has_unsent)[1])
    reader.join()
    assert received == [large, "after"]


def test_a_torn_message_of_a_dead_worker_is_dropped(pair: tuple[CrewEnd, socket.socket]) -> None:
    crew, worker = pair
    worker.sendall(packed("whole") + packed("torn")[:-1])
    worker.close()
    assert crew.receive() == ["whole"]
    assert crew.ended
    crew.send("to nobody")
    assert not crew.has_unsent


def test_the_end_of_the_crew_is_an_end_of_file_for_the_worker(pair: tuple[CrewEnd, socket.socket]) -> None:
    pair[0].close()
    with pytest.raises(EOFError):
        WorkerEnd(pair[1]).receive()
