"""The table of roles against the contract itself."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator

import pytest
from google.protobuf.descriptor import ServiceDescriptor

from hatoba import v1
from hatoba.v1 import admin_pb2
from hatoba_scheduler.auth.device_credentials import WRITING
from hatoba_scheduler.auth.roles import DEVICE, METHOD_ACCESS, OPEN, Role, may_change
from hatoba_scheduler.auth.runner_scopes import OPENS


def _services() -> Iterator[ServiceDescriptor]:
    for name in sorted(one.name for one in pkgutil.iter_modules(v1.__path__)):
        if name.endswith("_pb2"):
            module = importlib.import_module(f"hatoba.v1.{name}")
            yield from module.DESCRIPTOR.services_by_name.values()


def _methods() -> set[str]:
    return {
        f"/{service.full_name}/{method.name}"
        for service in _services()
        for method in service.methods
    }


def test_every_method_of_the_contract_has_an_entry_and_nothing_else_has() -> None:
    ours = {name for name in METHOD_ACCESS if name.startswith("/hatoba.")}
    assert ours == _methods()


def test_only_health_is_open() -> None:
    opened = {name for name, access in METHOD_ACCESS.items() if access == OPEN}
    assert opened == {f"/grpc.health.v1.Health/{name}" for name in ("Check", "List", "Watch")}


def test_roles_have_the_contracts_numbers() -> None:
    assert {f"ROLE_{role.name}": role.value for role in Role} == {
        name: number for name, number in admin_pb2.Role.items() if number
    }


@pytest.mark.parametrize("method", sorted(set(METHOD_ACCESS) - {""}))
def test_administrators_may_call_everything_that_is_not_for_machines_alone(method: str) -> None:
    access = METHOD_ACCESS[method]
    of_machines = access <= {Role.ENROLL, Role.DEVICE}
    assert access == OPEN or (Role.ADMIN in access) is not of_machines


def test_nobody_speaks_for_a_device_but_itself() -> None:
    alone = {name.rpartition("/")[2] for name, access in METHOD_ACCESS.items() if access == DEVICE}
    assert alone == {"Connect", "RenewDevice"}
    shared = {
        name.removeprefix("/hatoba.v1.")
        for name, access in METHOD_ACCESS.items()
        if Role.DEVICE in access and access != DEVICE
    }
    files = {name for name in shared if name.startswith("ArtifactService/")}
    reads = {name for name in files if Role.VIEWER in METHOD_ACCESS[f"/hatoba.v1.{name}"]}
    assert {f"hatoba.v1.{name}" for name in files - reads} == WRITING
    jobs = {"WorkerService/Connect", "WorkerService/Attach", "RunnerService/PushLogs"}
    assert shared - files == jobs


def test_who_may_what_is_as_people_expect() -> None:
    def allowed(method: str) -> set[str]:
        return {role.name for role in METHOD_ACCESS[f"/hatoba.v1.{method}"]}

    assert allowed("JobService/SubmitJob") == {"ADMIN", "USER"}
    assert allowed("JobService/WatchJobs") == {"ADMIN", "USER", "VIEWER"}
    assert allowed("AdminService/CreateToken") == {"ADMIN"}
    assert allowed("WorkerService/Connect") == {"ADMIN", "WORKER", "DEVICE"}
    assert allowed("DeploymentService/WatchDeployments") == {"ADMIN", "ROUTER"}
    assert allowed("DeploymentService/ReportPredictions") == {"ADMIN", "ROUTER"}
    writers = {"ADMIN", "USER", "WORKER", "RUNNER", "DEVICE"}
    assert allowed("ArtifactService/UploadChunks") == writers


def test_each_method_that_runners_may_call_is_opened_by_some_credential() -> None:
    may = {name[1:] for name, access in METHOD_ACCESS.items() if Role.RUNNER in access}
    assert may == frozenset().union(*OPENS.values())


def test_a_token_for_predictions_opens_no_call() -> None:
    assert not [name for name, access in METHOD_ACCESS.items() if Role.PREDICT in access]


def test_what_a_viewer_may_do_changes_nothing() -> None:
    changing = {name for name, access in METHOD_ACCESS.items() if may_change(access)}
    assert "/hatoba.v1.JobService/CancelJobs" in changing
    assert "/hatoba.v1.JobService/TailLogs" not in changing
    assert "/grpc.health.v1.Health/Check" not in changing
