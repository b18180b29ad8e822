"""What becomes of requests: real replicas behind the real router."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from router_house import READER, RouterHouse, memory, route
from scripted_feed import USER_TOKEN, access
from waiting import until

from hatoba_worker.router.bodies import WHOLE

TRACE, SPAN = "ab" * 16, "cd" * 8
OTHER = "projects/lab/deployments/reader"


async def test_a_request_reaches_a_replica_and_comes_back(house: RouterHouse) -> None:
    one = await house.replica("r-1")
    house.feed.put(route((7, 100, [one])))
    await house.start()
    await house.feed.acknowledged(house.feed.cursor)
    headers = {"traceparent": f"00-{TRACE}-{SPAN}-01", "x-mine": "yes", "connection": "x-hop"}
    headers["x-hop"] = "no"
    async with house.ask({"a": 1}, path="/reader/predict?k=v%20w", headers=headers) as reply:
        found = await reply.json()
        assert (reply.status, found["replica"], found["path"]) == (200, "r-1", "/predict?k=v%20w")
        assert reply.headers["hatoba-model"] == "digits:7"
        assert reply.headers["hatoba-trace-id"] == TRACE
        assert reply.headers["traceparent"].startswith(f"00-{TRACE}-")
        assert reply.headers["x-own"] == "200"
        assert "keep-alive" not in reply.headers
    assert found["headers"]["x-mine"] == "yes"
    assert found["headers"]["traceparent"].startswith(f"00-{TRACE}-")
    assert SPAN not in found["headers"]["traceparent"]
    assert not {"authorization", "x-hop"} & set(found["headers"])


async def test_who_may_ask_and_where(house: RouterHouse) -> None:
    one = await house.replica("r-1")
    house.feed.put(route((7, 100, [one])), route((7, 100, [one]), deployment=OTHER))
    ended = access("expired", principal="old")
    ended.expire_time.FromSeconds(1)
    house.feed.grant(access(USER_TOKEN), access("app", READER), ended)
    await house.start()
    await house.feed.acknowledged(house.feed.cursor)

    async def status(path: str, token: str, **fields: Any) -> tuple[int, str]:
        code, told = await house.predict({}, path=path, token=token, **fields)
        return code, str(told.get("kind", told.get("replica")))

    assert await status("/reader/predict", "app") == (200, "r-1")
    assert await status("/p/default/reader/predict", "app") == (200, "r-1")
    assert await status("/p/lab/reader/predict", USER_TOKEN) == (200, "r-1")
    assert await status("/reader/healthz", "app", method="GET") == (200, "r-1")
    assert await status("/p/lab/reader/predict", "app") == (403, "token_of_another_deployment")
    assert await status("/none/predict", "app") == (403, "token_of_another_deployment")
    assert await status("/none/predict", USER_TOKEN) == (404, "deployment_not_found")
    assert await status("/reader/other", USER_TOKEN) == (404, "path_not_found")
    assert await status("/predict", USER_TOKEN) == (404, "path_not_found")
    assert await status("/reader/predict", "wrong") == (401, "token_unknown")
    assert await status("/reader/predict", "expired") == (401, "token_unknown")
    assert await status("/reader/predict", "app", method="GET") == (405, "method_not_allowed")
    no_token = {"authorization": "Basic eDp5"}
    assert await status("/reader/predict", "", headers=no_token) == (401, "token_missing")


async def test_access_and_deployments_are_taken_away_at_once(house: RouterHouse) -> None:
    one = await house.replica("r-1")
    house.feed.put(route((7, 100, [one])))
    await house.start()
    await house.feed.acknowledged(house.feed.cursor)
    assert (await house.predict())[0] == 200
    await house.feed.acknowledged(house.feed.grant(access("another")))
    assert (await house.predict())[0] == 401
    assert (await house.predict(token="another"))[0] == 200
    await house.feed.acknowledged(house.feed.remove(READER))
    assert (await house.predict(token="another"))[0] == 404


async def test_all_busy_is_429_and_none_ready_503(house: RouterHouse, tmp_path: Path) -> None:
    one = await house.replica("r-1")
    house.feed.put(route((7, 100, [one]), max_queue=2))
    await house.start()
    await house.feed.acknowledged(house.feed.cursor)
    marks = tmp_path / "marks"
    async with asyncio.TaskGroup() as tasks:
        told = {"path": str(marks), "sleep": 1.0}
        held = [tasks.create_task(house.predict(told)) for _ in range(2)]
        await until(lambda: marks.exists() and marks.read_text().count("\n") == 2)
        async with house.ask() as reply:
            found = await reply.json()
        assert (reply.status, found["kind"]) == (429, "all_replicas_busy")
        assert reply.headers["Retry-After"] == "1"
        assert len(reply.headers["hatoba-trace-id"]) == 32
    assert [task.result()[0] for task in held] == [200, 200]
    await house.feed.acknowledged(house.feed.put(route((7, 100, []))))
    async with house.ask() as reply:
        assert (reply.status, (await reply.json())["kind"]) == (503, "no_replica_ready")
        assert reply.headers["Retry-After"] == "1"


async def test_weights_share_requests_out(house: RouterHouse) -> None:
    old, new = await house.replica("old"), await house.replica("new")
    house.feed.put(route((1, 80, [old]), (2, 20, [new]), max_queue=1_000))
    await house.start()
    await house.feed.acknowledged(house.feed.cursor)
    async with asyncio.TaskGroup() as tasks:
        asked = [tasks.create_task(house.predict()) for _ in range(400)]
    counted = Counter(task.result()[1]["replica"] for task in asked)
    # 80 expected, 8 is one standard deviation.
    assert 40 < counted["new"] < 120
    assert counted.total() == 400
    await house.feed.until(lambda: sum(house.feed.counted(n)[0] for n in (1, 2)) == 400)
    assert house.feed.counted(2) == (counted["new"], 0)


async def test_one_that_refuses_connections_costs_nobody_a_request(house: RouterHouse) -> None:
    gone, there = await house.replica("gone"), await house.replica("there")
    house.feed.put(route((1, 100, [gone, there])))
    await house.start()
    await house.feed.acknowledged(house.feed.cursor)
    await gone.kill()
    found = [await house.predict() for _ in range(40)]
    assert Counter(told["replica"] for _, told in found) == {"there": 40}
    await there.kill()
    code, told = await house.predict()
    assert (code, told["kind"]) == (503, "no_replica_reached")
    await house.replica("gone", gone.port)
    assert (await house.predict())[0] == 200


OURS, OTHERS = f"r-{'a' * 32}-1", f"r-{'b' * 32}-1"


async def test_what_another_one_answers_at_a_replicas_address_is_no_answer(
    house: RouterHouse, tmp_path: Path
) -> None:
    there = await house.replica(f"{OURS}-00000001")
    other = await house.replica(f"{OTHERS}-00000001")
    gone = replace(other, name=f"{OURS}-00000002")
    house.feed.put(route((1, 100, [there, gone])))
    await house.start()
    await house.feed.acknowledged(house.feed.cursor)
    marks = tmp_path / "marks"
    told = [await house.predict({"path": str(marks)}) for _ in range(40)]
    assert Counter(found["replica"] for _, found in told) == {there.name: 40}
    # It was asked once, by the request that found it out.
    asked = Counter((await asyncio.to_thread(marks.read_text)).split())
    assert asked == {there.name: 40, other.name: 1}
    await house.feed.until(lambda: house.feed.counted(1)[0] == 40)
    assert house.feed.counted(1) == (40, 0)


async def test_where_only_another_one_answers_there_is_no_replica(house: RouterHouse) -> None:
    other = await house.replica(f"{OTHERS}-00000001")
    gone = replace(other, name=f"{OURS}-00000002")
    house.feed.put(route((1, 100, [gone])))
    await house.start()
    await house.feed.acknowledged(house.feed.cursor)
    # Too large to be kept for another one.
    code, told = await house.predict(data=b"y" * (WHOLE + 1))
    assert (code, told["kind"]) == (503, "replica_gone")
    assert (await house.predict())[1]["kind"] == "no_replica_ready"
    await house.feed.acknowledged(house.feed.put(route((1, 100, [gone]))))
    code, told = await house.predict()
    assert (code, told["kind"]) == (503, "no_replica_reached")
    await other.kill()
    back = await house.replica(f"{OURS}-00000003", gone.port)
    await house.feed.acknowledged(house.feed.put(route((1, 100, [gone]))))
    assert (await house.predict())[1]["replica"] == back.name


async def test_a_replica_that_dies_with_a_request_is_502_and_not_asked_twice(
    house: RouterHouse, tmp_path: Path
) -> None:
    one, two = await house.replica("r-1"), await house.replica("r-2")
    house.feed.put(route((3, 100, [one, two])))
    await house.start()
    await house.feed.acknowledged(house.feed.cursor)
    marks = tmp_path / "marks"
    code, told = await house.predict({"path": str(marks), "die": True})
    assert (code, told["kind"]) == (502, "replica_died")
    assert (await asyncio.to_thread(marks.read_text)).count("\n") == 1
    await house.feed.until(lambda: house.feed.counted(3) == (1, 1))
    assert "ended while it had the request" in house.feed.statistics[-1].last_error


async def test_a_replica_that_hangs_is_504(house: RouterHouse) -> None:
    one = await house.replica("r-1")
    house.feed.put(route((3, 100, [one]), seconds=0.2))
    await house.start()
    await house.feed.acknowledged(house.feed.cursor)
    code, told = await house.predict({"sleep": 60})
    assert (code, told["kind"]) == (504, "prediction_timed_out")
    await house.feed.until(lambda: house.feed.counted(3) == (1, 1))


async def test_a_replicas_own_failure_is_passed_on_and_counted(house: RouterHouse) -> None:
    one = await house.replica("r-1")
    house.feed.put(route((3, 100, [one])))
    await house.start()
    await house.feed.acknowledged(house.feed.cursor)
    assert (await house.predict({"status": 500}))[0] == 500
    assert (await house.predict({"status": 422}))[0] == 422
    await house.feed.until(lambda: house.feed.counted(3) == (2, 1))


# -- bodies ---------------------------------------------------------------------------------------


async def _pieces(count: int) -> AsyncIterator[bytes]:
    for _ in range(count):
        yield b"y" * 65_536


async def test_bodies_over_the_limit_are_413(house: RouterHouse) -> None:
    one = await house.replica("r-1")
    house.feed.put(route((3, 100, [one]), max_body_bytes=1_000_000))
    await house.start()
    await house.feed.acknowledged(house.feed.cursor)
    code, told = await house.predict(data=b"y" * 1_000_001)
    assert (code, told["kind"]) == (413, "body_too_large")
    code, told = await house.predict(data=_pieces(100))
    assert (code, told["kind"]) == (413, "body_too_large")
    assert (await house.predict(data=b"y" * 1_000_000))[1]["size"] == 1_000_000
    assert (await house.predict(data=_pieces(15)))[1]["size"] == 15 * 65_536
    await house.feed.until(lambda: house.feed.counted(3)[0] >= 3)
    assert house.feed.counted(3)[1] == 0


async def test_large_bodies_stream_both_ways_in_little_memory(house: RouterHouse) -> None:
    one = await house.replica("r-1")
    house.feed.put(route((3, 100, [one]), max_body_bytes=1 << 30))
    await house.start()
    await house.feed.acknowledged(house.feed.cursor)
    await house.predict()
    before = await asyncio.to_thread(memory, house.pid)
    code, told = await house.predict(data=_pieces(1_600))
    assert (code, told["size"]) == (200, 1_600 * 65_536)
    received = 0
    async with house.ask({"stream": 1_600}) as reply:
        async for piece in reply.content.iter_any():
            received += len(piece)
    assert received == 1_600 * 65_536
    assert await asyncio.to_thread(memory, house.pid) - before < 16 << 20


async def test_a_reply_that_breaks_off_does_not_look_whole(house: RouterHouse) -> None:
    one = await house.replica("r-1")
    house.feed.put(route((3, 100, [one])))
    await house.start()
    await house.feed.acknowledged(house.feed.cursor)
    async with house.ask({"stream": 5, "break": 3, "pause": 0.02}) as reply:
        assert reply.status == 200
        with pytest.raises(aiohttp.ClientPayloadError):
            await reply.read()
    await house.feed.until(lambda: house.feed.counted(3) == (1, 1))


async def test_a_client_that_does_not_send_its_body_is_408(house: RouterHouse) -> None:
    one = await house.replica("r-1")
    house.feed.put(route((3, 100, [one]), seconds=0.3))
    await house.start()
    await house.feed.acknowledged(house.feed.cursor)
    head = (
        f"POST /reader/predict HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {USER_TOKEN}\r\n"
        "content-length: 10\r\n\r\nonly"
    )
    assert b"408" in await _raw(house, head.encode())
    large = head.replace("content-length: 10", "content-length: 1000000")
    assert b"client_too_slow" in await _raw(house, large.encode())


async def test_what_is_no_http_is_400(house: RouterHouse) -> None:
    await house.start()
    assert b" 400 " in await _raw(house, b"NONSENSE\r\n\r\n")
    one = await house.replica("r-1")
    await house.feed.acknowledged(house.feed.put(route((3, 100, [one]))))
    head = f"POST /reader/predict HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {USER_TOKEN}\r\n"
    broken = f"{head}transfer-encoding: chunked\r\n\r\nzz\r\n"
    assert b" 400 " in await _raw(house, broken.encode())
    assert (await house.predict())[0] == 200


async def test_a_client_that_waits_to_be_asked_for_its_body_is(house: RouterHouse) -> None:
    one = await house.replica("r-1")
    house.feed.put(route((3, 100, [one]), max_body_bytes=1_000))
    await house.start()
    await house.feed.acknowledged(house.feed.cursor)
    async with house.ask({"a": 1}, expect100=True) as reply:
        assert (reply.status, (await reply.json())["size"]) == (200, 8)
    async with house.ask(data=b"y" * 2_000, expect100=True) as reply:
        assert reply.status == 413


async def _raw(house: RouterHouse, request: bytes) -> bytes:
    """All that comes back until the router hangs up."""
    host, port = house.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(request)
    try:
        async with asyncio.timeout(20):
            return await reader.read()
    finally:
        writer.close()


# -- what is written down -------------------------------------------------------------------------


async def test_the_access_log_has_a_line_for_each_and_no_secrets(house: RouterHouse) -> None:
    one = await house.replica("r-1")
    house.feed.put(route((3, 100, [one])))
    await house.start()
    await house.feed.acknowledged(house.feed.cursor)
    await house.predict({"secret": "body"}, path="/reader/predict?key=hidden")
    await house.predict(token="wrong")
    await house.stop()
    text = await asyncio.to_thread((house.data / "router-access.log").read_text)
    first, second = [json.loads(line) for line in text.splitlines()]
    assert (first["status"], first["path"], first["principal"]) == (200, "/reader/predict", "ann")
    assert (first["model"], first["replica"], first["received"]) == ("digits:3", "r-1", 18)
    assert (second["status"], second["kind"]) == (401, "token_unknown")
    assert not [word for word in (USER_TOKEN, "wrong", "hidden", "body") if word in text]


async def test_its_own_pages_tell_how_it_is(house: RouterHouse) -> None:
    one = await house.replica("r-1")
    house.feed.put(route((3, 100, [one])))
    await house.start()
    await house.feed.acknowledged(house.feed.cursor)
    await house.predict()
    state = json.loads(await house.page("/-/healthz"))
    assert state == {
        "status": "ok",
        "connected": True,
        "cursor": house.feed.cursor,
        "deployments": 1,
    }
    figures = await house.page("/-/metrics")
    label = f'deployment="{READER}",revision="3"'
    assert f'hatoba_router_requests_total{{code="200",{label}}} 1.0' in figures
    assert f"hatoba_router_replicas{{{label}}} 1.0" in figures
    assert f"hatoba_router_in_flight{{{label}}} 0.0" in figures
    assert 'hatoba_router_dropped{what="visits"} 0.0' in figures
    await house.feed.acknowledged(house.feed.remove(READER))
    assert READER not in await house.page("/-/metrics")
    assert "path_not_found" in await house.page("/-/secrets")
