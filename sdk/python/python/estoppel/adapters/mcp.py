"""Clients of the Model Context Protocol: ``async with guarded(Client(...), guard, server="files") as client``.

Calls of tools, reads of resources and prompts are steps, with the server as the tool's plugin; every other
request but the handshake and pings is checked. A halt cancels the request in flight, and the client tells the
server so, by ``notifications/cancelled`` or, over HTTP since 2026-07-28, by closing the response. What the
server asks of the agent in turn, such as sampling and elicitation, is a step, too.

Who acts is told to the server in each request's ``_meta``, under ``dev.estoppel/``.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from contextvars import ContextVar
from typing import Any, TypeVar, cast
from urllib.parse import urlsplit

import mcp_types as types
from mcp import Client, ClientSession, MCPError

from estoppel._guard import Guard
from estoppel._halted import Halted
from estoppel._session import Session
from estoppel._step import Step
from estoppel.adapters._names import scope_name

__all__ = ["guarded"]

_T = TypeVar("_T", Client, ClientSession)
_META = "dev.estoppel/"
# They belong to the connection, and to no step of the agent.
_UNCHECKED = (types.InitializeRequest, types.DiscoverRequest, types.PingRequest)


@asynccontextmanager
async def guarded(
    client: _T,
    guard: Guard | Session,
    *,
    server: str | None = None,
    identities: bool = True,
) -> AsyncIterator[_T]:
    """Opens a client, or a session over an open transport, and puts what it does under a guard.

    With a guard, a step belongs to the session that is current where the request is made; with a session, to
    that one. ``server``: the plugin that its tools are of, such as ``plugin:files`` halts; without it, what
    the server calls itself. ``identities``: whether the server is told agent, session, user, tenant and task.

    :class:`estoppel.Halted` comes out as itself, and not in a group of exceptions, as whatever else leaves
    the client's own block does.
    """
    try:
        async with cast(AbstractAsyncContextManager[Any], client) as opened:
            own = _Server(guard, server, identities)
            if isinstance(opened, Client):
                own.destination = _destination(opened.server)
                own.wrap_client(opened)
            own.wrap(opened.session if isinstance(opened, Client) else opened)
            # Both give themselves.
            yield client
    except BaseException as error:
        halted = _halted_in(error)
        if halted is None or halted is error:
            raise
        raise halted from None


class _Call:
    """A call of a client, which may take several requests."""

    halted: Halted | None = None


_call: ContextVar[_Call | None] = ContextVar("estoppel_mcp_call", default=None)


class _Server:
    """One server, as the guard sees it."""

    def __init__(self, guard: Guard | Session, name: str | None, identities: bool) -> None:
        self._guard = guard
        self._name = name
        self._identities = identities
        self._under_way: list[Session] = []
        self.destination: str | None = None

    def wrap(self, session: ClientSession) -> None:
        """Makes steps of a session's requests, and of those that it answers."""
        send, answer = session.send_request, session.dispatch_input_request

        async def sending(request: Any, *args: Any, **options: Any) -> Any:
            if isinstance(request, _UNCHECKED):
                return await send(request, *args, **options)
            own = self._guard._acting()
            step = self._step(own, session, request)
            if step is None:
                own.check()
                return await send(request, *args, **options)
            async with step:
                self._under_way.append(own)
                try:
                    result = await send(self._identified(own, request), *args, **options)
                finally:
                    self._under_way.remove(own)
                step.result(result.model_dump(mode="json", by_alias=True, exclude_none=True))
                return result

        async def answering(context: Any, request: Any) -> Any:
            call = _call.get()
            # A request that the server makes by itself comes in a task of the connection's, which knows
            # nothing of who acts: most likely it is for the request that was made last.
            own = self._under_way[-1] if call is None and self._under_way else self._guard._acting()
            params = request.params
            values = {} if params is None else params.model_dump(mode="json", exclude_none=True)
            try:
                async with own.step(None, values, self._plugin(session), action=_asked(request)):
                    return await answer(context, request)
            except Halted as halted:
                # Raised here, it would end the connection in the midst of the agent's own request.
                if call is not None:
                    call.halted = halted
                return types.ErrorData(code=types.INVALID_REQUEST, message=str(halted))

        session.send_request = sending  # type: ignore[method-assign]
        session.dispatch_input_request = answering  # type: ignore[method-assign, assignment]

    def wrap_client(self, client: Client) -> None:
        """Makes a client say itself that it is halted: it has answers of its own, and rounds of requests."""
        for name in ("call_tool", "read_resource", "get_prompt"):
            setattr(client, name, self._calling(getattr(client, name)))

    def _calling(self, work: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def calling(*args: Any, **options: Any) -> Any:
            own = self._guard._acting()
            # Answers from the client's cache take no request.
            own.check()
            call = _Call()
            token = _call.set(call)
            try:
                result = await work(*args, **options)
            except MCPError:
                if call.halted is not None:
                    raise call.halted from None
                raise
            finally:
                _call.reset(token)
            own.check()
            return result

        return calling

    def _step(self, own: Session, session: ClientSession, request: Any) -> Step | None:
        params: Any = request.params
        plugin = self._plugin(session)
        to = self.destination
        if isinstance(request, types.CallToolRequest):
            name = scope_name(params.name)
            return own.step(name, params.arguments, plugin, destination=to)
        if isinstance(request, types.ReadResourceRequest):
            values = {"uri": str(params.uri)}
            return own.step(None, values, plugin, destination=to, action="mcp_resource")
        if isinstance(request, types.GetPromptRequest):
            values = {"prompt": params.name, "arguments": params.arguments}
            return own.step(None, values, plugin, destination=to, action="mcp_prompt")
        return None

    def _plugin(self, session: ClientSession) -> str:
        says = session.server_info
        return scope_name(self._name or (says.name if says is not None else "mcp"))

    def _identified(self, own: Session, request: Any) -> Any:
        """The request with who acts in its `_meta`; what the caller has put there stays."""
        if not self._identities:
            return request
        identities = {
            "agent": own.guard.agent_name,
            "session": own.id,
            "user": own.user,
            "tenant": own.tenant,
            "task": own.task,
        }
        known = {_META + key: value for key, value in identities.items() if value is not None}
        params = request.params
        meta = {**known, **(params.meta or {})}
        return request.model_copy(update={"params": params.model_copy(update={"meta": meta})})


def _asked(request: Any) -> str:
    if isinstance(request, types.CreateMessageRequest):
        return "mcp_sampling"
    return "mcp_elicitation" if isinstance(request, types.ElicitRequest) else "mcp_roots"


def _destination(server: object) -> str | None:
    """Where a client connects to, if it was given an address."""
    if not isinstance(server, str):
        return None
    address = urlsplit(server)
    if address.hostname is None:
        return None
    host = f"[{address.hostname}]" if ":" in address.hostname else address.hostname
    return f"{host}:{address.port or (443 if address.scheme == 'https' else 80)}"


def _halted_in(error: BaseException) -> Halted | None:
    """The first `Halted` in a group of exceptions, or the exception itself if it is one."""
    if isinstance(error, Halted):
        return error
    inner: tuple[BaseException, ...] = getattr(error, "exceptions", ())
    return next((found for one in inner if (found := _halted_in(one)) is not None), None)
