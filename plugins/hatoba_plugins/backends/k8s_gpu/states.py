"""What Jobs and pods say of an attempt, in our words. Pure: from objects to an observation.

The order in which an end is classified: what we ended ourselves, the pod's own reason, a
disruption, the container's reason, its exit code; without a pod what the Job's condition kept.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import replace
from typing import NamedTuple

from hatoba.runs import run_mark
from hatoba_plugins.backends.k8s_gpu.objects import Condition, Container, Running, SeenJob, SeenPod
from hatoba_plugins.runner import CLAIM_REFUSED
from hatoba_plugins.values import Exit, ExitKind, Observation, Phase

_SIGNALS = range(129, 129 + 64)
_MESSAGE = 1000
_NODE_GONE = ("DeletionByTaintManager", "DeletionByPodGC")
_POD_REASONS = {
    "DeadlineExceeded": ExitKind.RUN_TIMEOUT,
    "UnexpectedAdmissionError": ExitKind.DEVICE_FAULT,
    "NodeLost": ExitKind.LOST,
    "Shutdown": ExitKind.PREEMPTED,
    "NodeShutdown": ExitKind.PREEMPTED,
    "Terminated": ExitKind.PREEMPTED,
    "Preempting": ExitKind.PREEMPTED,
    "Preempted": ExitKind.PREEMPTED,
    "NodeAffinity": ExitKind.FAILED,
}
_OWN_DISK = ("ephemeral local storage usage", "local ephemeral storage limit", "emptydir volume")
_CANNOT_START = ("ContainerCannotRun", "StartError", "RunContainerError", "CreateContainerError")
_NOT_THERE = ("executable file not found", "no such file or directory")
_KEPT_CODE = re.compile(r"Container (\S+) for pod \S+ failed with exit code (\d+)")
_KEPT_DISRUPTION = re.compile(r"has condition DisruptionTarget")


class Doom(NamedTuple):
    """A pod that will never begin: how that is told, after so many seconds of it."""

    exit: Exit
    after: float


def observed(job: SeenJob, index: int, pods: Iterable[SeenPod], mark: str = "") -> Observation:
    """An attempt as its Job and pods show it: `index` is its place in a gang, 0 without one.

    With the mark of the run that holds the claim that pod is spoken of. It is gone when there are
    only others, or when the Job ended with one that was refused.
    """
    name, there = job.members[index], [one for one in pods if one.index == index]
    claimed = [one for one in there if mark and run_mark(one.uid) == mark]
    if mark and there and not claimed:
        return Observation(name, Phase.GONE, exists=False)
    pod = chosen(claimed or there, job.finished)
    ended = _ending(job, pod)
    if mark and pod is None and ended is not None and ended.code == CLAIM_REFUSED:
        return Observation(name, Phase.GONE, exists=False)
    host = pod.node if pod else ""
    run, bare = pod.uid if pod else "", job.runner == "none"
    if ended is not None:
        gone = pod is None or pod.over
        over = Observation(name, Phase.ENDED, True, ended, host, runner_gone=gone)
        return replace(over, run=run, unfenced=bare)
    seen = Observation(name, _phase(pod), True, host=host, run=run, unfenced=bare)
    return replace(seen, ending=_deletion(job, pod))


def chosen(pods: list[SeenPod], finished: bool) -> SeenPod | None:
    """The pod that counts, where a controller made more than one.

    One whose claim was refused says nothing of the one whose claim was granted.
    """
    heard = [one for one in pods if finished or not _refused(one)]
    return min(heard, key=_precedence, default=None)


def _refused(pod: SeenPod) -> bool:
    return pod.init.state is Running.TERMINATED and pod.init.code == CLAIM_REFUSED


def _precedence(pod: SeenPod) -> tuple[bool, bool, float, str]:
    return _refused(pod), pod.main.state is Running.ABSENT, pod.created, pod.name


def _phase(pod: SeenPod | None) -> Phase:
    if pod is None or not pod.scheduled:
        return Phase.WAITING
    return Phase.RUNNING if pod.main.state is Running.RUNNING else Phase.STARTING


# -- ends ------------------------------------------------------------------------------------------


def _ending(job: SeenJob, pod: SeenPod | None) -> Exit | None:
    """How it ended; None while it has not. What ends because somebody deletes it will be gone."""
    if job.deleting and not job.verdict:
        return None
    if pod is None:
        return _ended_without_pod(job)
    if pod.main.state is not Running.TERMINATED and not pod.over:
        return None
    if job.verdict:
        return verdict_exit(job.verdict)
    return pod_exit(pod)


def _deletion(job: SeenJob, pod: SeenPod | None) -> Exit | None:
    """As what the end of a pod that is being deleted will count.

    The kubelet tells how its containers ended once all have, the sidecar among them (the status of
    a terminating pod is written before and after, pkg/kubelet SyncTerminatingPod).
    """
    if pod is None or not pod.deleting:
        return None
    if job.verdict:
        return verdict_exit(job.verdict)
    if pod.disrupted is not None:
        return disruption_exit(pod.disrupted)
    return Exit(ExitKind.LOST, message="its pod was deleted")


def _ended_without_pod(job: SeenJob) -> Exit | None:
    if job.verdict and (job.halted or job.finished):
        return verdict_exit(job.verdict)
    if job.complete:
        return Exit(ExitKind.EXITED, 0)
    return kept_exit(job.failed) if job.failed else None


def pod_exit(pod: SeenPod) -> Exit:
    """How a pod ended whose main container, or which itself, is over."""
    if pod.reason == "Evicted":
        return _evicted(pod)
    if pod.reason in _POD_REASONS:
        return Exit(_POD_REASONS[pod.reason], message=_said(pod.message or pod.reason))
    if pod.reason.startswith(("OutOf", "Outof")):
        return Exit(ExitKind.FAILED, message=_said(f"{pod.reason}: {pod.message}"))
    if pod.disrupted is not None:
        return disruption_exit(pod.disrupted)
    if pod.main.state is Running.TERMINATED:
        return container_exit(pod.main)
    return _never_began(pod)


def _evicted(pod: SeenPod) -> Exit:
    """By a node in need: of memory, of its own disk, or for what others took."""
    message = pod.message.lower()
    if any(words in message for words in _OWN_DISK):
        return Exit(ExitKind.FAILED, message=_said(pod.message))
    if "resource: memory" in message and "exceeds" in message:
        return Exit(ExitKind.OUT_OF_MEMORY, message=_said(pod.message))
    return Exit(ExitKind.PREEMPTED, message=_said(f"evicted by its node: {pod.message}"))


def disruption_exit(condition: Condition) -> Exit:
    """What a DisruptionTarget condition means."""
    kind = ExitKind.LOST if condition.reason in _NODE_GONE else ExitKind.PREEMPTED
    said = f"{condition.reason}: {condition.message}" if condition.reason else condition.message
    return Exit(kind, message=_said(said))


def container_exit(container: Container) -> Exit:
    """How a container ended: what it was ended for comes before its exit code.

    The kernel's kill of a child leaves the parent an exit code of 0, and the reason OOMKilled.
    """
    if container.reason == "OOMKilled":
        return Exit(ExitKind.OUT_OF_MEMORY, message=_said(container.message))
    if container.reason in _CANNOT_START:
        return cannot_start(container)
    if container.reason == "ContainerStatusUnknown":
        return Exit(ExitKind.LOST, message=_said(container.message or "its node lost sight of it"))
    return coded_exit(container.code)


def coded_exit(code: int) -> Exit:
    """What an exit code says by itself; above 128 it is a signal's."""
    if code in _SIGNALS:
        return Exit(ExitKind.SIGNALED, signal=code - 128)
    return Exit(ExitKind.EXITED, code)


