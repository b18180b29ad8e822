"""The house that these tests share."""

from __future__ import annotations

from kube_house import house, namespace

__all__ = ["house", "namespace"]
