"""Messages as proto JSON for people: proto field names, enum values without their prefix."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message

if TYPE_CHECKING:
    from google.protobuf.descriptor import EnumDescriptor, FieldDescriptor


def to_plain(message: Message) -> dict[str, Any]:
    """A message as JSON holds it. Fields that are not set are left out."""
    plain: dict[str, Any] = MessageToDict(message, preserving_proto_field_name=True)
    return _shorten(plain, message.DESCRIPTOR)


def enum_prefix(enum: EnumDescriptor) -> str:
    """What the names of an enum's values begin with, for example `JOB_STATE_`."""
    return enum.values[0].name.removesuffix("UNSPECIFIED")


def _shorten(plain: dict[str, Any], kind: Any) -> dict[str, Any]:
    if kind.file.package.startswith("google."):
        return plain
    return {name: _value(value, kind.fields_by_name[name]) for name, value in plain.items()}


def _value(value: Any, field: FieldDescriptor) -> Any:
    kind = field.message_type
    if kind is not None and kind.GetOptions().map_entry:
        inner = kind.fields_by_name["value"]
        return {key: _one(item, inner) for key, item in value.items()}
    if isinstance(value, list) and field.is_repeated:
        return [_one(item, field) for item in value]
    return _one(value, field)


def _one(value: Any, field: FieldDescriptor) -> Any:
    if field.enum_type is not None and isinstance(value, str):
        return value.removeprefix(enum_prefix(field.enum_type))
    if field.message_type is not None and isinstance(value, dict):
        return _shorten(value, field.message_type)
    return value
