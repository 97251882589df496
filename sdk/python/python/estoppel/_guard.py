"""The guard."""

from __future__ import annotations

import atexit
import json
import os
import sys
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, NoReturn

from estoppel import _native, _limits
from estoppel._limits import Limits
from estoppel._session import Session, current
from estoppel._step import Step

# What runs in a process that was forked is another guard; see the module `core` of the native half.
def _close_at_the_end_of_a_worker() -> None:
    """Children of ``multiprocessing`` may end without ``atexit``, but with its own finalizers.

    They forget at their start what was registered before, and ask who wants to register anew.
    """
    util = sys.modules.get("multiprocessing.util")
    if util is not None:
        util.register_after_fork(_close_all, _finalize)
        _finalize()


def _finalize(*_: object) -> None:
    util = sys.modules["multiprocessing.util"]
    util.Finalize(None, _close_all, exitpriority=0)


def _after_fork_in_child() -> None:
    _native.after_fork_in_child()
    _close_at_the_end_of_a_worker()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)

_open: set[_native.Guard] = set()
"""Guards whose last events are sent when the interpreter ends."""


@atexit.register
def _close_all() -> None:
    for guard in list(_open):
        guard.close()


@dataclass(frozen=True)
class Status:
    """How a guard stands."""

    enforcer: str
    """The guard's id, as in ``estoppel status``."""
    connected_to: str | None
    """The server that it is connected to and in step with."""
    lease_left_s: float | None
    """For how many seconds it goes on without an answer of a server; none before the first one."""
    orders_in_force: int
    """How many orders are in force."""
    problem: str | None
    """What is wrong, in words."""
    events_queued: int
    """Events in memory that no server has yet."""
    events_spooled: int
    """Events on disk that no server has yet."""
    events_delivered: int
    """Events that a server has accepted since the start."""
    events_lost: int
    """Events that found no room."""


