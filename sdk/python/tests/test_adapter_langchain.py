"""Rows K3, K7: agents of LangChain and LangGraph under a guard, against the fake model.

The halt arrives between steps, in a tool, in the model's stream, in a sub-agent.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable
from typing import Any

import httpx2
import pytest
from conftest import PATIENCE_S, Server, halting_when
from fake_model import FakeModel
from langchain.agents import create_agent
from langchain_core.tools import BaseTool, StructuredTool
from langchain_openai import ChatOpenAI
from pydantic import SecretStr

import estoppel
from estoppel.adapters.langchain import EstoppelMiddleware
from estoppel.adapters.model_clients import async_http_client, http_client
from estoppel.testing import HaltingGuard

Guarding = estoppel.Guard | estoppel.Session
ASKED: dict[str, Any] = {"messages": [{"role": "user", "content": "look it up"}]}


def calls(*names: str) -> dict[str, Any]:
    return {"tool_calls": [{"name": name, "arguments": {"what": "x"}} for name in names]}


DONE = {"text": "one two three four"}


def model(fake: FakeModel, guard: Guarding, **options: Any) -> ChatOpenAI:
    # LangChain closes no client: connections that are not kept need none of that.
    limits = httpx2.Limits(max_keepalive_connections=0)
    transports = httpx2.HTTPTransport(limits=limits), httpx2.AsyncHTTPTransport(limits=limits)
    return ChatOpenAI(
        model="m",
        base_url=f"{fake.url}/v1",
        api_key=SecretStr("none"),
        http_client=http_client(guard, transport=transports[0]),
        http_async_client=async_http_client(guard, transport=transports[1]),
        **options,
    )


def tool(name: str, work: Callable[[str], Any]) -> StructuredTool:
    return StructuredTool.from_function(work, name=name, description="looks things up")


def agent(fake: FakeModel, guard: Guarding, *tools: BaseTool, **options: Any) -> Any:
    middleware = [EstoppelMiddleware(guard)]
    return create_agent(model(fake, guard, **options), list(tools), middleware=middleware)


def spin(what: str) -> str:
    while True:
        pass


def test_an_agent_that_nobody_halts_goes_its_way(fake: FakeModel, rehearsal: HaltingGuard) -> None:
    fake.script(calls("fetch"), DONE, calls("fetch"), DONE)
    own = agent(fake, rehearsal, tool("fetch", lambda what: f"found {what}"))
    for said in (own.invoke(ASKED), asyncio.run(own.ainvoke(ASKED))):
        assert [message.text for message in said["messages"][-2:]] == ["found x", DONE["text"]]
    assert rehearsal.steps == 10, "two requests in two model calls, and a tool call: twice"


@pytest.mark.parametrize("how", ["invoke", "ainvoke"])
def test_between_steps(fake: FakeModel, rehearsal: HaltingGuard, how: str) -> None:
    """The tool halts its own session and returns: its output does not go back to the model."""
    fake.script(calls("fetch"), DONE)
    effects: list[str] = []

    def halts(what: str) -> str:
        effects.append("before")
        rehearsal.halt()
        return "output"

    own = agent(fake, rehearsal, tool("fetch", halts))
    with pytest.raises(estoppel.Halted):
        invoke(own, how)
    assert effects == ["before"]
    assert len(fake.requests()) == 1, "the model was not asked again"


@pytest.mark.parametrize("how", ["invoke", "ainvoke"])
def test_before_the_model_and_the_tools(
    fake: FakeModel, rehearsal: HaltingGuard, how: str
) -> None:
    """A halted tool is not called; a halted agent does not ask its model."""
    effects: list[str] = []
    fake.script(calls("fetch"), DONE)
    own = agent(fake, rehearsal, tool("fetch", lambda what: effects.append(what)))
    rehearsal.halt("tool:fetch")
    with pytest.raises(estoppel.Halted) as halted:
        invoke(own, how)
    assert halted.value.order is not None and halted.value.order.scope == ("tool:fetch",)
    assert (effects, len(fake.requests())) == ([], 1)
    rehearsal.halt("global")
    with pytest.raises(estoppel.Halted):
        invoke(own, how)
    assert len(fake.requests()) == 1


@pytest.mark.parametrize("how", ["invoke", "ainvoke"])
def test_in_a_synchronous_tool(fake: FakeModel, rehearsal: HaltingGuard, how: str) -> None:
    """Also of an asynchronous agent, whose cancelled task would leave the tool's thread to go on."""
    fake.script(calls("work"), DONE)
    begun, effects = threading.Event(), []

    def work(what: str) -> str:
        begun.set()
        for _ in range(10**12):
            pass
        effects.append(what)
        return "output"

    own = agent(fake, rehearsal, tool("work", work))
    with halting_when(begun.is_set, rehearsal.halt), pytest.raises(estoppel.Halted):
        invoke(own, how)
    assert effects == []
    assert len(fake.requests()) == 1


def test_in_an_asynchronous_tool(fake: FakeModel, rehearsal: HaltingGuard) -> None:
    fake.script(calls("work", "other"), DONE)
    begun, ended = threading.Event(), []

    async def work(what: str) -> str:
        begun.set()
        try:
            await asyncio.sleep(3600)
        finally:
            ended.append(what)
        return "output"

    tools = [
        StructuredTool.from_function(coroutine=work, name=name, description="works")
        for name in ("work", "other")
    ]
    own = agent(fake, rehearsal, *tools)
    with halting_when(begun.is_set, rehearsal.halt), pytest.raises(estoppel.Halted):
        invoke(own, "ainvoke")
    assert ended == ["x", "x"]
    assert len(fake.requests()) == 1


def is_held(fake: FakeModel) -> bool:
    return any(asked["state"] == "held" for asked in fake.requests())


