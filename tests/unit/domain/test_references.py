"""One syntax for everything that has a name."""

from __future__ import annotations

import pytest

from hatoba_scheduler.domain.references import (
    BadReference,
    Reference,
    parse,
    short,
    version_name,
)


@pytest.mark.parametrize(
    ("text", "kind", "found"),
    [
        ("digits:7", "models", Reference("models", "default", "digits", 7)),
        ("digits@production", "models", Reference("models", "default", "digits", 0, "production")),
        ("digits", "models", Reference("models", "default", "digits")),
        ("digits", "", Reference("models", "default", "digits")),
        ("models/digits:7", "", Reference("models", "default", "digits", 7)),
        ("faces:3", "datasets", Reference("datasets", "default", "faces", 3)),
        ("datasets/faces:3", "", Reference("datasets", "default", "faces", 3)),
        ("code/train:2", "", Reference("code", "default", "train", 2)),
        ("jobs/digits-42", "", Reference("jobs", "default", "digits-42")),
        ("jobs/digits-42/outputs", "", Reference("jobs", "default", "digits-42", part="outputs")),
        ("deployments/reader", "", Reference("deployments", "default", "reader")),
        ("projects/p/models/digits/versions/7", "", Reference("models", "p", "digits", 7)),
        ("projects/p/models/digits@live", "models", Reference("models", "p", "digits", 0, "live")),
        ("projects/p/jobs/a-1", "jobs", Reference("jobs", "p", "a-1")),
    ],
)
def test_a_reference_is_read(text: str, kind: str, found: Reference) -> None:
    assert parse(text, kind) == found


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("", "models"),
        ("Digits:7", "models"),
        ("digits:0", "models"),
        ("digits:07", "models"),
        ("digits:x", "models"),
        ("digits:", "models"),
        ("digits@", "models"),
        ("digits@-", "models"),
        ("faces@production", "datasets"),
        ("faces:3/outputs", "datasets"),
        ("datasets/faces:3", "models"),
        ("projects//models/digits", "models"),
        ("projects/p", "models"),
        ("digits/versions/x", "models"),
        ("a b", "deployments"),
        ("digits:99999999999", "models"),
    ],
)
def test_what_names_nothing_is_refused_with_its_text(text: str, kind: str) -> None:
    with pytest.raises(BadReference) as refused:
        parse(text, kind)
    assert repr(text) in str(refused.value)


def test_names_are_written_as_they_are_read() -> None:
    name = version_name("models", "p", "digits", 7)
    assert parse(name).resource == name
    assert parse(name).parent == "projects/p/models/digits"
    assert short(name) == "digits:7"
    assert parse(name).short == "digits:7"
    assert parse("digits@production").short == "digits@production"
    assert short("projects/p/jobs/train-3") == "train-3"
