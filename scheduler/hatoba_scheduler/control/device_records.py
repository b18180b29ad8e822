"""What devices kept for us: stored once, and their predictions kept as those of routers are."""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from typing import NamedTuple

import structlog

from hatoba.captured import captured_item
from hatoba.v1 import dataset_pb2, deployment_pb2, device_pb2, job_pb2
from hatoba_scheduler.control.deployments import DeploymentBook, Live
from hatoba_scheduler.control.devices import DeviceBook
from hatoba_scheduler.control.predictions import PredictionDesk
from hatoba_scheduler.convert_deployments import spec_of
from hatoba_scheduler.convert_devices import records_of
from hatoba_scheduler.domain.devices import Device
from hatoba_scheduler.domain.references import short
from hatoba_scheduler.store.devices import DeviceStore

log = structlog.get_logger(__name__)


class _Own(NamedTuple):
    """A deployment, and the dataset that what is captured of it goes to; empty: none."""

    live: Live
    dataset: str

    @classmethod
    def of(cls, live: Live) -> _Own:
        return cls(live, spec_of(live.deployment.settings).capture.dataset)


@dataclass(frozen=True, slots=True)
class DeviceRecordDesk:
    """Takes records of devices."""

    store: DeviceStore
    book: DeviceBook
    deployments: DeploymentBook
    predictions: PredictionDesk

    async def keep(self, name: str, told: device_pb2.DeviceRecords) -> int:
        """Have records of a device durable; up to which position all are. Again is the same.

        Raises Unavailable.
        """
        newest = await self.store.newest_record(name)
        device = self.book.get(name)
        if device is not None and any(one.HasField("prediction") for one in told.records):
            report = self._report(device, told, newest)
            if report.predictions:
                await self.predictions.take(report)
        return await self.store.add_records(name, records_of(told, newest))

    def _report(
        self, device: Device, told: device_pb2.DeviceRecords, newest: int
    ) -> deployment_pb2.ReportPredictionsRequest:
        """Those predictions among records that are new, as a router reports them."""
        report = deployment_pb2.ReportPredictionsRequest(batch=_batch(device, told))
        own = self._own(
            device,
            {one.prediction.deployment for one in told.records if one.HasField("prediction")},
        )
        for position, one in enumerate(told.records, told.first):
            if position <= newest or not one.HasField("prediction"):
                continue
            mine = own.get(one.prediction.deployment)
            if mine is None:
                log.info("device.foreign_prediction", device=device.name, position=position)
                continue
            _add(report, device, mine, one)
        return report

    def _own(self, device: Device, named: set[str]) -> dict[str, _Own]:
        """Of these the deployments that are this device's, or were when it told of itself last."""
        told = device_pb2.DeviceReport.FromString(device.report)
        names = {slot.deployment for slot in told.slots} | {one.deployment for one in device.wants}
        found = {name: self.deployments.find(name, "") for name in names & named}
        return {name: _Own.of(live) for name, live in found.items() if live is not None}


def _batch(device: Device, told: device_pb2.DeviceRecords) -> str:
    """The same for the same records: what a device made anew sends begins at 1 again."""
    text = f"{device.identity}\0{told.first}\0{len(told.records)}"
    return hashlib.sha256(text.encode()).hexdigest()


def _add(
    report: deployment_pb2.ReportPredictionsRequest,
    device: Device,
    own: _Own,
    record: device_pb2.DeviceRecord,
) -> None:
    live, dataset = own
    told, revision = record.prediction, live.revisions.get(record.prediction.revision)
    model = revision.model_version if revision is not None else ""
    captured = told.HasField("captured") and bool(dataset)
    kept = report.predictions.add(
        trace_id=told.trace_id,
        deployment=told.deployment,
        revision=told.revision,
        model_version=model,
        replica=device.resource,
        status=told.status,
        time=record.time,
        duration=told.duration,
        item=told.trace_id if captured else "",
    )
    report.spans.append(_span(kept, told.parent_span_id))
    if captured:
        item = _item(kept, live, told.captured)
        report.captured.add(project=live.deployment.project, dataset=dataset, item=item)


def _span(kept: deployment_pb2.Prediction, parent: str) -> job_pb2.Span:
    """Goes on with the caller's trace, or is all of its own."""
    began = kept.time.ToNanoseconds()
    return job_pb2.Span(
        trace_id=kept.trace_id,
        span_id=secrets.token_hex(8),
        parent_span_id=parent,
        name="predict",
        kind="server",
        start_unix_nanos=began,
        end_unix_nanos=began + kept.duration.ToNanoseconds(),
        error=f"it was answered with status {kept.status}" if kept.status >= 500 else "",
        attributes={
            "deployment": kept.deployment,
            "revision": str(kept.revision),
            "model": kept.model_version,
            "device": kept.replica,
            "http.response.status_code": str(kept.status),
        },
        process=kept.replica,
    )


def _item(
    kept: deployment_pb2.Prediction, live: Live, captured: device_pb2.DeviceCapture
) -> dataset_pb2.DatasetItem:
    facts = {
        "model": short(kept.model_version),
        "deployment": live.deployment.name,
        "status": kept.status,
        "device": kept.replica,
    }
    asked = captured.input, captured.media_type
    answered = captured.prediction, captured.prediction_media_type
    return captured_item(kept.trace_id, asked, answered, facts)
