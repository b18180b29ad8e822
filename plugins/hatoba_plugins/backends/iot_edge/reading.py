"""Reads what a device's shadows say, and believes none of it unchecked."""

from __future__ import annotations

from typing import TypeVar

import protovalidate
from google.protobuf.message import Message

from hatoba.shadows import Said, Shadow, part_names, part_of, said_of, unpack
from hatoba.v1 import device_pb2
from hatoba_plugins.backends.iot_edge.calls import IotCalls
from hatoba_plugins.backends.iot_edge.far import Heard
from hatoba_plugins.backends.iot_edge.options import EdgeOptions
from hatoba_plugins.backends.iot_edge.things import Things

M = TypeVar("M", bound=Message)
_validator = protovalidate.Validator()


class Reader:
    """Shadows of devices as what they say."""

    def __init__(self, calls: IotCalls, things: Things, options: EdgeOptions) -> None:
        self._calls = calls
        self._things = things
        self._options = options

    async def shadow(self, device: str) -> Shadow:
        """A device's own, as it is now; version 0: it said nothing yet. Raises a BackendError."""
        return await self._calls.shadow(self._things.thing_of(device), self._options.said)

    async def heard(self, device: str, shadow: Shadow) -> Heard:
        """What it says. What cannot be read, breaks the contract's rules, or is said for another
        device, is not there. Raises a BackendError."""
        try:
            said = said_of(shadow)
        except ValueError:
            return Heard(Said(shadow.version))
        hello = read(said.hello, device_pb2.DeviceHello)
        if hello is not None and hello.device != device:
            hello = None
        text = await self._report(device, said) if said.told_now else ""
        return Heard(said, hello, read(text, device_pb2.DeviceReport))

    async def _report(self, device: str, said: Said) -> str:
        """The report's text; empty while parts of it are of another one."""
        thing, text = self._things.thing_of(device), said.report
        for name in part_names(self._options.said, said.parts)[1:]:
            try:
                part = part_of(await self._calls.shadow(thing, name), said.turn)
            except ValueError:
                return ""
            if part is None:
                return ""
            text += part
        return text


def read(text: str, kind: type[M]) -> M | None:
    """A message that a device packed; None where it is none, or may not be as it is."""
    if not text:
        return None
    try:
        message = unpack(text, kind)
        _validator.validate(message)
    except (ValueError, protovalidate.ValidationError):
        return None
    return message
