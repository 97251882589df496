"""Halts for tests, without a server.

    from estoppel import testing

    def test_the_agent_stops():
        with testing.halting_guard(at_step=3) as guard:
            with pytest.raises(estoppel.Halted):
                run_agent(guard)
        assert guard.steps == 3

The guard is the real one: the halt is put in force in this process, and refuses, cancels and
interrupts as one from a server does. It is in force from the moment at which step ``at_step`` has
begun (the first is 1), so that step is interrupted in its midst, and every further one is refused.
"""

from __future__ import annotations

from estoppel._guard import Guard
from estoppel._limits import Limits

__all__ = ["HaltingGuard", "halting_guard"]

_NOWHERE = "http://127.0.0.1:9"
"""Where nobody listens: the port is reserved for what throws away all that it gets (RFC 863)."""
_BY = "local:testing@localhost"


class HaltingGuard(Guard):
    """A guard without a server that halts at a step, or when a test says so."""

    __slots__ = ("_scope",)

    def __init__(
        self,
        at_step: int | None = None,
        *,
        scope: str = "global",
        agent: str = "testing",
        limits: Limits | None = None,
    ) -> None:
        self._scope = scope
        self._rehearsal = (at_step or 0, scope, _BY)
        super().__init__(
            _NOWHERE,
            "testing",
            agent=agent,
            mode="enforce",
            state_dir="",
            on_lost="allow",
            limits=limits or Limits(),
        )

    @property
    def steps(self) -> int:
        """How many steps have begun or were refused."""
        return self._native.steps

    def __enter__(self) -> HaltingGuard:
        return self

    def halt(self, scope: str | None = None, reason: str = "a test") -> str:
        """Halts now, the guard's scope or another. Returns the order's id."""
        return self._native.halt_locally(scope or self._scope, reason, _BY)

    def wait_ready(self, timeout: float = 10.0) -> bool:
        """Always: there is nobody to wait for."""
        return True

    async def ready(self, timeout: float = 10.0) -> bool:
        """Always: there is nobody to wait for."""
        return True


def halting_guard(
    at_step: int | None = None, *, scope: str = "global", limits: Limits | None = None
) -> HaltingGuard:
    """A guard that halts ``scope`` at step ``at_step``; without one, at :meth:`HaltingGuard.halt`.

    ``limits``: what each task may do, as for :class:`estoppel.Guard`; a trip halts the task, too.
    """
    return HaltingGuard(at_step, scope=scope, limits=limits)
