"""What the runner reads from its environment, and what it keeps from the user's code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hatoba_worker.entrypoint.places import directory_of, volumes_of
from hatoba_worker.entrypoint.settings import (
    BadSettings,
    port_of,
    settings_of,
    without_ours,
)

GOOD = {
    "HATOBA_SERVER": "grpcs://hatoba:443",
    "HATOBA_ATTEMPT": "h-1-0-1",
    "HATOBA_FENCE": "7",
    "HATOBA_CREDENTIAL": "hr_x",
}


def test_the_variables_of_one_attempt() -> None:
    found = settings_of({**GOOD, "HATOBA_CA": "PEM", "HATOBA_TERM_SECONDS": "120"})
    assert (found.attempt, found.fence, found.term_seconds) == ("h-1-0-1", 7, 120.0)
    assert (found.target.address, found.target.tls, found.target.ca) == ("hatoba:443", True, b"PEM")
    assert found.target.token == "hr_x"
    assert not found.gang
    assert "hr_x" not in repr(found)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"HATOBA_SERVER": ""}, "HATOBA_SERVER is missing"),
        ({"HATOBA_SERVER": "grpc://hatoba:443"}, "plain text"),
        ({"HATOBA_SERVER": "nonsense"}, "HATOBA_SERVER"),
        ({"HATOBA_ATTEMPT": ""}, "HATOBA_ATTEMPT is ''"),
        ({"HATOBA_ATTEMPT": "../x"}, "HATOBA_ATTEMPT is '../x'"),
        ({"HATOBA_FENCE": "-1"}, "HATOBA_FENCE is '-1'"),
        ({"HATOBA_CREDENTIAL": ""}, "HATOBA_CREDENTIAL"),
        ({"HATOBA_CREDENTIAL": "two words"}, "HATOBA_CREDENTIAL"),
        ({"HATOBA_TERM_SECONDS": "nan"}, "HATOBA_TERM_SECONDS is 'nan'"),
        ({"HATOBA_TERM_SECONDS": "0"}, "HATOBA_TERM_SECONDS is '0'"),
        ({"HATOBA_CLAIM_SECONDS": "soon"}, "HATOBA_CLAIM_SECONDS is 'soon'"),
    ],
)
def test_what_cannot_be_used_is_named(change: dict[str, str], words: str) -> None:
    with pytest.raises(BadSettings, match=words):
        settings_of({**GOOD, **change})


@pytest.mark.parametrize(
    "variable", ["HATOBA_MEMBER", "JOB_COMPLETION_INDEX", "AWS_BATCH_JOB_ARRAY_INDEX"]
)
def test_one_of_many_started_with_one_template(tmp_path: Path, variable: str) -> None:
    members = [{"attempt": f"a-{n}", "fence": n, "credential": f"hr_{n}"} for n in range(3)]
    file = tmp_path / "members"
    file.write_text(json.dumps(members))
    for told in (json.dumps(members), str(file)):
        found = settings_of({**GOOD, "HATOBA_MEMBERS": told, variable: "2"})
        assert (found.attempt, found.fence, found.target.token) == ("a-2", 2, "hr_2")


@pytest.mark.parametrize(
    ("members", "index"),
    [("[]", "0"), ("[1]", "0"), ("[{}]", "0"), ("/no/file", "0"), ("[", "0"), ("[{}]", "x")],
)
def test_a_list_of_members_that_does_not_have_this_one(members: str, index: str) -> None:
    with pytest.raises(BadSettings):
        settings_of({**GOOD, "HATOBA_MEMBERS": members, "HATOBA_MEMBER": index})


def test_the_users_code_sees_the_container_without_our_settings() -> None:
    ours = {**GOOD, "HATOBA_MEMBERS": "[]", "HATOBA_REPLICA": "{}", "HATOBA_RUN": "uid"}
    ours["HATOBA_REPLICA_PREFIX"] = "r-x-1"
    assert without_ours({**ours, "PATH": "/bin", "AWS_REGION": "eu"}) == {
        "PATH": "/bin",
        "AWS_REGION": "eu",
    }


def test_where_things_are_kept() -> None:
    told = {"HATOBA_RUNNER_DIR": "/r", "HATOBA_SHARED_DIR": "/s"}
    assert directory_of(told) == Path("/r")
    assert volumes_of(told) == (Path("/s"), Path("/r"))
    assert volumes_of({}) == (Path("/hatoba"), Path("/hatoba-runner"))
    # Not below anything that a name could climb out of.
    assert directory_of({"HATOBA_ATTEMPT": "../../x"}).name == "______x"


def test_where_a_replica_answers() -> None:
    assert port_of({}) == 8080
    assert port_of({"HATOBA_PORT": "9000"}) == 9000
    for bad in ("0", "65536", "http", "-1"):
        with pytest.raises(BadSettings):
            port_of({"HATOBA_PORT": bad})
