"""`iot-edge-arm` as it is opened; the kit holds its device role."""

from __future__ import annotations

from dataclasses import replace

import pytest
from opened_backend import context, spec

from hatoba_plugins.backends.iot_edge import EdgeType
from hatoba_plugins.clock import FakeClock
from hatoba_plugins.errors import Fatal, Unsupported
from hatoba_plugins.values import Absent, HealthStatus, Ref
from hatoba_scheduler.control.device_hub import DeviceHub

EDGE = EdgeType()


async def test_it_needs_a_port_for_devices() -> None:
    with pytest.raises(Fatal, match=r"add \[devices\] with `listen"):
        async with EDGE.open("edge", EDGE.options(), context(FakeClock())):
            pass


async def test_it_runs_no_jobs() -> None:
    hub = DeviceHub(FakeClock(), alive_every=10.0)
    given = replace(context(FakeClock()), devices=hub)
    async with EDGE.open("edge", EDGE.options(), given) as backend:
        assert (backend.jobs, backend.deployments) == (None, None)
        assert backend.devices is not None
        assert (await backend.health()).status is HealthStatus.HEALTHY
        assert [one.field for one in await backend.validate(spec())] == ["backend"]
        assert await backend.find([Ref("a", 1, None)]) == [Absent("a")]
        assert [one async for one in backend.list_owned("c")] == []
        with pytest.raises(Unsupported):
            await anext(aiter(backend.logs(Ref("a", 1, None), "stdout", 0, follow=False)))
