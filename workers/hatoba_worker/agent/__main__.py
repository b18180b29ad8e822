"""`python -m hatoba_worker.agent run --data DIR`: the same as `hatoba agent`."""

from __future__ import annotations

from hatoba_worker.agent.cli import agent

agent(prog_name="hatoba agent")
