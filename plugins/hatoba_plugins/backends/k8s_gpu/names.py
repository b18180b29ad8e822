"""Labels, annotations and names of what this backend makes in a namespace."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

PREFIX = "hatoba.dev/"
CLUSTER = PREFIX + "cluster"
JOB = PREFIX + "job"
ATTEMPT = PREFIX + "attempt"
FENCE = PREFIX + "fence"
INDEX = PREFIX + "index"
NUMBER = PREFIX + "number"
ROLE = PREFIX + "role"
"""`job`, `gang` or `replica`."""
REPLICA = PREFIX + "replica"
DEPLOYMENT = PREFIX + "deployment"
REVISION = PREFIX + "revision"
GENERATION = PREFIX + "generation"

SPEC = PREFIX + "spec"
"""sha256 of what it was made from."""
MEMBERS = PREFIX + "members"
"""Names of a gang's members, by their completion index."""
HALF = PREFIX + "half-made"
"""On a gang's Job until there is all that it needs beside it."""
VERDICT = PREFIX + "verdict"
"""How an attempt that we end is to be told to have ended."""
RUNNER = PREFIX + "runner"

JOB_NAME = "batch.kubernetes.io/job-name"
COMPLETION_INDEX = "batch.kubernetes.io/job-completion-index"
KUEUE_QUEUE = "kueue.x-k8s.io/queue-name"

MAIN = "main"
INIT = "hatoba-init"
SIDECAR = "hatoba-sidecar"

ROLE_JOB, ROLE_GANG, ROLE_REPLICA = "job", "gang", "replica"


def digest(manifest: Mapping[str, Any]) -> str:
    """sha256 of a manifest, whatever the order of its keys."""
    text = json.dumps(manifest, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def selector(labels: Mapping[str, str]) -> str:
    """A label selector that asks for all of these."""
    return ",".join(f"{key}={value}" for key, value in labels.items())
