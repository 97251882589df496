"""Agents of the OpenAI Agents SDK: ``EstoppelRunner(guard).run(agent, ...)`` in the place of ``Runner.run``.

Each model call, each call of a local tool, each call to one of the SDK's MCP servers and each hand-off is a
step: checked before it, ended when a halt comes in its midst, and checked before its output goes on to the
model. Agents that are reached by a hand-off or as a tool are under the guard, too, whoever runs them.

- The runner gives the SDK a configuration whose models are steps. Nested runs inherit it.
- What the SDK's tool guardrails do not cover (shell, apply-patch, computer, custom tools, hand-offs, MCP
  servers) is wrapped where its work is done, on the agents' own objects: a tool's ``executor``, ``editor``,
  ``on_invoke_tool``. The wrapping does nothing in a run that no such runner has started.
- The SDK runs a synchronous function tool on a thread, where cancelling the task does not reach it. Its step
  is made inside of that thread.

Tools that the provider runs on its own servers end with the model call that they are part of.
"""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, cast

from agents import Agent, RunConfig, Runner, RunResult, RunResultStreaming, RunState, StreamEvent
from agents.items import TResponseInputItem
from agents.models.interface import ModelProvider
from agents.models.multi_provider import MultiProvider
from agents.run_config import CallModelData, ModelInputData

from estoppel._guard import Guard
from estoppel._session import Session
from estoppel.adapters.openai_agents._model import GuardedProvider, guarded_model
from estoppel.adapters.openai_agents._reach import reach
from estoppel.adapters.openai_agents._steps import acting

if TYPE_CHECKING:
    from agents.run_config import CallModelInputFilter

__all__ = ["EstoppelRunner"]

_Input = str | list[TResponseInputItem] | RunState[Any]


class EstoppelRunner:
    """Runs agents as ``agents.Runner`` does, under a guard; its methods take what ``Runner``'s take.

    With a guard, steps belong to the session that is current where the run is started; with a session, to
    that one.
    """

    def __init__(self, guard: Guard | Session) -> None:
        self._guard = guard
        self._provider: ModelProvider | None = None

    async def run(self, starting_agent: Agent[Any], input: _Input, **options: Any) -> RunResult:
        """As ``Runner.run``. Raises :class:`estoppel.Halted` when the run must not go on."""
        options = self._prepared(starting_agent, options)
        with acting(self._guard):
            return await Runner.run(starting_agent, input, **options)

    def run_sync(self, starting_agent: Agent[Any], input: _Input, **options: Any) -> RunResult:
        """As ``Runner.run_sync``. Raises :class:`estoppel.Halted` when the run must not go on."""
        options = self._prepared(starting_agent, options)
        with acting(self._guard):
            return Runner.run_sync(starting_agent, input, **options)

    def run_streamed(
        self, starting_agent: Agent[Any], input: _Input, **options: Any
    ) -> RunResultStreaming:
        """As ``Runner.run_streamed``; ``stream_events`` raises :class:`estoppel.Halted`."""
        options = self._prepared(starting_agent, options)
        with acting(self._guard):
            return _checked(Runner.run_streamed(starting_agent, input, **options), self._guard._acting())

    async def aclose(self) -> None:
        """Closes the models that the runner has made by name, where they keep connections of their own."""
        provider, self._provider = self._provider, None
        if provider is not None:
            await provider.aclose()

    def _prepared(
        self, starting_agent: Agent[Any], options: dict[str, Any]
    ) -> dict[str, Any]:
        self._guard._acting().check()
        reach(starting_agent)
        return {**options, "run_config": self._configured(options.get("run_config"))}

    def _configured(self, given: RunConfig | dict[str, Any] | None) -> RunConfig:
        if isinstance(given, RunConfig):
            config = given
        else:
            values = dict(given or {})
            # The SDK would close a provider of its own after each run; this one serves all of them.
            if "model_provider" not in values:
                self._provider = self._provider or MultiProvider()
                values["model_provider"] = self._provider
            config = RunConfig(**values)
        model, provider = config.model, config.model_provider
        return dataclasses.replace(
            config,
            model=model if model is None or isinstance(model, str) else guarded_model(model),
            model_provider=(
                provider if type(provider) is GuardedProvider else GuardedProvider(provider)
            ),
            call_model_input_filter=_reaching(config.call_model_input_filter),
        )


def _checked(result: RunResultStreaming, session: Session) -> RunResultStreaming:
    """The result, whose stream gives out nothing after a halt of what the SDK has queued before."""
    stream_events = result.stream_events

    async def checked() -> AsyncIterator[StreamEvent]:
        events = cast("AsyncGenerator[StreamEvent]", stream_events())
        async with aclosing(events):
            async for event in events:
                session.check()
                yield event

    result.stream_events = checked  # type: ignore[method-assign]
    return result


def _reaching(given: CallModelInputFilter | None) -> CallModelInputFilter:
    """A filter that also finds agents that were made, or given tools, while the run went on."""

    async def filter(data: CallModelData[Any]) -> ModelInputData:
        reach(data.agent)
        if given is None:
            return data.model_data
        filtered = given(data)
        return filtered if isinstance(filtered, ModelInputData) else await filtered

    return filter
