"""The other nouns, contexts, the command tree, and how errors are shown."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import TYPE_CHECKING

import click
import grpc
import pytest
from click.testing import Result

from hatoba import embedded
from hatoba.cli import root as root_module
from hatoba.cli.exits import Exit
from hatoba.cli.main import main
from hatoba.errors import Unavailable
from hatoba.settings import Server
from hatoba.v1 import admin_pb2, job_pb2, queue_pb2, worker_pb2

if TYPE_CHECKING:
    from tests.unit.client.conftest import FakeServer

Cli = Callable[..., Result]
ROOT = Path(__file__).resolve().parents[3]


def test_status_shows_server_backends_and_my_unfinished_jobs(fake: FakeServer, cli: Cli) -> None:
    fake.add_job("train-1", "QUEUED", waiting_reason="for 4 GPUs; 1 is free")
    text = cli("status").stdout
    assert "serving" in text
    assert "hosts (default)" in text
    assert "pip install 'hatoba[k8s]'" in text
    assert "train-1 waits: for 4 GPUs; 1 is free" in text
    assert "planning 12.0 ms" in text
    assert ["gpu", "ann", "7", "2"] in [line.split() for line in text.splitlines()]
    assert text.count("past its deadline") == 5
    assert "and 2 more" in text
    assert "here: not connected" in text
    assert "gpu: cordoned (new cards)" in text
    assert json.loads(cli("status", "-o", "json").stdout)["owners"][0]["running"] == "2"
    assert fake.requests("ListJobsRequest")[0].filter == "active = true"


def test_backends_list_says_why_a_plug_in_is_not_there(cli: Cli) -> None:
    text = cli("backends", "list").stdout
    assert "cpus: 3 of 4 free" in text
    assert "k8s could not be loaded: No module named 'kubernetes'" in text


def test_a_backend_is_shown_with_its_breaker_and_how_its_calls_went(cli: Cli) -> None:
    assert "breaker half-open" in cli("backends", "list").stdout
    text = cli("backends", "get", "hosts").stdout
    assert "breaker half-open" in text
    assert "2 of at most 14" in text
    assert "3 ms, 12 ms; 0 of 100 failed" in text
    assert "0.5" in text
    unknown = cli("backends", "get", "nowhere")
    assert unknown.exit_code == Exit.NOT_FOUND
    assert "there are hosts" in unknown.stderr


def test_a_check_shows_its_steps_and_fails_with_the_first_that_does(
    fake: FakeServer, cli: Cli
) -> None:
    done = cli("backends", "check", "hosts", "--image", "busybox:1", "--patience", "3s")
    assert done.exit_code == Exit.FAILURE
    assert done.stdout.splitlines() == [
        "open     ok     it is opened (0.0 s)",
        "health   FAILED jobs.batch is forbidden (0.0 s)",
        "  -> give it",
    ]
    asked = fake.asked[-1]
    assert isinstance(asked, admin_pb2.CheckBackendRequest)
    assert (asked.name, asked.image, asked.patience.seconds) == ("hosts", "busybox:1", 3)


def test_backends_are_cordoned_and_let_go(fake: FakeServer, cli: Cli) -> None:
    text = cli("backends", "cordon", "hosts", "--drain", "--reason", "new disks").stdout
    assert "cordoned: new disks" in text
    assert "healthy" in cli("backends", "uncordon", "hosts").stdout
    assert json.loads(cli("backends", "uncordon", "hosts", "-o", "json").stdout)["name"] == "hosts"
    asked = fake.requests("CordonBackendRequest")[:2]
    assert [(one.cordoned, one.drain, one.reason) for one in asked] == [
        (True, True, "new disks"),
        (False, False, ""),
    ]


def test_the_line_for_another_machine_is_alone_on_stdout(fake: FakeServer, cli: Cli) -> None:
    made = cli("hosts", "add", "gpu-1", "--ttl", "10m")
    line = "hatoba worker start --server {} --join hb_0123456789ab_text.QUFB\n"
    assert made.stdout == line.format("hatoba.example.org:7420")
    assert "host gpu-1" in made.stderr
    (asked,) = fake.requests("CreateJoinTokenRequest")
    assert (asked.host, asked.ttl.seconds) == ("gpu-1", 600)
    dialled = cli("hosts", "add", "--server", "10.0.0.7:7420").stdout
    assert dialled == line.format("10.0.0.7:7420")


def test_a_host_is_removed(fake: FakeServer, cli: Cli) -> None:
    done = cli("hosts", "remove", "hosts/old")
    assert (done.stdout, done.stderr) == ("", "removed old\n")
    (asked,) = fake.requests("RemoveHostRequest")
    assert asked.name == "hosts/old"


def test_hosts_show_what_is_free(fake: FakeServer, cli: Cli) -> None:
    row = cli("hosts", "list").stdout.splitlines()[1]
    assert row.split()[:2] == ["here", "READY"]
    assert "3 of 4" in row
    assert "7 GiB of 8 GiB" in row
    assert "1 of 2" in row
    assert "125 of 128" in row
    assert "here  READY" in cli("hosts", "get", "here").stdout
    assert "CORDONED" in cli("hosts", "cordon", "here", "--drain", "--reason", "dust").stdout
    assert "READY" in cli("hosts", "uncordon", "here").stdout
    drained = cli("hosts", "drain", "here", "--reason", "dust", "-o", "json").stdout
    assert json.loads(drained)["cordoned"]
    asked = fake.requests("CordonHostRequest")
    assert [(one.cordoned, one.drain, one.reason) for one in asked] == [
        (True, True, "dust"),
        (False, False, ""),
        (True, True, "dust"),
    ]


def test_a_connected_host_is_seen_now_and_another_was_some_time_ago(
    fake: FakeServer, cli: Cli
) -> None:
    here = worker_pb2.Host(name="hosts/here", connected=True)
    gone = worker_pb2.Host(name="hosts/gone")
    for host in (here, gone):
        host.last_seen.FromSeconds(int(time.time()) - 7200)
    fake.replies["ListHostsRequest"] = worker_pb2.ListHostsResponse(hosts=[here, gone])
    rows = cli("hosts", "list").stdout.splitlines()[1:]
    assert [row.split()[-1] for row in rows] == ["now", "2h00m"]


def test_a_quarantined_host_says_why_and_until_when(fake: FakeServer, cli: Cli) -> None:
    host = worker_pb2.Host(name="hosts/here", connected=True, cordon_reason="5 jobs failed here")
    host.quarantined_until.FromSeconds(4_000_000_000)
    fake.replies["GetHostRequest"] = host
    text = cli("hosts", "get", "here").stdout
    assert "here  QUARANTINED" in text
    assert "5 jobs failed here" in text
    assert "2096-" in text


def test_declare_gone_asks_first(fake: FakeServer, cli: Cli) -> None:
    refused = cli("hosts", "declare-gone", "here", "--reason", "burnt", input="n\n")
    assert refused.exit_code == Exit.DETACHED
    assert fake.requests("DeclareHostGoneRequest") == []
    assert cli("hosts", "declare-gone", "here", "--reason", "burnt", input="y\n").exit_code == 0
    assert cli("hosts", "declare-gone", "here", "--reason", "burnt", "--yes").exit_code == 0
    assert fake.requests("DeclareHostGoneRequest")[0].reason == "burnt"


def test_queues(fake: FakeServer, cli: Cli) -> None:
    assert "default" in cli("queues", "list").stdout
    assert cli("queues", "create", "gpu", "--weight", "2").exit_code == 0
    assert cli("queues", "update", "gpu", "--max-running", "0", "--etag", "e").exit_code == 0
    assert cli("queues", "update", "gpu").exit_code == 2
    assert cli("queues", "get", "gpu").exit_code == 0
    assert cli("queues", "delete", "gpu").exit_code == 0
    assert "3 RUNNING" in cli("queues", "usage", "gpu").stdout
    assert fake.requests("CreateQueueRequest")[0].queue.weight == 2
    update = fake.requests("UpdateQueueRequest")[0]
    assert list(update.update_mask.paths) == ["max_running"]
    assert update.queue.name == "projects/default/queues/gpu"


def test_queues_have_a_place_in_a_tree_and_limits(fake: FakeServer, cli: Cli) -> None:
    said = ["--parent", "lab", "--quota", "cpus=8,memory=64GiB,gpus=2,licence=3", "--no-borrowing"]
    assert cli("queues", "create", "gpu", *said).exit_code == 0
    queue = fake.requests("CreateQueueRequest")[0].queue
    assert (queue.parent, queue.quota.cpus, queue.quota.memory_bytes) == ("lab", 8, 64 << 30)
    assert (queue.quota.gpus, dict(queue.quota.named)) == (2, {"licence": 3})
    assert queue.no_borrowing
    assert cli("queues", "update", "gpu", "--quota", "none", "--borrowing").exit_code == 0
    update = fake.requests("UpdateQueueRequest")[0]
    assert list(update.update_mask.paths) == ["quota", "no_borrowing"]
    assert update.queue.quota.ByteSize() == 0
    for bad in ("cpus", "cpus=x", "gpus=1.5", "=3", "memory=much"):
        assert cli("queues", "create", "q", "--quota", bad).exit_code == 2


def test_queues_are_listed_as_a_tree(fake: FakeServer, cli: Cli) -> None:
    def queue(name: str, parent: str = "") -> queue_pb2.Queue:
        return queue_pb2.Queue(name=f"projects/default/queues/{name}", parent=parent, weight=1)

    made = [queue("a", "z"), queue("b", "a"), queue("z"), queue("lost", "gone")]
    made[0].warnings.append("quota (9 gpus) is above all known capacity (8 gpus)")
    fake.replies["ListQueuesRequest"] = queue_pb2.ListQueuesResponse(queues=made)
    result = cli("queues", "list")
    names = [line.partition("open")[0].rstrip() for line in result.stdout.splitlines()[1:]]
    assert names == ["lost", "z", "  a", "    b"]
    assert "a: quota (9 gpus) is above" in result.stderr


def test_usage_of_all_queues_is_drawn(fake: FakeServer, cli: Cli) -> None:
    line = cli("queues", "usage").stdout.splitlines()[1]
    assert line.split()[:2] == ["gpu", "open"]
    assert "##########.....|...." in line
    assert "50.0%  75.0%" in line
    assert len(line) <= 80
    assert "STARTED/MIN" in cli("queues", "usage", "-o", "wide").stdout
    assert "1m30s" in line


def test_queues_are_cordoned_with_a_reason(fake: FakeServer, cli: Cli) -> None:
    assert "cordoned" in cli("queues", "cordon", "gpu", "--drain", "--reason", "moving").stdout
    assert "open" in cli("queues", "uncordon", "gpu").stdout
    first, second = fake.requests("CordonQueueRequest")
    assert (first.cordoned, first.drain, first.reason) == (True, True, "moving")
    assert (second.cordoned, second.name) == (False, "projects/default/queues/gpu")


def test_events_are_chosen_by_the_server(fake: FakeServer, cli: Cli) -> None:
    assert cli("events", "-f", "--filter", "queue = gpu", "--reason", "retry").exit_code == 0
    request = fake.requests("WatchJobsRequest")[0]
    assert (request.filter, list(request.reasons)) == ("queue = gpu", ["retry"])
    assert cli("events", "train-1", "--filter", "queue = gpu").exit_code == 2
    assert cli("events", "--since", "yesterday").exit_code == 2
    assert cli("events", "--since", "1h", "--cursor", "0").exit_code == 2


def test_a_reader_is_told_of_events_that_were_passed_over(fake: FakeServer, cli: Cli) -> None:
    fake.oldest = 5
    assert "events were passed over" in cli("events", "-f", "--cursor", "1").stderr


def test_a_tokens_text_is_alone_on_stdout(fake: FakeServer, cli: Cli) -> None:
    result = cli("tokens", "create", "ann", "--role", "viewer", "--ttl", "30d")
    assert result.stdout == "the-secret\n"
    request = fake.requests("CreateTokenRequest")[0]
    assert (request.role, request.ttl.seconds) == (admin_pb2.ROLE_VIEWER, 30 * 86400)
    assert "USER" in cli("tokens", "list").stdout
    assert "revoked tokens/t1" in cli("tokens", "revoke", "t1").stderr


def test_a_token_for_predictions_names_its_deployment(fake: FakeServer, cli: Cli) -> None:
    arguments = ("tokens", "create", "app", "--role", "predict")
    assert cli(*arguments, "--deployment", "reader").stdout == "the-secret\n"
    assert cli(*arguments, "--deployment", "reader", "--project", "lab").exit_code == 0
    assert [request.deployment for request in fake.requests("CreateTokenRequest")] == [
        "projects/default/deployments/reader",
        "projects/lab/deployments/reader",
    ]
    assert cli(*arguments).exit_code == Exit.USAGE
    assert cli("tokens", "create", "ann", "--deployment", "reader").exit_code == Exit.USAGE


def test_login_tries_the_token_and_remembers_both(fake: FakeServer, cli: Cli, home: Path) -> None:
    nothing = {"HATOBA_ADDRESS": "", "HATOBA_TOKEN_FILE": ""}
    result = cli(
        "login", fake.address, "--token-file", "-", "--name", "lab", input="abc\n", env=nothing
    )
    assert result.exit_code == 0, result.output
    assert fake.metadata[-1]["authorization"] == "Bearer abc"
    assert (home / ".config/hatoba/tokens/lab").read_text() == "abc\n"
    assert "* " in cli("context", "list", env=nothing).stdout
    assert "context lab" in cli("context", "show", env=nothing).stdout
    fake.add_job()
    assert cli("jobs", "get", "train-1", env=nothing).exit_code == 0


def test_login_remembers_nothing_that_is_refused(fake: FakeServer, cli: Cli, home: Path) -> None:
    fake.refuse("GetServerStatusRequest", grpc.StatusCode.UNAUTHENTICATED, "unknown token")
    result = cli("login", fake.address, "--token-file", "-", input="abc\n")
    assert result.exit_code == 4
    assert not (home / ".config").exists()


def test_contexts_can_be_added_used_and_removed(cli: Cli) -> None:
    nothing = {"HATOBA_ADDRESS": ""}
    assert cli("context", "add", "lab", "127.0.0.1:1", "--project", "vision").exit_code == 0
    assert cli("context", "use", "lab").exit_code == 0
    assert "vision" in cli("context", "show", env=nothing).stdout
    assert cli("context", "use", "-").exit_code == 0
    assert "does not run" in cli("context", "show", env=nothing).stdout
    assert cli("context", "remove", "lab").exit_code == 0
    assert cli("context", "use", "lab").exit_code == 3


def test_the_server_may_be_named_before_or_after_the_command(fake: FakeServer, cli: Cli) -> None:
    nowhere = {"HATOBA_ADDRESS": "127.0.0.1:1"}
    assert cli("--address", fake.address, "jobs", "list", env=nowhere).exit_code == 0
    assert cli("jobs", "list", "--address", fake.address, env=nowhere).exit_code == 0
    assert cli("jobs", "list", "--project", "vision").exit_code == 0
    assert fake.requests("ListJobsRequest")[-1].project == "vision"


def test_short_names_are_looked_for_in_the_named_project(fake: FakeServer, cli: Cli) -> None:
    cli("--project", "vision", "jobs", "get", "train-1")
    assert fake.requests("GetJobRequest")[0].name == "projects/vision/jobs/train-1"


def test_a_server_that_is_not_there_is_unavailable(cli: Cli) -> None:
    result = cli("jobs", "list", env={"HATOBA_ADDRESS": "127.0.0.1:1"})
    assert result.exit_code == 5
    assert "127.0.0.1:1 does not answer" in result.stderr


def test_several_jobs_of_a_file_go_in_one_call(fake: FakeServer, cli: Cli) -> None:
    Path("jobs.yaml").write_text("name: a\ncommand: [x]\n---\nname: b\ncommand: [y]\n")
    result = cli("jobs", "submit", "-f", "jobs.yaml", "--no-code", "-p", "lr=0.5")
    assert result.stdout == "a-1\nb-2\n"
    items = fake.requests("SubmitJobsRequest")[0].items
    assert [item.spec.params["lr"].number_value for item in items] == [0.5, 0.5]
    assert all(item.request_id for item in items)


def test_a_refused_job_of_many_is_named(fake: FakeServer, cli: Cli) -> None:
    results = [job_pb2.SubmitJobsResult(name="projects/default/jobs/a-1")]
    results.append(job_pb2.SubmitJobsResult(code=3, message="queue 'z' does not exist"))
    fake.replies["SubmitJobsRequest"] = job_pb2.SubmitJobsResponse(results=results)
    text = "name: a\ncommand: [x]\n---\nname: b\ncommand: [y]\n"
    result = cli("jobs", "submit", "-f", "-", "--no-code", input=text)
    assert (result.exit_code, result.stdout) == (1, "a-1\n")
    assert "stdin: b: queue 'z' does not exist" in result.stderr


def test_check_submits_nothing(fake: FakeServer, cli: Cli) -> None:
    result = cli("jobs", "submit", "-f", "-", "--check", input="name: a\ncommand: [x]\n")
    assert result.exit_code == 0
    assert [request.validate_only for request in fake.requests("SubmitJobRequest")] == [True]


def test_follow_is_for_one_job(fake: FakeServer, cli: Cli) -> None:
    fake.run_through(out=b"hi\n")
    one = "name: train\ncommand: [x]\n"
    assert cli("jobs", "submit", "-f", "-", "--no-code", "--follow", input=one).stdout == "hi\n"
    both = cli("jobs", "submit", "-f", "-", "--no-code", "--follow", input=one + "---\n" + one)
    assert both.exit_code == 2


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["jbos"], "did you mean `hatoba jobs`?"),
        (["jobs", "lst"], "did you mean `hatoba jobs list`?"),
        (["jobs", "zzzz"], "there are: cancel, compare"),
        (["run"], "say which command"),
        (["run", "--memory", "12 GBs", "--", "x"], "'12 GBs' is not an amount of memory"),
        (["run", "--timeout", "600", "--", "x"], "'600' is not a duration"),
        (["run", "--array", "1-5", "--", "x"], "indices begin at 0, write 0-4"),
        (["run", "--array", "9", "--", "x"], "FIRST-LAST"),
        (["run", "-p", "lr", "--", "x"], "KEY=VALUE"),
        (["run", "-p", "a=1", "-p", "a=2", "--", "x"], "says 'a' twice"),
        (["run", "--max-parallel", "2", "--", "x"], "add --array"),
        (["run", "--cpus", "-1", "--", "x"], "-1"),
        (["run", "--cpus", "nan", "--", "x"], "nan"),
        (["run", "--requirements", "nothing.txt", "--", "x"], "nothing.txt"),
        (["run", "--mem", "4Gi", "--", "x"], "--memory"),
        (["jobs", "list", "-o", "xml"], "xml"),
        (["jobs", "submit", "-f", "nothing.yaml"], "nothing.yaml cannot be read"),
        (["jobs", "submit", "-f", "-"], "stdin:1:1"),
        (["--address", "nowhere", "jobs", "list"], "'nowhere' is not an address"),
        (["--token-file", "nothing", "jobs", "list"], "token file nothing cannot be read"),
        (["completion", "tcsh"], "tcsh"),
    ],
)
def test_what_cannot_be_understood_is_a_usage_error(
    fake: FakeServer, cli: Cli, arguments: list[str], part: str
) -> None:
    result = cli(*arguments, input="")
    assert result.exit_code == 2, result.output
    assert part in result.stderr
    assert "Traceback" not in result.output
    assert fake.requests("SubmitJobRequest") == []


def test_every_wrong_field_is_told(fake: FakeServer, cli: Cli) -> None:
    from google.rpc import error_details_pb2, status_pb2

    bad = error_details_pb2.BadRequest()
    bad.field_violations.add(field="spec.name", description="must match a pattern, got 'A'")
    bad.field_violations.add(field="spec.resources.cpus", description="must be at most 4096")
    status = status_pb2.Status(code=3, message="spec.name: must match (and 1 more)")
    status.details.add().Pack(bad)
    refusal = status.SerializeToString()
    fake.refuse(
        "SubmitJobRequest", grpc.StatusCode.INVALID_ARGUMENT, status.message, details=refusal
    )
    result = cli("run", "--no-code", "--", "true")
    assert result.exit_code == 1
    assert "  spec.name: must match a pattern, got 'A'" in result.stderr
    assert "  spec.resources.cpus: must be at most 4096" in result.stderr
    fake.refuse(
        "SubmitJobRequest", grpc.StatusCode.INVALID_ARGUMENT, status.message, details=refusal
    )
    text = "name: A\nresources: {cpus: 5000}\ncommand: [x]\n"
    result = cli("jobs", "submit", "-f", "-", "--no-code", input=text)
    assert result.exit_code == 2
    assert "stdin:1:7: spec.name" in result.stderr
    assert "stdin:2:19: spec.resources.cpus" in result.stderr


def test_a_fault_of_ours_is_a_sentence_and_a_traceback_only_on_request(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("the impossible")

    monkeypatch.setattr("hatoba.aio.AsyncClient.jobs", broken)
    result = cli("jobs", "list")
    assert result.exit_code == 1
    assert "this is a fault of hatoba: RuntimeError: the impossible" in result.stderr
    assert "Traceback" not in result.output
    assert "Traceback" in cli("jobs", "list", env={"HATOBA_DEBUG": "1"}).stderr


@pytest.mark.skipif(shutil.which("script") is None, reason="needs `script` for a terminal")
def test_no_color_is_heeded_on_a_terminal(fake: FakeServer, tmp_path: Path) -> None:
    fake.run_through(state="FAILED")
    (tmp_path / "token").write_text("t")
    command = f"{sys.executable} -m hatoba --address {fake.address} --token-file {tmp_path}/token"
    for arguments, code in (
        ("jobs list", 0),
        ("jobs get none-1", 3),
    ):
        # `script` gives the command a terminal.
        inner = ["script", "-qec", f"{command} {arguments}", "/dev/null"]
        seen = {}
        for name, extra in (("plain", {"NO_COLOR": "1"}), ("coloured", {})):
            env = {**os.environ, "TERM": "xterm-256color", **extra}
            done = subprocess.run(inner, env=env, capture_output=True, stdin=subprocess.DEVNULL)
            assert done.returncode == code, done.stdout
            seen[name] = re.search(rb"\x1b\[(?:1;)?3[0-7]m", done.stdout) is not None
        assert seen == {"plain": False, "coloured": True}


def test_help_imports_neither_grpc_nor_protobuf_nor_rich() -> None:
    script = (
        "import sys; from hatoba.cli.main import main; main(['--help']);"
        "heavy = {'grpc', 'google.protobuf', 'yaml', 'rich', 'asyncio', 'hatoba_scheduler'};"
        "print('imported:', sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert "imported: []" in done.stdout
    assert "Run a command as a job and follow it." in done.stdout


def brought(name: str, value: str) -> dict[str, EntryPoint]:
    return {name: EntryPoint(name, value, "hatoba.cli")}


def test_a_missing_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        root_module, "_brought", lambda: brought("server", "hatoba_nowhere.cli:server")
    )
    for name in ("server", "worker"):
        assert main([name, "start", "--whatever"]) == 1
        assert f"pip install 'hatoba[{name}]'" in capsys.readouterr().err


def test_a_third_partys_command_is_found_and_a_broken_one_hurts_nobody(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    points = brought("hello", f"{__name__}:nothing") | brought("odd", "hatoba.units:parse_memory")
    points |= brought("done", "hatoba.cli.completion:completion")
    monkeypatch.setattr(root_module, "_brought", lambda: points)
    assert main(["--help"]) == 0
    assert "hello" in capsys.readouterr().out
    assert main(["hello"]) == 1
    assert "cannot be loaded" in capsys.readouterr().err
    assert main(["odd"]) == 1
    assert "is not a click command" in capsys.readouterr().err
    assert main(["done", "bash"]) == 0


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_printed(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    assert "_HATOBA_COMPLETE" in capsys.readouterr().out


def test_every_command_has_help_and_its_options_too() -> None:
    def walk(command: click.Command, context: click.Context) -> None:
        assert command.help, context.command_path
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                assert parameter.help, f"{context.command_path} {parameter.name}"
        if isinstance(command, click.Group):
            for name in command.list_commands(context):
                below = command.get_command(context, name)
                assert below is not None
                walk(below, click.Context(below, info_name=name, parent=context))

    for name in root_module.COMMANDS:
        found = root_module.root.get_command(click.Context(root_module.root), name)
        assert found is not None
        walk(found, click.Context(found, info_name=name))


def test_the_reference_is_what_the_commands_say() -> None:
    script = ROOT / "tools" / "docs" / "cli_reference.py"
    done = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


FAKE_SERVER = """
import json, os, pathlib, sys, threading
data = pathlib.Path(sys.argv[sys.argv.index("--data") + 1])
(data / "admin.token").write_text("t")
words = {"grpc": "ADDRESS", "pid": os.getpid(), "token_file": str(data / "admin.token")}
(data / "server.tmp").write_text(json.dumps(words))
(data / "server.tmp").rename(data / "server.json")
sys.stdin.close()
threading.Event().wait(20)
"""


@pytest.fixture
def installed_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Puts a program in the place of `python -m hatoba server start`."""

    def install(program: str) -> None:
        package = tmp_path / "site" / "hatoba"
        package.mkdir(parents=True)
        (package / "__init__.py").touch()
        (package / "__main__.py").write_text(program)
        monkeypatch.setenv("PYTHONPATH", str(package.parent))
        monkeypatch.setattr(embedded, "RIVAL_SECONDS", 0.05)

    return install


