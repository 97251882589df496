"""Models as steps.

A stream's step is held by a task of its own. The SDK's task is then never cancelled by a halt: it may be
anywhere between two pieces, and a run whose task is cancelled ends as if its stream had come to its end.
"""

from __future__ import annotations

import asyncio
import weakref
from collections import deque
from collections.abc import AsyncIterator
from typing import Any

from agents.items import ModelResponse, TResponseStreamEvent
from agents.models.interface import Model, ModelProvider
from agents.retry import ModelRetryAdvice, ModelRetryAdviceRequest

from estoppel._session import Session
from estoppel._step import Step
from estoppel.adapters.openai_agents._steps import ended, session, under_way

_AHEAD_MAX = 64
"""How many pieces of an answer may wait for the SDK to take them."""


class GuardedModel(Model):
    """A model each of whose calls is a step. To ``isinstance`` it is what it stands for."""

    def __init__(self, inner: Model) -> None:
        self._inner = inner

    @property  # type: ignore[misc]
    def __class__(self) -> type:  # pyright: ignore[reportIncompatibleMethodOverride]
        # The SDK treats models of the Chat Completions API apart from others.
        return type(self._inner)

    def __getattr__(self, name: str) -> Any:
        if name == "_inner":  # A copy is asked for its methods before it has anything.
            raise AttributeError(name)
        return getattr(self._inner, name)

    async def get_response(self, *args: Any, **kwargs: Any) -> ModelResponse:
        own = session()
        if own is None:
            return await self._inner.get_response(*args, **kwargs)
        with under_way():
            async with self._step(own, args, kwargs, stream=False) as step:
                response = await self._inner.get_response(*args, **kwargs)
                usage = response.usage
                step.usage(
                    model=self._name(),
                    input_tokens=usage.input_tokens,
                    output_tokens=usage.output_tokens,
                )
                return response

    async def stream_response(self, *args: Any, **kwargs: Any) -> AsyncIterator[TResponseStreamEvent]:
        own = session()
        stream = self._inner.stream_response(*args, **kwargs)
        if own is None:
            async for event in stream:
                yield event
            return
        pieces = _Pieces()
        pump = asyncio.ensure_future(self._pump(self._step(own, args, kwargs, stream=True), stream, pieces))
        pump.add_done_callback(lambda _: pieces.come.set())
        try:
            while True:
                # What came before a halt is not given out after it.
                if pump.done() and (pump.cancelled() or pump.exception() is not None):
                    pump.result()
                if pieces.waiting:
                    event = pieces.take()
                    own.check()
                    yield event
                elif pump.done():
                    return
                else:
                    pieces.come.clear()
                    await pieces.come.wait()
        finally:
            await ended(pump)

    async def _pump(
        self, step: Step, stream: AsyncIterator[TResponseStreamEvent], pieces: _Pieces
    ) -> None:
        with under_way():
            async with step:
                try:
                    async for event in stream:
                        if event.type == "response.completed" and event.response.usage is not None:
                            usage = event.response.usage
                            step.usage(
                                model=self._name(),
                                input_tokens=usage.input_tokens,
                                output_tokens=usage.output_tokens,
                            )
                        await pieces.put(event)
                finally:
                    close = getattr(stream, "aclose", None)
                    if close is not None:
                        await close()

    def _step(
        self, own: Session, args: tuple[Any, ...], kwargs: dict[str, Any], stream: bool
    ) -> Step:
        items = args[1] if len(args) > 1 else kwargs.get("input", ())
        count = 1 if isinstance(items, str) else len(items)
        params = {"model": self._name(), "messages": count, "stream": stream}
        return own.step(action="model_call", params=params)

    def _name(self) -> str | None:
        name = getattr(self._inner, "model", None)
        return None if name is None else str(name)

    async def _cleanup_on_run_end(self, owner: object) -> None:
        await self._inner._cleanup_on_run_end(owner)

    async def close(self) -> None:
        await self._inner.close()

    def get_retry_advice(self, request: ModelRetryAdviceRequest) -> ModelRetryAdvice | None:
        return self._inner.get_retry_advice(request)


class GuardedProvider(ModelProvider):
    """A provider whose models are steps."""

    def __init__(self, inner: ModelProvider) -> None:
        self._inner = inner
        # A guarded model keeps its own alive, and so its number.
        self._models = weakref.WeakValueDictionary[int, GuardedModel]()

    def __getattr__(self, name: str) -> Any:
        if name == "_inner":  # A copy is asked for its methods before it has anything.
            raise AttributeError(name)
        return getattr(self._inner, name)

    def get_model(self, model_name: str | None) -> Model:
        inner = self._inner.get_model(model_name)
        # The SDK tells models apart by identity: the same one is to stay the same.
        return self._models.setdefault(id(inner), guarded_model(inner))

    async def aclose(self) -> None:
        await self._inner.aclose()


def guarded_model(model: Model) -> GuardedModel:
    """The model as steps; itself, if it is that already."""
    # Not `isinstance`: a guarded model says that it is another class.
    return model if type(model) is GuardedModel else GuardedModel(model)


class _Pieces:
    """The pieces of an answer between who reads it and the SDK."""

    def __init__(self) -> None:
        self.waiting: deque[TResponseStreamEvent] = deque()
        self.come = asyncio.Event()
        self._room = asyncio.Event()

    async def put(self, event: TResponseStreamEvent) -> None:
        while len(self.waiting) >= _AHEAD_MAX:
            self._room.clear()
            await self._room.wait()
        self.waiting.append(event)
        self.come.set()

    def take(self) -> TResponseStreamEvent:
        event = self.waiting.popleft()
        self._room.set()
        return event
