"""Rows K3, K7, K10: an agent's loop written by hand over the plain ``openai`` and ``anthropic`` clients,
against the fake model.

The halt arrives between steps, in a tool, in a sub-agent's tool; in the model's answer it is tried
beside the clients themselves.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Callable
from typing import Any, Protocol

import anthropic
import openai
import pytest
from conftest import Server, halting_when
from fake_model import FakeModel

import estoppel
from estoppel.adapters.model_clients import async_http_client, http_client
from estoppel.testing import HaltingGuard

DONE = {"text": "one two three four"}
Tools = dict[str, Callable[[], Any]]


def calls(name: str) -> dict[str, Any]:
    return {"tool_calls": [{"name": name}]}


class Client(Protocol):
    """What the loop needs to know of a client."""

    def open(self, fake: FakeModel, session: estoppel.Session) -> Any: ...

    def open_async(self, fake: FakeModel, session: estoppel.Session) -> Any: ...

    def ask(self, client: Any, messages: list[Any]) -> Any:
        """The model's answer, or a coroutine that brings it."""
        ...

    def read(self, answer: Any) -> tuple[str | None, list[tuple[str, str]], Any]:
        """What was said, the id and name of each tool that is to be called, and the message itself."""
        ...

    def told(self, outputs: list[tuple[str, str]]) -> list[Any]:
        """What came of the tools, by their ids, as messages."""
        ...


class OpenAI:
    def open(self, fake: FakeModel, session: estoppel.Session) -> openai.OpenAI:
        url = f"{fake.url}/v1"
        return openai.OpenAI(base_url=url, api_key="none", http_client=http_client(session))

    def open_async(self, fake: FakeModel, session: estoppel.Session) -> openai.AsyncOpenAI:
        url = f"{fake.url}/v1"
        return openai.AsyncOpenAI(base_url=url, api_key="none", http_client=async_http_client(session))

    def ask(self, client: Any, messages: list[Any]) -> Any:
        return client.chat.completions.create(model="m", messages=messages)

    def read(self, answer: Any) -> tuple[str | None, list[tuple[str, str]], Any]:
        message = answer.choices[0].message
        asked = [(call.id, call.function.name) for call in message.tool_calls or []]
        return message.content, asked, message.to_dict()

    def told(self, outputs: list[tuple[str, str]]) -> list[Any]:
        return [{"role": "tool", "tool_call_id": id, "content": output} for id, output in outputs]


class Anthropic:
    def open(self, fake: FakeModel, session: estoppel.Session) -> anthropic.Anthropic:
        return anthropic.Anthropic(
            base_url=fake.url, api_key="none", http_client=http_client(session)
        )

    def open_async(self, fake: FakeModel, session: estoppel.Session) -> anthropic.AsyncAnthropic:
        return anthropic.AsyncAnthropic(
            base_url=fake.url, api_key="none", http_client=async_http_client(session)
        )

    def ask(self, client: Any, messages: list[Any]) -> Any:
        return client.messages.create(model="m", max_tokens=9, messages=messages)

    def read(self, answer: Any) -> tuple[str | None, list[tuple[str, str]], Any]:
        texts = [part.text for part in answer.content if part.type == "text"]
        asked = [(part.id, part.name) for part in answer.content if part.type == "tool_use"]
        said = {"role": "assistant", "content": [part.to_dict() for part in answer.content]}
        return texts[0] if texts else None, asked, said

    def told(self, outputs: list[tuple[str, str]]) -> list[Any]:
        results = [
            {"type": "tool_result", "tool_use_id": id, "content": output} for id, output in outputs
        ]
        return [{"role": "user", "content": results}]


def loop(own: Client, fake: FakeModel, session: estoppel.Session, tools: Tools) -> str | None:
    """Asks the model and calls its tools, each as a step, until it calls none."""
    messages: list[Any] = [{"role": "user", "content": "look it up"}]
    with own.open(fake, session) as client:
        while True:
            text, asked, message = own.read(own.ask(client, messages))
            if not asked:
                return text
            outputs = []
            for id, name in asked:
                with session.step(name) as step:
                    output = tools[name]()
                    step.result(output)
                outputs.append((id, output))
            messages += [message, *own.told(outputs)]


async def loop_async(
    own: Client, fake: FakeModel, session: estoppel.Session, tools: Tools
) -> str | None:
    """The same on asyncio; its tools may be coroutines."""
    messages: list[Any] = [{"role": "user", "content": "look it up"}]
    async with own.open_async(fake, session) as client:
        while True:
            text, asked, message = own.read(await own.ask(client, messages))
            if not asked:
                return text
            outputs = []
            for id, name in asked:
                async with session.step(name) as step:
                    output = tools[name]()
                    output = await output if inspect.isawaitable(output) else output
                    step.result(output)
                outputs.append((id, output))
            messages += [message, *own.told(outputs)]