def test_the_embedded_server_is_started_once_and_said_so(
    fake: FakeServer, cli: Cli, tmp_path: Path, installed_server: Callable[[str], None]
) -> None:
    installed_server(FAKE_SERVER.replace("ADDRESS", fake.address))
    env = {"HATOBA_ADDRESS": "", "HATOBA_TOKEN_FILE": "", "HATOBA_DATA": str(tmp_path / "data")}
    try:
        first = cli("jobs", "list", env=env)
        assert first.exit_code == 0, first.output
        assert first.stderr.count("started the embedded server") == 1
        assert "started" not in cli("jobs", "list", env=env).stderr
    finally:
        subprocess.run(
            ["kill", str(json.loads((tmp_path / "data/server.json").read_text())["pid"])]
        )


def test_an_embedded_server_that_fails_shows_the_end_of_its_log(
    tmp_path: Path, installed_server: Callable[[str], None]
) -> None:
    installed_server("raise SystemExit('the port is on fire')")
    with pytest.raises(Unavailable, match="the port is on fire"):
        embedded.start_embedded(tmp_path / "data", lambda _: None)


def test_without_the_extra_the_remedy_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "find_spec", lambda _: None)
    with pytest.raises(Unavailable) as raised:
        embedded.start_embedded(tmp_path, lambda _: None)
    assert "hatoba[server,worker]" in raised.value.remedy
    assert Server("a:1").token == ""
