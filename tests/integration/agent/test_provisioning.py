"""A machine becomes a thing by a claim, or with a certificate for its request, and its agent is one
of AWS IoT then: as a process, on a real broker.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from agent_process import AgentProcess
from mosquitto_yard import HOST, Mosquitto, SmallIot, mosquitto, small_iot
from waiting import until

from hatoba_plugins.conformance.sites import document

__all__ = ["mosquitto"]

pytestmark = pytest.mark.timeout(180)


@pytest.fixture
async def iot(mosquitto: Mosquitto) -> AsyncIterator[SmallIot]:
    """AWS IoT behind the broker."""
    async with small_iot(mosquitto) as made:
        yield made


@pytest.fixture
async def machine(tmp_path: Path) -> AsyncIterator[AgentProcess]:
    """A machine that is no device yet."""
    made = AgentProcess(tmp_path / "device")
    yield made
    await made.close()


async def claimed(machine: AgentProcess, broker: Mosquitto, tmp_path: Path, *more: str) -> int:
    """Enroll by the claim; the exit code."""
    claim = tmp_path / "claim.pem"
    await asyncio.to_thread(broker.claim, claim)
    done = await machine.command(
        *("enroll-aws-iot", f"{HOST}:{broker.port}", "--template", "hatoba-devices"),
        *("--claim", str(claim), "--ca-file", str(broker.authority.pem), *more),
    )
    machine.last = done
    return done.code


async def test_by_a_claim(
    mosquitto: Mosquitto, iot: SmallIot, machine: AgentProcess, tmp_path: Path
) -> None:
    assert await claimed(machine, mosquitto, tmp_path, "--name", "cam-1") == 0, machine.last.err
    assert machine.last.out == f"this machine is devices/cam-1; it dials {HOST}:{mosquitto.port}\n"
    assert iot.provisioned == [{"template": "hatoba-devices", "Device": "cam-1"}]
    # Again is the same, and asks nobody.
    assert await claimed(machine, mosquitto, tmp_path, "--name", "cam-1") == 0
    assert len(iot.provisioned) == 1
    await machine.start()
    await iot.want("hatoba-cam-1", document(3))
    await iot.news.until(lambda: (told := iot.report("hatoba-cam-1")) and told.generation == 3)
    report = iot.report("hatoba-cam-1")
    assert report is not None
    (slot,) = report.slots
    assert slot.deployment == document(3).wants[0].deployment
    await until(lambda: machine.told().get("link", {}).get("connected"))
    assert (await machine.command("status")).out.startswith("connected\n")
    await mosquitto.stop()
    await until(lambda: not machine.told().get("link", {}).get("connected"))
    done = await machine.command("diagnose")
    assert "not connected, heard last on" in done.out
    assert await machine.terminate() == 0


async def test_a_name_is_made_from_the_key(
    mosquitto: Mosquitto, iot: SmallIot, machine: AgentProcess, tmp_path: Path
) -> None:
    assert await claimed(machine, mosquitto, tmp_path) == 0, machine.last.err
    (made,) = iot.provisioned
    assert made["Device"].startswith("device-")
    settings = await asyncio.to_thread(machine.settings)
    assert settings.device == made["Device"]


async def test_a_refusal_says_why(
    mosquitto: Mosquitto, iot: SmallIot, machine: AgentProcess, tmp_path: Path
) -> None:
    iot.refuses["/provision/json"] = {
        "statusCode": 400,
        "errorCode": "InvalidTemplate",
        "errorMessage": "Template with name hatoba-devices does not exist.",
    }
    assert await claimed(machine, mosquitto, tmp_path) == 1
    assert "InvalidTemplate: Template with name hatoba-devices does not exist." in machine.last.err
    iot.refuses.clear()
    assert await claimed(machine, mosquitto, tmp_path) == 0


async def test_with_a_certificate_for_its_request(
    mosquitto: Mosquitto, iot: SmallIot, machine: AgentProcess, tmp_path: Path
) -> None:
    there = f"{HOST}:{mosquitto.port}"
    asked = await machine.command("enroll-aws-iot", there, "--request")
    assert asked.code == 0, asked.err
    file = tmp_path / "certificate.pem"
    await asyncio.to_thread(file.write_text, mosquitto.signed(asked.out))
    given = ["--certificate", str(file), "--ca-file", str(mosquitto.authority.pem)]
    done = await machine.command("enroll-aws-iot", there, *given)
    assert done.code == 1
    assert "give --thing" in done.err
    done = await machine.command("enroll-aws-iot", there, *given, "--thing", "hatoba-cam-2")
    assert done.code == 0, done.err
    await machine.start()
    await iot.news.until(lambda: iot.said("hatoba-cam-2").there)


async def test_a_certificate_of_another_key_is_none(
    mosquitto: Mosquitto, machine: AgentProcess, tmp_path: Path
) -> None:
    claim = tmp_path / "other.pem"
    await asyncio.to_thread(mosquitto.claim, claim)
    done = await machine.command(
        *("enroll-aws-iot", "localhost", "--thing", "hatoba-x", "--certificate", str(claim))
    )
    assert done.code == 1
    assert "another key" in done.err
