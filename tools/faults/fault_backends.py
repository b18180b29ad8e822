"""All the outsides that there are, by the names of the command line."""

from __future__ import annotations

from fault_batch import Batch
from fault_containers import Containers
from fault_ecs import Ecs
from fault_kubernetes import Pods
from fault_outside import Mock, Outside, Played, Processes
from fault_real import Real

REAL: dict[str, type[Real]] = {
    "containers": Containers,
    "k8s-gpu": Pods,
    "ecs": Ecs,
    "batch-spot": Batch,
}
"""Those that need components of the testbed."""
OUTSIDES: dict[str, type[Outside]] = {"hosts": Processes, "mock": Mock, "null": Played, **REAL}
