"""A model trained on AWS Batch and served by ECS, as a user does it: real containers of both."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
import pytest
from aws_site import EXAMPLE, PATIENCE, AwsSite, site
from digits_image import digits_image
from serving_house import Echoes, Tally, asking, router_of
from testbed_fixtures import DockerEngine

from hatoba.cli.exits import Exit

__all__ = ["digits_image", "site"]
pytestmark = pytest.mark.timeout(1500)
PIXELS = [n % 16 / 16 for n in range(64)]
CLIENTS = 6


class Digits(Echoes):
    """The same picture again and again."""

    def body(self, number: int) -> Any:
        return {"pixels": PIXELS}

    def judge(self, number: int, answer: Any, model: str) -> tuple[str, str]:
        assert answer["digit"] in range(10), answer
        return model, ""


async def trained(site: AwsSite, image: str) -> None:
    """Train on Batch; the job logs what becomes digits:1."""
    code = ["--image", image, "--code", str(EXAMPLE)]
    params = ["-p", "epochs=3", "-p", "log=1"]
    done = await site.done("run", *code, *params, "--", "python", "train.py")
    assert "epoch   3" in done.out, "its output came while it ran"
    made = await site.told("models", "get", "digits:1")
    assert made["state"] == "READY", made
    assert made["serving"]["environment"]["image"] == image


async def registered(site: AwsSite, image: str) -> str:
    """The same files as another version, checked on Batch; `digits:N`."""
    where = site.type.work / "weights"
    if not await asyncio.to_thread(where.exists):
        await site.done("models", "download", "digits:1", str(where))
    served = ["--image", image, "--code", str(EXAMPLE), "--handler", "serve:Digits"]
    asked = ["--example", f'{{"pixels": {PIXELS}}}']
    made = await site.told("models", "register", "digits", str(where), *served, *asked)
    assert made["state"] == "READY", made
    return f"digits:{made['version']}"


async def who_answers(site: AwsSite) -> str:
    """Who says that it answered a request."""
    headers = {"authorization": f"Bearer {await asyncio.to_thread(site.server.token)}"}
    url = f"http://{router_of(site.server)}/reader/predict"
    async with (
        aiohttp.ClientSession(headers=headers) as session,
        session.post(url, json={"pixels": PIXELS}) as reply,
    ):
        return reply.headers["hatoba-replica"]


async def answered(tally: Tally, more: int) -> None:
    """Wait until so many more requests were answered."""
    goal = tally.answered + more
    await tally.news.until(lambda: tally.answered >= goal, PATIENCE)


async def test_a_model_is_rolled_out_under_load_and_a_broken_one_rolled_back(
    site: AwsSite, docker_engine: DockerEngine, digits_image: str
) -> None:
    await trained(site, digits_image)
    second = await registered(site, digits_image)
    # Checked while its image was there, and deployed when it is not there any more.
    withdrawn = f"{digits_image}-withdrawn"
    await asyncio.to_thread(docker_engine.docker, "tag", digits_image, withdrawn)
    third = await registered(site, withdrawn)
    await asyncio.to_thread(docker_engine.docker, "rmi", withdrawn)

    deploy = ["--name", "reader", "--bake", "1s", "--ready-deadline", "5m"]
    await site.done("deploy", "digits:1", "--replicas", "2", *deploy)
    first = await site.told("deployments", "get", "reader")
    assert await who_answers(site) in {one["name"] for one in first["replicas"]}, first
    async with asking(site.server, CLIENTS, about=Digits()) as tally:
        await answered(tally, 50)
        await site.done("deploy", second, *deploy)
        await answered(tally, 50)
        refused = await site.type("deploy", third, *deploy)
        await answered(tally, 50)
    print(f"{tally.answered} answered, longest {tally.longest * 1e3:.0f} ms")
    assert tally.failures == []
    assert {model for model, _ in tally.answers} == {"digits:1", second}

    assert refused.code == Exit.ROLLED_BACK, refused
    assert "the roll-out of revision 3 is ROLLED_BACK" in refused.err
    assert "circuit breaker of ECS gave up revision 3" in refused.err, refused.err
    kept = await site.told("deployments", "get", "reader")
    assert (kept["state"], kept["current_revision"]) == ("READY", 2), kept
    assert [one["revision"] for one in kept["revisions"]] == [2]
    await site.done("deployments", "delete", "reader", "--yes", "--wait")
