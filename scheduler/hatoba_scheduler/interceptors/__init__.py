"""What happens around every call: who may make it, for how long, and how its errors look.

One grpc.aio interceptor, `Front`, does all of it; it must be the server's only (or last) one, since
it keeps the wrapped handler of each method. docs of the parts: context (what servicers may know),
admission (starting, serving, draining), principals (who asks for too much), requests (size,
parsing, rules), failures (statuses).
"""

from __future__ import annotations

from hatoba_scheduler.interceptors.admission import Admission, Phase
from hatoba_scheduler.interceptors.chain import CallLimits, Front
from hatoba_scheduler.interceptors.context import CallContext, call_or_none, current_call
from hatoba_scheduler.interceptors.options import server_options
from hatoba_scheduler.interceptors.principals import PrincipalLimits

__all__ = [
    "Admission",
    "CallContext",
    "CallLimits",
    "Front",
    "Phase",
    "PrincipalLimits",
    "call_or_none",
    "current_call",
    "server_options",
]
