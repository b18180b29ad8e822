"""All devices are of one backend, whatever plug-ins bring."""

from __future__ import annotations

from contextlib import AsyncExitStack
from dataclasses import replace

import pytest
from opened_backend import context

from hatoba_plugins.backend import BackendContext
from hatoba_plugins.backends.iot_edge import EdgeType
from hatoba_plugins.clock import FakeClock
from hatoba_plugins.loader import Loaded, RegisteredType
from hatoba_scheduler import backends
from hatoba_scheduler.config import BackendConfig, Config
from hatoba_scheduler.control.device_hub import DeviceHub


class OtherType(EdgeType):
    """Of somebody else's plug-in."""

    name = "other-edge"


async def test_the_second_backend_with_devices_is_not_opened(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    types = {one.name: RegisteredType(one, "hatoba", "1") for one in (EdgeType(), OtherType())}
    monkeypatch.setattr(backends, "load", lambda: Loaded(types))
    clock = FakeClock()

    def given(instance: str) -> BackendContext:
        del instance
        return replace(context(clock), devices=DeviceHub(clock, alive_every=10.0))

    config = Config(backends={"a": BackendConfig("iot-edge-arm"), "b": BackendConfig("other-edge")})
    async with AsyncExitStack() as stack:
        found = await backends.open_backends(config, given, stack)
    assert list(found.opened) == [found.default_devices] == ["a"]
    (failure,) = found.failures
    assert failure.name == "b"
    assert failure.reason == "'a' has devices already, and all devices are of one backend"
    assert failure.remedy == "keep 'a' or 'b'"
