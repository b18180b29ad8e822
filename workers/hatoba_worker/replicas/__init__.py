"""Replicas of deployments on this host: kept running by themselves, server there or not."""

from __future__ import annotations
