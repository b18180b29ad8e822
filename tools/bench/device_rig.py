"""The benchmark's `hatoba`, whose port of devices is in plain text: `device_rig.py ARGUMENTS`.

Nothing else opens such a port or believes a name without a proof, and the product cannot be told
to: here its two functions are replaced, in this process only. All the rest is what it always is.
"""

from __future__ import annotations

import sys
from typing import Any
from unittest.mock import patch

import grpc

from hatoba.cli.main import main
from hatoba_scheduler.auth.device_credentials import DeviceCaller, DeviceGate, refused
from hatoba_scheduler.auth.roles import Role
from hatoba_scheduler.device_port import DevicePort


def plain(port: DevicePort) -> grpc.ServerCredentials:
    """In place of `DevicePort.credentials`: none."""
    del port
    credentials: grpc.ServerCredentials = grpc.insecure_server_credentials()
    return credentials


def believed(gate: DeviceGate, device: str, peer: Any) -> DeviceCaller:
    """In place of `DeviceGate.prove`: the device, if there is one of that name."""
    del peer
    found = gate._devices.get(device)
    if found is None:
        raise refused("nobody has that name")
    return DeviceCaller(
        id=found.identity,
        sha256="",
        principal=found.resource,
        role=Role.DEVICE,
        create_time=found.create_time,
        expire_time=found.certificate_end,
        device=device,
        identity=found.identity,
    )


if __name__ == "__main__":
    with (
        patch.object(DevicePort, "credentials", plain),
        patch.object(DeviceGate, "prove", believed),
    ):
        sys.exit(main())
