"""Replicas for the kit on a real kubelet: an image whose `hatoba-entrypoint serve` is a script."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from testbed_fixtures import DockerEngine

from hatoba.v1 import worker_pb2
from hatoba_plugins.conformance import Life

ENTRYPOINT = """#!/bin/sh
# Answers like a model server: ready, never ready, or for a while.
mkdir -p /tmp/www && echo ok > /tmp/www/healthz
trap 'exit 0' TERM
httpd -f -p "$HATOBA_PORT" -h /tmp/www & server=$!
case "$KIT_LIFE" in
  never_ready) ;;
  crashes) echo ok > /tmp/www/readyz; sleep 4; echo the end; exit 3 ;;
  *) echo ok > /tmp/www/readyz ;;
esac
wait $server
"""


def kit_image(engine: DockerEngine, registry: str, directory: Path) -> str:
    """The image, built and in the registry that nodes pull from."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "hatoba-entrypoint").write_text(ENTRYPOINT)
    (directory / "hatoba-entrypoint").chmod(0o755)
    (directory / "Dockerfile").write_text(
        f"FROM {engine.busybox}\nCOPY hatoba-entrypoint /bin/hatoba-entrypoint\n"
    )
    name = f"{registry}/hatoba-kit-replica:1"
    plain = {**os.environ, "DOCKER_BUILDKIT": "0"}
    docker = ["docker", "--host", engine.host]
    subprocess.run(
        [*docker, "build", "-q", "-t", name, str(directory)],
        check=True,
        capture_output=True,
        env=plain,
    )
    subprocess.run([*docker, "push", "-q", name], check=True, capture_output=True)
    return name


def kit_template(life: Life, image: str) -> worker_pb2.ReplicaSpec:
    """What replicas with this life are made from."""
    spec = worker_pb2.ReplicaSpec(env={"KIT_LIFE": life.value})
    spec.serving.environment.image = image
    spec.serving.handler = "kit:Model"
    spec.drain.FromSeconds(1)
    return spec
