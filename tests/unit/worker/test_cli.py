from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from hatoba_worker import main
from hatoba_worker.cli import worker
from hatoba_worker.config import Config


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[Config]:
    """What would have been run."""
    configs: list[Config] = []

    def run(config: Config) -> int:
        configs.append(config)
        return 0

    monkeypatch.setattr(main, "run", run)
    return configs


def test_flags_are_kept_for_the_next_start(tmp_path: Path, ran: list[Config]) -> None:
    token = tmp_path / "token"
    token.write_text("t\n")
    data = tmp_path / "host"
    arguments = ["start", "--server", "127.0.0.1:7", "--data", str(data)]
    arguments += ["--token-file", str(token), "--cpus", "2", "--memory", "4Gi", "--gpus", "1"]
    arguments += ["--label", "zone=a", "--label", "disk=ssd", "--name", "box"]
    arguments += ["--resource", "license=2", "--resource", "fpga.v2=1", "--address", "10.0.0.7"]
    result = CliRunner().invoke(worker, arguments)
    assert result.exit_code == 0, result.output
    (config,) = ran
    assert (config.server, config.cpus, config.memory_bytes) == ("127.0.0.1:7", 2.0, 4 << 30)
    assert (config.gpus, config.name, config.slots) == (1, "box", -1)
    assert config.labels == {"zone": "a", "disk": "ssd"}
    assert config.named == {"license": 2, "fpga.v2": 1}
    assert config.reached_at == "10.0.0.7"
    assert json.loads((data / "worker.json").read_text())["server"] == "127.0.0.1:7"


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        (["--server", "nowhere"], "is not an address"),
        (["--memory", "12 GBs"], "12 GBs"),
        (["--label", "zone"], "KEY=VALUE"),
        (["--label", "hatoba/host=big"], "not given by people"),
        (["--resource", "license"], "NAME=N"),
        (["--resource", "License=2"], "NAME=N"),
        (["--resource", "license=0"], "1 to 1,000,000"),
        (["--cpus", "-1"], "--cpus"),
        (["--gpus", "some"], "--gpus"),
        (["--token-file", "/no/such/file"], "/no/such/file"),
    ],
)
def test_wrong_flags_are_named(
    tmp_path: Path, ran: list[Config], wrong: list[str], word: str
) -> None:
    token = tmp_path / "token"
    token.write_text("t\n")
    arguments = ["start", "--server", "127.0.0.1:7", "--data", str(tmp_path / "host")]
    result = CliRunner().invoke(worker, [*arguments, "--token-file", str(token), *wrong])
    assert result.exit_code == 2
    assert word in result.output
    assert ran == []


def test_the_group_is_found_without_importing_grpc() -> None:
    code = "import sys, hatoba_worker.cli; sys.exit('grpc' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
