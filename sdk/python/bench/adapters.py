"""What an adapter adds to a run of 1,000 tool calls; prints JSON.

    ESTOPPEL_BINARY=.../estoppel python sdk/python/bench/adapters.py

Each framework drives a model that is an object in this process and follows a script: it calls one tool, again
and again, and says something at the end. The same run is made without and with the adapter, in turns, each
time with a guard that is connected to a server (``ESTOPPEL_BINARY``) on a free port. A model call and a tool
call are a step each. The calls are made in conversations of 20, since the frameworks' own cost grows with a
conversation's length, and would hide what is measured; times are of the clock and of the processor, which
counts the guard's threads and not what else the machine does. A wheel that was not built for release is said
so, and not worth reading.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

from agents import Agent, RunConfig, Runner, function_tool
from agents.items import ModelResponse
from agents.models.interface import Model
from agents.testing import assistant_message, function_call
from agents.usage import Usage
from langchain.agents import create_agent
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.tools import tool
from loop import ready_guard, stage

import estoppel
from estoppel import _native
from estoppel.adapters.langchain import EstoppelMiddleware
from estoppel.adapters.openai_agents import EstoppelRunner

TOOL_CALLS = 1_000
A_RUN = 20
REPEATS = 5
STEPS = (2 * A_RUN + 1) * (TOOL_CALLS // A_RUN)

Run = Callable[[], None]


class LangChainModel(BaseChatModel):
    """Calls the tool until it has been called as often as a run goes."""

    @property
    def _llm_type(self) -> str:
        return "scripted"

    def bind_tools(self, tools: Any, **options: Any) -> Any:
        return self

    def _generate(self, messages: list[BaseMessage], *args: Any, **options: Any) -> ChatResult:
        called = len(messages) // 2
        calls = [{"name": "add", "args": {"number": called}, "id": f"c{called}"}]
        said = AIMessage("done") if called == A_RUN else AIMessage("", tool_calls=calls)
        return ChatResult(generations=[ChatGeneration(message=said)])


def langchain(guard: estoppel.Guard) -> tuple[Run, Run]:
    @tool
    def add(number: int) -> str:
        """Adds one."""
        return str(number + 1)

    def running(middleware: list[EstoppelMiddleware]) -> Run:
        agent: Any = create_agent(LangChainModel(), [add], middleware=middleware)

        def run() -> None:
            for _ in range(TOOL_CALLS // A_RUN):
                asked = {"messages": [{"role": "user", "content": "go"}]}
                said = agent.invoke(asked, {"recursion_limit": 3 * A_RUN})
                assert len(said["messages"]) == 2 * A_RUN + 2

        return run

    return running([]), running([EstoppelMiddleware(guard)])


class AgentsModel(Model):
    """The same for the OpenAI Agents SDK."""

    async def get_response(self, *args: Any, **options: Any) -> ModelResponse:
        called = len(options["input"]) // 2
        said: Any = (
            assistant_message("done")
            if called == A_RUN
            else function_call("add", {"number": called}, call_id=f"c{called}")
        )
        return ModelResponse(output=[said], usage=Usage(requests=1), response_id=None)

    def stream_response(self, *args: Any, **options: Any) -> Any:
        raise NotImplementedError("the measurement does not stream")


def openai_agents(guard: estoppel.Guard) -> tuple[Run, Run]:
    @function_tool
    async def add(number: int) -> str:
        """Adds one."""
        return str(number + 1)

    def running(runner: Any) -> Run:
        agent = Agent(name="bench", model=AgentsModel(), tools=[add])
        config = RunConfig(tracing_disabled=True)

        async def main() -> None:
            for _ in range(TOOL_CALLS // A_RUN):
                result = await runner.run(agent, "go", max_turns=A_RUN + 1, run_config=config)
                assert result.final_output == "done"

        return lambda: asyncio.run(main())

    return running(Runner), running(EstoppelRunner(guard))


def measured(without: Run, with_: Run) -> dict[str, Any]:
    """Medians of runs that take turns, after one of each that is not counted."""
    clocks = {"clock": time.perf_counter, "processor": time.process_time}
    taken: dict[tuple[str, Run], list[float]] = {
        (clock, run): [] for clock in clocks for run in (without, with_)
    }
    for repeat in range(REPEATS + 1):
        for run in (without, with_):
            begun = {clock: read() for clock, read in clocks.items()}
            run()
            for clock, read in clocks.items():
                if repeat > 0:
                    taken[clock, run].append(read() - begun[clock])
    figures = {}
    for clock in clocks:
        bare, guarded = (statistics.median(taken[clock, run]) for run in (without, with_))
        figures[clock] = {
            "without_ms": bare * 1e3,
            "with_ms": guarded * 1e3,
            "ratio": guarded / bare,
            "added_us_per_step": (guarded - bare) / STEPS * 1e6,
        }
    return figures


def main() -> None:
    with stage() as (server, _, _):
        figures: dict[str, Any] = {
            "python": sys.version.split()[0],
            "release_build": _native.is_release(),
            "tool_calls": TOOL_CALLS,
            "steps": STEPS,
        }
        frameworks = {"langchain": langchain, "openai-agents": openai_agents}
        with ready_guard(server) as guard:
            for name, framework in frameworks.items():
                with guard.session(f"bench-{name}"):
                    costs = measured(*framework(guard))
                figures[name] = {"version": version(name), **costs}
            figures["events_lost"] = guard.status().events_lost
        json.dump(figures, sys.stdout, indent=2)
        print()


if __name__ == "__main__":
    main()
