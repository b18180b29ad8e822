"""A model that images are built of and served from: `serve:Doubler`, twice the value."""

from __future__ import annotations

HANDLER = """\
class Doubler:
    def __init__(self, model_dir):
        pass

    def predict(self, inputs):
        return {"value": inputs["value"] * 2}
"""
