"""Model calls of the ``openai`` and ``anthropic`` clients, and of every framework that is built on them.

    from estoppel.adapters.model_clients import async_http_client, http_client

    openai.OpenAI(http_client=http_client(guard))
    anthropic.AsyncAnthropic(http_client=async_http_client(guard))

Each request is a step: checked before a byte of it is sent, and on record with its model and usage. It
lasts until the last byte of the answer, so a halt ends an answer that is still streaming. A client's own
attempts are requests of their own: none is made after a halt, since ``Halted`` is no ``Exception``.

Answers are asked for without compression, so that their usage can be read.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx2

from estoppel._guard import Guard
from estoppel._halted import Halted
from estoppel._session import Session
from estoppel._step import Step

__all__ = ["AsyncTransport", "Transport", "async_http_client", "http_client"]

_KEPT_BYTES_MAX = 4 << 20
"""How much of an answer is kept to read its usage."""
# The vendors' own clients set the same: ten minutes for an answer, five seconds for a connection.
_TIMEOUT = httpx2.Timeout(600.0, connect=5.0)


def http_client(guard: Guard | Session, **options: Any) -> httpx2.Client:
    """An HTTP client for ``http_client=`` of a synchronous client. Takes what ``httpx2.Client`` takes."""
    inner = options.pop("transport", None) or httpx2.HTTPTransport()
    options.setdefault("timeout", _TIMEOUT)
    options.setdefault("follow_redirects", True)
    return httpx2.Client(transport=Transport(guard, inner), **options)


def async_http_client(guard: Guard | Session, **options: Any) -> httpx2.AsyncClient:
    """As :func:`http_client`, for a client of asyncio."""
    inner = options.pop("transport", None) or httpx2.AsyncHTTPTransport()
    options.setdefault("timeout", _TIMEOUT)
    options.setdefault("follow_redirects", True)
    return httpx2.AsyncClient(transport=AsyncTransport(guard, inner), **options)


class Transport(httpx2.BaseTransport):
    """Sends each request as a step."""

    def __init__(self, guard: Guard | Session, inner: httpx2.BaseTransport) -> None:
        self._guard = guard
        self._inner = inner

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        call = _Call(self._guard, request)
        try:
            response = self._inner.handle_request(request)
        except BaseException:
            call.end()
            raise
        assert isinstance(response.stream, httpx2.SyncByteStream)
        response.stream = _Body(response.stream, call, response.headers)
        return response

    def close(self) -> None:
        self._inner.close()


class AsyncTransport(httpx2.AsyncBaseTransport):
    """Sends each request as a step."""

    def __init__(self, guard: Guard | Session, inner: httpx2.AsyncBaseTransport) -> None:
        self._guard = guard
        self._inner = inner

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        call = _Call(self._guard, request)
        try:
            response = await self._inner.handle_async_request(request)
        except BaseException:
            call.end()
            raise
        assert isinstance(response.stream, httpx2.AsyncByteStream)
        response.stream = _AsyncBody(response.stream, call, response.headers)
        return response

    async def aclose(self) -> None:
        await self._inner.aclose()


class _Call:
    """One request, from before its first byte to the last one of its answer."""

    def __init__(self, guard: Guard | Session, request: httpx2.Request) -> None:
        request.headers["accept-encoding"] = "identity"
        asked = _asked(request)
        self._session = guard._acting()
        self._model = asked.get("model")
        self._params = {
            "path": request.url.path,
            "model": self._model,
            "stream": asked.get("stream") is True,
        }
        host = request.url.host
        host = f"[{host}]" if ":" in host else host
        port = request.url.port or (443 if request.url.scheme == "https" else 80)
        self._destination = f"{host}:{port}"
        self._kept: bytearray | None = bytearray()
        self._step: Step | None = None
        self._task: object = None
        self._begin()

    def _begin(self) -> None:
        step = self._session.step(
            action="model_call", params=self._params, destination=self._destination
        )
        step.__enter__()
        self._step = step
        self._task = _current_task()

    def goes_on_here(self) -> None:
        """The answer is read by another task than the one that asked: a halt must end that one."""
        if self._step is not None and _current_task() is not self._task:
            self.end()
            self._begin()

    def came(self, chunk: bytes) -> None:
        """A piece of the answer is here; it goes no further when a halt came before it."""
        self._session.check()
        if self._kept is not None:
            self._kept += chunk
            if len(self._kept) > _KEPT_BYTES_MAX:
                self._kept = None

    def end(self, streams: bool = False) -> None:
        """The step is over, by the exception that is being handled, if there is one."""
        step, self._step = self._step, None
        if step is None:
            return
        if self._kept:
            usage = _usage(bytes(self._kept), streams)
            if usage is not None:
                step.usage(model=self._model, input_tokens=usage[0], output_tokens=usage[1])
        error = sys.exc_info()
        try:
            step.__exit__(*error)
        except Halted:
            # Who gave the answer up half-read is told at the next step; here nobody listens.
            if not isinstance(error[1], GeneratorExit):
                raise


class _Body(httpx2.SyncByteStream):
    def __init__(
        self, inner: httpx2.SyncByteStream, call: _Call, headers: httpx2.Headers
    ) -> None:
        self._inner = inner
        self._call = call
        self._streams = _is_stream(headers)

    def __iter__(self) -> Iterator[bytes]:
        try:
            for chunk in self._inner:
                self._call.came(chunk)
                yield chunk
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        try:
            self._inner.close()
        finally:
            self._call.end(self._streams)


class _AsyncBody(httpx2.AsyncByteStream):
    def __init__(
        self, inner: httpx2.AsyncByteStream, call: _Call, headers: httpx2.Headers
    ) -> None:
        self._inner = inner
        self._call = call
        self._streams = _is_stream(headers)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        self._call.goes_on_here()
        try:
            async for chunk in self._inner:
                self._call.came(chunk)
                yield chunk
        except BaseException:
            await self.aclose()
            raise

    async def aclose(self) -> None:
        try:
            await self._inner.aclose()
        finally:
            self._call.end(self._streams)


def _current_task() -> object:
    try:
        return asyncio.current_task()
    except RuntimeError:
        return None


def _is_stream(headers: httpx2.Headers) -> bool:
    return headers.get("content-type", "").startswith("text/event-stream")


def _asked(request: httpx2.Request) -> dict[str, Any]:
    """What is asked, where it is a JSON object."""
    try:
        asked = json.loads(request.content)
    except (ValueError, httpx2.RequestNotRead):
        return {}
    return asked if isinstance(asked, dict) else {}


def _usage(answer: bytes, streams: bool) -> tuple[int | None, int | None] | None:
    """Tokens in and out, as the last part of the answer says that names them."""
    parts = answer.splitlines() if streams else [answer]
    tokens: dict[str, int] = {}
    for part in parts:
        part = part.removeprefix(b"data:").strip()
        if b'"usage"' not in part:
            continue
        try:
            said = json.loads(part)
        except ValueError:
            continue
        # Of a stream's events, `message_start` and `response.completed` hold it one level down.
        for holder in (said, said.get("message"), said.get("response")):
            usage = holder.get("usage") if isinstance(holder, dict) else None
            if isinstance(usage, dict):
                tokens.update(
                    (_SIDES[name], count)
                    for name, count in usage.items()
                    if name in _SIDES and isinstance(count, int)
                )
    if not tokens:
        return None
    return tokens.get("in"), tokens.get("out")


_SIDES = {
    "input_tokens": "in",
    "prompt_tokens": "in",
    "output_tokens": "out",
    "completion_tokens": "out",
}
