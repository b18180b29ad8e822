"""The conformance kit: everything that Hatoba relies on."""

from __future__ import annotations

from pathlib import Path

import pytest
from hatoba_backend_hello.backend import HelloType
from hatoba_backend_hello.folders import Folder

from hatoba_plugins.conformance import FaultInjector, JobConformance, JobHarness, ShellHarness


class HelloFaults(FaultInjector):
    """What can be done to a folder from outside."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    async def conflict(self, name: str) -> None:
        owner = {"cluster_id": "another", "job_uid": "", "index": 0, "number": 1}
        Folder(self._directory / name).launch({"command": ["true"], "env": {}, "owner": owner})


class TestHello(JobConformance):
    @pytest.fixture
    def harness(self, tmp_path: Path) -> JobHarness:
        directory = tmp_path / "attempts"
        options: dict[str, object] = {"directory": str(directory)}
        faults = HelloFaults(directory)
        return ShellHarness(HelloType(), options, marks=tmp_path / "marks", faults=faults)
