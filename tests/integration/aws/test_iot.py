"""Devices over AWS IoT on ministack, where it is about AWS: verdicts, parts, jobs, certificates,
and what comes while the server is away.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from contextlib import aclosing
from typing import Any
from urllib.parse import urlsplit

import pytest
from cryptography import x509
from iot_yard import IotHarness, IotYard, aws, iot_credentials, iot_yard
from mqtt_client import MqttClient

from hatoba.v1 import device_pb2
from hatoba_plugins.conformance import DeviceConformance
from hatoba_plugins.conformance.sites import Site, document, on_site, report
from hatoba_plugins.errors import Conflict
from hatoba_plugins.values import (
    Accepted,
    DeviceCame,
    DeviceWent,
    DeviceWish,
    Superseded,
)
from hatoba_worker import keys

__all__ = ["iot_credentials", "iot_yard"]

pytestmark = pytest.mark.usefixtures("iot_credentials")


async def test_who_is_taken_for_away_by_mistake_says_hello_again(iot_yard: IotYard) -> None:
    async with on_site(harness := IotHarness(iot_yard)) as site:
        device = await site.add()
        event = {
            "clientId": harness.far[device.name].thing,
            "eventType": "disconnected",
            "timestamp": round((time.time() + 2.0) * 1000),
            "sessionIdentifier": "another",
            "disconnectReason": "CONNECTION_LOST",
        }
        await asyncio.to_thread(iot_yard.send, json.dumps(event))
        await site.until(lambda: harness.far[device.name].links == 2, "it is told of the verdict")
        await site.until(lambda: len(_links(site)) >= 2, "it is there again")
        # Who reads slowly is told the newest alone.
        assert _links(site) in ([DeviceCame, DeviceWent, DeviceCame], [DeviceCame, DeviceCame])


def _links(site: Site) -> list[type]:
    """What was told of links, once the device came a last time; empty: it did not."""
    kinds: list[type] = [type(one) for one in site.news if isinstance(one, DeviceCame | DeviceWent)]
    return kinds if kinds[-1:] == [DeviceCame] else []


def long_report(generation: int) -> device_pb2.DeviceReport:
    """One that does not become smaller when it is compressed."""
    told, rng = report(generation, slots=90), random.Random(generation)
    for slot in told.slots:
        slot.cause.message = "".join(chr(rng.randrange(33, 127)) for _ in range(250))
    return told


async def test_a_report_of_many_shadows_comes_whole(iot_yard: IotYard) -> None:
    async with on_site(IotHarness(iot_yard)) as site:
        device = await site.add()
        for told in (long_report(1), report(2), long_report(3)):
            await device.tell(told)
            await site.hears(device, told)
        site.told.clear()
        await site.reopen()
        await site.hears(device, long_report(3))


async def test_a_job_rings_and_carries_nothing(iot_yard: IotYard) -> None:
    iot = aws(iot_yard.emulator.endpoint, "iot")
    async with on_site(harness := IotHarness(iot_yard, jobs=True)) as site:
        device = await site.add()
        thing = harness.far[device.name].thing
        rung = ""
        for generation in (1, 2):
            assert await site.wish(device, generation) == Accepted(device.name)
            listed = await asyncio.to_thread(iot.list_job_executions_for_thing, thingName=thing)
            (only,) = listed["executionSummaries"]
            assert only["jobExecutionSummary"]["status"] == "QUEUED"
            rung = only["jobId"]
            assert rung.endswith(f"-{generation}")
        told = await asyncio.to_thread(iot.get_job_document, jobId=rung)
        assert list(json.loads(told["document"])) == ["hatoba"]
        await site.forget(device.name)
        jobs = await asyncio.to_thread(iot.list_jobs)
        assert rung not in {one["jobId"] for one in jobs["jobs"]}


async def test_certificates_are_for_the_devices_own_key(iot_yard: IotYard) -> None:
    iot = aws(iot_yard.emulator.endpoint, "iot")

    def shown(arn: str) -> tuple[str, list[str], list[str]]:
        """Status, policies and things of a certificate."""
        told = iot.describe_certificate(certificateId=arn.rsplit("/", 1)[-1])
        policies = iot.list_attached_policies(target=arn)["policies"]
        things = iot.list_principal_things(principal=arn)["things"]
        names = [one["policyName"] for one in policies]
        return told["certificateDescription"]["status"], names, things

    async with IotHarness(iot_yard) as harness:
        things, key = harness.devices.things, keys.new_key()
        one = await things.enroll("a", keys.request_for(key))
        signed = x509.load_pem_x509_certificate(one.certificate.encode())
        assert signed.public_key() == key.public_key()
        expected = ("ACTIVE", [iot_yard.policy], [f"{iot_yard.prefix}a"])
        assert await asyncio.to_thread(shown, one.certificate_arn) == expected
        two = await things.renew("a", keys.request_for(keys.new_key()))
        for identity in (one, two):
            assert await asyncio.to_thread(shown, identity.certificate_arn) == expected
        await things.keep_only(two)
        assert await asyncio.to_thread(shown, two.certificate_arn) == expected
        with pytest.raises(iot.exceptions.ResourceNotFoundException):
            await asyncio.to_thread(shown, one.certificate_arn)
        await harness.devices.forget(["a"])
        with pytest.raises(iot.exceptions.ResourceNotFoundException):
            await asyncio.to_thread(shown, two.certificate_arn)


async def test_the_server_signs_once_for_a_key_and_ends_all_of_who_is_revoked(
    iot_yard: IotYard,
) -> None:
    iot = aws(iot_yard.emulator.endpoint, "iot")

    def held() -> list[str]:
        """What the device has of certificates."""
        arns = iot.list_thing_principals(thingName=f"{iot_yard.prefix}a")["principals"]
        told = [iot.describe_certificate(certificateId=arn.rsplit("/", 1)[-1]) for arn in arns]
        return [one["certificateDescription"]["certificatePem"] for one in told]

    async with IotHarness(iot_yard) as harness:
        devices, csr = harness.devices, keys.request_for(keys.new_key())
        await devices.check_free("a")
        first = await devices.enroll("a", csr)
        assert await devices.enroll("a", csr) == first
        assert await asyncio.to_thread(held) == [first.certificate]
        with pytest.raises(Conflict):
            await devices.check_free("a")
        fresh = await devices.enroll("a", keys.request_for(keys.new_key()))
        assert await asyncio.to_thread(held) == [fresh.certificate] != [first.certificate]
        await devices.revoke("a")
        assert await asyncio.to_thread(held) == []
        await devices.forget(["a"])
        await devices.check_free("a")


async def test_what_comes_while_the_server_is_away_is_heard_after(iot_yard: IotYard) -> None:
    async with on_site(harness := IotHarness(iot_yard)) as site:
        talks, leaves, breaks = [await site.add() for _ in range(3)]
        await site.deaf()
        await harness.shut()
        await talks.tell(report(1))
        await leaves.go()
        harness.far[breaks.name].link.cut()
        await harness.open()
        site.listen()
        await site.hears(talks, report(1))
        await site.until(lambda: set(site.there) == {talks.name}, "who went is known to have")


async def test_two_servers_do_not_write_over_each_other(iot_yard: IotYard) -> None:
    """As when one of before is not quite gone."""
    other = IotHarness(iot_yard, queue="")
    async with on_site(harness := IotHarness(iot_yard)) as site:
        other.cluster_id = harness.cluster_id
        device = await site.add()
        async with other:
            for generation in range(1, 9, 2):
                await site.wish(device, generation)
                newer = DeviceWish(device.name, document(generation + 1))
                assert await other.devices.desire([newer]) == [Accepted(device.name)]
        await site.reaches(device, 8)
        await site.reopen()
        assert await site.wish(device, 7) == Superseded(device.name, 8)


async def test_who_a_claim_made_a_thing_is_a_device(iot_yard: IotYard) -> None:
    """By ministack's fleet provisioning, which makes the keys, with the template that we ship."""
    harness = IotHarness(iot_yard, fleet=iot_yard.fleet)
    async with on_site(harness) as site:
        there = urlsplit(iot_yard.emulator.endpoint)
        client = await MqttClient.connect(there.port or 0, "hatoba-claim-1", there.hostname or "")
        try:
            made = await asked(client, "$aws/certificates/create/json", {})
            topic = f"$aws/provisioning-templates/{iot_yard.template}/provision/json"
            token = made["certificateOwnershipToken"]
            question = {"certificateOwnershipToken": token, "parameters": {"Device": "lamp"}}
            told = await asked(client, topic, question)
        finally:
            await client.leave()
        assert told["thingName"] == f"{iot_yard.prefix}lamp"
        assert told["deviceConfiguration"] == {"shadow": "hatoba", "content": ""}
        arn = await asyncio.to_thread(only_certificate, iot_yard, told["thingName"])
        device = site.devices["lamp"] = await harness.dials("lamp", arn)
        await site.come(device)
        assert site.there["lamp"].vouched
        await site.wish(device, 1)
        await site.reaches(device, 1)


