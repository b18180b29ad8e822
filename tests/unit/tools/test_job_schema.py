"""The published schema of job files, and how it comes out of the generator's."""

from __future__ import annotations

import importlib.resources
import json
from typing import Any

import job_schema
import jsonschema
import pytest

BUNDLE = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "$ref": "#/$defs/hatoba.v1.JobSpec.schema.json",
    "$defs": {
        "google.protobuf.Duration.schema.json": {
            "format": "duration",
            "title": "Duration",
            "type": "string",
        },
        "hatoba.v1.JobSpec.schema.json": {
            "type": "object",
            "additionalProperties": False,
            "patternProperties": {"^(maxSize)$": {"type": "integer"}},
            "properties": {
                "max_size": {"anyOf": [{"type": "integer"}, {"type": "string"}], "default": 0},
                "mode": {
                    "anyOf": [{"enum": ["MODE_UNSPECIFIED", "MODE_COPY"]}, {"type": "integer"}]
                },
                "timeout": {"$ref": "#/$defs/google.protobuf.Duration.schema.json"},
            },
        },
    },
}


@pytest.fixture
def simplified() -> dict[str, Any]:
    made: dict[str, Any] = json.loads(job_schema.simplify(json.dumps(BUNDLE)))
    return made


@pytest.mark.parametrize(
    "job",
    [{"max_size": 3}, {"mode": "COPY"}, {"timeout": "1.5s"}],
    ids=["number", "enum", "duration"],
)
def test_what_people_write_is_valid(simplified: dict[str, Any], job: dict[str, Any]) -> None:
    assert list(jsonschema.Draft202012Validator(simplified).iter_errors(job)) == []


@pytest.mark.parametrize(
    "job",
    [
        {"maxSize": 3},
        {"max_size": "3"},
        {"mode": "MODE_COPY"},
        {"mode": "UNSPECIFIED"},
        {"timeout": "PT1S"},
    ],
    ids=["camel case", "number as text", "prefixed enum", "unspecified", "ISO duration"],
)
def test_proto_json_spellings_are_not(simplified: dict[str, Any], job: dict[str, Any]) -> None:
    assert list(jsonschema.Draft202012Validator(simplified).iter_errors(job)) != []


def test_the_committed_schema_takes_a_small_job() -> None:
    text = (importlib.resources.files("hatoba") / "schema" / "job.json").read_text()
    validator = jsonschema.Draft202012Validator(json.loads(text))
    validator.check_schema(validator.schema)
    assert list(validator.iter_errors({"name": "digits", "command": ["python", "train.py"]})) == []
    (error,) = validator.iter_errors({"nmae": "digits"})
    assert error.validator == "additionalProperties"
