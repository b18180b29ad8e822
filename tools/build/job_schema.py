"""What job files say, from what protoc-gen-jsonschema writes about proto JSON.

Job files use proto field names only, enum values without their prefix, and numbers as numbers.
"""

from __future__ import annotations

import json
import os
from typing import Any

DURATION = {"type": "string", "pattern": r"^[0-9]+(\.[0-9]{1,9})?s$", "examples": ["90s", "0.5s"]}
# camelCase aliases stand in patternProperties
PROTO_JSON_ONLY = {"$schema", "patternProperties"}


def simplify(bundle: str) -> str:
    """Turn the generator's bundle into the published schema, as text with sorted keys."""
    schema = json.loads(bundle)
    definitions = {short(name): tidy(body) for name, body in schema["$defs"].items()}
    if "Duration" in definitions:
        definitions["Duration"] = definitions["Duration"] | DURATION
        definitions["Duration"].pop("format", None)
    job = definitions.pop("JobSpec")
    published = {
        "$schema": schema["$schema"],
        "$id": "urn:hatoba:job",
        **job,
        "title": "A Hatoba job file",
        "$defs": definitions,
    }
    return json.dumps(published, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def short(name: str) -> str:
    """`hatoba.v1.JobSpec.schema.json` is known as JobSpec."""
    return name.removesuffix(".schema.json").rpartition(".")[2]


def tidy(node: Any) -> Any:
    """One node of the schema, and all below it."""
    if isinstance(node, list):
        return [tidy(item) for item in node]
    if not isinstance(node, dict):
        return node
    if "anyOf" in node:
        # An enum's names, else the first: the others are proto JSON's spellings of it.
        forms = node["anyOf"]
        natural = next((form for form in forms if "enum" in form), forms[0])
        rest = {key: value for key, value in node.items() if key != "anyOf"}
        return tidy(natural | rest)
    kept = {key: tidy(value) for key, value in node.items() if key not in PROTO_JSON_ONLY}
    if "$ref" in kept:
        kept["$ref"] = "#/$defs/" + short(kept["$ref"].removeprefix("#/$defs/"))
    if "enum" in kept:
        kept["enum"] = without_prefix(kept["enum"])
        kept.pop("default", None)
    return kept


def without_prefix(values: list[str]) -> list[str]:
    """Enum values as people write them: BAR for FOO_BAR, and FOO_UNSPECIFIED is left out."""
    # of names, not of paths
    prefix = os.path.commonprefix(values).rpartition("_")[0] + "_"  # noqa: RUF071
    words = [value.removeprefix(prefix) for value in values]
    return [word for word in words if word != "UNSPECIFIED"]
