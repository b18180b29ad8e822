"""The model server, and what checks a model or runs it over many items.

It runs in the model's own environment: standard library, `hatoba.handlers` and h11, nothing else.
"""

from __future__ import annotations
