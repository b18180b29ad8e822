"""The SQLite store does what every store must."""

from __future__ import annotations

import pytest

from hatoba_scheduler.store.conformance import OpenStore, StoreConformance
from hatoba_scheduler.store.conformance_datasets import DatasetStoreConformance
from hatoba_scheduler.store.conformance_devices import DeviceStoreConformance
from hatoba_scheduler.store.conformance_models import ModelStoreConformance
from hatoba_scheduler.store.conformance_schedules import ScheduleStoreConformance
from hatoba_scheduler.store.sqlite import open_store as open_sqlite


class TestSqliteStore(StoreConformance):
    @pytest.fixture
    def open_store(self) -> OpenStore:
        return open_sqlite


class TestSqliteModels(ModelStoreConformance):
    @pytest.fixture
    def open_store(self) -> OpenStore:
        return open_sqlite


class TestSqliteDatasets(DatasetStoreConformance):
    @pytest.fixture
    def open_store(self) -> OpenStore:
        return open_sqlite


class TestSqliteSchedules(ScheduleStoreConformance):
    @pytest.fixture
    def open_store(self) -> OpenStore:
        return open_sqlite


class TestSqliteDevices(DeviceStoreConformance):
    @pytest.fixture
    def open_store(self) -> OpenStore:
        return open_sqlite
