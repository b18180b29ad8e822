"""`hatoba models`: what is asked of the server, and what people read of the answers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from click.testing import Result

from hatoba.cli import lineage
from hatoba.cli.exits import Exit
from hatoba.errors import InvalidSpec
from hatoba.models import example_of, short_name
from hatoba.v1 import common_pb2, model_pb2

if TYPE_CHECKING:
    from tests.unit.client.conftest import FakeServer

Cli = Callable[..., Result]
MODEL = "projects/default/models/digits"


def version(number: int = 7, **fields: Any) -> model_pb2.ModelVersion:
    made = model_pb2.ModelVersion(
        name=f"{MODEL}/versions/{number}",
        version=number,
        state=model_pb2.MODEL_STATE_READY,
        created_by="ann",
        **fields,
    )
    made.create_time.GetCurrentTime()
    return made


def move(state: str = "APPLIED", **fields: Any) -> model_pb2.AliasMove:
    told = {"alias": "production", "from_version": 6, "to_version": 7, **fields}
    number = model_pb2.AliasMoveState.Value(f"ALIAS_MOVE_STATE_{state}")
    return model_pb2.AliasMove(name=f"{MODEL}/moves/12", state=number, **told)


def graph() -> model_pb2.Lineage:
    """Data and code made a model by a job; two deployments serve it, one through its child."""
    made = model_pb2.Lineage(root=f"{MODEL}/versions/1")
    kinds = {
        "models/digits/versions/1": "model",
        "models/digits/versions/2": "model",
        "datasets/faces/versions/3": "dataset",
        "jobs/train-1": "job",
        "deployments/reader": "deployment",
    }
    for name, kind in kinds.items():
        made.nodes.add(name=f"projects/default/{name}", kind=kind, attributes={"state": "READY"})
    for source, relation, target in (
        ("datasets/faces/versions/3", "read-by", "jobs/train-1"),
        ("datasets/faces/versions/3", "trained-on", "models/digits/versions/1"),
        ("jobs/train-1", "made-by", "models/digits/versions/1"),
        ("models/digits/versions/1", "parent", "models/digits/versions/2"),
        ("models/digits/versions/1", "serves", "deployments/reader"),
        ("models/digits/versions/2", "serves", "deployments/reader"),
    ):
        edge = made.edges.add(to=f"projects/default/{target}", relation=relation)
        setattr(edge, "from", f"projects/default/{source}")
    return made


def test_models_are_listed_with_their_aliases(fake: FakeServer, cli: Cli) -> None:
    listed = model_pb2.ListModelsResponse()
    listed.models.add(name=MODEL, latest=7).aliases.add(alias="production", version=6)
    fake.replies["ListModelsRequest"] = listed
    row = cli("models", "list").stdout.splitlines()[1]
    assert row.split()[:5] == ["digits", "7", "production", "->", "6"]
    assert json.loads(cli("models", "list", "-o", "json").stdout)["models"][0]["latest"] == 7


def test_versions_tell_where_they_come_from(fake: FakeServer, cli: Cli) -> None:
    job = "projects/default/jobs/train-3"
    found = [version(8), version(7, job=job, metrics={"accuracy": 0.97}, aliases=["production"])]
    fake.replies["ListModelVersionsRequest"] = model_pb2.ListModelVersionsResponse(versions=found)
    lines = cli("models", "versions", "digits", "--limit", "5").stdout.splitlines()
    assert lines[1].split()[:5] == ["digits:8", "READY", "-", "-", "ann"]
    assert lines[2].split()[:6] == [
        "digits:7",
        "READY",
        "production",
        "accuracy",
        "0.97",
        "jobs/train-3",
    ]
    (asked,) = fake.requests("ListModelVersionsRequest")
    assert (asked.model, asked.page_size, asked.project) == ("digits", 5, "default")


def test_a_version_is_shown_whole(fake: FakeServer, cli: Cli) -> None:
    made = version(parent=f"{MODEL}/versions/6", git_commit="c" * 40, attempt=2, description="big")
    made.job, made.code_version = (
        "projects/default/jobs/train-3",
        "projects/default/code/t/versions/2",
    )
    made.datasets.append("projects/default/datasets/faces/versions/3")
    made.params["lr"].number_value = 0.1
    made.serving.handler, made.serving.golden = "serve:Digits", 3
    made.serving.environment.requirements = "numpy\n\nscipy\n"
    fake.replies["GetModelVersionRequest"] = made
    text = cli("models", "get", "digits@production").stdout
    for words in (
        "digits:7  READY",
        "lr=0.1",
        "jobs/train-3, attempt 2",
        "datasets/faces:3",
        "code/t:2",
        "digits:6",
        "2 requirements",
        "3 cases in golden.jsonl",
        "c" * 40,
    ):
        assert words in text
    assert fake.requests("GetModelVersionRequest")[0].name == "digits@production"


def test_versions_are_compared_with_a_mark_where_they_differ(fake: FakeServer, cli: Cli) -> None:
    fake.replies["GetModelVersionRequest"] = version(metrics={"accuracy": 0.9}, git_commit="c" * 40)
    lines = cli("models", "compare", "digits:6", "digits:7").stdout.splitlines()
    assert ["metric", "accuracy", "0.9", "0.9"] in [line.split() for line in lines]
    assert not any(line.endswith("*") for line in lines)
    assert cli("models", "compare", "digits:6").exit_code == Exit.USAGE


def test_an_alias_moves(fake: FakeServer, cli: Cli) -> None:
    fake.replies["SetAliasRequest"] = model_pb2.SetAliasResponse(move=move())
    result = cli("models", "alias", "digits", "production", "7", "--expect", "6", "--reason", "f1")
    assert result.stdout == "production  6 -> 7  APPLIED\n"
    (asked,) = fake.requests("SetAliasRequest")
    assert (asked.model, asked.alias, asked.version, asked.expected) == (
        "digits",
        "production",
        7,
        6,
    )
    assert asked.reason == "f1"
    assert asked.request_id
    cli("models", "alias", "digits", "production", "7")
    assert not fake.requests("SetAliasRequest")[1].HasField("expected")


def test_a_protected_alias_says_who_goes_on(fake: FakeServer, cli: Cli) -> None:
    fake.replies["SetAliasRequest"] = model_pb2.SetAliasResponse(move=move("PENDING"))
    result = cli("models", "alias", "digits", "production", "7")
    assert "PENDING" in result.stdout
    assert "hatoba models approve digits/moves/12" in result.stderr


def test_an_alias_that_moved_meanwhile_is_an_error(fake: FakeServer, cli: Cli) -> None:
    words = "alias 'production' of model 'digits' points to version 8"
    fake.refuse("SetAliasRequest", grpc.StatusCode.ABORTED, words)
    result = cli("models", "alias", "digits", "production", "7", "--expect", "6")
    assert result.exit_code == Exit.FAILURE
    assert words in result.stderr


@pytest.mark.parametrize(("command", "approves"), [("approve", True), ("reject", False)])
def test_moves_are_decided_by_their_short_name(
    fake: FakeServer, cli: Cli, command: str, approves: bool
) -> None:
    fake.replies["DecideAliasMoveRequest"] = move()
    cli("models", command, "digits/moves/12", "--comment", "looked at")
    (asked,) = fake.requests("DecideAliasMoveRequest")
    assert (asked.name, asked.approve, asked.comment) == (
        f"{MODEL}/moves/12",
        approves,
        "looked at",
    )


def test_moves_are_listed(fake: FakeServer, cli: Cli) -> None:
    waiting = move("PENDING", requested_by="ann", from_version=0, reason="better")
    fake.replies["ListAliasMovesRequest"] = model_pb2.ListAliasMovesResponse(moves=[waiting])
    row = cli("models", "moves", "digits", "--pending").stdout.splitlines()[1].split()
    assert row[:7] == ["digits/moves/12", "production", "-", "->", "7", "PENDING", "ann"]
    assert fake.requests("ListAliasMovesRequest")[0].pending_only


def test_aliases_are_protected_and_taken_away(fake: FakeServer, cli: Cli) -> None:
    fake.replies["UpdateModelRequest"] = model_pb2.Model(name=MODEL, protected_aliases=["a", "b"])
    assert "protected are a, b" in cli("models", "protect", "digits", "a", "b").stdout
    assert list(fake.requests("UpdateModelRequest")[0].protected_aliases) == ["a", "b"]
    assert "no alias a any more" in cli("models", "unalias", "digits", "a").stderr
    kept = model_pb2.Model(name=MODEL)
    kept.aliases.add(alias="a", version=1)
    fake.replies["DeleteAliasRequest"] = kept
    assert "somebody else has to approve" in cli("models", "unalias", "digits", "a").stderr


# -- registering -----------------------------------------------------------------------------------


def test_a_directory_is_registered(fake: FakeServer, cli: Cli) -> None:
    Path("out").mkdir()
    Path("out/weights.bin").write_bytes(b"w")
    Path("one.json").write_text("[1]")
    fake.replies["RegisterModelRequest"] = version(1)
    said = ["--handler", "serve:Digits", "--example", "one.json", "--metric", "f1=0.9"]
    said += ["-p", "lr=0.1", "--label", "team=vision", "--job", "train-3", "-m", "first"]
    result = cli("models", "register", "digits", "out", *said, "--max-batch", "8")
    assert result.stdout == "digits:1  READY\n", result.stderr
    (asked,) = fake.requests("RegisterModelRequest")
    assert asked.manifest.digest in fake.manifests
    assert (asked.serving.handler, asked.serving.max_batch) == ("serve:Digits", 8)
    assert (asked.serving.example.data, asked.serving.example.media_type) == (
        b"[1]",
        "application/json",
    )
    assert asked.serving.environment.caller_interpreter
    assert (dict(asked.metrics), asked.params["lr"].number_value) == ({"f1": 0.9}, 0.1)
    assert (asked.job, asked.description, dict(asked.labels)) == (
        "train-3",
        "first",
        {"team": "vision"},
    )
    assert asked.request_id


@pytest.mark.parametrize("own", [False, True])
def test_golden_cases_go_with_the_models_files(fake: FakeServer, cli: Cli, own: bool) -> None:
    Path("out").mkdir()
    Path("out/weights.bin").write_bytes(b"w")
    where = "out/golden.jsonl" if own else "known.jsonl"
    Path(where).write_text('{"input": 1, "expected": 2}\n{"input": 2, "expected": 4}\n')
    Path(where).chmod(0o644)
    fake.replies["RegisterModelRequest"] = version(1)
    said = ["--handler", "serve:Digits", "--example", "1", "--golden", where]
    result = cli("models", "register", "digits", "out", *said)
    assert result.exit_code == 0, result.stderr
    (asked,) = fake.requests("RegisterModelRequest")
    assert asked.serving.golden == 2
    files = fake.manifests[asked.manifest.digest].entries
    assert [one.path for one in files] == ["golden.jsonl", "weights.bin"]
    assert files[0].mode == 0o644


def test_a_model_has_no_other_file_of_that_name(fake: FakeServer, cli: Cli) -> None:
    Path("out").mkdir()
    Path("out/golden.jsonl").write_text("mine")
    Path("known.jsonl").write_text('{"input": 1, "expected": 2}\n')
    said = ["--handler", "serve:Digits", "--example", "1", "--golden", "known.jsonl"]
    result = cli("models", "register", "digits", "out", *said)
    assert result.exit_code == Exit.USAGE
    assert "another golden.jsonl of its own: give out/golden.jsonl" in result.stderr
    assert fake.requests("RegisterModelRequest") == []


def test_a_check_is_waited_for_and_its_failure_told(fake: FakeServer, cli: Cli) -> None:
    Path("w.bin").write_bytes(b"w")
    check = "projects/default/jobs/check-digits-1"
    begun = version(1, check_job=check)
    begun.state = model_pb2.MODEL_STATE_REGISTERING
    failed = version(1, check_job=check)
    failed.state = model_pb2.MODEL_STATE_FAILED
    failed.cause.code = common_pb2.CAUSE_CODE_EXIT_CODE
    failed.cause.message = "The command ended with exit code 1."
    failed.cause.last_log_lines.append("there is no class Digits in serve")
    fake.replies["RegisterModelRequest"] = begun
    fake.replies["GetModelVersionRequest"] = failed
    said = ("models", "register", "digits", "w.bin", "--handler", "serve:Digits", "--example", "1")
    result = cli(*said)
    assert (result.exit_code, result.stdout) == (Exit.FAILURE, "digits:1  FAILED\n"), result.stderr
    assert "there is no class Digits in serve" in result.stderr
    assert "hatoba logs check-digits-1" in result.stderr
    result = cli(*said, "--no-wait")
    assert (result.exit_code, result.stdout) == (0, "digits:1  REGISTERING\n")


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (["--example", "{"], "neither a file nor JSON"),
        (["--example", "{" + 5000 * " "], "neither a file nor JSON"),
        (["--example", "1"], "for a handler"),
        (["--golden", "w.bin"], "for a handler"),
        (["--handler", "s:D", "--golden", "none.jsonl"], "does not exist"),
        (["--handler", "s:D", "--golden", "w.bin"], "w.bin: line 1 is not JSON"),
        (
            ["--handler", "s:D", "--golden", "bad.jsonl"],
            "bad.jsonl: line 2: there is no 'expected'",
        ),
        (["--metric", "f1=good"], "is not a number"),
        (["--metric", "f1"], "a metric"),
        (["--label", "a=1", "--label", "a=2"], "twice"),
    ],
)
def test_what_cannot_be_registered_is_said_before_anything_is_sent(
    fake: FakeServer, cli: Cli, said: list[str], words: str
) -> None:
    Path("w.bin").write_bytes(b"w")
    Path("bad.jsonl").write_text('{"input": 1, "expected": 2}\n{"input": 1}\n')
    result = cli("models", "register", "digits", "w.bin", *said)
    assert result.exit_code == Exit.USAGE
    assert words in result.stderr
    assert fake.requests("RegisterModelRequest") == []


def test_examples_are_what_their_names_say(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"p")
    (tmp_path / "a").write_bytes(b"q")
    assert example_of(tmp_path / "a.png") == (b"p", "image/png")
    assert example_of(tmp_path / "a") == (b"q", "application/octet-stream")
    assert example_of({"x": [1, 2]})[1] == "application/json"
    assert example_of(b"raw") == (b"raw", "application/octet-stream")
    with pytest.raises(InvalidSpec, match="cannot be read"):
        example_of(tmp_path / "none")
    with pytest.raises(InvalidSpec, match="JSON"):
        example_of({"x": object()})


def test_delete_names_what_went(fake: FakeServer, cli: Cli) -> None:
    fake.replies["DeleteModelVersionRequest"] = version()
    assert "removed digits:7" in cli("models", "delete", "digits:7").stderr


def test_serving_needs_a_handler_and_no_image(fake: FakeServer, cli: Cli) -> None:
    fake.replies["GetModelVersionRequest"] = version()
    assert "no handler" in cli("models", "serve", "digits").stderr
    made = version()
    made.serving.handler = "serve:Digits"
    made.serving.environment.image = "lab/digits:7"
    fake.replies["GetModelVersionRequest"] = made
    result = cli("models", "serve", "digits")
    assert result.exit_code == Exit.USAGE
    assert "lab/digits:7" in result.stderr


# -- lineage ---------------------------------------------------------------------------------------


def test_lineage_is_two_trees(fake: FakeServer, cli: Cli) -> None:
    found = graph()
    found.truncated = True
    fake.replies["GetLineageRequest"] = found
    result = cli("models", "lineage", "digits:1", "--depth", "3")
    assert result.stdout.splitlines() == [
        "digits:1  READY",
        "  came from",
        "    datasets/faces:3  trained-on  READY",
        "    jobs/train-1  made-by  READY",
        "      datasets/faces:3  read-by  (see above)",
        "  became",
        "    deployments/reader  serves  READY",
        "    digits:2  parent  READY",
        "      deployments/reader  serves  (see above)",
    ]
    assert "--depth" in result.stderr
    assert fake.requests("GetLineageRequest")[0].depth == 3


def test_of_what_a_node_is_only_a_commit_is_cut_short() -> None:
    facts = {"model": "digits@production", "commit": "0123456789abcdef" * 2}
    node = model_pb2.LineageNode(name="x", attributes=facts)
    shown = lineage.facts_of({"x": node}, "x")
    assert shown == "commit 0123456789ab, model digits@production"


def test_everything_stands_right_of_what_it_came_from() -> None:
    found = graph()
    columns = lineage.layers(found)
    for edge in found.edges:
        assert columns[getattr(edge, "from")] < columns[edge.to]
    spots = lineage.places(found)
    assert len(set(spots.values())) == len(found.nodes)


def test_a_circle_cannot_hang_the_picture() -> None:
    found = model_pb2.Lineage(root="a")
    for source, target in (("a", "b"), ("b", "a")):
        found.nodes.add(name=source)
        edge = found.edges.add(to=target)
        setattr(edge, "from", source)
    assert set(lineage.layers(found)) == {"a", "b"}


def test_lineage_is_drawn(fake: FakeServer, cli: Cli) -> None:
    fake.replies["GetLineageRequest"] = graph()
    result = cli("models", "lineage", "digits:1", "--plot", "line.png")
    assert result.exit_code == 0, result.stderr
    assert Path("line.png").read_bytes().startswith(b"\x89PNG")
    missing = cli("models", "lineage", "digits:1", "--plot", "nowhere/line.png")
    assert missing.exit_code == Exit.USAGE
    assert "nowhere/line.png" in missing.stderr


def test_names_are_short() -> None:
    assert short_name(f"{MODEL}/versions/7") == "digits:7"
    assert short_name("projects/p/datasets/faces/versions/3") == "datasets/faces:3"
    assert short_name("projects/p/jobs/train-3") == "jobs/train-3"
    assert short_name(MODEL) == "digits"
