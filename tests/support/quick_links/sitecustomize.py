"""For tests that cut links often: an agent with this on its path dials again within a second."""

from __future__ import annotations

from hatoba_worker.agent import redial

redial.SPREAD = redial.LONGEST_WAIT = 1.0
