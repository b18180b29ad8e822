"""The caller's directories on their way to the server and back."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from click.testing import Result

if TYPE_CHECKING:
    from tests.unit.client.conftest import FakeServer

Cli = Callable[..., Result]


def test_run_brings_the_directory_and_inputs_along(
    fake: FakeServer, cli: Cli, tmp_path: Path
) -> None:
    Path("train.py").write_text("print(1)\n")
    Path(".gitignore").write_text("*.bin\n")
    Path("big.bin").write_text("left behind")
    data = tmp_path / "faces"
    data.mkdir()
    (data / "a.txt").write_text("face")
    result = cli("run", "-d", "--input", f"faces={data}", "--", "python", "train.py")
    assert result.exit_code == 0, result.output
    spec = fake.requests("SubmitJobRequest")[0].spec
    code, inputs = fake.requests("CreateManifestRequest")
    assert [entry.path for entry in code.manifest.entries] == [".gitignore", "train.py"]
    assert [entry.path for entry in inputs.manifest.entries] == ["a.txt"]
    assert spec.code.digest.startswith("sha256:")
    assert (spec.inputs[0].name, spec.inputs[0].manifest.files) == ("faces", 1)
    assert set(fake.chunks.values()) >= {b"print(1)\n", b"face"}


def test_a_git_working_copy_is_named_as_the_source(fake: FakeServer, cli: Cli) -> None:
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
    Path("train.py").write_text("print(1)\n")
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "first"], check=True)
    Path("train.py").write_text("print(2)\n")
    cli("run", "-d", "--", "python", "train.py")
    source = fake.requests("SubmitJobRequest")[0].spec.source
    assert len(source["commit"]) == 40
    assert source["dirty"] == "true"


def test_an_input_that_is_no_directory_is_refused_before_anything_is_submitted(
    fake: FakeServer, cli: Cli
) -> None:
    result = cli("run", "-d", "--no-code", "--input", "faces=nowhere", "--", "true")
    assert result.exit_code == 2
    assert "no directory nowhere" in result.stderr
    assert fake.requests("SubmitJobRequest") == []


def test_a_job_file_brings_its_own_directory(fake: FakeServer, cli: Cli, tmp_path: Path) -> None:
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "job.yaml").write_text("command: [python, train.py]\n")
    (folder / "train.py").write_text("print(3)\n")
    assert cli("jobs", "submit", "-f", str(folder / "job.yaml")).stdout == "train-1\n"
    manifest = fake.requests("CreateManifestRequest")[0].manifest
    assert [entry.path for entry in manifest.entries] == ["job.yaml", "train.py"]


def test_packing_is_part_of_the_jobs_trace(fake: FakeServer, cli: Cli) -> None:
    cli("run", "-d", "--", "true")
    spans = {span.name: span for span in fake.pushed}
    root = spans["hatoba submit"]
    assert root.parent_span_id == ""
    assert {span.trace_id for span in spans.values()} == {root.trace_id}
    call = spans["hatoba.v1.JobService/SubmitJob"]
    assert (call.kind, call.parent_span_id) == ("client", root.span_id)
    assert spans["pack the code"].parent_span_id == root.span_id
    sent = [data["traceparent"] for data in fake.metadata if "traceparent" in data]
    assert f"00-{root.trace_id}-{call.span_id}-01" in sent
