"""Which role may call which method. A method without an entry is for administrators alone."""

from __future__ import annotations

import enum


class Role(enum.IntEnum):
    """What a token may do; the numbers are those of `hatoba.v1.Role`."""

    ADMIN = 1
    USER = 2
    VIEWER = 3
    WORKER = 4
    ROUTER = 5
    PREDICT = 6
    RUNNER = 7
    JOIN = 8
    ENROLL = 9
    DEVICE = 10


Access = frozenset[Role]

OPEN: Access = frozenset()
"""Needs no token."""
READ: Access = frozenset({Role.VIEWER, Role.USER, Role.ADMIN})
WRITE: Access = frozenset({Role.USER, Role.ADMIN})
OPERATE: Access = frozenset({Role.ADMIN})
HOST: Access = frozenset({Role.WORKER, Role.ADMIN})
RUN: Access = frozenset({Role.RUNNER, *HOST})
"""Runners elsewhere too, each within the scope of its credential (`auth.runner_scopes`)."""
DEVICE: Access = frozenset({Role.DEVICE})
"""One device, known by its certificate alone: nobody else speaks for it."""
DEVICE_JOB: Access = HOST | DEVICE
"""A device with jobs, as the host of its own name: its own attempts alone."""
ROUTE: Access = frozenset({Role.ROUTER, Role.ADMIN})
PREDICTING: Access = frozenset({Role.ADMIN, Role.USER, Role.PREDICT})
"""May ask for predictions, at a router; PREDICT may do nothing else, and of one deployment only."""

