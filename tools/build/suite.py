"""Run a list of checks to the end: `suite.py check | test | real`.

A failing step does not hide the others. At the end stands what each took and, last, the closing
line of the test runner.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BIN = ROOT / ".venv" / "bin"
CLOSING = ROOT / "build" / "closing-line"
TESTBED = ROOT / "build" / "testbed"
"""The real components that tests need: this checkout's own, up while they run and gone after."""
REPORT = ROOT / "build" / "junit.xml"
PARALLEL = min(8, 2 + (os.cpu_count() or 1))
COMPONENTS = ["docker", "registry", "moto", "ministack", "kubernetes", "images"]


@dataclass(frozen=True)
class Step:
    """One program to run; `runner` marks the one whose closing line is the suite's.

    `ahead`: it is begun at once, beside those before it, and told of in its place.
    """

    name: str
    command: list[str]
    runner: bool = False
    ahead: bool = False


@dataclass(frozen=True)
class Result:
    """What became of a step: its exit status, seconds taken, last line, and what failed in it."""

    step: Step
    status: int
    seconds: float
    last_line: str
    failures: list[str]


def program(name: str, *arguments: str) -> list[str]:
    """A program of the environment with its arguments."""
    return [str(BIN / name), *arguments]


def pytest(*marked: str) -> list[str]:
    """The tests of all suites, or those that are marked so; most of their time they wait.

    tests/support/spread.py says which go together.
    """
    spread = ["-n", str(PARALLEL), "--dist", "loadscope"]
    return program("pytest", *spread, "--durations", "30", f"--junitxml={REPORT}", *marked)


def testbed(*arguments: str) -> list[str]:
    """What brings the components up and down."""
    return program("python", "tools/testbed/testbed.py", *arguments)


UP = Step("testbed", testbed("up", "--where-possible", *COMPONENTS), ahead=True)
DOWN = Step("testbed down", testbed("down"))
STATIC = [
    Step("lint", program("ruff", "check", ".")),
    Step("format", program("ruff", "format", "--check", ".")),
    Step("types", program("mypy")),
    Step("arrows", program("lint-imports")),
]
SUITES = {
    "check": [*STATIC, Step("unit tests", program("pytest", "-q", "tests/unit"), runner=True)],
    "test": [
        Step("contract", program("python", "tools/build/contract.py", "check")),
        *STATIC,
        Step("faults", program("python", "tools/faults/faults.py", "--count", "60")),
        UP,
        Step("tests", pytest(), runner=True),
        DOWN,
    ],
    "real": [UP, Step("tests", pytest("-m", "real"), runner=True), DOWN],
}


def main() -> int:
    """Run one suite; the exit status is that of its first failing step."""
    if len(sys.argv) != 2 or sys.argv[1] not in SUITES:
        print(f"usage: suite.py {'|'.join(SUITES)}", file=sys.stderr)
        return 2
    results = run_all(SUITES[sys.argv[1]])
    report(results)
    return next((result.status for result in results if result.status), 0)


def run_all(steps: list[Step]) -> list[Result]:
    """Run steps in order, those that may begin ahead beside the others."""
    with ThreadPoolExecutor() as beside:
        begun = {step.name: beside.submit(run_ahead, step) for step in steps if step.ahead}
        return [told(begun[step.name]) if step.ahead else run(step, say) for step in steps]


def run_ahead(step: Step) -> tuple[Result, str]:
    """Run one step; what became of it, and what it said."""
    lines: list[str] = []
    return run(step, lines.append), "".join(lines)


def told(begun: Future[tuple[Result, str]]) -> Result:
    """Wait for a step that was begun ahead, and pass on what it said."""
    result, text = begun.result()
    say(text)
    return result


def say(text: str) -> None:
    """Print as it comes."""
    sys.stdout.write(text)
    sys.stdout.flush()


def run(step: Step, tell: Callable[[str], object]) -> Result:
    """Run one step with its output passed on as it comes."""
    tell(f"== {step.name}: {' '.join(step.command[1:])}\n")
    began = time.monotonic()
    last_line, failures = "", list[str]()
    with subprocess.Popen(
        step.command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "HATOBA_TESTBED": str(TESTBED)},
    ) as process:
        for line in process.stdout or ():
            tell(line)
            last_line = line.strip() or last_line
            if line.startswith(("FAILED ", "ERROR ")):
                failures.append(line.strip())
    return Result(step, process.returncode, time.monotonic() - began, last_line, failures)


def report(results: list[Result]) -> None:
    """Say how each step ended, what failed in it, and the runner's closing line last."""
    print("== steps")
    for result in results:
        outcome = "ok" if result.status == 0 else f"FAILED ({result.status})"
        print(f"{result.step.name:12} {result.seconds:7.1f} s  {outcome}")
        for failure in result.failures:
            print(f"  {failure}")
    for result in results:
        if result.step.runner:
            CLOSING.parent.mkdir(exist_ok=True)
            CLOSING.write_text(result.last_line + "\n")
            print(result.last_line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
