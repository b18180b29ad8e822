"""What of a specification can never run in a namespace, as far as that is known. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from hatoba.v1 import job_pb2
from hatoba_plugins.backends.k8s_gpu.capacity import Node, Quota
from hatoba_plugins.backends.k8s_gpu.options import TYPE, JobOptions, K8sOptions, job_options
from hatoba_plugins.checks import lacking
from hatoba_plugins.values import Capabilities, Problem


def problems(
    spec: job_pb2.JobSpec,
    options: K8sOptions,
    can: Capabilities,
    nodes: Sequence[Node],
    quota: Quota,
) -> list[Problem]:
    """All that stands against it; where an autoscaler may bring nodes, not that there are none."""
    found = lacking(spec, can, options.image)
    try:
        asks = job_options(spec)
    except ValueError as error:
        return [*found, Problem("backend_options", str(error))]
    found += _no_image(spec, options)
    found += _unknown_secrets(spec, options)
    found += _over_quota(spec, quota)
    if nodes and not options.elastic:
        found += _no_node(spec, asks, options, nodes)
    if asks.runner == "none" and can.runner == "pod":
        found += _needs_runner(spec)
    return found


def _no_image(spec: job_pb2.JobSpec, options: K8sOptions) -> list[Problem]:
    if spec.environment.image or options.image:
        return []
    said = "name an image, or set `image` of the backend; `hatoba images build` makes one"
    return [Problem("environment.image", said)]


def _unknown_secrets(spec: job_pb2.JobSpec, options: K8sOptions) -> list[Problem]:
    missing = sorted({one.name for one in spec.secrets} - set(options.secrets))
    if not missing:
        return []
    said = (
        f"{', '.join(missing)}: not among the `secrets` of the backend; create a Secret with a key"
        f" `value` in namespace {options.namespace!r} and name it there"
    )
    return [Problem("secrets", said)]


def _over_quota(spec: job_pb2.JobSpec, quota: Quota) -> list[Problem]:
    needs = spec.resources
    found: list[tuple[str, float, float]] = []
    if quota.gpus is not None and needs.gpus > quota.gpus:
        found.append(("resources.gpus", needs.gpus, quota.gpus))
    if quota.cpus is not None and needs.cpus > quota.cpus:
        found.append(("resources.cpus", needs.cpus, quota.cpus))
    if quota.memory is not None and needs.memory_bytes > quota.memory:
        found.append(("resources.memory_bytes", needs.memory_bytes, quota.memory))
    return [
        Problem(field, f"{asked:g} is more than the namespace's quota of {most:g}")
        for field, asked, most in found
    ]


def _no_node(
    spec: job_pb2.JobSpec, asks: JobOptions, options: K8sOptions, nodes: Sequence[Node]
) -> list[Problem]:
    if asks.gpu_product:
        label = options.gpu_product_label
        there = sorted({value for node in nodes for key, value in node.labels if key == label})
        if asks.gpu_product not in there:
            known = ", ".join(there) or "none"
            said = f"no node has gpu_product {asks.gpu_product!r}; there are: {known}"
            return [Problem("backend_options", said)]
    most = max((node.total.gpus for node in nodes), default=0)
    if spec.resources.gpus > most:
        said = f"{spec.resources.gpus} on one node: the largest has {most}"
        return [Problem("resources.gpus", said)]
    return []


def _needs_runner(spec: job_pb2.JobSpec) -> list[Problem]:
    said = f"needs the runner in the pod; leave `backend_options.{TYPE}.runner` out"
    found = []
    if spec.HasField("code"):
        found.append(Problem("code", said))
    if spec.inputs:
        found.append(Problem("inputs", said))
    return found