_SERVICES: dict[str, dict[str, Access]] = {
    "hatoba.v1.JobService": {
        "SubmitJob": WRITE,
        "SubmitJobs": WRITE,
        "GetJob": READ,
        "ListJobs": READ,
        "CountJobs": READ,
        "ListTasks": READ,
        "ListAttempts": READ,
        "WatchJobs": READ,
        "CancelJobs": WRITE,
        "UpdateJob": WRITE,
        "RerunJob": WRITE,
        "TailLogs": READ,
        "QueryMetrics": READ,
        "GetJobTrace": READ,
        "PlanJob": READ,
        "ExplainJob": READ,
        "ExecJob": WRITE,
        "ForwardJob": WRITE,
    },
    "hatoba.v1.QueueService": {
        "CreateQueue": OPERATE,
        "GetQueue": READ,
        "ListQueues": READ,
        "UpdateQueue": OPERATE,
        "DeleteQueue": OPERATE,
        "GetQueueUsage": READ,
        "ListQueueUsage": READ,
        "CordonQueue": OPERATE,
    },
    "hatoba.v1.ArtifactService": {
        "FindMissingChunks": WRITE | RUN | DEVICE,
        "UploadChunks": WRITE | RUN | DEVICE,
        "DownloadChunks": READ | RUN | DEVICE,
        "CreateManifest": WRITE | RUN | DEVICE,
        "UploadManifest": WRITE | RUN | DEVICE,
        "GetManifest": READ | RUN | DEVICE,
        "DownloadManifest": READ | RUN | DEVICE,
        "GetTransferUrls": READ | RUN | DEVICE,
        "ConfirmChunks": WRITE | RUN | DEVICE,
        "CollectGarbage": OPERATE,
    },
    "hatoba.v1.DatasetService": {
        "CreateDatasetVersion": WRITE,
        "ImportDataset": WRITE,
        "GetDatasetVersion": READ,
        "ListDatasets": READ,
        "ListDatasetVersions": READ,
        "ListDatasetItems": READ,
        "DiffDatasetVersions": READ,
        "AppendDatasetItems": WRITE,
        "CommitDataset": WRITE,
        "DeleteDatasetVersion": WRITE,
        "CreateCodeVersion": WRITE,
        "GetCodeVersion": READ,
        "ListCodeVersions": READ,
    },
    "hatoba.v1.ModelService": {
        "RegisterModel": WRITE,
        "GetModelVersion": READ,
        "GetModel": READ,
        "ListModels": READ,
        "ListModelVersions": READ,
        "RecordImages": WRITE,
        "UpdateModel": OPERATE,
        "SetAlias": WRITE,
        "DeleteAlias": WRITE,
        "DecideAliasMove": WRITE,
        "ListAliasMoves": READ,
        "DeleteModelVersion": WRITE,
        "GetLineage": READ,
    },
    "hatoba.v1.DeploymentService": {
        "CreateDeployment": WRITE,
        "GetDeployment": READ,
        "ListDeployments": READ,
        "UpdateDeployment": WRITE,
        "SetTraffic": WRITE,
        "PauseRollout": WRITE,
        "ResumeRollout": WRITE,
        "PromoteRollout": WRITE,
        "RollBackDeployment": WRITE,
        "DeleteDeployment": WRITE,
        "ListRevisions": READ,
        "ListDeploymentEvents": READ,
        "WatchDeployment": READ,
        "TailReplicaLogs": READ,
        "WatchDeployments": ROUTE,
        "ReportPredictions": ROUTE,
        "SignRouter": ROUTE,
        "ExplainPrediction": READ,
    },
    "hatoba.v1.RunnerService": {
        "ClaimAttempt": RUN,
        "Heartbeat": RUN,
        "PushLogs": RUN | DEVICE,
        "ReportMetrics": RUN,
        "CommitCheckpoint": RUN,
        "CommitAttempt": RUN,
        "AwaitExit": RUN,
    },
    "hatoba.v1.WorkerService": {
        "Connect": DEVICE_JOB,
        "ListHosts": READ,
        "GetHost": READ,
        "CordonHost": OPERATE,
        "DeclareHostGone": OPERATE,
        "RemoveHost": OPERATE,
        "CreateJoinToken": OPERATE,
        "JoinHost": frozenset({Role.JOIN, Role.ADMIN}),
        "RenewHost": HOST,
        "Attach": DEVICE_JOB,
    },
    "hatoba.v1.DeviceService": {
        "CreateDeviceToken": OPERATE,
        "EnrollDevice": frozenset({Role.ENROLL}),
        "RenewDevice": DEVICE,
        "Connect": DEVICE,
        "ListDevices": READ,
        "GetDevice": READ,
        "UpdateDevice": OPERATE,
        "RevokeDevice": OPERATE,
        "DecommissionDevice": OPERATE,
        "ListRolloutDevices": READ,
        "RetryRolloutDevices": WRITE,
        "PlanDevices": READ,
        "ListDeviceLogs": READ,
        "ListDeviceRecords": READ,
        "ListDeviceEvents": READ,
    },
    "hatoba.v1.AdminService": {
        "ListBackends": READ,
        "GetServerStatus": READ | HOST,
        "CreateToken": OPERATE,
        "ListTokens": OPERATE,
        "RevokeToken": OPERATE,
        "PushSpans": READ | RUN,
        "GetOverview": READ,
        "CordonBackend": OPERATE,
        "CheckBackend": OPERATE,
        "CreateBackup": OPERATE,
        "ListBackups": OPERATE,
        "DeleteBackup": OPERATE,
        "AdoptStore": OPERATE,
        "CheckStore": OPERATE,
    },
    "hatoba.v1.ScheduleService": {
        "CreateSchedule": WRITE,
        "GetSchedule": READ,
        "ListSchedules": READ,
        "UpdateSchedule": WRITE,
        "DeleteSchedule": WRITE,
        "RunSchedule": WRITE,
    },
    "hatoba.v1.WebhookService": {
        "CreateWebhook": OPERATE,
        "GetWebhook": READ,
        "ListWebhooks": READ,
        "UpdateWebhook": OPERATE,
        "DeleteWebhook": OPERATE,
        "TestWebhook": OPERATE,
    },
    "grpc.health.v1.Health": {"Check": OPEN, "List": OPEN, "Watch": OPEN},
    "grpc.reflection.v1alpha.ServerReflection": {"ServerReflectionInfo": READ},
    "grpc.reflection.v1.ServerReflection": {"ServerReflectionInfo": READ},
}

METHOD_ACCESS: dict[str, Access] = {
    f"/{service}/{method}": access
    for service, methods in _SERVICES.items()
    for method, access in methods.items()
}
"""Roles that may call a method, by full method name. An administrator may call all of them, but
those by which a machine becomes a device and is one."""


def may_change(access: Access) -> bool:
    """Whether methods of this access change anything; reading is what a viewer may do."""
    return Role.VIEWER not in access and access != OPEN