def test_in_the_models_stream(fake: FakeModel, rehearsal: HaltingGuard) -> None:
    fake.script({**DONE, "hold_after": 2}, DONE)
    own = agent(fake, rehearsal, streaming=True)
    with halting_when(lambda: is_held(fake), rehearsal.halt), pytest.raises(estoppel.Halted):
        invoke(own, "ainvoke")
    assert fake.until(0, "client_left")["pieces"] == 2
    assert len(fake.requests()) == 1


@pytest.mark.parametrize("how", ["invoke", "ainvoke"])
def test_in_a_sub_agent(fake: FakeModel, rehearsal: HaltingGuard, how: str) -> None:
    """The halt finds a tool of the inner agent; neither agent goes on."""
    fake.script(calls("delegate"), calls("work"), DONE, DONE)
    begun, effects = threading.Event(), []

    def work(what: str) -> str:
        begun.set()
        return spin(what)

    inner = agent(fake, rehearsal, tool("work", work))

    def delegate(what: str) -> str:
        said = inner.invoke(ASKED)["messages"][-1].text
        effects.append(said)
        return str(said)

    own = agent(fake, rehearsal, tool("delegate", delegate))
    with halting_when(begun.is_set, rehearsal.halt), pytest.raises(estoppel.Halted):
        invoke(own, how)
    assert effects == []
    assert len(fake.requests()) == 2


def invoke(own: Any, how: str) -> Any:
    return own.invoke(ASKED) if how == "invoke" else asyncio.run(own.ainvoke(ASKED))


@pytest.mark.parametrize("how", ["invoke", "ainvoke"])
def test_the_server_is_told_that_a_tools_thread_was_ended(
    fake: FakeModel, guard: estoppel.Guard, server: Server, name: str, how: str
) -> None:
    """With the outer agent's tool, which is what the inner agent runs in."""
    fake.script(calls("delegate"), calls("work"), DONE, DONE)
    session, begun = guard.session(name), threading.Event()

    def work(what: str) -> str:
        begun.set()
        return spin(what)

    inner = agent(fake, session, tool("work", work))
    delegate = tool("delegate", lambda what: inner.invoke(ASKED)["messages"][-1].text)
    with (
        halting_when(begun.is_set, lambda: server.halt(f"session:{name}")) as halts,
        pytest.raises(estoppel.Halted),
    ):
        invoke(agent(fake, session, delegate), how)
    settlement = server.settlement(halts[0])
    assert settlement["steps_cancelled"] == 2
    assert settlement.get("not_interruptible", []) == []


def test_the_server_is_told_that_a_coroutine_and_a_stream_were_cancelled(
    fake: FakeModel, guard: estoppel.Guard, server: Server, name: str
) -> None:
    """Of the stream are two steps: the model call, and the request below it."""
    begun = threading.Event()

    async def work(what: str) -> str:
        begun.set()
        await asyncio.sleep(3600)
        return "output"

    own = StructuredTool.from_function(coroutine=work, name="work", description="works")
    of_tool, of_stream = guard.session(f"{name}-tool"), guard.session(f"{name}-stream")
    fake.script(calls("work"))
    with (
        halting_when(begun.is_set, lambda: server.halt(f"session:{of_tool.id}")) as halts,
        pytest.raises(estoppel.Halted),
    ):
        invoke(agent(fake, of_tool, own), "ainvoke")
    fake.script({**DONE, "hold_after": 2})
    with (
        halting_when(lambda: is_held(fake), lambda: server.halt(f"session:{of_stream.id}")) as more,
        pytest.raises(estoppel.Halted),
    ):
        invoke(agent(fake, of_stream, own, streaming=True), "ainvoke")
    for halt, steps in ((halts[0], 1), (more[0], 2)):
        settlement = server.settlement(halt)
        assert settlement["steps_cancelled"] == steps, settlement
        assert settlement.get("not_interruptible", []) == []


class Unreachable(BaseTool):
    """In an asynchronous agent it runs on a thread of LangChain's."""

    name: str = "unreachable"
    description: str = "works"
    begun: Any = None
    go_on: Any = None

    def _run(self, what: str) -> str:
        self.begun.set()
        assert self.go_on.wait(PATIENCE_S)
        return "output"


def test_the_server_is_told_what_could_not_be_interrupted(
    fake: FakeModel, guard: estoppel.Guard, server: Server, name: str
) -> None:
    """A thread that waits for a socket, and one that cannot be reached; what they bring is withheld."""
    near, far = socket.socketpair()
    begun, go_on = threading.Event(), threading.Event()
    of_socket, of_thread = guard.session(f"{name}-socket"), guard.session(f"{name}-thread")

    def work(what: str) -> str:
        begun.set()
        return near.recv(16).decode()

    def halt(session: estoppel.Session) -> list[str]:
        named: list[str] = server.settlement(server.halt(f"session:{session.id}"))["not_interruptible"]
        far.send(b"late")
        go_on.set()
        return named

    fake.script(calls("work"), DONE)
    with (
        halting_when(begun.is_set, lambda: halt(of_socket)) as named,
        pytest.raises(estoppel.Halted),
    ):
        invoke(agent(fake, of_socket, tool("work", work)), "invoke")
    assert named == [["tool work: has not yielded"]]
    assert len(fake.requests()) == 1

    begun.clear()
    go_on.clear()
    fake.script(calls("unreachable"), DONE)
    with (
        halting_when(begun.is_set, lambda: halt(of_thread)) as named,
        pytest.raises(estoppel.Halted),
    ):
        invoke(agent(fake, of_thread, Unreachable(begun=begun, go_on=go_on)), "ainvoke")
    assert named == [["tool unreachable: blocking work, its result is withheld"]]
    assert len(fake.requests()) == 1
    near.close()
    far.close()