class Agent:
    """A client and how its loop runs."""

    def __init__(self, own: Client, asynchronous: bool, fake: FakeModel) -> None:
        self.own, self.asynchronous, self.fake = own, asynchronous, fake

    def run(self, session: estoppel.Session, tools: Tools) -> str | None:
        if self.asynchronous:
            return asyncio.run(loop_async(self.own, self.fake, session, tools))
        return loop(self.own, self.fake, session, tools)

    def working(self, begun: threading.Event, effects: list[str]) -> Callable[[], Any]:
        """A tool that does not end by itself: it awaits, or keeps its thread busy."""

        def work() -> str:
            begun.set()
            while True:
                pass

        async def work_async() -> str:
            begun.set()
            await asyncio.sleep(3600)
            effects.append("worked")
            return "output"

        return work_async if self.asynchronous else work

    def below(self, session: estoppel.Session, tools: Tools, effects: list[str]) -> Callable[[], Any]:
        """A tool that is an agent of its own."""

        def delegate() -> str:
            said = loop(self.own, self.fake, session, tools)
            effects.append("delegated")
            return str(said)

        async def delegate_async() -> str:
            said = await loop_async(self.own, self.fake, session, tools)
            effects.append("delegated")
            return str(said)

        return delegate_async if self.asynchronous else delegate


@pytest.fixture(params=["openai", "openai-asyncio", "anthropic", "anthropic-asyncio"])
def agent(request: pytest.FixtureRequest, fake: FakeModel) -> Agent:
    own: Client = OpenAI() if request.param.startswith("openai") else Anthropic()
    return Agent(own, request.param.endswith("asyncio"), fake)


def test_a_loop_that_nobody_halts_goes_its_way(agent: Agent, rehearsal: HaltingGuard) -> None:
    agent.fake.script(calls("delegate"), calls("look"), {"text": "inner"}, DONE)
    outer, inner = rehearsal.session("s"), rehearsal.session("s", agent="inner")
    effects: list[str] = []
    look: Tools = {"look": lambda: "found it"}
    said = agent.run(outer, {"delegate": agent.below(inner, look, effects)})
    assert (said, effects) == (DONE["text"], ["delegated"])
    told = [str(request["body"]["messages"][-1]) for request in agent.fake.requests()]
    assert "found it" in told[2] and "inner" in told[3]
    assert rehearsal.steps == 6, "four requests and two tools"


def test_a_tools_output_does_not_go_back(agent: Agent, rehearsal: HaltingGuard) -> None:
    """The tool halts its own session and returns."""

    def halts() -> str:
        rehearsal.halt()
        return "output"

    agent.fake.script(calls("halts"), DONE)
    with pytest.raises(estoppel.Halted):
        agent.run(rehearsal.session("s"), {"halts": halts})
    assert len(agent.fake.requests()) == 1


def test_before_a_tool(agent: Agent, rehearsal: HaltingGuard) -> None:
    effects: list[str] = []
    rehearsal.halt("tool:look")
    agent.fake.script(calls("look"), DONE)
    with pytest.raises(estoppel.Halted):
        agent.run(rehearsal.session("s"), {"look": lambda: effects.append("looked")})
    assert effects == []
    assert len(agent.fake.requests()) == 1


def test_in_a_tool(agent: Agent, guard: estoppel.Guard, server: Server, name: str) -> None:
    begun, effects = threading.Event(), list[str]()
    agent.fake.script(calls("work"), DONE)
    with (
        halting_when(begun.is_set, lambda: server.halt(f"session:{name}")) as halts,
        pytest.raises(estoppel.Halted) as halted,
    ):
        agent.run(guard.session(name), {"work": agent.working(begun, effects)})
    assert halted.value.order is not None and halted.value.order.id == halts[0]
    assert effects == []
    assert len(agent.fake.requests()) == 1
    settlement = server.settlement(halts[0])
    assert settlement["steps_cancelled"] == 1
    assert settlement.get("not_interruptible", []) == []


def test_in_a_sub_agent(agent: Agent, guard: estoppel.Guard, server: Server, name: str) -> None:
    """The halt of the session finds a tool of the inner agent; neither of the two goes on."""
    begun, effects = threading.Event(), list[str]()
    outer, inner = guard.session(name), guard.session(name, agent="inner")
    agent.fake.script(calls("delegate"), calls("work"), DONE, DONE)
    tools = {"work": agent.working(begun, effects)}
    with (
        halting_when(begun.is_set, lambda: server.halt(f"session:{name}")) as halts,
        pytest.raises(estoppel.Halted),
    ):
        agent.run(outer, {"delegate": agent.below(inner, tools, effects)})
    assert effects == []
    assert len(agent.fake.requests()) == 2
    settlement = server.settlement(halts[0])
    assert settlement["steps_cancelled"] == 2
    assert settlement.get("not_interruptible", []) == []


def test_a_sub_agents_own_halt_leaves_the_outer_one_alone(
    agent: Agent, rehearsal: HaltingGuard
) -> None:
    """Where the outer agent's tool takes `Halted` for an answer."""
    begun, effects = threading.Event(), list[str]()
    outer, inner = rehearsal.session("s"), rehearsal.session("s", agent="inner")
    agent.fake.script(calls("delegate"), calls("work"), DONE)
    below = agent.below(inner, {"work": agent.working(begun, effects)}, effects)

    def delegate() -> str:
        try:
            return str(below())
        except estoppel.Halted:
            return "it was halted"

    async def delegate_async() -> str:
        try:
            return str(await below())
        except estoppel.Halted:
            return "it was halted"

    own = delegate_async if agent.asynchronous else delegate
    with halting_when(begun.is_set, lambda: rehearsal.halt("agent:inner")):
        assert agent.run(outer, {"delegate": own}) == DONE["text"]
    assert effects == []
    assert "it was halted" in str(agent.fake.requests()[2]["body"]["messages"][-1])
    with pytest.raises(estoppel.Halted):
        inner.check()
    outer.check()
