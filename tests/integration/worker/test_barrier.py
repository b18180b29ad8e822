"""Members of gangs wait for each other, and begin as soon as they may."""

from __future__ import annotations

from worker_house import House

from hatoba.v1 import runner_pb2, worker_pb2

GRANTED = runner_pb2.CLAIM_VERDICT_GRANTED
WAIT = runner_pb2.CLAIM_VERDICT_WAIT
LONG = 600


def answered(attempt: str, wait: int = 0) -> worker_pb2.ServerItem:
    """What a member is told while not all have claimed; without `wait`: now they have."""
    answer = runner_pb2.ClaimAttemptResponse(attempt=attempt, verdict=WAIT)
    if wait:
        answer.retry_after.FromSeconds(wait)
    return worker_pb2.ServerItem(claimed=answer)


async def test_who_waits_asks_again_once_all_have_claimed(house: House) -> None:
    house.server.silent.add("claim")
    house.run("a-1", "/bin/true", gang_size=2)
    first = await house.heard.wait("claim", "a-1")
    house.server.silent.discard("claim")
    house.server.send(answered("a-1", LONG))
    house.server.send(answered("a-1"))
    assert (await house.heard.wait("claim", "a-1", 2)).nonce == first.nonce
    assert (await house.commit("a-1")).exit_code == 0


async def test_that_all_have_claimed_may_be_heard_before_the_own_answer(house: House) -> None:
    house.server.silent.add("claim")
    house.run("a-1", "/bin/true", gang_size=2)
    await house.heard.wait("claim", "a-1")
    house.server.silent.discard("claim")
    house.server.send(answered("a-1"), answered("a-1", LONG))
    await house.heard.wait("claim", "a-1", 2)
    assert (await house.commit("a-1")).exit_code == 0


async def test_it_is_no_grant(house: House) -> None:
    house.server.silent.add("claim")
    house.run("a-1", "/bin/true", gang_size=2)
    await house.heard.wait("claim", "a-1")
    house.server.send(answered("a-1"))
    house.shell("b-1", "true")
    await house.heard.wait("claim", "b-1")
    house.server.grant("b-1")
    await house.commit("b-1")
    assert not house.heard.all("started", "a-1")
