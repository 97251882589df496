"""What is raised when an agent must not go on."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from estoppel import _native

_DEFAULT = "Your agent session has been suspended."


@dataclass(frozen=True)
class Order:
    """The order behind a refusal."""

    id: str
    """The order's id."""
    scope: tuple[str, ...]
    """What it reaches, such as ``("session:abc123",)``."""
    reason: str
    """Why it was given, in a person's words."""
    by: str
    """Who gave it."""
    since: datetime
    """When it was given, in UTC."""
    incident: str | None
    """The incident that it belongs to."""


Breaker = Literal[
    "steps", "wall_clock", "cost", "tokens", "concurrency", "errors_in_a_row", "identical_calls"
]


@dataclass(frozen=True)
class Excess:
    """The limit that a task is over, and by what."""

    breaker: Breaker
    """Which bound of :class:`estoppel.Limits`: ``"steps"`` for ``steps_max``, and so on."""
    value: float
    """What the task has come to: a count, milliseconds, or US dollars."""
    max: float
    """The most that was allowed, in the same unit."""
    period: int | None
    """Of identical calls, how many make one cycle."""


class Halted(BaseException):
    """The agent must not go on: an order halts it, or its guard cannot know that none does.

    A ``BaseException``, as ``KeyboardInterrupt`` is, so that a loop's ``except Exception`` does not
    take a stop for a failure of the tool, and try again. Its text is the one for the agent's user.
    """

    message: str
    """The text for the agent's user."""
    reason: str
    """Why, in a word: ``halted``, ``blocked``, ``limit``, ``tenant_validation``, ``lease_lost``,
    ``not_yet_connected``, ``closed``, ..."""
    order: Order | None
    """The order behind it; none where the guard refuses for want of something."""
    limit: Excess | None
    """The limit that the task is over, where that is why."""
    contact: str | None
    """Whom to call, in the words of the servers' owner."""

    def __init__(self, denied: str | None = None, line: str | None = None) -> None:
        if denied is None:
            # Python makes an exception that it raises in a running thread without arguments.
            denied, line = _native.raised_here() or (None, None)
        super().__init__(denied, line)
        values: dict[str, Any] = json.loads(denied) if denied else {}
        self.message = values.get("message", _DEFAULT)
        self.reason = values.get("reason", "halted")
        self.contact = values.get("contact")
        self.order = _order(values.get("order"))
        self.limit = _excess(values.get("limit"))
        self._line = line or self.message

    def __str__(self) -> str:
        return self.message

    def __repr__(self) -> str:
        return f"Halted({self._line!r})"

    @property
    def line(self) -> str:
        """Who stopped it, why, since when, for which incident and whom to call, on one line."""
        return self._line


def _excess(values: dict[str, Any] | None) -> Excess | None:
    if values is None:
        return None
    return Excess(values["breaker"], values["value"], values["max"], values.get("period"))


def _order(values: dict[str, Any] | None) -> Order | None:
    if values is None:
        return None
    scope: str | list[str] = values["scope"]
    return Order(
        id=values["id"],
        scope=(scope,) if isinstance(scope, str) else tuple(scope),
        reason=values["reason"],
        by=values["issued_by"],
        since=datetime.fromisoformat(values["issued_at"].replace("Z", "+00:00")),
        incident=values.get("incident"),
    )
