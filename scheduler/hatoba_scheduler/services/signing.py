"""Certificates of devices for which AWS IoT signs, and not the server itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from hatoba.v1 import device_pb2
from hatoba_plugins.backend import SignsDevices
from hatoba_plugins.errors import BackendError, Conflict, Retry, Throttled
from hatoba_scheduler.errors import AlreadyExists, FailedPrecondition, Resource, Unavailable


class Signing:
    """What a backend signs. `role` gives the role that does; None: this server has none."""

    def __init__(self, role: Callable[[], SignsDevices | None]) -> None:
        self._role = role

    @property
    def able(self) -> bool:
        """Whether somebody signs."""
        return self._role() is not None

    def require(self) -> SignsDevices:
        """Who signs. Raises FailedPrecondition."""
        role = self._role()
        if role is None:
            raise FailedPrecondition(
                "this server has no devices of AWS IoT; give its backend of type `iot-edge-arm` "
                '`transport = "both"`, or "aws-iot", in hatoba.toml'
            )
        return role

    async def check_free(self, device: str) -> None:
        """Raises AlreadyExists for a name that is taken there, Unavailable, FailedPrecondition."""
        role = self.require()
        with _in_words(device):
            await role.check_free(device)

    async def enroll(self, device: str, csr: str) -> device_pb2.DeviceIdentity:
        """What a device is known by. Raises as `check_free`."""
        role = self.require()
        with _in_words(device):
            return await role.enroll(device, csr)

    async def revoke(self, device: str) -> None:
        """End a device's certificates. Raises as `check_free`."""
        role = self.require()
        with _in_words(device):
            await role.revoke(device)


@contextmanager
def _in_words(device: str) -> Iterator[None]:
    """A backend's errors as those of calls."""
    try:
        yield
    except Conflict as error:
        resource = Resource("device", f"devices/{device}")
        raise AlreadyExists(f"{error.message}; choose another name", resource=resource) from error
    except (Retry, Throttled) as error:
        raise Unavailable(f"AWS IoT does not answer now: {error.message}; try again") from error
    except BackendError as error:
        raise FailedPrecondition(f"AWS IoT refuses: {error.message}") from error
