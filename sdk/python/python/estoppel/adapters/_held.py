"""A step whose work is done elsewhere: in another process, under a hook before and a hook after it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from estoppel._halted import Halted
from estoppel._step import Step


class ToolFailed(Exception):
    """What is on record for a tool that failed where it runs, or was not run after all."""


class Held:
    """A step that a task of its own holds open, for a halt to find.

    ``mark``: what the work's processes carry in their environment, ``NAME=VALUE``. ``halt`` is told of the
    halt that ended the step; ``at_stop`` is awaited before that, within the step.
    """

    def __init__(
        self,
        step: Step,
        mark: str | None,
        halt: Callable[[Halted], None],
        at_stop: Callable[[], Awaitable[None]] | None,
    ) -> None:
        loop = asyncio.get_running_loop()
        self._step = step
        self._mark = mark
        self._halt = halt
        self._at_stop = at_stop
        self._entered: asyncio.Future[None] = loop.create_future()
        self._over: asyncio.Future[Any] = loop.create_future()
        self._task = loop.create_task(self._hold())

    @classmethod
    async def begin(
        cls,
        step: Step,
        mark: str | None,
        halt: Callable[[Halted], None],
        at_stop: Callable[[], Awaitable[None]] | None = None,
    ) -> Held:
        """Raises ``Halted`` when the step is refused."""
        held = cls(step, mark, halt, at_stop)
        # Who waits may be cancelled; the step is held nevertheless.
        await asyncio.shield(held._entered)
        return held

    async def end(self, result: Any = None, *, failed: bool = False) -> None:
        if not self._over.done():
            if failed:
                self._over.set_exception(ToolFailed())
            else:
                self._over.set_result(result)
        await asyncio.wait([self._task])

    async def ended_if_stopped(self) -> None:
        if self._step.stopped:
            await asyncio.wait([self._task])

    async def _hold(self) -> None:
        try:
            async with self._step as step:
                if self._mark is not None:
                    step.own_marked(self._mark)
                self._entered.set_result(None)
                try:
                    result = await self._over
                except asyncio.CancelledError:
                    if step.stopped and self._at_stop is not None:
                        await self._at_stop()
                    raise
                if result is not None:
                    step.result(result)
        except Halted as halted:
            if self._entered.done():
                self._halt(halted)
            else:
                self._entered.set_exception(halted)
        except ToolFailed:
            pass  # It is on record.
