"""What an adapter adds to a run of 1,000 steps and more; prints JSON.

    ESTOPPEL_BINARY=.../estoppel ESTOPPEL_FAKE_MODEL=.../fake-model python sdk/python/bench/adapters.py

The same run is made without and with the adapter, in turns, each time with a guard that is connected to a
server (``ESTOPPEL_BINARY``) on a free port.

- LangChain and the OpenAI Agents SDK drive a model that is an object in this process and follows a script: it
  calls one tool, again and again, and says something at the end. A model call and a tool call are a step each.
  The calls are made in conversations of 20, since the frameworks' own cost grows with a conversation's length,
  and would hide what is measured.
- The ``openai`` and ``anthropic`` clients ask a model whose answer is in this process: 1,000 requests.
- A client of MCP calls a tool of a server of its own package over stdio: 1,000 calls of a connection that stands.
- The Claude Agent SDK has one conversation of 100 tool calls with its program, which asks the test kit's model
  (``ESTOPPEL_FAKE_MODEL``): there is no shorter way into it. Its program's own start and end are in the time.

Times are of the clock and of the processor, which counts the guard's threads and not what other processes do. A
wheel that was not built for release is said so, and not worth reading.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import anthropic
import claude_agent_sdk
import httpx2
import openai
from agents import Agent, RunConfig, Runner, function_tool
from agents.items import ModelResponse
from agents.models.interface import Model
from agents.testing import assistant_message, function_call
from agents.usage import Usage
from claude_agent_sdk import ClaudeAgentOptions, ResultMessage, create_sdk_mcp_server
from langchain.agents import create_agent
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.tools import tool
from loop import ready_guard, stage
from mcp import Client, StdioServerParameters
from mcp.server import MCPServer

import estoppel
from estoppel import _native
from estoppel.adapters import claude_agent
from estoppel.adapters.langchain import EstoppelMiddleware
from estoppel.adapters.mcp import guarded
from estoppel.adapters.model_clients import http_client
from estoppel.adapters.openai_agents import EstoppelRunner

TOOL_CALLS = 1_000
A_RUN = 20
CLAUDE_CALLS = 100
REPEATS = 5

Run = Callable[[], None]
# Yields the run without the adapter, and the one with it.
Framework = Callable[[estoppel.Guard], AbstractContextManager[tuple[Run, Run]]]


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


@contextmanager
def langchain(guard: estoppel.Guard) -> Iterator[tuple[Run, Run]]:
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

    yield running([]), running([EstoppelMiddleware(guard)])


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


@contextmanager
def openai_agents(guard: estoppel.Guard) -> Iterator[tuple[Run, Run]]:
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

    yield running(Runner), running(EstoppelRunner(guard))


USAGE = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
COMPLETION = {
    "id": "c",
    "object": "chat.completion",
    "created": 0,
    "model": "m",
    "choices": [
        {"index": 0, "message": {"role": "assistant", "content": "done"}, "finish_reason": "stop"}
    ],
    "usage": USAGE,
}
MESSAGE = {
    "id": "m",
    "type": "message",
    "role": "assistant",
    "model": "m",
    "content": [{"type": "text", "text": "done"}],
    "stop_reason": "end_turn",
    "stop_sequence": None,
    "usage": {"input_tokens": 10, "output_tokens": 5},
}


def answering(answer: dict[str, Any]) -> httpx2.MockTransport:
    return httpx2.MockTransport(lambda _: httpx2.Response(200, json=answer))


def asking(ask: Callable[[], str | None]) -> Run:
    def run() -> None:
        for _ in range(TOOL_CALLS):
            assert ask() == "done"

    return run


@contextmanager
def openai_client(guard: estoppel.Guard) -> Iterator[tuple[Run, Run]]:
    def running(client: openai.OpenAI) -> Run:
        def ask() -> str | None:
            answer = client.chat.completions.create(
                model="m", messages=[{"role": "user", "content": "go"}]
            )
            return answer.choices[0].message.content

        return asking(ask)

    model = answering(COMPLETION)
    url = "http://model.invalid/v1"
    with (
        openai.OpenAI(base_url=url, api_key="none", http_client=httpx2.Client(transport=model)) as bare,
        openai.OpenAI(
            base_url=url, api_key="none", http_client=http_client(guard, transport=model)
        ) as own,
    ):
        yield running(bare), running(own)


@contextmanager
def anthropic_client(guard: estoppel.Guard) -> Iterator[tuple[Run, Run]]:
    def running(client: anthropic.Anthropic) -> Run:
        def ask() -> str | None:
            answer = client.messages.create(
                model="m", max_tokens=9, messages=[{"role": "user", "content": "go"}]
            )
            [part] = answer.content
            return part.text if part.type == "text" else None

        return asking(ask)

    model = answering(MESSAGE)
    url = "http://model.invalid"
    with (
        anthropic.Anthropic(
            base_url=url, api_key="none", http_client=httpx2.Client(transport=model)
        ) as bare,
        anthropic.Anthropic(
            base_url=url, api_key="none", http_client=http_client(guard, transport=model)
        ) as own,
    ):
        yield running(bare), running(own)


def serve_mcp() -> None:
    server = MCPServer("bench")

    @server.tool()
    def add(number: int) -> int:
        """Adds one."""
        return number + 1

    server.run(transport="stdio")


@contextmanager
def mcp_client(guard: estoppel.Guard) -> Iterator[tuple[Run, Run]]:
    """Both connections stand, each opened and closed by a task of its own."""
    server = StdioServerParameters(command=sys.executable, args=[__file__, "serve-mcp"])
    loop = asyncio.new_event_loop()
    over = asyncio.Event()

    async def hold(
        opening: AbstractAsyncContextManager[Client], opened: asyncio.Future[Client]
    ) -> None:
        async with opening as client:
            opened.set_result(client)
            await over.wait()

    async def call(client: Client) -> None:
        for number in range(TOOL_CALLS):
            said = await client.call_tool("add", {"number": number})
            assert said.structured_content == {"result": number + 1}

    holding, runs = [], []
    for opening in (Client(server), guarded(Client(server), guard, server="bench")):
        opened: asyncio.Future[Client] = loop.create_future()
        holding.append(loop.create_task(hold(opening, opened)))
        client = loop.run_until_complete(asyncio.wait_for(opened, 60))
        runs.append(lambda client=client: loop.run_until_complete(call(client)))
    try:
        without, with_ = runs
        yield without, with_
    finally:
        over.set()
        loop.run_until_complete(asyncio.wait_for(asyncio.gather(*holding), 60))
        loop.close()


@contextmanager
def fake_model() -> Iterator[str]:
    """The URL of the test kit's model, which ends with its input."""
    command = [os.environ["ESTOPPEL_FAKE_MODEL"]]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stdout is not None
        yield process.stdout.readline().decode().strip()
        process.stdin.close()


