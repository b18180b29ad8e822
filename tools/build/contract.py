"""The contract's pipeline: `contract.py generate | check | landed`.

`generate` lints, compares with the landed contract, and writes stubs and the job file's schema
where they are imported from. `check` does the same into a scratch directory and fails where the
committed files differ. `landed` records today's contract as the one to stay compatible with.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import job_schema

ROOT = Path(__file__).resolve().parents[2]
BUF = ROOT / ".venv-gen" / "bin" / "buf"
LANDED = ROOT / "proto" / "landed.binpb"
CLIENT = ROOT / "clients" / "python"
# Where generated files stand in the client.
STUBS = Path("hatoba/v1")
VENDORED = Path("hatoba/_vendor/buf")
SCHEMA = Path("hatoba/schema/job.json")
TOP_LEVEL_BUF = re.compile(r"^(from |import )buf\.", re.MULTILINE)


def main() -> int:
    """Run one step; the exit status is the first failing program's, or 1 where files differ."""
    steps = {"generate": generate, "check": check, "landed": landed}
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("step", choices=steps)
    try:
        return steps[parser.parse_args().step]()
    except subprocess.CalledProcessError as failed:
        print(f"failed: {' '.join(map(str, failed.cmd))}", file=sys.stderr)
        return failed.returncode


def generate() -> int:
    """Lint, then write stubs and schema into the client."""
    lint()
    with tempfile.TemporaryDirectory() as scratch:
        tree = build(Path(scratch))
        for stale in committed() - set(tree):
            (CLIENT / stale).unlink()
        for path, text in tree.items():
            write_changed(CLIENT / path, text)
    print(f"{len(tree)} generated files in {CLIENT.relative_to(ROOT)}")
    return 0


def check() -> int:
    """Lint, then compare what would be generated with what is there."""
    lint()
    with tempfile.TemporaryDirectory() as scratch:
        tree = build(Path(scratch))
    there = {path: (CLIENT / path).read_text() for path in committed()}
    wrong = [path for path in there.keys() | tree.keys() if there.get(path) != tree.get(path)]
    for path in sorted(wrong):
        print(f"differs from the contract: {(CLIENT / path).relative_to(ROOT)}", file=sys.stderr)
    if wrong:
        print("run `make proto` and commit what it wrote", file=sys.stderr)
        return 1
    print(f"{len(tree)} generated files match the contract")
    return 0


def landed() -> int:
    """Record the contract without its comments, as the next `buf breaking` compares with it."""
    image(LANDED)
    print(f"wrote {LANDED.relative_to(ROOT)}")
    return 0


def lint() -> None:
    """The contract's form, and that it breaks nobody who speaks the landed one."""
    buf("lint")
    buf("format", "--diff", "--exit-code", "proto", "--path", "proto/hatoba")
    if LANDED.exists():
        with tempfile.TemporaryDirectory() as scratch:
            now = Path(scratch) / "now.binpb"
            image(now)
            buf("breaking", str(now), "--against", str(LANDED))


def image(path: Path) -> None:
    """Write the whole contract to `path` as one image: a workspace is one image per module."""
    buf("build", "--exclude-source-info", "-o", str(path))


def build(scratch: Path) -> dict[Path, str]:
    """Everything generated, by its path in the client."""
    buf("generate", "-o", str(scratch))
    made = scratch / "build" / "proto"
    tree = dict(stubs(made))
    schema = job_file_schema(scratch)
    if schema is not None:
        tree[SCHEMA] = schema
    return tree


def stubs(made: Path) -> Iterator[tuple[Path, str]]:
    """The generated modules, all under `hatoba`: the wheel has no top-level `buf` package."""
    for path in sorted(made.rglob("*_pb2*")):
        if path.name.endswith("_pb2_grpc.pyi") and not path.with_suffix(".py").exists():
            continue
        name = path.relative_to(made)
        text = TOP_LEVEL_BUF.sub(r"\1hatoba._vendor.buf.", path.read_text())
        yield (Path("hatoba/_vendor") / name if name.parts[0] == "buf" else name), text


def job_file_schema(scratch: Path) -> str | None:
    """The schema of YAML job files; the present one where its generator cannot be built."""
    current = CLIENT / SCHEMA
    tool = [str(ROOT / "tools/build/go_tool.sh"), "protoc-gen-jsonschema"]
    if subprocess.run(tool, cwd=ROOT, check=False).returncode:
        print("the job file's schema stays as it is: no generator", file=sys.stderr)
        return current.read_text() if current.exists() else None
    buf("generate", "--template", "tools/build/buf.gen.jsonschema.yaml", "-o", str(scratch))
    bundle = scratch / "build" / "schema" / "hatoba.v1.JobSpec.schema.bundle.json"
    return job_schema.simplify(bundle.read_text())


def committed() -> set[Path]:
    """Generated files that are there now, relative to the client."""
    found = [path for top in (STUBS, VENDORED) for path in (CLIENT / top).rglob("*_pb2*")]
    kept = {path.relative_to(CLIENT) for path in found if path.suffix in {".py", ".pyi"}}
    return kept | ({SCHEMA} if (CLIENT / SCHEMA).exists() else set())


def write_changed(path: Path, text: str) -> None:
    """Write `path` unless it says so already: an untouched file keeps its type-checker cache."""
    if path.exists() and path.read_text() == text:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def buf(*arguments: str) -> None:
    """Run buf in the root; a failure raises CalledProcessError."""
    subprocess.run([BUF, *arguments], check=True, cwd=ROOT)


if __name__ == "__main__":
    sys.exit(main())