def cannot_start(container: Container) -> Exit:
    """The container runtime could not start the command."""
    message = container.message.lower()
    if "exec format error" in message:
        return Exit(ExitKind.IMAGE_ARCHITECTURE, message=_said(container.message))
    if any(words in message for words in _NOT_THERE):
        return Exit(ExitKind.NOT_FOUND, message=_said(container.message))
    if "permission denied" in message:
        return Exit(ExitKind.NOT_EXECUTABLE, message=_said(container.message))
    return Exit(ExitKind.FAILED, message=_said(container.message or container.reason))


def _never_began(pod: SeenPod) -> Exit:
    """The pod is over and its main container never was."""
    for container in (pod.init, pod.sidecar):
        if container.state is Running.TERMINATED and (container.code or container.reason):
            return _runner_exit(container)
    said = pod.message or pod.reason or "its pod ended before the command began"
    return Exit(ExitKind.FAILED, message=_said(said))


def _runner_exit(container: Container) -> Exit:
    if container.code == CLAIM_REFUSED:
        return Exit(ExitKind.EXITED, CLAIM_REFUSED)
    if container.reason == "OOMKilled":
        return Exit(ExitKind.FAILED, message="its runner ran out of memory; give it more")
    said = container.message or container.reason
    return Exit(
        ExitKind.FAILED,
        message=_said(f"its runner ended with exit code {container.code}: {said}"),
    )


