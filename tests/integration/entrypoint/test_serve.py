"""`hatoba-entrypoint serve`: a real model server, fetched through a scripted server."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from model_server_house import HANDLER, Client
from runner_house import Container, RunnerHouse, free_port
from waiting import eventually, until

from hatoba_plugins.backends.ecs.addresses import answers
from hatoba_plugins.backends.ecs.names import ServiceName, replica_name


def replica(house: RunnerHouse) -> dict[str, object]:
    """What a platform says of a replica whose files the server has."""
    model = house.desk.store({"name": b"echo"})
    code = house.desk.store({"serving_model.py": HANDLER.encode()})
    return {
        "deployment": "projects/default/deployments/echo",
        "revision": 3,
        "model_version": "projects/default/models/echo/versions/7",
        "model": {"digest": model.digest},
        "serving": {"handler": "serving_model:Model", "code": {"digest": code.digest}},
        "drain": "5s",
    }


async def start(house: RunnerHouse, spec: dict[str, object], **more: str) -> Container:
    """Start a replica's container."""
    told = {"HATOBA_REPLICA": json.dumps(spec), **more}
    return await house.start(("serve",), house.environ("r-1", **told))


async def connected(port: int) -> Client:
    """A connection, waited for."""

    async def connect() -> Client | None:
        return Client(*await asyncio.open_connection("127.0.0.1", port))

    return await eventually(connect, despite=(OSError,))


async def ready(port: int) -> Client:
    """A connection to a replica that takes requests."""
    client = await connected(port)

    async def says_so() -> bool:
        return (await client.ask(path="/readyz")).status == 200

    await eventually(says_so)
    return client


async def test_a_replica_is_fetched_served_and_drained(house: RunnerHouse) -> None:
    port = free_port()
    container = await start(house, replica(house), HATOBA_PORT=str(port))
    client = await ready(port)
    answer = await client.ask({"x": 5})
    assert (answer.status, answer.json["x"]) == (200, 5)
    assert answer.headers["hatoba-model"] == "echo:7"
    await client.close()
    container.signal(signal.SIGTERM)
    assert await container.code() == 0


@asynccontextmanager
async def task_metadata(arn: str) -> AsyncIterator[str]:
    """The endpoint at which ECS tells a container of its task."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked = await reader.readuntil(b"\r\n\r\n")
        body = json.dumps({"TaskARN": arn}) if asked.startswith(b"GET /v4/x/task ") else "{}"
        writer.write(f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v4/x"


async def test_on_ecs_it_is_named_after_its_task(house: RunnerHouse) -> None:
    port = free_port()
    service = ServiceName("a" * 32, 3)
    task = "arn:aws:ecs:r:1:task/c/0cc43cdb3bee44079c26c0e6ea5bee84"
    async with task_metadata(task) as endpoint:
        container = await start(
            house,
            replica(house),
            HATOBA_PORT=str(port),
            HATOBA_REPLICA_PREFIX=f"r-{service.uid}-3",
            ECS_CONTAINER_METADATA_URI_V4=endpoint,
        )
        await (await ready(port)).close()
    address = f"127.0.0.1:{port}"
    assert await answers(address, replica_name(service, task))
    assert not await answers(address, replica_name(service, "task/c/1cc43cdb"))
    container.signal(signal.SIGTERM)
    assert await container.code() == 0


async def test_what_the_image_has_on_its_path_is_there(house: RunnerHouse, tmp_path: Path) -> None:
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages" / "of_the_image.py").write_text("")
    spec = replica(house)
    code = house.desk.store({"serving_model.py": f"import of_the_image\n{HANDLER}".encode()})
    spec["serving"] = {"handler": "serving_model:Model", "code": {"digest": code.digest}}
    port, path = free_port(), str(tmp_path / "packages")
    container = await start(house, spec, HATOBA_PORT=str(port), PYTHONPATH=path)
    client = await ready(port)
    answer = await client.ask({"x": 5})
    assert (answer.status, answer.json["x"]) == (200, 5)
    await client.close()
    container.signal(signal.SIGTERM)
    assert await container.code() == 0


async def test_a_model_that_is_not_there_is_not_served(house: RunnerHouse) -> None:
    spec = replica(house)
    spec["model"] = {"digest": f"sha256:{'0' * 64}"}
    container = await start(house, spec)
    assert await container.code() == 86
    assert "model or code" in await asyncio.to_thread(container.stderr)


async def test_a_server_that_is_not_reached_is_named(house: RunnerHouse) -> None:
    spec = replica(house)
    await house.desk.stop()
    container = await start(house, spec, HATOBA_CLAIM_SECONDS="0.3")
    assert await container.code() == 85


async def test_a_replica_that_is_taken_away_while_it_is_fetched_ends(house: RunnerHouse) -> None:
    await house.desk.stop()
    container = await start(house, replica(house))
    # Parent and child: from then on it hears signals.
    await until(lambda: len(house.left("r-1")) > 1)
    container.signal(signal.SIGTERM)
    assert await container.code() == 143


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ("", "HATOBA_REPLICA"),
        ("{", "HATOBA_REPLICA"),
        ("{}", "names no model"),
        ('{"nonsense": 1}', "HATOBA_REPLICA"),
    ],
)
async def test_a_specification_that_is_none_is_a_wrong_setting(
    house: RunnerHouse, told: str, words: str
) -> None:
    container = await house.start(("serve",), house.environ("r-1", HATOBA_REPLICA=told))
    assert await container.code() == 78
    assert words in await asyncio.to_thread(container.stderr)