async def asked(client: MqttClient, topic: str, question: object) -> dict[str, Any]:
    """What a question is answered with."""
    await client.subscribe([f"{topic}/accepted", f"{topic}/rejected"])
    await client.publish(topic, json.dumps(question).encode())
    async with aclosing(client.messages()) as messages:
        async for message in messages:
            assert message.topic == f"{topic}/accepted", message.payload
            found: dict[str, Any] = json.loads(message.payload)
            return found
    raise AssertionError("it ended")


def only_certificate(yard: IotYard, thing: str) -> str:
    """The certificate of a thing, which has our policy; blocks."""
    iot = aws(yard.emulator.endpoint, "iot")
    (arn,) = iot.list_thing_principals(thingName=thing)["principals"]
    (policy,) = iot.list_attached_policies(target=arn)["policies"]
    assert policy["policyName"] == yard.policy
    return str(arn)


async def test_without_a_queue(iot_yard: IotYard) -> None:
    """Parts of the kit where shadows are read again and again."""
    kit = DeviceConformance()
    for rule in (
        kit.test_a_device_gets_what_is_wanted,
        kit.test_who_goes_is_told_of,
        kit.test_the_newest_report_is_told_last,
        kit.test_a_restart_while_devices_are_there,
        kit.test_nothing_is_heard_of_who_was_forgotten,
    ):
        await rule(IotHarness(iot_yard, queue="", poll_every=0.3))
