"""Estoppel in an agent's loop: check, step, cancel in flight, audit.

    import estoppel

    guard = estoppel.Guard(agent="support")
    with guard.session("abc123", user="bob"):
        with guard.step("fetch", {"url": url}) as step:
            step.result(fetch(url))

When an order halts the session, ``Halted`` is raised where the step is: before it begins, or in its
midst. ``Halted`` is a ``BaseException``: ``except Exception`` does not swallow a stop.
"""

from estoppel._guard import Guard, Status, current_session
from estoppel._halted import Excess, Halted, Order
from estoppel._imports import guard_imports
from estoppel._killswitch import KillSwitch
from estoppel._limits import Limits
from estoppel._native import version as _version
from estoppel._refused import Refused
from estoppel._session import Session
from estoppel._step import Step

__version__ = _version()

__all__ = [
    "Excess",
    "Guard",
    "Halted",
    "KillSwitch",
    "Limits",
    "Order",
    "Refused",
    "Session",
    "Status",
    "Step",
    "__version__",
    "current_session",
    "guard_imports",
]
