"""What becomes of requests: real replicas behind the real router."""

from __future__ import annotations

from router_house import RouterHouse, route

TRACE, SPAN = "ab" * 16, "cd" * 8


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
