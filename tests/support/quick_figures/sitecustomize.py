"""For tests that wait for figures: an agent with this on its path looks at them every second."""

from __future__ import annotations

from hatoba_worker.agent import figures

figures.EVERY, figures.SOON = 1.0, 0.1
