"""Who acts in a run, how a callable of the SDK's becomes a step, and what runs below an agent as a tool."""

from __future__ import annotations

import asyncio
import functools
import inspect
import json
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

from estoppel._guard import Guard
from estoppel._halted import Halted
from estoppel._session import Session

_T = TypeVar("_T")
_F = TypeVar("_F", bound=Callable[..., Any])

_MARK = "__estoppel_step__"

_CHECK_AGAIN_S = 0.05
"""How often it is looked whether the steps of a stopped nested run have ended."""

_acting: ContextVar[Guard | Session | None] = ContextVar("estoppel_acting", default=None)


class _Below:
    """What is known of the steps of a nested run."""

    def __init__(self) -> None:
        self.under_way: set[object] = set()
        self.halted = False

    @property
    def ends_by_itself(self) -> bool:
        return self.halted or bool(self.under_way)


_below: ContextVar[_Below | None] = ContextVar("estoppel_below", default=None)
"""The nested run that this is part of; none in the outermost run."""


@contextmanager
def acting(guard: Guard | Session) -> Iterator[None]:
    """What the SDK does inside of it, and in the tasks and threads that it starts, are steps."""
    token = _acting.set(guard)
    try:
        yield
    finally:
        _acting.reset(token)


def session() -> Session | None:
    """The session whose steps are made here; none where no guarded run is under way."""
    guard = _acting.get()
    return None if guard is None else guard._acting()


@contextmanager
def under_way() -> Iterator[None]:
    """Marks that a step is under way, for the agent that this one was called by as a tool."""
    below = _below.get()
    if below is None:
        yield
        return
    mark = object()
    below.under_way.add(mark)
    try:
        yield
    except Halted:
        below.halted = True
        raise
    finally:
        below.under_way.discard(mark)


async def nested(own: Session, name: str, params: object, run: Callable[[], Awaitable[Any]]) -> Any:
    """Runs another agent as one step of this one.

    A halt ends the steps below by themselves, and they end the nested run. Cancelling it as well would leave
    its tools' tasks behind, whose exceptions the SDK tells the event loop's handler as unexpected. It is
    cancelled when none of its steps is under way, or when the halt is of this step alone.
    """
    below = _Below()
    with under_way():
        async with own.step(name, params) as step:
            token = _below.set(below)
            try:
                inner = asyncio.ensure_future(run())
            finally:
                _below.reset(token)
            try:
                await asyncio.wait({inner})
            except asyncio.CancelledError:
                while step.stopped and not own.allowed() and below.ends_by_itself:
                    if inner.done():
                        break
                    await asyncio.wait({inner}, timeout=_CHECK_AGAIN_S)
                raise
            finally:
                await ended(inner)
            value = inner.result()
            step.result(recorded(value))
            return value


async def ended(task: asyncio.Future[_T]) -> None:
    """Ends a task if it has not ended yet, and takes its exception, which is told elsewhere."""
    if not task.done():
        task.cancel()
        await asyncio.wait({task})
    if not task.cancelled():
        task.exception()


def recorded(value: object) -> object:
    """A value as the audit log takes it: what is no plain value is recorded as its text."""
    plain = (str, int, float, bool, type(None), list, dict)
    return value if isinstance(value, plain) else str(value)


def parsed(arguments: str) -> object:
    """A model's arguments as they are recorded; what is no JSON is recorded as it is."""
    try:
        return json.loads(arguments) if arguments else {}
    except ValueError:
        return {"input": arguments}


def as_step(
    name: str, params: Callable[..., object], work: Callable[..., Any]
) -> Callable[..., Awaitable[Any]]:
    """A callable that the SDK calls, and whose awaitable or value it takes, as a step."""

    @functools.wraps(work, updated=())
    async def stepping(*args: Any) -> Any:
        own = session()
        if own is None:
            value = work(*args)
            return await value if inspect.isawaitable(value) else value
        with under_way():
            async with own.step(name, params(*args)) as step:
                value = work(*args)
                value = await value if inspect.isawaitable(value) else value
                step.result(recorded(value))
                return value

    return marked(stepping)


def marked(function: _F) -> _F:
    """The function, known to be a step."""
    setattr(function, _MARK, True)
    return function


def is_marked(function: object) -> bool:
    """Whether a function, or what it is bound to, is a step already."""
    return hasattr(function, _MARK)