class Guard:
    """Estoppel in this process. It connects in the background and refuses until it is connected.

    What is left out is taken from the environment: ``ESTOPPEL_URL`` (several servers of one deployment
    separated by commas), ``ESTOPPEL_TOKEN``, ``ESTOPPEL_MODE``, ``ESTOPPEL_STATE_DIR``,
    ``ESTOPPEL_CA``, ``ESTOPPEL_LIMITS`` (JSON with the names of :class:`estoppel.Limits`).

    ``agent``: the name of this agent. ``mode``: ``"enforce"``, or ``"observe"`` to only record what
    would have been stopped. ``state_dir``: a folder of this process alone, in which orders and events
    outlast a restart and an outage; without one they are in memory. ``on_lost``: whether the agent goes
    on (``"allow"``) while no server answers; it does not know then of a halt. ``when_full``: whether
    events that find no room are dropped and counted, or steps are refused before it comes to that.
    ``limits``: the most that each task may do; of these and of orders the stricter holds. ``ca``: a
    file of certificates that may vouch for the servers. ``text_global``, ``text_other``: the
    texts of :class:`estoppel.Halted` for a global halt and for all others.

    A guard runs until :meth:`close`, which the end of the interpreter calls. After a fork the child has
    a guard of its own behind the same object.
    """

    __slots__ = ("_base", "_native", "_rehearsal")
    _rehearsal: tuple[int, str, str]

    def __init__(
        self,
        url: str | None = None,
        token: str | None = None,
        *,
        agent: str | None = None,
        mode: Literal["enforce", "observe"] | None = None,
        state_dir: str | os.PathLike[str] | None = None,
        on_lost: Literal["refuse", "allow"] = "refuse",
        when_full: Literal["drop", "refuse"] = "drop",
        ca: str | os.PathLike[str] | None = None,
        name: str | None = None,
        text_global: str | None = None,
        text_other: str | None = None,
        limits: Limits | None = None,
    ) -> None:
        def given(value: str | os.PathLike[str] | None, variable: str) -> str | None:
            value = os.environ.get(variable) if value is None else os.fspath(value)
            return value or None

        servers = (given(url, "ESTOPPEL_URL") or "").split(",")
        self._native = _native.Guard(
            servers=[server.strip() for server in servers if server.strip()],
            token=given(token, "ESTOPPEL_TOKEN"),
            agent=agent,
            mode=given(mode, "ESTOPPEL_MODE") or "enforce",
            state_dir=given(state_dir, "ESTOPPEL_STATE_DIR"),
            on_lost=on_lost,
            when_full=when_full,
            ca=given(ca, "ESTOPPEL_CA"),
            name=name,
            text_global=text_global,
            text_other=text_other,
            limits=_limits.in_force(limits),
            rehearsal=getattr(self, "_rehearsal", None),
        )
        self._base = Session(self._native)
        _open.add(self._native)
        _close_at_the_end_of_a_worker()

    def session(
        self,
        id: str | None = None,
        *,
        user: str | None = None,
        tenant: str | None = None,
        task: str | None = None,
        component: str | None = None,
        agent: str | None = None,
    ) -> Session:
        """A session of this agent, for a user, tenant, task or part of the product where they are known.

        ``agent``: the sub-agent that acts in it, where it is not the guard's own.
        """
        return Session(
            self._native, id, user=user, tenant=tenant, task=task, component=component, agent=agent
        )

    def step(
        self,
        tool: str | None = None,
        params: object = None,
        plugin: str | None = None,
        *,
        plugin_version: str | None = None,
        destination: str | None = None,
        accessed_tenant: str | None = None,
        action: str | None = None,
        interruptible: bool = True,
        read_only: bool = False,
    ) -> Step:
        """As :meth:`Session.step`, of the session that is current; as a decorator, at each call."""
        step = Step(
            self._acting(),
            tool,
            params,
            plugin,
            plugin_version,
            destination,
            accessed_tenant,
            action,
            interruptible,
            read_only,
        )
        step._owner = self
        return step

    def check(self) -> None:
        """Raises :class:`Halted` when the agent, in its current session, must not act now."""
        self._acting().check()

    def allowed(self) -> bool:
        """Whether the agent, in its current session, may act now."""
        return self._acting().allowed()

    def enabled(self, component: str) -> bool:
        """Whether a part of the product is on: not while ``component:NAME`` is halted."""
        return self._acting().enabled(component)

    def access(
        self,
        requester_tenant: str | None,
        accessed_tenant: str | None,
        action: str,
        params: object = None,
        *,
        component: str | None = None,
    ) -> None:
        """Records an access to a tenant's data.

        Raises :class:`Halted` when the agent must not act, or when strict tenant validation is ordered
        and the two tenants differ or are not both known.
        """
        self._acting().access(requester_tenant, accessed_tenant, action, params, component)

    def load_plugin(self, name: str, version: str | None = None) -> None:
        """Records that a plugin is loaded. Raises :class:`Halted` when this version of it is halted.

        A range of versions reaches a plugin whose version is not known.
        """
        self._acting().load_plugin(name, version)

    def wait_ready(self, timeout: float = 10.0) -> bool:
        """Waits until a server's orders are known here; whether they are, within ``timeout`` seconds."""
        return self._native.wait_ready(timeout)

    async def ready(self, timeout: float = 10.0) -> bool:
        """As :meth:`wait_ready`, for asyncio."""
        import asyncio  # imported by whoever calls this; others do not pay for it

        return await asyncio.get_running_loop().run_in_executor(
            None, self._native.wait_ready, timeout
        )

    def status(self) -> Status:
        """How the guard stands."""
        values = json.loads(self._native.status())
        events = values.pop("events")
        counts = {f"events_{name}": events[name] for name in ("queued", "spooled", "delivered", "lost")}
        return Status(**values, **counts)

    def close(self) -> None:
        """Refuses all further steps, sends the last events (or spools them), and ends the guard.

        Waits for that, ten seconds at most.
        """
        _open.discard(self._native)
        self._native.close()

    @property
    def mode(self) -> Literal["enforce", "observe"]:
        """Whether it stops what is to be stopped, or only records that it would have."""
        return self._native.mode

    def __enter__(self) -> Guard:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a guard holds a token and is not pickled: make one in the other process, "
            "`estoppel.Guard()` reads the environment"
        )

    def _acting(self) -> Session:
        session = current.get()
        if session is not None and session.guard is self._native:
            return session
        return self._base


def current_session() -> Session | None:
    """The session that this thread or task acts in."""
    return current.get()