def kept_exit(condition: Condition) -> Exit:
    """What a failed Job's condition kept of a pod that nobody can look at any more."""
    if condition.reason == "DeadlineExceeded":
        return Exit(ExitKind.RUN_TIMEOUT, message=_said(condition.message))
    if _KEPT_DISRUPTION.search(condition.message):
        return Exit(ExitKind.PREEMPTED, message=_said(condition.message))
    found = _KEPT_CODE.search(condition.message)
    if found is None:
        return Exit(ExitKind.LOST, message=_said(condition.message or condition.reason))
    return coded_exit(int(found[2]))


# -- verdicts --------------------------------------------------------------------------------------


def verdict(ended: Exit) -> str:
    """How an attempt that we end ourselves is noted on its Job."""
    return json.dumps({"kind": ended.kind.value, "message": ended.message}, sort_keys=True)


def verdict_exit(noted: str) -> Exit:
    """The end that was noted."""
    told = json.loads(noted)
    return Exit(ExitKind(told["kind"]), message=told.get("message", ""))


# -- what never begins -----------------------------------------------------------------------------

_AT_ONCE, _SOON, _PATIENTLY = 5.0, 60.0, 900.0
_MISSING = ("not found", "manifest unknown", "notfound", "repository does not exist")
_DENIED = ("unauthorized", "denied", "forbidden", "authentication required", "no basic auth")
_OTHER_ARCHITECTURE = ("no match for platform", "no matching manifest", "exec format error")
_PULLS = ("ErrImagePull", "ImagePullBackOff", "ImageInspectError", "RegistryUnavailable")
_SECRET = re.compile(r'secret "([^"]+)" not found|couldn\'t find key \S+ in Secret (\S+)')


def doom(pod: SeenPod) -> Doom | None:
    """Why a pod's container waits for what will not come; None: it does not."""
    for container in (pod.init, pod.sidecar, pod.main):
        if container.state is Running.WAITING and (found := _doomed(container)):
            return found
    return None


def _doomed(container: Container) -> Doom | None:
    message = _said(container.message or container.reason)
    if container.reason == "InvalidImageName":
        return Doom(Exit(ExitKind.IMAGE_MISSING, message=message), _AT_ONCE)
    if container.reason == "ErrImageNeverPull":
        return Doom(Exit(ExitKind.IMAGE_MISSING, message=message), _SOON)
    if container.reason in _PULLS:
        return _unpulled(message)
    if container.reason == "CreateContainerConfigError":
        kind = ExitKind.SECRET_MISSING if _SECRET.search(message) else ExitKind.FAILED
        return Doom(Exit(kind, message=message), _SOON)
    if container.reason in _CANNOT_START:
        return Doom(cannot_start(container), _SOON)
    return None


def _unpulled(message: str) -> Doom | None:
    """A pull that failed; that it is being tried again says nothing of why it failed before."""
    said = message.lower()
    if any(words in said for words in _OTHER_ARCHITECTURE):
        return Doom(Exit(ExitKind.IMAGE_ARCHITECTURE, message=message), _SOON)
    if any(words in said for words in _DENIED):
        return Doom(Exit(ExitKind.IMAGE_DENIED, message=message), _SOON)
    if any(words in said for words in _MISSING):
        return Doom(Exit(ExitKind.IMAGE_MISSING, message=message), _SOON)
    return Doom(Exit(ExitKind.IMAGE_UNREACHABLE, message=message), _PATIENTLY)


def _said(message: str) -> str:
    return message.strip()[:_MESSAGE]
