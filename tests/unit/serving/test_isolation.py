"""It runs in the model's own environment, which has nothing of ours but what is put on its path."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import sys
sys.path.insert(0, {library!r})
import hatoba_worker.serving.{module}
names = {{name.partition(".")[0] for name in sys.modules}} - sys.stdlib_module_names
print(sorted(names - {{"__main__"}}))
"""


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """A directory with links to the three packages and nothing else."""
    directory = tmp_path / "lib"
    directory.mkdir()
    for package in ("hatoba", "hatoba_worker", "h11"):
        spec = importlib.util.find_spec(package)
        assert spec is not None
        assert spec.origin is not None
        (directory / package).symlink_to(Path(spec.origin).parent)
    return directory


def python(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """An interpreter without site-packages."""
    command = [sys.executable, "-I", "-S", "-c", script, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("module", "names"),
    [
        ("server", ["h11", "hatoba", "hatoba_worker"]),
        ("main", ["hatoba_worker"]),
        ("check", ["hatoba", "hatoba_worker"]),
        ("batch", ["hatoba", "hatoba_worker"]),
    ],
)
def test_only_what_is_needed_is_imported(library: Path, module: str, names: list[str]) -> None:
    done = python(SCRIPT.format(library=str(library), module=module))
    assert done.stdout.strip() == str(names), done.stderr


def test_a_model_is_checked_without_site_packages(library: Path, tmp_path: Path) -> None:
    (tmp_path / "serve.py").write_text(
        "class Adds:\n"
        "    def __init__(self, model_dir): self.term = int((model_dir / 'term').read_text())\n"
        "    def predict(self, inputs): return inputs + self.term\n"
    )
    (tmp_path / "term").write_text("2")
    (tmp_path / "example.json").write_text("1")
    script = (
        f"import sys; sys.path.insert(0, {str(library)!r});"
        "from hatoba_worker.serving.main import main; sys.exit(main(sys.argv[1:]))"
    )
    where = ("--model", str(tmp_path), "--code", str(tmp_path), "--handler", "serve:Adds")
    example, report = tmp_path / "example.json", tmp_path / "deep" / "report.json"
    done = python(script, "check", *where, "--example", str(example), "--report", str(report))
    assert done.returncode == 0, done.stderr
    found = json.loads(report.read_text())
    assert found.pop("seconds") >= 0
    assert found == {
        "ok": True,
        "signature": {
            "input_type": "application/json",
            "output_type": "application/json",
            "input": {"type": "integer"},
            "output": {"type": "integer"},
        },
    }
