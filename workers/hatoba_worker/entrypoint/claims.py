"""The claim: nothing of the user's code runs before it is granted."""

from __future__ import annotations

import asyncio
import random
import re
import socket
import time
from collections.abc import Awaitable, Callable
from typing import Self

import structlog

from hatoba.v1 import runner_pb2, worker_pb2
from hatoba_worker.attempts import Attempt, GangPlace
from hatoba_worker.entrypoint.calls import Calls, Denied, Malformed, Superseded
from hatoba_worker.entrypoint.settings import Settings
from hatoba_worker.failures import Away
from hatoba_worker.gang_ports import GangPorts
from hatoba_worker.session import Backoff

log = structlog.get_logger(__name__)
GRANTED = runner_pb2.CLAIM_VERDICT_GRANTED
WAIT = runner_pb2.CLAIM_VERDICT_WAIT
_HAS_PORT = re.compile(r"(\[.+\]|[^:]+):[0-9]{1,5}")
_SELF = "self"
_WORDS = {
    runner_pb2.CLAIM_VERDICT_DUPLICATE: "another runner has it",
    runner_pb2.CLAIM_VERDICT_SUPERSEDED: "it is not current any more",
    runner_pb2.CLAIM_VERDICT_CANCELLED: "its job is to end",
}


class Refused(Exception):
    """The attempt is not ours to run; the message says why."""


class Unreached(Exception):
    """The server was not reached in time; the message says what was tried last."""


class Meeting:
    """Where the others of a gang meet this member, kept free until the claim is answered."""

    def __init__(self, settings: Settings) -> None:
        self._gang = settings.gang
        self._told = settings.address
        self._ports = GangPorts(self._told)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._ports.free(_SELF)

    @property
    def address(self) -> str:
        """`HOST:PORT`; empty for who is no gang's member."""
        if not self._gang:
            return ""
        if _HAS_PORT.fullmatch(self._told):
            return self._told
        if not self._told:
            self._ports = GangPorts(_own_address())
        self._told = self._ports.address_of(_SELF)
        return self._told


def _own_address() -> str:
    """The address that this container's name stands for, or its name."""
    name = socket.gethostname()
    try:
        return socket.gethostbyname(name)
    except OSError:
        return name


class Claiming:
    """Asks until there is an answer; `patience` is how many seconds in a row without one are
    borne.
    """

    def __init__(
        self,
        calls: Calls,
        patience: float,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._calls = calls
        self._patience = patience
        self._clock = clock
        self._sleep = sleep
        self._backoff = Backoff(jitter)

    async def run(self, address: str) -> runner_pb2.ClaimAttemptResponse:
        """The granted claim, of a gang's member once all have claimed. Raises Refused, Denied and
        Unreached.
        """
        heard, told = self._clock(), False
        while True:
            try:
                answer = await self._calls.claim(address)
            except Away as error:
                if self._clock() - heard >= self._patience:
                    raise Unreached(str(error)) from error
                level = log.info if told else log.warning
                level("server.away", reason=str(error))
                told = True
                await self._sleep(self._backoff.next())
                continue
            except (Superseded, Malformed) as error:
                raise Refused(str(error)) from error
            heard = self._clock()
            self._backoff.reset()
            if answer.verdict == GRANTED:
                return answer
            if answer.verdict != WAIT:
                raise Refused(_WORDS.get(answer.verdict, "the claim was not granted"))
            await self._sleep(answer.retry_after.ToTimedelta().total_seconds())


def assignment_of(answer: runner_pb2.ClaimAttemptResponse) -> worker_pb2.LaunchAttempt:
    """What there is to run, as a container sees it; raises Denied when the server did not say.

    Its image and its GPUs are the platform's affair, and done.
    """
    launch = worker_pb2.LaunchAttempt()
    if not answer.assignment.Unpack(launch) or not launch.attempt:
        raise Denied("the claim's answer does not say what to run")
    if launch.environment.image:
        launch.ClearField("environment")
    launch.ClearField("gpus")
    return launch


def granted(attempt: Attempt, answer: runner_pb2.ClaimAttemptResponse) -> None:
    """Note in the attempt what its granted claim says."""
    attempt.granted = True
    if answer.members:
        addresses = tuple(member.address for member in answer.members)
        attempt.gang = GangPlace(attempt.launch.index, answer.generation, addresses)
