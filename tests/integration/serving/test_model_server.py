"""A model server as its clients and whoever runs it see it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket

import pytest
from model_server_house import Client, Replica

from hatoba_worker.serving.server import QUIET_SECONDS


def post(body: str, *, lines: str = "") -> bytes:
    """A prediction asked for, as bytes."""
    head = f"POST /predict HTTP/1.1\r\nhost: m\r\n{lines}content-length: {len(body)}\r\n\r\n"
    return (head + body).encode()


async def test_it_answers_json_and_bytes(replica: Replica) -> None:
    await replica.start()
    found = await replica.ask({"x": [1, 2.5, None]}, traceparent="00-ab-cd-01")
    assert (found.status, found.headers["content-type"]) == (200, "application/json")
    assert found.headers["hatoba-model"] == "echo:7"
    assert found.json == {"x": [1, 2.5, None], "trace": "00-ab-cd-01"}
    raw = await replica.ask(b"\x89PNG", content_type="image/png")
    assert (raw.headers["content-type"], raw.body) == ("application/x-reversed", b"GNP\x89")
    # What curl calls every body unless told.
    form = await replica.ask({"x": 3}, content_type="application/x-www-form-urlencoded")
    assert form.json["x"] == 3


async def test_every_reply_says_who_answers(replica: Replica) -> None:
    await replica.start()
    replies = [await replica.ask(path=path) for path in ("/healthz", "/readyz", "/nothing")]
    replies += [await replica.ask({"x": 1}), await replica.ask(b"{", content_length="999999999")]
    assert [one.status for one in replies] == [200, 200, 404, 200, 413]
    assert {one.headers["hatoba-replica"] for one in replies} == {"r-1"}


async def test_without_a_name_it_says_none(replica: Replica) -> None:
    await replica.start(name="")
    assert "hatoba-replica" not in (await replica.ask(path="/readyz")).headers


async def test_it_tells_who_runs_it_where_it_listens(replica: Replica) -> None:
    await replica.start(ready=False)
    told = json.loads(await asyncio.to_thread(replica.ready_file.read_text))
    assert replica.process is not None
    assert (told["host"], told["pid"]) == ("127.0.0.1", replica.process.pid)
    assert await asyncio.to_thread(os.listdir, replica.root / "run") == ["ready.json"]


async def test_it_listens_before_it_is_ready_and_is_well_meanwhile(replica: Replica) -> None:
    await asyncio.to_thread((replica.root / "model" / "name").write_text, "slow")
    await replica.start(ready=False)
    await replica.waits("made")
    assert (await replica.ask(path="/healthz")).status == 200
    for found in (await replica.ask(path="/readyz"), await replica.ask({"x": 1})):
        assert (found.status, found.json["kind"]) == (503, "loading")
    replica.open("made")
    await replica.ready()
    assert (await replica.ask({"x": 1})).status == 200


async def test_it_is_ready_only_when_the_example_was_answered(replica: Replica) -> None:
    await replica.start(ready=False, handler="serving_model:Picky")
    found = await replica.says("/readyz", 503, "example_refused")
    told = "RuntimeError: not before there is content (serving_model.py, line"
    assert told in found.json["error"]
    assert (await replica.ask({"x": 1})).status == 503
    assert (await replica.ask(path="/healthz")).status == 200
    # It tries again: what was missing may come.
    replica.open("content")
    await replica.ready()


def golden(replica: Replica, *pairs: tuple[object, object]) -> int:
    """Put golden cases beside its model; how many."""
    lines = [json.dumps({"input": given, "expected": expected}) for given, expected in pairs]
    (replica.root / "model" / "golden.jsonl").write_text("\n".join(lines))
    return len(lines)


async def test_it_is_ready_only_when_golden_cases_are_answered_as_expected(
    replica: Replica,
) -> None:
    right = ({"x": 2}, {"x": 2.0})
    count = await asyncio.to_thread(golden, replica, right, ({"x": [1, 2]}, {"x": [1, 3]}), right)
    await replica.start(ready=False, golden=count)
    found = await replica.says("/readyz", 503, "golden_refused")
    told = "golden case 2 is answered wrongly: $.x[1] is 2, expected 3"
    assert found.json["error"] == told
    assert (await replica.ask({"x": 1})).json["kind"] == "golden_refused"
    assert (await replica.ask(path="/healthz")).status == 200
    (line,) = await asyncio.to_thread(lambda: [one for one in replica.failures() if "t" in one][:1])
    assert (line["kind"], line["error"]) == ("golden_refused", told)


async def test_golden_cases_that_are_not_answered_yet_are_asked_again(replica: Replica) -> None:
    count = await asyncio.to_thread(golden, replica, ({"x": 2}, {"x": 2}), ({"x": 3}, {"x": 3}))
    await replica.start(ready=False, handler="serving_model:Picky", example=None, golden=count)
    found = await replica.says("/readyz", 503, "example_refused")
    assert "golden case 1 was not answered: RuntimeError: not before" in found.json["error"]
    replica.open("content")
    await replica.ready()


async def test_golden_cases_are_asked_together_as_requests_will_be(replica: Replica) -> None:
    pairs = [({"x": number}, {"x": number}) for number in range(5)]
    count = await asyncio.to_thread(golden, replica, *pairs)
    batching = {"max_batch": 4, "batch_wait_ms": 50}
    await replica.start(
        handler="serving_model:Batches", golden=count, batching=batching, example=None
    )
    assert await asyncio.to_thread((replica.code / "batches").read_text) == "4\n"
    assert (await replica.ask({"x": 9})).json["x"] == 9


async def test_golden_cases_that_are_not_there_end_it(replica: Replica) -> None:
    await replica.spawn(golden=1)
    assert await replica.ended() == 3
    assert "golden cases cannot be read" in await asyncio.to_thread(replica.log)


async def test_without_an_example_it_is_ready_once_the_handler_is_made(replica: Replica) -> None:
    await replica.start(handler="serving_model:Picky", example=None)
    assert (await replica.ask({"x": 1})).status == 500


async def test_one_connection_serves_many_requests_in_order(replica: Replica) -> None:
    await replica.start()
    client = await replica.client()
    for number in range(3):
        assert (await client.ask({"x": number})).json["x"] == number
    many = b"".join(post(json.dumps({"x": number})) for number in range(300))
    many += b"GET /healthz HTTP/1.1\r\nhost: m\r\n\r\n" * 300
    await client.send(many)
    assert [(await client.answer()).json["x"] for _ in range(300)] == list(range(300))
    assert {(await client.answer()).status for _ in range(300)} == {200}
    await client.send(b"HEAD /healthz HTTP/1.1\r\nhost: m\r\n\r\n")
    assert (await client.answer(head=True)).status == 200
    await client.send(b"GET /healthz HTTP/1.0\r\n\r\n")
    assert (await client.answer()).status == 200
    assert await client.ended()


async def test_requests_may_come_byte_by_byte_and_in_chunks(replica: Replica) -> None:
    await replica.start()
    client = await replica.client()
    for byte in post('{"x": 5}'):
        await client.send(bytes([byte]))
    assert (await client.answer()).json["x"] == 5
    head = b"POST /predict HTTP/1.1\r\nhost: m\r\ntransfer-encoding: chunked\r\n\r\n"
    await client.send(head + b'4\r\n{"x"\r\n4\r\n: 6}\r\n0\r\n\r\n')
    assert (await client.answer()).json["x"] == 6
    await client.send(post('{"x": 7}', lines="expect: 100-continue\r\n")[:-8])
    assert (await client.answer()).status == 100
    await client.send(b'{"x": 7}')
    assert (await client.answer()).json["x"] == 7


@pytest.mark.parametrize(
    ("sent", "status", "said"),
    [
        (post('{"x": 1'), 400, "Expecting ',' delimiter at line 1, column 8 (character 7)"),
        (post("\x00"), 400, "not JSON"),
        (post('{"refuse": 1}'), 400, "I do not take that"),
        (post('{"cancel": 1}'), 500, "CancelledError"),
        (post('{"fail": 1}'), 500, "RuntimeError: weights of another model"),
        (b"GET /predict HTTP/1.1\r\nhost: m\r\n\r\n", 405, "/predict takes POST, not GET"),
        (post("").replace(b"/predict", b"/readyz"), 405, "/readyz takes GET, HEAD, not POST"),
        (b"GET /x?y=1 HTTP/1.1\r\nhost: m\r\n\r\n", 404, "there is no '/x' here"),
        (b"hello\r\n\r\n", 400, "this is no HTTP request"),
        (b"GET / HTTP/1.1\r\n\r\n", 400, "this is no HTTP request"),
        (post("").replace(b"length: 0", b"length: -1"), 400, "this is no HTTP request"),
        (post("", lines="a: " + "b" * 20_000 + "\r\n"), 431, "the limit is 16384"),
        (b"GET /" + b"x" * 20_000, 431, "this is no HTTP request"),
    ],
)
async def test_bad_requests_are_told_what_is_wrong(
    replica: Replica, sent: bytes, status: int, said: str
) -> None:
    await replica.start()
    client = await replica.client()
    await client.send(sent)
    found = await client.answer()
    assert (found.status, found.headers["content-type"]) == (status, "application/json")
    assert said in found.json["error"]
    assert found.json["kind"]
    # Others are served as before.
    assert (await replica.ask({"x": 1})).status == 200


async def test_a_failed_prediction_is_a_line_and_a_traceback_for_its_author(
    replica: Replica,
) -> None:
    await replica.start()
    found = await replica.ask({"fail": 1}, traceparent="00-ab-cd-01")
    assert "Traceback" not in found.body.decode()
    (line,) = await asyncio.to_thread(replica.failures)
    assert (line["status"], line["kind"], line["traceparent"]) == (
        500,
        "predict_failed",
        "00-ab-cd-01",
    )
    assert "Traceback" in await asyncio.to_thread(replica.log)


@pytest.mark.parametrize("announced", [True, False])
async def test_a_body_over_the_limit_is_refused_with_both_sizes(
    replica: Replica, announced: bool
) -> None:
    await replica.start(limits={"max_body_bytes": 100_000})
    assert (await replica.ask({"x": "y" * 90_000})).status == 200
    client = await replica.client()
    if announced:
        await client.send(post("x" * 150_000))
    else:
        await client.send(
            b"POST /predict HTTP/1.1\r\nhost: m\r\ntransfer-encoding: chunked\r\n\r\n"
        )
        await client.send(b"249f0\r\n" + b"x" * 150_000)
    found = await client.answer()
    assert (found.status, found.headers["connection"]) == (413, "close")
    assert "100,000 (max_body_bytes)" in found.json["error"]
    assert ("more than" in found.json["error"]) == (not announced)
    assert await client.ended()


async def test_a_slow_client_is_told_and_let_go(replica: Replica) -> None:
    await replica.start(limits={"read_seconds": 0.2})
    slow = [b"POST /pre", post('{"x": 1}')[:-3]]
    clients = [await replica.client() for _ in slow]
    for client, sent in zip(clients, slow, strict=True):
        await client.send(sent)
    for client in clients:
        found = await client.answer()
        assert (found.status, found.json["kind"]) == (408, "slow_client")
        assert "did not come within 0.2 s" in found.json["error"]
        assert await client.ended()


async def test_a_client_that_does_not_read_is_let_go(replica: Replica) -> None:
    await replica.start(limits={"read_seconds": 0.2})
    client = await replica.client()
    await client.send(post('{"large": 20000000}') * 3)
    await replica.counts("request_seconds_count", 1)
    await replica.counts("connections", 1)
    # It was not asked what it would have answered later.
    assert await replica.metric("hatoba_serving_request_seconds_count") == 1


async def test_there_is_an_end_to_connections(replica: Replica) -> None:
    await replica.start(limits={"max_queue": 2})
    clients = [await replica.client() for _ in range(449)]
    assert (await clients[-1].ask({"x": 1})).status == 200
    found = await (await replica.client()).answer()
    assert (found.status, found.json["kind"]) == (503, "connections")
    await clients[0].close()
    await replica.counts("connections", 450)
    assert (await clients[1].ask({"x": 1})).status == 200


async def asked(replica: Replica, *bodies: object) -> list[Client]:
    """Connections on which something was asked."""
    clients = []
    for body in bodies:
        client = await replica.client()
        await client.send(post(json.dumps(body)))
        clients.append(client)
    return clients


async def test_a_full_queue_says_when_to_come_again(replica: Replica) -> None:
    await replica.start(limits={"max_queue": 3})
    clients = await asked(replica, {"wait": "gate"}, {"x": 1}, {"x": 2})
    await replica.counts("queued", 2)
    found = await replica.ask({"x": 3})
    assert (found.status, found.headers["retry-after"]) == (429, "1")
    assert found.json["kind"] == "queue_full"
    replica.open("gate")
    assert [(await client.answer()).status for client in clients] == [200, 200, 200]
    assert (await replica.ask({"x": 3})).status == 200


async def test_what_waits_is_not_begun_when_its_client_is_gone(replica: Replica) -> None:
    await replica.start()
    first, second, third = await asked(replica, {"wait": "a"}, {"wait": "b"}, {"x": 1})
    await replica.counts("queued", 2)
    await second.close()
    await replica.counts("queued", 1)
    replica.open("a")
    assert [(await client.answer()).status for client in (first, third)] == [200, 200]
    assert not (replica.code / "b.waits").exists()


async def test_predictions_over_their_time_are_504_and_a_stuck_server_is_not_well(
    replica: Replica,
) -> None:
    await replica.start(limits={"timeout_seconds": 0.2})
    first, second = await asked(replica, {"wait": "gate"}, {"x": 1})
    for client in (first, second):
        found = await client.answer()
        assert (found.status, found.json["kind"]) == (504, "timeout")
    ready = await replica.ask(path="/readyz")
    assert (ready.status, ready.json["kind"]) == (503, "stuck")
    await replica.says("/healthz", 503, "stuck")
    replica.open("gate")
    await replica.ready()
    assert (await replica.ask(path="/healthz")).status == 200


async def test_threads_predict_at_the_same_time(replica: Replica) -> None:
    await replica.start(limits={"concurrency": 2})
    (waits,) = await asked(replica, {"wait": "gate"})
    await replica.waits("gate")
    assert (await replica.ask({"x": 1})).status == 200
    replica.open("gate")
    assert (await waits.answer()).status == 200


async def test_requests_are_answered_together(replica: Replica) -> None:
    batching = {"max_batch": 4, "batch_wait_ms": 10_000}
    await replica.start(handler="serving_model:Batches", batching=batching, example=None)
    clients = await asked(replica, *({"x": n} for n in range(4)))
    assert [(await client.answer()).json for client in clients] == [{"x": n} for n in range(4)]
    spoiled = await asked(replica, {"x": 1}, {"spoil": 1, "x": 2}, {"fail": 1, "x": 3}, {"x": 4})
    assert [(await client.answer()).status for client in spoiled] == [200, 200, 500, 200]
    assert await asyncio.to_thread((replica.code / "batches").read_text) == "4\n4\n"
    assert await replica.metric("hatoba_serving_batch_size_sum") == 8


async def test_told_to_end_it_answers_what_it_has_and_what_still_comes(replica: Replica) -> None:
    await replica.start()
    (waits,) = await asked(replica, {"wait": "gate"})
    await replica.waits("gate")
    idle = await replica.client()
    assert (await idle.ask(path="/readyz")).status == 200
    replica.tell()
    found = await replica.says("/readyz", 503, "ending")
    assert found.headers["connection"] == "close"
    (late,) = await asked(replica, {"x": 2})
    replica.open("gate")
    assert (await waits.answer()).status == 200
    assert (await late.answer()).json["x"] == 2
    assert await idle.ended()
    assert await replica.ended() == 0


async def test_told_to_end_it_waits_for_what_is_on_its_way(replica: Replica) -> None:
    """Also when nobody had asked for long before, and when only a part of a request is there."""
    await replica.start()
    kept, half = await replica.client(), await replica.client()
    assert (await kept.ask({"x": 1})).status == 200
    await quiet(kept)
    await half.send(post('{"x": 2}')[:-3])
    replica.tell()
    await replica.says("/readyz", 503, "ending")
    assert (await kept.ask({"x": 3})).json["x"] == 3
    await quiet(half)
    await half.send(post('{"x": 2}')[-3:])
    assert (await half.answer()).json["x"] == 2
    assert await replica.ended() == 0


async def quiet(client: Client) -> None:
    """Longer than it takes a server to believe that nobody asks; nothing comes, nor an end."""
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(3 * QUIET_SECONDS):
            await client.reader.read(1)


async def test_what_hangs_does_not_hold_up_the_end(replica: Replica) -> None:
    await replica.start(drain_seconds=0.3)
    await asked(replica, {"wait": "never"})
    await replica.waits("never")
    replica.tell()
    assert await replica.ended() == 0


async def test_told_twice_it_ends_at_once(replica: Replica) -> None:
    await replica.start(drain_seconds=1000)
    await asked(replica, {"wait": "never"})
    await replica.waits("never")
    replica.tell(signal.SIGINT)
    await replica.says("/readyz", 503, "ending")
    replica.tell(signal.SIGINT)
    assert await replica.ended() == 0


async def test_a_port_in_use_is_named(replica: Replica) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        await replica.spawn(port=port)
        assert await replica.ended() == 98
    assert f"port {port} of 127.0.0.1 is in use" in await asyncio.to_thread(replica.log)
    assert not replica.ready_file.exists()


async def test_a_handler_that_cannot_be_loaded_ends_it_and_says_why(replica: Replica) -> None:
    await replica.spawn(handler="serving_model:Absent")
    assert await replica.ended() == 3
    (line,) = await asyncio.to_thread(replica.failures)
    assert line["kind"] == "handler_not_found"
    assert "no class 'Absent'; its classes: Batches, Model, Picky" in line["error"]


async def test_settings_that_cannot_be_used_are_named(replica: Replica) -> None:
    await replica.spawn(limits={"max_queue": -1})
    assert await replica.ended() == 78
    assert "max_queue is -1" in await asyncio.to_thread(replica.log)


async def test_what_it_counts(replica: Replica) -> None:
    await replica.start()
    for body in ({"x": 1}, {"fail": 1}, {"refuse": 1}, {"x": 2}):
        await replica.ask(body)
    assert await replica.metric('hatoba_serving_requests_total{code="200"}') == 2
    assert await replica.metric('hatoba_serving_requests_total{code="400"}') == 1
    assert await replica.metric('hatoba_serving_requests_total{code="500"}') == 1
    assert await replica.metric("hatoba_serving_request_seconds_count") == 4
    assert await replica.metric("hatoba_serving_ready") == 1
