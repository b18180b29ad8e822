"""What the kit needs of a device backend's author: far devices that it plays, and their links."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from enum import Enum
from types import TracebackType
from typing import Protocol, Self

from hatoba.v1 import device_pb2
from hatoba_plugins.backend import Backend, BackendType, Clock
from hatoba_plugins.conformance.harness import FaultInjector, GatedBudget, OpenHarness


class Ability(Enum):
    """What not every transport can; tests that need one are skipped without it."""

    KEEPS = "keeps"
    """What is wanted of a device that is away is kept for it, over a restart of the core too: who
    is away is Accepted. Without it, who is away is Away."""
    REMEMBERS = "remembers"
    """Opened anew, it still knows the newest generation of each device."""


class FarDevice(Protocol):
    """A device at the far end, as a test plays it: it does nothing by itself."""

    @property
    def name(self) -> str:
        """Its name."""
        ...

    @property
    def heard(self) -> Sequence[device_pb2.DeviceDesired]:
        """What its agent was given, in order, over all its links."""
        ...

    async def come(self, hello: device_pb2.DeviceHello) -> bool:
        """Dial in; a link that it still has is given up. False: it is not let in."""
        ...

    async def go(self) -> None:
        """End its link in good order."""
        ...

    async def tell(self, report: device_pb2.DeviceReport) -> None:
        """Say how it is. Without a link nobody hears it."""
        ...


class DeviceFaults(FaultInjector):
    """Breaks the world of a device backend on demand. Override what you can; what is left skips its
    test.
    """

    async def cut(self, device: str) -> None:
        """Its link breaks, and both ends see it."""
        self._missing("cut")

    async def hold(self, device: str) -> None:
        """What is sent on its present link, either way, does not arrive, and nobody is told."""
        self._missing("hold")

    async def let_go(self, device: str) -> None:
        """What was held arrives, also where the device has another link by now."""
        self._missing("let_go")

    async def silence(self, device: str) -> None:
        """Nothing comes from it any more, for as long as it takes to be noticed."""
        self._missing("silence")

    async def swap_reports(self, device: str) -> None:
        """The next two reports that it tells arrive in the other order."""
        self._missing("swap_reports")

    async def repeat_report(self, device: str) -> None:
        """The first report that it told arrives once more."""
        self._missing("repeat_report")


class DeviceHarness(Protocol):
    """A device backend with its outside world, as the kit sees it."""

    cluster_id: str
    clock: Clock
    faults: DeviceFaults | None
    budget: GatedBudget
    abilities: frozenset[Ability]

    @property
    def backend(self) -> Backend:
        """The opened instance."""
        ...

    async def __aenter__(self) -> Self:
        """Open it."""
        ...

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close it."""
        ...

    async def reopen(self) -> None:
        """Close and open the backend, as a restart of the core does.

        Devices that had a link have one again as their agents would: with the same hello, and
        telling what they told last where the transport does not keep that.
        """
        ...

    async def device(self, name: str) -> FarDevice:
        """A new device of ours, away. After it was forgotten, a name may be given again."""
        ...

    async def dropped(self, name: str) -> None:
        """The core itself has forgotten this device: what else lets it in does so no more."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Let so many seconds of the backend's clock go by."""
        ...


class FarHarness(OpenHarness, ABC):
    """A harness around any device backend. Give it a `FakeClock` and it moves it as needed."""

    abilities: frozenset[Ability] = frozenset()
    faults: DeviceFaults | None

    def __init__(
        self,
        backend_type: BackendType,
        options: dict[str, object] | None = None,
        *,
        clock: Clock | None = None,
        faults: DeviceFaults | None = None,
    ) -> None:
        super().__init__(backend_type, options, clock=clock, faults=faults)

    @abstractmethod
    async def device(self, name: str) -> FarDevice:
        """A new device of ours, away. After it was forgotten, a name may be given again."""

    async def dropped(self, name: str) -> None:
        """Override it where something beside the backend lets devices in."""
