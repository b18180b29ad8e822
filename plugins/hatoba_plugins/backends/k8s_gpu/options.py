"""What an instance of this backend is told, and what a job may ask of it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from hatoba.v1 import job_pb2
from hatoba_plugins.checks import out_of_range, own_options
from hatoba_plugins.values import BackendOptions, Problem

TYPE = "k8s-gpu"
_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")
_LABEL = re.compile(r"[A-Za-z0-9./_-]+=[A-Za-z0-9._-]*")


@dataclass(frozen=True, slots=True)
class K8sOptions(BackendOptions):
    """One namespace of one cluster. Several instances are several clusters or namespaces."""

    kubeconfig: str = ""
    """Path of the file that says which cluster, and who we are there; without it and `context`: the
    service account of the pod that the server runs in. Plug-ins of kubectl that bring tokens are
    run, and renewed."""
    context: str = ""
    """Of the kubeconfig, where it is not the current one."""
    namespace: str = "default"
    """Where Jobs and pods are made."""
    image: str = ""
    """Of jobs that name none."""
    runner_image: str = ""
    """An image with `hatoba-entrypoint` (`deploy/images`, target `runtime`); without one jobs have
    no runner and are not fenced."""
    serving_image: str = ""
    """Of replicas whose model names none, with `hatoba-entrypoint`; by default `runner_image`."""
    secrets: list[str] = field(default_factory=list)
    """Names of Secrets in the namespace that jobs may use, each with a key `value`; others are
    refused at submit."""
    image_pull_secrets: list[str] = field(default_factory=list)
    """Names of Secrets that open registries, for all pods."""
    service_account: str = ""
    """Of jobs and replicas; its token is never mounted."""
    node_selector: list[str] = field(default_factory=list)
    """`LABEL=VALUE`: only nodes with all of these count, and are used."""
    tolerations: list[str] = field(default_factory=list)
    """Keys of taints that keep others away and not us; that of the GPUs is tolerated anyway."""
    queues: bool = False
    """Something else (Kueue, an autoscaler) makes room: what has none now is sent all the same."""
    kueue_queue: str = ""
    """LocalQueue of Kueue in the same namespace: Jobs are made suspended, and it says when they
    begin."""
    priority_class: str = ""
    """PriorityClass of all pods."""
    gpu_resource: str = "nvidia.com/gpu"
    """What GPUs are called in the resources of nodes."""
    gpu_runtime_class: str = ""
    """RuntimeClass of pods with GPUs, for example `nvidia`; without one the nodes' own."""
    gpu_product_label: str = "nvidia.com/gpu.product"
    """Label of nodes that says which GPUs they have; `gpu_product` of a job is compared with it."""
    shm_bytes: int = 0
    """Size of /dev/shm; 0: half of the job's memory, or what the node allows."""
    run_as_user: int = 1000
    """User and group of all containers of a pod; the runner and the command share files."""
    ttl: float = 604_800.0
    """Seconds after which the cluster itself removes what ended: twice your longest outage."""
    settles_after: float = 5.0
    """Seconds after which a Job that cannot be seen was certainly not created."""
    device_fault_pause: float = 3_600.0
    """Seconds in which GPUs are not asked of a node where one failed, while there are others."""

    @classmethod
    def check(cls, options: dict[str, object]) -> list[Problem]:
        """Problems of these options."""
        return [
            *super(K8sOptions, cls).check(options),
            *_bad_names(options, "secrets"),
            *_bad_names(options, "image_pull_secrets"),
            *_bad_labels(options),
            *out_of_range(options, "shm_bytes", 0, 2**44),
            *out_of_range(options, "run_as_user", 0, 2**31 - 1),
            *out_of_range(options, "ttl", 60.0, 31_536_000.0),
            *out_of_range(options, "settles_after", 0.1, 600.0),
            *out_of_range(options, "device_fault_pause", 0.0, 2_592_000.0),
        ]

    @property
    def runner(self) -> str:
        """Where the runner stands."""
        return "pod" if self.runner_image else "none"

    @property
    def elastic(self) -> bool:
        """Whether it takes more than there is room for now."""
        return self.queues or bool(self.kueue_queue)


def _bad_names(options: dict[str, object], name: str) -> list[Problem]:
    given = options.get(name)
    values: list[object] = given if isinstance(given, list) else []
    return [
        Problem(name, f"{value!r} is no name of a Kubernetes object: small letters, digits, `-`")
        for value in values
        if not (isinstance(value, str) and _NAME.fullmatch(value))
    ]


def _bad_labels(options: dict[str, object]) -> list[Problem]:
    given = options.get("node_selector")
    values: list[object] = given if isinstance(given, list) else []
    return [
        Problem("node_selector", f"{value!r} is not LABEL=VALUE")
        for value in values
        if not (isinstance(value, str) and _LABEL.fullmatch(value))
    ]


@dataclass(frozen=True, slots=True)
class JobOptions:
    """`backend_options.k8s-gpu` of a job; what is empty is the instance's."""

    gpu_product: str = ""
    """Value of the instance's `gpu_product_label` that the node must have."""
    kueue_queue: str = ""
    priority_class: str = ""
    service_account: str = ""
    runtime_class: str = ""
    shm_bytes: float = 0.0
    runner: str = ""
    """`none`: for an image beside which our runner cannot stand. It is recorded, and not fenced."""


_TEXTS = (
    "gpu_product",
    "kueue_queue",
    "priority_class",
    "service_account",
    "runtime_class",
    "runner",
)


def job_options(spec: job_pb2.JobSpec) -> JobOptions:
    """What a job asks. ValueError says what is wrong with it."""
    given = own_options(spec, TYPE)
    for name, value in given.items():
        if name == "shm_bytes":
            if not isinstance(value, float) or not 0 < value <= 2**44:
                raise ValueError("shm_bytes must be a number of bytes, at most 16 TiB")
        elif name not in _TEXTS:
            known = ", ".join(sorted((*_TEXTS, "shm_bytes")))
            raise ValueError(f"unknown option {name!r}; known are {known}")
        elif not isinstance(value, str):
            raise ValueError(f"{name} must be a text")
    told = JobOptions(**given)  # type: ignore[arg-type]  # just checked
    if told.runner not in ("", "none"):
        raise ValueError(f"runner must be `none` or left out, not {told.runner!r}")
    return told
