"""Programs built from Go modules, once for what their go.mod and go.sum say."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from bed_place import ROOT, Broken, Unavailable, cache

MODULES = ROOT / "tools" / "testbed"
KUBERNETES = "v1.34.4"
KWOK = "v0.8.0"
COREDNS = "v1.14.3"
KUBERNETES_PROGRAMS = [
    "k8s.io/kubernetes/cmd/kube-apiserver",
    "k8s.io/kubernetes/cmd/kube-controller-manager",
    "k8s.io/kubernetes/cmd/kube-scheduler",
    "k8s.io/kubernetes/cmd/kubelet",
    "k8s.io/kubernetes/cmd/kubectl",
    "./pause",
]
# kwok's own: nodes are ready, their pods run at once, and those of Jobs are complete.
STAGES = [
    "node/fast/node-*.yaml",
    "node/heartbeat-with-lease/node-*.yaml",
    "pod/fast/pod-*.yaml",
]
LOG_TAIL = 2000


def kubernetes() -> Path:
    """The folder of Kubernetes' programs; five minutes on two cores when it is not there yet."""
    version = "k8s.io/component-base/version"
    told = {"gitVersion": KUBERNETES, "gitMajor": "1", "gitMinor": "34", "gitTreeState": "clean"}
    flags = " ".join(f"-X {version}.{key}={value}" for key, value in told.items())
    return built("kubernetes", KUBERNETES, KUBERNETES_PROGRAMS, flags)


def kwok() -> Path:
    """The folder with kwok in it, and with the stages that it leads nodes and pods through."""
    folder = built("kwok", KWOK, ["sigs.k8s.io/kwok/cmd/kwok"], "")
    stages = folder / "stages.yaml"
    if not stages.exists():
        source = Path(module_directory("kwok", "sigs.k8s.io/kwok"), "kustomize", "stage")
        texts = [file.read_text() for stage in STAGES for file in sorted(source.glob(stage))]
        fresh = stages.with_suffix(".new")
        fresh.write_text("\n---\n".join(texts))
        fresh.rename(stages)
    return folder


def coredns() -> Path:
    """The folder with CoreDNS in it; minutes when it is not there yet."""
    return built("coredns", COREDNS, ["."], "")


def has_coredns() -> bool:
    """Whether that has been done."""
    return folder_of("coredns", COREDNS).exists()


def module_directory(module: str, name: str) -> str:
    """Where Go keeps the sources of a module that one of ours needs."""
    listed = subprocess.run(
        ["go", "list", "-m", "-f", "{{.Dir}}", name],
        cwd=MODULES / module,
        check=True,
        capture_output=True,
        text=True,
    )
    return listed.stdout.strip()


def built(module: str, version: str, programs: Sequence[str], flags: str) -> Path:
    """The folder with these programs of a module below this one; made when it is missing."""
    folder = folder_of(module, version)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.with_suffix(".lock"), "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        if not folder.exists():
            build(MODULES / module, programs, flags, folder)
    return folder


def folder_of(module: str, version: str) -> Path:
    """Where the programs of a module are, once they are built."""
    sources = sorted(MODULES.joinpath(module).rglob("*.*"))
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in sources if file.is_file()))
    return cache() / "testbed-programs" / f"{module}-{version}-{digest.hexdigest()[:12]}"


def build(module: Path, programs: Sequence[str], flags: str, folder: Path) -> None:
    """Run Go's compiler, out of the way of whatever else this machine does."""
    if not shutil.which("go"):
        raise Unavailable(f"{module.name} is built with Go, and there is no 'go' on PATH")
    print(f"building {module.name} (once, minutes)", flush=True)
    fresh = folder.with_suffix(".new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir()
    command = ["nice", "go", "build", "-trimpath", "-ldflags", f"-s -w {flags}", "-o", str(fresh)]
    settings = {"CGO_ENABLED": "0", "GOFLAGS": "-mod=readonly", "GOTOOLCHAIN": "local"}
    done = subprocess.run(
        [*command, *programs],
        cwd=module,
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
    )
    if "requires go >=" in done.stderr:
        raise Unavailable(done.stderr.strip()[-LOG_TAIL:])
    if done.returncode:
        raise Broken(f"building {module.name}: {done.stderr.strip()[-LOG_TAIL:]}")
    fresh.rename(folder)
