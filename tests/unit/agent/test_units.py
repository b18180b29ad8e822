"""The units of systemd say what the programs understand."""

from __future__ import annotations

import configparser
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest

from hatoba_worker.agent.cli import NOT_ENROLLED, agent
from hatoba_worker.agent.watchdog import LOOK_EVERY, SILENT_MOST

UNITS = Path(__file__).parents[3] / "deploy" / "systemd"
AGENT, KEEPER = "hatoba-agent.service", "hatoba-agent-keeper.service"


def unit(name: str) -> configparser.ConfigParser:
    found = configparser.ConfigParser(interpolation=None)
    found.optionxform = str  # type: ignore[assignment,method-assign]  # names are as systemd has them
    found.read_string((UNITS / name).read_text())
    return found


def test_the_agents_command_is_one() -> None:
    program, group, name, *flags = shlex.split(unit(AGENT)["Service"]["ExecStart"])
    assert (Path(program).name, group) == ("hatoba", "agent")
    command = agent.commands[name]
    known = {flag for one in command.params for flag in one.opts}
    assert {flag for flag in flags if flag.startswith("--")} <= known
    assert isinstance(command, click.Command)


def test_keeper_and_agent_have_one_directory() -> None:
    commands = [shlex.split(unit(name)["Service"]["ExecStart"]) for name in (AGENT, KEEPER)]
    first, second = (words[words.index("--data") + 1] for words in commands)
    assert first == second
    assert unit(AGENT)["Service"]["StateDirectory"] == unit(KEEPER)["Service"]["StateDirectory"]
    assert KEEPER in unit(AGENT)["Unit"]["Wants"]
    assert commands[1][1:3] == ["-m", "hatoba_worker.keeper"]


@pytest.mark.parametrize("name", [AGENT, KEEPER])
def test_no_unit_waits_for_a_network_or_gives_up(name: str) -> None:
    found = unit(name)
    assert "network" not in found["Unit"]["After"]
    assert found["Unit"]["StartLimitIntervalSec"] == "0"
    assert found["Service"]["Restart"] == "always"


def test_systemd_waits_longer_than_the_agent_itself() -> None:
    service = unit(AGENT)["Service"]
    assert service["Type"] == "notify"
    assert int(service["WatchdogSec"]) > SILENT_MOST > 2 * LOOK_EVERY
    assert service["RestartPreventExitStatus"] == str(NOT_ENROLLED)
    assert service["KillMode"] == "process"


@pytest.mark.parametrize("name", [AGENT, KEEPER])
def test_nothing_but_the_data_directory_can_be_written(name: str) -> None:
    service = unit(name)["Service"]
    assert service["ProtectSystem"] == "strict"
    assert service["ReadWritePaths"] == f"/var/lib/{service['StateDirectory']}"
    assert (service["NoNewPrivileges"], service["PrivateTmp"]) == ("yes", "yes")


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze here")
@pytest.mark.parametrize("name", [AGENT, KEEPER])
def test_systemd_understands_them(name: str, tmp_path: Path) -> None:
    for each in (AGENT, KEEPER):
        text = (UNITS / each).read_text()
        # It asks for the programs, which are not installed where tests run.
        here = re.sub(r"(?m)^ExecStart=\S+", f"ExecStart={sys.executable}", text)
        (tmp_path / each).write_text(here)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(tmp_path / name)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "SYSTEMD_UNIT_PATH": f"{tmp_path}:"},
    )
    told = [line for line in done.stderr.splitlines() if "hatoba-agent" in line]
    assert (done.returncode, told) == (0, []), done.stderr
