"""Who acts."""

from __future__ import annotations

from contextvars import ContextVar, Token
from types import TracebackType

from estoppel import _native
from estoppel._step import Step

current: ContextVar[Session | None] = ContextVar("estoppel_session", default=None)
"""The session that this thread or task acts in."""


class Session(_native.Session):
    """A session under a guard, made by ``guard.session(...)``.

    As a context manager it is the session of what ``guard.step(...)`` and ``guard.check()`` do inside
    of it, in this thread or task and the tasks that it starts. Other threads use ``session.step(...)``.
    """

    __slots__ = ("_tokens",)
    _tokens: list[Token[Session | None]]

    def __enter__(self) -> Session:
        try:
            tokens = self._tokens
        except AttributeError:
            tokens = self._tokens = []
        tokens.append(current.set(self))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        current.reset(self._tokens.pop())

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
        """A step of this session; see :class:`estoppel.Step`.

        ``tool``: what is called. ``params``: what it is called with, for the audit log; what is very
        large or deep is recorded shortened. ``plugin``, ``plugin_version``: where the tool comes from.
        ``destination``: ``HOST[:PORT]`` that it will connect to. ``accessed_tenant``: whose data it
        touches. ``action``: what is done, where it is not the call of a tool. ``interruptible=False``:
        the work is not interrupted in its midst; a halt is confirmed with the word that it runs on.
        ``read_only=True``: it changes nothing anywhere, and may be while a limit lets only such steps be.
        """
        step = Step(
            self,
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

    def _acting(self) -> Session:
        return self
