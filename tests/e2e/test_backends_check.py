"""`hatoba backends check` on real platforms: what is missing there is named, in words to act on."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import yaml
from aws_site import AwsSite, site
from command_line import CommandLine, Done
from kube_house import PATIENCE, KubeHouse, house, housed, namespace
from testbed_kubernetes import RIGHTS, Kubernetes, Namespace

__all__ = ["house", "namespace", "site"]
pytestmark = pytest.mark.timeout(600)
STEPS = ["open", "health", "submit", "launch", "start", "log", "stop", "release"]


async def check(house: KubeHouse, *options: str) -> Done:
    """Check the cluster."""
    hatoba = CommandLine(house.server, house.root, PATIENCE)
    return await hatoba("backends", "check", "ml", *options)


def steps(done: Done) -> list[list[str]]:
    """Each step that was told, and how it went."""
    return [line.split()[:2] for line in done.out.splitlines() if line[:1].isalpha()]


async def test_a_cluster_that_has_all_passes_each_step(house: KubeHouse) -> None:
    done = await check(house, "--patience", f"{PATIENCE:.0f}s")
    assert done.code == 0, (done, house.server.log_text()[-10_000:])
    assert steps(done) == [[name, "ok"] for name in STEPS]
    await house.until_nothing_is_left()


async def test_a_pod_that_cannot_reach_the_server(
    kubernetes: Kubernetes, namespace: Namespace, runtime_image: str, tmp_path: Path
) -> None:
    # Nobody listens there.
    away, access = f"{kubernetes.gateway}:9", namespace.kubeconfig
    async with housed(kubernetes, namespace, runtime_image, tmp_path, access, away) as house:
        done = await check(house, "--patience", "30s")
        assert done.code == 1
        assert steps(done)[-1] == ["start", "FAILED"], done.out
        assert f"cannot reach grpcs://{away}" in done.out
        assert "set `advertise` in [server]" in done.out
        await house.until_nothing_is_left()


def without(right: str, of: str, tmp_path: Path) -> Path:
    """The least rights but for one."""
    objects: list[Any] = [one for one in yaml.safe_load_all(RIGHTS.read_text()) if one]
    for one in objects:
        for rule in one.get("rules", ()):
            if of in rule["resources"]:
                rule["verbs"] = [verb for verb in rule["verbs"] if verb != right]
        if "rules" in one:
            # A rule without verbs is refused.
            one["rules"] = [rule for rule in one["rules"] if rule["verbs"]]
    fewer = tmp_path / "rbac.yaml"
    fewer.write_text(yaml.safe_dump_all(objects))
    return fewer


@pytest.mark.parametrize(("right", "of"), [("create", "jobs"), ("get", "pods/log")])
async def test_a_right_that_is_missing_is_named(
    kubernetes: Kubernetes, runtime_image: str, tmp_path: Path, right: str, of: str
) -> None:
    rights = await asyncio.to_thread(without, right, of, tmp_path)
    with kubernetes.namespace(rights) as space:
        access = space.kubeconfig
        async with housed(kubernetes, space, runtime_image, tmp_path, access) as house:
            done = await check(house, "--patience", "60s")
            assert done.code == 1, done
            assert "FAILED" in done.out
            assert right in done.out, done.out
            assert of in done.out, done.out
            assert "deploy/kubernetes/rbac.yaml" in done.out, done.out


async def test_a_quota_without_room_is_named(house: KubeHouse) -> None:
    none = {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "nothing", "namespace": house.namespace.name},
        "spec": {"hard": {"pods": "0"}},
    }
    await asyncio.to_thread(house.cluster.apply, none)
    done = await check(house, "--patience", "20s")
    assert done.code == 1, done
    assert steps(done)[-1] in (["launch", "FAILED"], ["start", "FAILED"]), done.out
    assert "quota" in done.out, done.out


async def test_batch_and_ecs_pass_each_step(site: AwsSite, runtime_image: str) -> None:
    for name in ("batch", "ecs"):
        done = await site.type("backends", "check", name, "--image", runtime_image)
        assert done.code == 0, (name, done)
        assert steps(done) == [[step, "ok"] for step in STEPS], name


async def test_an_image_that_ecs_does_not_find_is_named(site: AwsSite, registry: str) -> None:
    missing = f"{registry}/no-such-image:1"
    done = await site.type("backends", "check", "ecs", "--image", missing, "--patience", "60s")
    assert done.code == 1, done
    assert steps(done)[-1] == ["start", "FAILED"], done.out
    assert missing in done.out, done.out
    assert "correct the image's name, or push it" in done.out, done.out
