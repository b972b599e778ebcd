"""What the client sends again when it does not know whether a call arrived."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest

from service.client import Client, TransportError
from service.jobs.records import Job, JobState
from service.jobs.schemas import JobBody
from tests.service.jobs.conftest import request_for

JOB = request_for("photos")


def _ask(use: Callable[[Client], Any]) -> list[str]:
    """The methods that reach a server whose first answer is lost."""
    arrived: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        arrived.append(request.method)
        if len(arrived) == 1:
            raise httpx.ReadError("lost")
        return httpx.Response(202, text=JobBody.of(Job(JOB, JobState("cancelled"))).model_dump_json())

    with Client("http://mien.test", transport=httpx.MockTransport(answer), sleep=lambda _: None) as mien:
        use(mien)
    return arrived


@pytest.mark.parametrize("use", [lambda mien: mien.remove_job(JOB.id), lambda mien: mien.create_job("photos")])
def test_a_call_that_may_have_changed_something_is_not_sent_again(use: Callable[[Client], Any]) -> None:
    def expect_loss(mien: Client) -> None:
        with pytest.raises(TransportError) as lost:
            use(mien)
        assert lost.value.code == "connection_failed"

    assert len(_ask(expect_loss)) == 1


@pytest.mark.parametrize("use", [lambda mien: mien.cancel_job(JOB.id), lambda mien: mien.job(JOB.id)])
def test_a_call_that_is_harmless_is_sent_again(use: Callable[[Client], Any]) -> None:
    assert len(_ask(use)) == 2