@contextmanager
def claude(guard: estoppel.Guard) -> Iterator[tuple[Run, Run]]:
    @claude_agent_sdk.tool("add", "Adds one.", {"number": int})
    async def add(given: dict[str, Any]) -> dict[str, Any]:
        return {"content": [{"type": "text", "text": str(given["number"] + 1)}]}

    name = "mcp__bench__add"
    answers: list[dict[str, Any]] = [
        {"tool_calls": [{"name": name, "arguments": {"number": number}}]}
        for number in range(CLAUDE_CALLS)
    ]
    script = json.dumps({"answers": [*answers, {"text": "done"}]}).encode()
    with fake_model() as url, tempfile.TemporaryDirectory() as home:
        own = {
            "HOME": home,
            "CLAUDE_CONFIG_DIR": str(Path(home) / "config"),
            "ANTHROPIC_BASE_URL": url,
            "ANTHROPIC_API_KEY": "none",
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
            "DISABLE_AUTOUPDATER": "1",
        }
        options = ClaudeAgentOptions(
            env=own,
            cwd=home,
            setting_sources=[],
            allowed_tools=[name],
            mcp_servers={"bench": create_sdk_mcp_server("bench", tools=[add])},
        )

        def running(query: Callable[[], Any]) -> Run:
            async def main() -> None:
                said = [message async for message in query()]
                assert isinstance(said[-1], ResultMessage) and said[-1].result == "done"

            def run() -> None:
                request = urllib.request.Request(f"{url}/_/script", script, method="PUT")
                urllib.request.urlopen(request, timeout=30).close()
                asyncio.run(main())

            return run

        yield (
            running(lambda: claude_agent_sdk.query(prompt="go", options=options)),
            running(lambda: claude_agent.query(guard, prompt="go", options=options)),
        )


@dataclass(frozen=True)
class Measured:
    """A framework, the package whose version is told, and the steps of a run."""

    package: str
    framework: Framework
    steps: int


OF_CONVERSATIONS = (2 * A_RUN + 1) * (TOOL_CALLS // A_RUN)
ALL = [
    Measured("langchain", langchain, OF_CONVERSATIONS),
    Measured("openai-agents", openai_agents, OF_CONVERSATIONS),
    Measured("openai", openai_client, TOOL_CALLS),
    Measured("anthropic", anthropic_client, TOOL_CALLS),
    Measured("mcp", mcp_client, TOOL_CALLS),
    # The conversation, its tools, and what the model used.
    Measured("claude-agent-sdk", claude, CLAUDE_CALLS + 2),
]


def measured(without: Run, with_: Run, steps: int) -> dict[str, Any]:
    """Medians of runs that take turns, and of the differences in each turn; the first is not counted."""
    clocks = {"clock": time.perf_counter, "processor": time.process_time}
    taken: dict[str, list[list[float]]] = {clock: [] for clock in clocks}
    for repeat in range(REPEATS + 1):
        turn: dict[str, list[float]] = {clock: [] for clock in clocks}
        for run in (without, with_):
            begun = {clock: read() for clock, read in clocks.items()}
            run()
            for clock, read in clocks.items():
                turn[clock].append(read() - begun[clock])
        if repeat > 0:
            for clock, times in turn.items():
                taken[clock].append(times)
    figures = {}
    for clock, turns in taken.items():
        bare, own = (statistics.median(times) for times in zip(*turns))
        figures[clock] = {
            "without_ms": bare * 1e3,
            "with_ms": own * 1e3,
            "ratio": statistics.median(own / bare for bare, own in turns),
            "added_us_per_step": statistics.median(own - bare for bare, own in turns) / steps * 1e6,
        }
    return figures


def main() -> None:
    with stage() as (server, _, _):
        figures: dict[str, Any] = {
            "python": sys.version.split()[0],
            "release_build": _native.is_release(),
        }
        with ready_guard(server) as guard:
            for one in ALL:
                session = guard.session(f"bench-{one.package}")
                with session, one.framework(guard) as (without, with_):
                    costs = measured(without, with_, one.steps)
                figures[one.package] = {
                    "version": version(one.package),
                    "steps": one.steps,
                    **costs,
                }
            figures["events_lost"] = guard.status().events_lost
        json.dump(figures, sys.stdout, indent=2)
        print()


if __name__ == "__main__":
    serve_mcp() if sys.argv[1:] == ["serve-mcp"] else main()
