"""What users of a model notice of replicas that go, of a server that is away, and of kill -9."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
from google.protobuf import json_format
from router_house import READER, RouterHouse, back_within, route
from waiting import until

CLIENTS = 8


class Crowd:
    """Clients that ask without a pause until they are told to stop."""

    def __init__(self, house: RouterHouse) -> None:
        self.replies: Counter[tuple[int, str]] = Counter()
        self._house = house
        self._over = asyncio.Event()

    async def client(self) -> None:
        """One of them."""
        while not self._over.is_set():
            code, told = await self._house.predict({"sleep": 0.005})
            self.replies[code, str(told.get("replica", told.get("kind")))] += 1

    def stop(self) -> None:
        """Let them end."""
        self._over.set()

    async def more(self, replica: str, count: int = 20) -> None:
        """Wait until so many more were answered by a replica."""
        wanted = self.replies[200, replica] + count
        await until(lambda: self.replies[200, replica] >= wanted)


async def test_replicas_leave_the_table_and_nobody_loses_a_request(house: RouterHouse) -> None:
    """As a rolling update does it: out of the table, acknowledged, then gone."""
    now = await house.replica("r-0")
    house.feed.put(route((1, 100, [now])))
    await house.start()
    await house.feed.acknowledged(house.feed.cursor)
    crowd = Crowd(house)
    async with asyncio.TaskGroup() as tasks:
        for _ in range(CLIENTS):
            tasks.create_task(crowd.client())
        for number in range(1, 6):
            following = await house.replica(f"r-{number}")
            await house.feed.acknowledged(house.feed.put(route((number, 100, [now, following]))))
            await crowd.more(following.name)
            await house.feed.acknowledged(house.feed.put(route((number, 100, [following]))))
            assert await now.end() == 0
            now = following
        crowd.stop()
    assert {code for code, _ in crowd.replies} == {200}
    assert {name for _, name in crowd.replies} == {f"r-{number}" for number in range(6)}


async def test_a_body_that_was_waited_for_goes_where_the_table_says_then(
    house: RouterHouse,
) -> None:
    """Its replica of before may have left the table and ended meanwhile."""
    before, after = await house.replica("r-1"), await house.replica("r-2")
    house.feed.put(route((1, 100, [before])))
    await house.start()
    await house.feed.acknowledged(house.feed.cursor)
    wanted, come = asyncio.Event(), asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        wanted.set()
        await come.wait()
        yield b'{"a": 1}'

    length = {"content-length": "8"}
    async with asyncio.TaskGroup() as tasks:
        asked = tasks.create_task(house.predict(data=body(), headers=length, expect100=True))
        await wanted.wait()
        await house.feed.acknowledged(house.feed.put(route((2, 100, [after]))))
        assert await before.end() == 0
        come.set()
    code, told = asked.result()
    assert (code, told["replica"]) == (200, "r-2")


async def test_a_router_killed_is_back_from_its_table_with_the_server_down(
    house: RouterHouse,
) -> None:
    one = await house.replica("r-1")
    house.feed.put(route((7, 100, [one])))
    await house.start()
    await house.feed.acknowledged(house.feed.cursor)
    assert (await house.predict())[0] == 200
    await house.feed.stop()
    await house.kill()
    began = time.monotonic()
    await house.launch()
    await house.answers()
    assert (await house.predict())[0] == 200
    took = time.monotonic() - began
    print(f"\nback {took:.2f} s after kill -9, with the server down")
    assert took < await back_within()
    state = json.loads(await house.page("/-/healthz"))
    assert (state["connected"], state["cursor"]) == (False, house.feed.cursor)
    await house.feed.start()
    await house.feed.until(lambda: len(house.feed.routers) == 2)
    assert house.feed.first_acks == [0, house.feed.cursor]
    assert house.feed.routers[0][0] != house.feed.routers[1][0]
    assert house.feed.routers[0][1] == house.feed.routers[1][1] == house.url


async def test_captured_inputs_outlast_server_and_router_and_arrive_once(
    house: RouterHouse,
) -> None:
    one = await house.replica("r-1")
    house.feed.put(route((7, 100, [one]), capture=("faces", 1.0)))
    await house.start()
    await house.feed.acknowledged(house.feed.cursor)
    await house.feed.stop()
    for number in range(5):
        assert (await house.predict({"number": number}))[0] == 200
    spool = house.data / "router-spool"
    await until(lambda: any(path.suffix == ".batch" for path in spool.iterdir()))
    assert (await house.predict({"number": 5}))[0] == 200
    await house.stop()
    house.feed.lose_replies = 1
    await house.feed.start()
    await house.start()
    await house.feed.until(lambda: len(house.feed.captured) >= 6)
    await until(lambda: not list(spool.iterdir()))
    items = house.feed.captured
    assert [json.loads(item.item.data)["number"] for item in items] == list(range(6))
    assert len({item.item.id for item in items}) == 6
    # The first batch came twice, as its reply was lost, and was the same batch.
    assert sorted(house.feed.deliveries.values())[-1] == 2


async def test_what_is_captured_has_its_prediction_and_where_it_came_from(
    house: RouterHouse,
) -> None:
    one = await house.replica("r-1")
    house.feed.put(route((7, 100, [one]), capture=("faces", 1.0)))
    await house.start()
    await house.feed.acknowledged(house.feed.cursor)
    async with house.ask({"a": [1, 2]}) as reply:
        trace = reply.headers["hatoba-trace-id"]
        told = await reply.json()
    assert (await house.predict({"status": 500}))[0] == 500
    await house.predict(data=b"x" * 300_000)
    await house.feed.until(lambda: len(house.feed.predictions) == 3)
    [captured] = house.feed.captured
    assert (captured.project, captured.dataset, captured.item.id) == ("default", "faces", trace)
    assert captured.item.data == b'{"a": [1, 2]}'
    assert captured.item.media_type == "application/json"
    facts = json_format.MessageToDict(captured.item.attributes)
    assert facts["prediction"]["sha256"] == told["sha256"]
    assert (facts["model"], facts["deployment"], facts["status"]) == ("digits:7", "reader", 200)
    kept = house.feed.predictions[0]
    assert (kept.trace_id, kept.item, kept.deployment) == (trace, trace, READER)
    assert kept.model_version == "projects/default/models/digits/versions/7"
    assert kept.duration.ToNanoseconds() > 0
    spans = [span for span in house.feed.spans if span.trace_id == trace]
    assert [(span.name, span.kind) for span in spans] == [
        ("predict", "server"),
        ("predict.replica", "client"),
    ]
    assert spans[1].parent_span_id == spans[0].span_id
    assert told["headers"]["traceparent"] == f"00-{trace}-{spans[1].span_id}-01"


async def test_reports_that_are_not_taken_now_come_later(house: RouterHouse) -> None:
    one = await house.replica("r-1")
    house.feed.put(route((7, 100, [one])))
    house.feed.refuse_reports = grpc.StatusCode.UNAVAILABLE
    await house.start()
    await house.feed.acknowledged(house.feed.cursor)
    assert (await house.predict())[0] == 200
    await until(lambda: "report.delayed" in house.log())
    house.feed.refuse_reports = None
    await house.feed.until(lambda: len(house.feed.predictions) == 1)
    house.feed.refuse_reports = grpc.StatusCode.INVALID_ARGUMENT
    assert (await house.predict())[0] == 200
    await until(lambda: "report.refused" in house.log())
    house.feed.refuse_reports = None
    assert (await house.predict())[0] == 200
    await house.feed.until(lambda: len(house.feed.predictions) == 2)


async def test_requests_under_way_are_finished_when_the_router_is_told_to_end(
    house: RouterHouse, tmp_path: Path
) -> None:
    one = await house.replica("r-1")
    house.feed.put(route((7, 100, [one])))
    await house.start()
    await house.feed.acknowledged(house.feed.cursor)
    marks = tmp_path / "marks"
    async with asyncio.TaskGroup() as tasks:
        asked = tasks.create_task(house.predict({"sleep": 0.5, "path": str(marks)}))
        await until(marks.exists)
        assert await house.stop() == 0
    assert asked.result()[0] == 200


async def test_a_port_that_is_taken_is_said_and_tried_again_by_the_keeper(
    house: RouterHouse,
) -> None:
    await house.start()
    second = await house.launch()
    assert await second.wait() == 75
    log = await asyncio.to_thread(house.log)
    assert "cannot listen on 127.0.0.1:" in log
    assert "router.json" in log


async def test_tokens_are_not_taken_in_plain_text_from_afar(house: RouterHouse) -> None:
    process = await house.launch("--listen", "0.0.0.0:8080")
    assert await process.wait() == 78
    assert "plain text" in await asyncio.to_thread(house.log)
