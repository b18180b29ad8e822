"""kill -9 at every failpoint, and of worker and keeper, while jobs go through; then a verdict.

Exit code 0: nothing was lost, doubled, or left behind; 1: something was, with the evidence; 3: a
component that was asked for cannot be on this machine.
The same seed gives the same jobs and the same choices; when they fall is up to the machine.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests" / "support"), str(ROOT / "tools" / "testbed")]

from bed_place import default_directory  # noqa: E402 - found beside this file
from fault_backends import OUTSIDES, REAL  # noqa: E402
from fault_points import unmet  # noqa: E402
from fault_round import Plan, Round, Verdict  # noqa: E402
from testbed_fixtures import Testbed  # noqa: E402

SHOWN = 40
CANNOT_BE = 3
"""Exit code where a component that is asked for cannot be."""


def main(arguments: list[str] | None = None) -> int:
    """Run the rounds that the command line asks for; the exit code."""
    plans = planned(arguments)
    for plan in plans:
        if why := missing(plan.backend):
            print(f"{plan.backend} cannot be had on this machine: {why}")
            return CANNOT_BE
    verdicts = [run(plan) for plan in plans]
    missed = unmet((one.plan.backend, one.plan.kills, one.points) for one in verdicts)
    for name, why in missed.items():
        print(f"{'no server died' if why else 'VIOLATION: no server died'} at {name}: {why}")
    return int(not all(missed.values()) or any(one.violations for one in verdicts))


def missing(backend: str) -> str:
    """Why a backend's components cannot be brought up here; empty once they are there."""
    if backend not in REAL:
        return ""
    try:
        Testbed(default_directory()).up(*REAL[backend].components)
    except pytest.skip.Exception as skipped:
        return str(skipped)
    return ""


def run(plan: Plan) -> Verdict:
    """Run one round."""
    work = Path(tempfile.mkdtemp(prefix="hatoba-faults-"))
    began = time.monotonic()

    def say(text: str) -> None:
        print(f"[{time.monotonic() - began:6.1f} s] {text}", flush=True)

    say(f"seed {plan.seed}: {plan.kills} kills, {plan.jobs} jobs on {plan.backend}, in {work}")
    verdict = asyncio.run(Round(plan, work, say).run())
    show(verdict)
    if verdict.violations:
        print(f"what is left of it: {work}", flush=True)
    else:
        shutil.rmtree(work)
    return verdict


def planned(arguments: list[str] | None) -> list[Plan]:
    """The command line as plans, one for each backend."""
    parser = argparse.ArgumentParser(description=__doc__)
    known = ["both", *OUTSIDES]
    told = "both: half of it each on hosts and mock"
    parser.add_argument("--backend", choices=known, default="both", help=told)
    parser.add_argument("--count", type=int, default=200, help="kills")
    parser.add_argument("--jobs", type=int, help="jobs; some a kill if not said")
    parser.add_argument("--seed", type=int, help="of an earlier round")
    options = parser.parse_args(arguments)
    seed = random.SystemRandom().randrange(1 << 32) if options.seed is None else options.seed
    backends = ["mock", "hosts"] if options.backend == "both" else [options.backend]
    kills = max(1, options.count // len(backends))

    def jobs(backend: str) -> int:
        told: int | None = options.jobs
        return kills * OUTSIDES[backend].jobs_a_kill if told is None else told // len(backends)

    return [Plan(backend, kills, jobs(backend), seed) for backend in backends]


def show(verdict: Verdict) -> None:
    """Print figures and, last, the verdict."""
    kills = ", ".join(f"{count} of the {name}" for name, count in sorted(verdict.kills.items()))
    print(f"seed {verdict.plan.seed}: {sum(verdict.kills.values())} kills ({kills})")
    print(", ".join(f"{name} {count}" for name, count in verdict.figures.items()))
    at = ", ".join(f"{name} {count}" for name, count in sorted(verdict.points.items()))
    print(f"died at failpoints {sum(verdict.points.values())} times: {at or 'none'}")
    for violation in verdict.violations[:SHOWN]:
        print(f"VIOLATION: {violation}")
    if len(verdict.violations) > SHOWN:
        print(f"... and {len(verdict.violations) - SHOWN} more")
    word = f"{len(verdict.violations)} VIOLATIONS" if verdict.violations else "all as it must be"
    print(f"{word}, after {verdict.seconds:.0f} s", flush=True)


if __name__ == "__main__":
    sys.exit(main())
