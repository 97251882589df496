"""The most that a task may do."""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict, dataclass

from estoppel import _native


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The most that each task may do: ``Guard(limits=Limits(steps_max=200, cost_usd_max=5))``.

    A bound is the most that is still right: with ``steps_max=100`` the 101st step is one too many. A task
    that is over a bound is stopped in this process at once, whether or not a server answers. Of these and
    of what ``limit`` orders say the stricter holds, bound by bound. ``None``: unbounded.

    A task is what the session names as one; without a task, the session; without either, the agent.
    """

    requests_per_minute: int | None = None
    """Requests to a model or a destination, each minute."""
    steps_max: int | None = None
    """Steps of any kind: the task's iterations."""
    wall_clock_ms_max: int | None = None
    """Milliseconds since the task's first step."""
    cost_usd_max: float | None = None
    """What its steps say by ``step.usage(cost=...)``, together, in US dollars."""
    tokens_max: int | None = None
    """Tokens in and out, together."""
    concurrency_max: int | None = None
    """Calls of tools under way at the same time."""
    errors_in_a_row_max: int | None = None
    """Errors in a row: of calls of tools, and apart from these, of other steps."""
    identical_calls_max: int | None = None
    """How often in a row the same call, or cycle of up to eight calls, may come to the same result."""
    read_only: bool = False
    """Only tools that change nothing."""
    tenant_validation_strict: bool = False
    """``guard.access`` refuses what differs in tenants, or names none."""

    def __post_init__(self) -> None:
        cost = self.cost_usd_max
        if isinstance(cost, float) and not math.isfinite(cost):
            raise ValueError(f"cost_usd_max is {cost}: write an amount from 0")
        _native.check_limits(self._json())

    def _json(self) -> str:
        # Identity: a bound of 0 is one.
        bounds = {
            name: bound
            for name, bound in asdict(self).items()
            if bound is not None and bound is not False
        }
        return json.dumps(bounds)


def in_force(limits: Limits | None) -> str | None:
    """The bounds of the code, else of the environment, as JSON."""
    if limits is not None:
        return limits._json()
    text = os.environ.get("ESTOPPEL_LIMITS")
    if not text:
        return None
    try:
        _native.check_limits(text)
    except ValueError as error:
        hint = 'write JSON such as {"steps_max": 100, "cost_usd_max": 5}'
        raise ValueError(f"ESTOPPEL_LIMITS is {text[:64]!r}: {error}: {hint}") from None
    return text
