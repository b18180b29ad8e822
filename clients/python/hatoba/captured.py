"""How a prediction that is captured stands in a dataset."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping
from typing import Any

from hatoba.v1 import dataset_pb2

_DEEPEST = 20
_MAX_MEDIA_TYPE = 128


def captured_item(
    trace_id: str, asked: tuple[bytes, str], answered: tuple[bytes, str], facts: Mapping[str, Any]
) -> dataset_pb2.DatasetItem:
    """The item of an input with its prediction, each with its media type; `facts` are further
    attributes.
    """
    media_type = asked[1].encode("ascii", "ignore").decode()[:_MAX_MEDIA_TYPE]
    item = dataset_pb2.DatasetItem(id=trace_id, data=asked[0], media_type=media_type)
    _set_prediction(item, *answered)
    item.attributes.update({**facts, "trace_id": trace_id})
    return item


def _set_prediction(item: dataset_pb2.DatasetItem, data: bytes, media_type: str) -> None:
    """As an attribute: JSON as it is, text as text, bytes in base64."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        item.attributes["prediction"] = base64.b64encode(data).decode()
        return
    try:
        item.attributes["prediction"] = _json(text) if "json" in media_type else text
    except (ValueError, RecursionError):
        item.attributes["prediction"] = text


def _json(text: str) -> Any:
    """The value; raises ValueError for one that the wire does not take."""
    found = json.loads(text, parse_int=_number, parse_float=_number, parse_constant=str)
    if not _shallow(found, _DEEPEST):
        raise ValueError("nested too deeply")
    return found


def _number(text: str) -> float | str:
    value = float(text)
    return value if math.isfinite(value) else text


def _shallow(value: Any, levels: int) -> bool:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return levels > 0 and all(_shallow(one, levels - 1) for one in inner)
