"""`hatoba agent` as it is typed: light to ask for help, and clear about what is missing."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from hatoba.cli.root import EXTRAS, root
from hatoba_worker.agent import enrolling, main
from hatoba_worker.agent.cli import agent
from hatoba_worker.agent.clock import FloorClock
from hatoba_worker.agent.enrolling import NotMade, Wish
from hatoba_worker.agent.settings import RegistryAccess, Settings

TOKEN = "hb_0123456789ab_secret"
CLOUDS = {"kubernetes_asyncio", "boto3", "botocore", "aioboto3", "aiobotocore", "obstore"}
DATABASES = {"psycopg", "psycopg_pool"}
HEAVY = {"aiohttp", "opentelemetry", "prometheus_client"}
OTHERS = {"hatoba_scheduler", "hatoba_plugins"}


def typed(*arguments: str) -> Result:
    return CliRunner().invoke(agent, arguments)


@pytest.fixture
def wishes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Path, Wish]]:
    """What would have been asked for."""
    asked: list[tuple[Path, Wish]] = []

    async def enroll(data: Path, wish: Wish, _clock: FloorClock) -> Settings:
        asked.append((data, wish))
        if wish.name == "taken":
            raise NotMade("there is another device of this name")
        return Settings("cam-1", "control.example:7443", "control.example")

    monkeypatch.setattr(enrolling, "enroll", enroll)
    return asked


def test_flags_say_what_device_it_becomes(tmp_path: Path, wishes: list[tuple[Path, Wish]]) -> None:
    data, authority = tmp_path / "device", tmp_path / "ca.pem"
    authority.write_text("PEM")
    flags = ["--server", "h:7070", "--token", TOKEN, "--data", str(data), "--name", "cam-1"]
    flags += ["--label", "site=tokyo", "--label", "ring=a", "--ca-file", str(authority)]
    flags += ["--engine", "none"]
    result = typed("enroll", *flags, "--up-per-day", "20MB", "--down-per-day", "1Gi")
    assert result.exit_code == 0, result.output
    assert "devices/cam-1; its server is control.example:7443" in result.output
    ((where, wish),) = wishes
    assert where == data
    assert (wish.server, wish.token.token, wish.name) == ("h:7070", TOKEN, "cam-1")
    assert (wish.labels, wish.authority) == ({"site": "tokyo", "ring": "a"}, "PEM")
    assert (wish.up_per_day, wish.down_per_day) == (20_000_000, 1 << 30)
    assert wish.engine == "none"


def test_how_a_registry_is_reached_is_said_and_taken_back(tmp_path: Path) -> None:
    where = ("--data", str(tmp_path))
    assert "hatoba agent enroll" in typed("registry", "r.example", *where).output
    made = Settings("cam-1", "control.example:7443", "control.example")
    made.save(tmp_path)
    login = tmp_path / "login"
    flags = ("--at", "10.0.0.5:5000", "--plain", "--login-file", str(login))
    assert typed("registry", "r.example", *flags, *where).exit_code == 0
    access = RegistryAccess("10.0.0.5:5000", "", str(login), plain=True)
    assert Settings.load(tmp_path) == made.reaching("r.example", access)
    assert typed("registry", "r.example", "--forget", *where).exit_code == 0
    assert Settings.load(tmp_path) == made


def test_what_its_link_may_carry_is_said_and_shown(tmp_path: Path) -> None:
    where = ("--data", str(tmp_path))
    assert "hatoba agent enroll" in typed("link", *where).output
    made = Settings("cam-1", "control.example:7443", "control.example", up_per_day=1 << 20)
    made.save(tmp_path)
    assert typed("link", *where).output == "up per day: 1 MiB\ndown per day: none\nmetered: off\n"
    flags = ("--up-per-day", "none", "--down-per-day", "200MB", "--metered", "on")
    done = typed("link", *flags, *where)
    assert done.output == "up per day: none\ndown per day: 191 MiB\nmetered: on\n"
    wanted = replace(made, up_per_day=0, down_per_day=200_000_000, metered=True)
    assert Settings.load(tmp_path) == wanted
    assert typed("link", "--metered", "off", *where).exit_code == 0
    assert Settings.load(tmp_path) == replace(wanted, metered=False)
    assert typed("link", "--up-per-day", "much", *where).exit_code == 2


def test_a_token_may_be_in_a_file(tmp_path: Path, wishes: list[tuple[Path, Wish]]) -> None:
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    where = ["--server", "h:1", "--data", str(tmp_path / "device")]
    result = typed("enroll", *where, "--token-file", str(tmp_path / "token"))
    assert result.exit_code == 0, result.output
    assert wishes[0][1].token.identity == "0123456789ab"


@pytest.mark.parametrize(
    ("wrong", "code", "word"),
    [
        ([], 2, "either --token or --token-file"),
        (["--token", TOKEN, "--token-file", "x"], 2, "either --token or --token-file"),
        (["--token", "secret"], 1, "no device token"),
        (["--token-file", "/no/such/file"], 1, "/no/such/file"),
        (["--token", TOKEN, "--name", "Cam 1"], 2, "no device's name"),
        (["--token", TOKEN, "--label", "site"], 2, "KEY=VALUE"),
        (["--token", TOKEN, "--label", "-x=1"], 2, "KEY=VALUE"),
        (["--token", TOKEN, "--up-per-day", "lots"], 2, "lots"),
        (["--token", TOKEN, "--name", "taken"], 1, "another device of this name"),
    ],
)
def test_wrong_flags_are_named(
    tmp_path: Path, wishes: list[tuple[Path, Wish]], wrong: Sequence[str], code: int, word: str
) -> None:
    result = typed("enroll", "--server", "h:1", "--data", str(tmp_path / "device"), *wrong)
    assert result.exit_code == code
    assert word in result.output


def test_what_is_no_device_is_not_run(tmp_path: Path) -> None:
    result = typed("run", "--data", str(tmp_path))
    assert result.exit_code == 78
    assert "hatoba agent enroll" in result.output


@pytest.mark.parametrize("name", ["agent.json", "journal"])
def test_who_has_anything_of_a_device_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (tmp_path / name).touch()
    ran: list[Path] = []

    def run(data: Path) -> int:
        ran.append(data)
        return 0

    monkeypatch.setattr(main, "main", run)
    assert typed("run", "--data", str(tmp_path)).exit_code == 0
    assert ran == [tmp_path]


def wrote(data: Path, **link: Any) -> None:
    slot = {"deployment": "projects/p/deployments/d", "revision": 2, "running": 1}
    slot |= {"phase": "SLOT_PHASE_BAD"}
    told = {"link": {"connected": True, "problem": "", **link}, "report": {"slots": [slot]}}
    (data / "status.json").write_text(json.dumps(told))


def test_status_shows_what_the_agent_wrote(tmp_path: Path) -> None:
    assert typed("status", "--data", str(tmp_path)).exit_code == 1
    wrote(tmp_path, connected=False, problem="no way")
    result = typed("status", "--data", str(tmp_path))
    assert result.exit_code == 0
    assert "the agent does not run" in result.output
    assert "not connected: no way" in result.output
    assert "projects/p/deployments/d  BAD  2 is wanted, 1 runs  -" in result.output
    whole = typed("status", "--data", str(tmp_path), "--json")
    assert json.loads(whole.output)["link"]["problem"] == "no way"


def test_a_link_that_was_there_is_not_said_to_be(tmp_path: Path) -> None:
    wrote(tmp_path)
    assert "\nwas connected\n" in typed("status", "--data", str(tmp_path)).output


def test_a_damaged_status_is_none(tmp_path: Path) -> None:
    (tmp_path / "status.json").write_text('{"link": {')
    assert typed("status", "--data", str(tmp_path)).exit_code == 1


def test_diagnose_says_all_and_ends_badly_when_something_is_bad(tmp_path: Path) -> None:
    assert typed("diagnose", "--data", str(tmp_path / "none")).exit_code == 1
    result = typed("diagnose", "--data", str(tmp_path))
    assert result.exit_code == 1
    topics = {line[5:15].strip() for line in result.output.splitlines() if line[0] != " "}
    assert topics >= {"agent", "identity", "clock", "link", "journal", "disk", "memory"}
    assert "-> `hatoba agent enroll`" in result.output


def names_of(code: str) -> set[str]:
    script = f"import sys\n{code}\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


def test_help_imports_no_grpc() -> None:
    found = names_of("import hatoba_worker.agent.cli")
    assert not {"grpc", "google", "cryptography", "structlog"} & found


def test_the_agent_imports_nothing_of_clouds_and_databases() -> None:
    found = names_of("import hatoba_worker.agent.main, hatoba_worker.agent.enrolling")
    assert {"grpc", "cryptography"} <= found
    assert not found & (CLOUDS | DATABASES | HEAVY | OTHERS)


def test_who_runs_has_no_memory_for_what_makes_keys() -> None:
    names = ("main", "outside", "link", "mqtt_link", "bucket", "diagnosing")
    found = names_of(f"import {', '.join(f'hatoba_worker.agent.{name}' for name in names)}")
    assert "cryptography" not in found


def test_who_dials_a_server_has_no_memory_for_what_speaks_to_aws_iot() -> None:
    assert "paho" not in names_of("import hatoba_worker.agent.main, hatoba_worker.agent.outside")
    found = names_of("import hatoba_worker.agent.mqtt_link, hatoba_worker.agent.bucket")
    assert "paho" in found
    assert not found & (CLOUDS | DATABASES | HEAVY | OTHERS)


@pytest.mark.parametrize(
    ("flags", "code", "word"),
    [
        ([], 2, "--claim and --template"),
        (["--claim", "x"], 2, "--claim and --template"),
        (["--certificate", "/no/such/file"], 1, "/no/such/file"),
        (["--name", "Cam 1"], 2, "no device's name"),
    ],
)
def test_what_makes_a_thing_is_named(
    tmp_path: Path, flags: Sequence[str], code: int, word: str
) -> None:
    result = typed("enroll-aws-iot", "a.example", "--data", str(tmp_path / "device"), *flags)
    assert result.exit_code == code
    assert word in result.output


def test_it_is_a_command_of_hatoba() -> None:
    assert EXTRAS["agent"][0] == "edge"
    result = CliRunner().invoke(root, ["agent", "--help"])
    assert result.exit_code == 0
    assert "enroll" in result.output
