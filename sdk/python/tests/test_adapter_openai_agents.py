"""Rows K3, K7: agents of the OpenAI Agents SDK under a guard, against the fake model.

The halt arrives between steps, in a tool, in the model's stream, in a sub-agent.
"""

from __future__ import annotations

import asyncio
import copy
import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from agents import (
    Agent,
    FunctionTool,
    RunConfig,
    RunContextWrapper,
    Runner,
    function_tool,
    handoff,
)
from agents.models.interface import Model
from agents.models.openai_chatcompletions import OpenAIChatCompletionsModel
from agents.models.openai_provider import OpenAIProvider
from conftest import PATIENCE_S, until
from fake_model import FakeModel
from openai import AsyncOpenAI
from pydantic import BaseModel

import estoppel
from estoppel.adapters.openai_agents import EstoppelRunner
from estoppel.adapters.openai_agents._model import GuardedModel
from estoppel.adapters.openai_agents._reach import reach
from estoppel.testing import HaltingGuard, halting_guard

WAYS = ["run", "run_sync", "run_streamed"]
DONE = {"text": "one two three four"}
DELEGATES = {"tool_calls": [{"name": "delegate", "arguments": {"input": "x"}}]}


def calls(*names: str) -> dict[str, Any]:
    return {"tool_calls": [{"name": name, "arguments": {"what": "x"}} for name in names]}


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """A halt leaves no task behind of which asyncio has to tell."""
    yield
    told = [one for one in caplog.get_records("call") if one.name in ("asyncio", "openai.agents")]
    assert [one.getMessage() for one in told if one.levelno >= logging.WARNING] == []


def seen(fake: FakeModel, call: int, state: str) -> dict[str, Any]:
    """The call once it has this state; the fake itself waits for no more than ten seconds."""

    def asked() -> dict[str, Any] | None:
        try:
            return fake.until(call, state)
        except OSError:
            return None

    return until(state, asked)


def tool(name: str, work: Callable[..., Any]) -> FunctionTool:
    return function_tool(work, name_override=name)


def agent(*tools: Any, name: str = "outer", **options: Any) -> Agent[Any]:
    return Agent(name=name, tools=list(tools), **{"model": "m", **options})


def run(
    fake: FakeModel, guard: HaltingGuard | estoppel.Session, own: Agent[Any], how: str = "run"
) -> str:
    """Runs the agent in one of three ways; what it says at the end."""

    async def main() -> str:
        async with AsyncOpenAI(base_url=f"{fake.url}/v1", api_key="none") as client:
            config = configured(client)
            runner = EstoppelRunner(guard)
            if how == "run":
                return str((await runner.run(own, "look it up", run_config=config)).final_output)
            result = runner.run_streamed(own, "look it up", run_config=config)
            async for _ in result.stream_events():
                pass
            return str(result.final_output)

    if how != "run_sync":
        return asyncio.run(asyncio.wait_for(main(), PATIENCE_S))
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    client = AsyncOpenAI(base_url=f"{fake.url}/v1", api_key="none")
    try:
        result = EstoppelRunner(guard).run_sync(own, "look it up", run_config=configured(client))
        return str(result.final_output)
    finally:
        loop.run_until_complete(client.close())
        loop.close()
        asyncio.set_event_loop(None)


def configured(client: AsyncOpenAI) -> RunConfig:
    provider = OpenAIProvider(openai_client=client, use_responses=True)
    return RunConfig(model_provider=provider, tracing_disabled=True)


class halting_when:
    """Halts, on a thread of its own, once the event has come."""

    def __init__(self, wait: Callable[[], object], guard: HaltingGuard, scope: str = "global") -> None:
        def halt() -> None:
            wait()
            guard.halt(scope)

        self._thread = threading.Thread(target=halt)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()


class Begun(threading.Event):
    """Has come, or the test has waited in vain."""

    def __call__(self) -> None:
        assert self.wait(PATIENCE_S)


def spin() -> None:
    for _ in range(10**12):
        pass


@pytest.mark.parametrize("how", WAYS)
def test_an_agent_that_nobody_halts_goes_its_way(
    fake: FakeModel, rehearsal: HaltingGuard, how: str
) -> None:
    """Twice, with the same objects: what was wrapped is not wrapped again."""

    async def later(what: str) -> str:
        await asyncio.sleep(0)
        return f"later {what}"

    own = agent(tool("fetch", lambda what: f"found {what}"), tool("later", later))
    for turn in range(1, 3):
        fake.script(calls("fetch", "later"), DONE)
        assert run(fake, rehearsal, own, how) == DONE["text"]
        assert rehearsal.steps == 4 * turn, "two model calls and two calls of tools"
    outputs = [item["output"] for item in fake.requests()[1]["body"]["input"] if "output" in item]
    assert sorted(outputs) == ["found x", "later x"]


@pytest.mark.parametrize("how", WAYS)
def test_between_steps(fake: FakeModel, rehearsal: HaltingGuard, how: str) -> None:
    """The tool halts its own session and returns: its output does not go back to the model."""
    fake.script(calls("fetch"), DONE)
    effects: list[str] = []

    def halts(what: str) -> str:
        effects.append("before")
        rehearsal.halt()
        return "output"

    with pytest.raises(estoppel.Halted):
        run(fake, rehearsal, agent(tool("fetch", halts)), how)
    assert effects == ["before"]
    assert len(fake.requests()) == 1, "the model was not asked again"


@pytest.mark.parametrize("how", WAYS)
def test_before_the_model_and_the_tools(
    fake: FakeModel, rehearsal: HaltingGuard, how: str
) -> None:
    """A halted tool is not called; a halted agent does not ask its model."""
    effects: list[str] = []
    fake.script(calls("fetch"), DONE)
    own = agent(tool("fetch", lambda what: effects.append(what)))
    rehearsal.halt("tool:fetch")
    with pytest.raises(estoppel.Halted) as halted:
        run(fake, rehearsal, own, how)
    assert halted.value.order is not None and halted.value.order.scope == ("tool:fetch",)
    assert (effects, len(fake.requests())) == ([], 1)
    rehearsal.halt("global")
    with pytest.raises(estoppel.Halted):
        run(fake, rehearsal, own, how)
    assert len(fake.requests()) == 1


@pytest.mark.parametrize("how", WAYS)
def test_in_a_synchronous_tool(fake: FakeModel, rehearsal: HaltingGuard, how: str) -> None:
    """On the thread on which the SDK runs it, which a cancelled task would leave to go on."""
    fake.script(calls("work"), DONE)
    begun, effects = Begun(), []

    def work(what: str) -> str:
        begun.set()
        spin()
        effects.append(what)
        return "output"

    with halting_when(begun, rehearsal), pytest.raises(estoppel.Halted):
        run(fake, rehearsal, agent(tool("work", work)), how)
    assert effects == []
    assert len(fake.requests()) == 1


@pytest.mark.parametrize("how", WAYS)
def test_in_asynchronous_tools(fake: FakeModel, rehearsal: HaltingGuard, how: str) -> None:
    """Two at once; the SDK takes a tool's cancellation for an answer to the model, but not the halt."""
    fake.script(calls("work", "other"), DONE)
    begun, entered, ended = Begun(), [], []

    async def work(what: str) -> str:
        entered.append(what)
        if len(entered) == 2:
            begun.set()
        try:
            await asyncio.sleep(3600)
        finally:
            ended.append(what)
        return "output"

    own = agent(tool("work", work), tool("other", work))
    with halting_when(begun, rehearsal), pytest.raises(estoppel.Halted):
        run(fake, rehearsal, own, how)
    assert ended == ["x", "x"]
    assert len(fake.requests()) == 1


def test_a_tools_failure_goes_to_the_model_and_its_halt_does_not(
    fake: FakeModel, rehearsal: HaltingGuard
) -> None:
    handled: list[BaseException] = []

    def formats(context: Any, error: Exception) -> str:
        handled.append(error)
        return "it failed"

    def fails(what: str) -> str:
        if fake.requests()[1:]:
            rehearsal.halt()
        raise ValueError(what)

    fake.script(calls("fetch"), calls("fetch"), DONE)
    own = agent(function_tool(fails, name_override="fetch", failure_error_function=formats))
    with pytest.raises(estoppel.Halted):
        run(fake, rehearsal, own)
    assert [type(error) for error in handled] == [ValueError], "the first, and not the halt"
    outputs = [item["output"] for item in fake.requests()[1]["body"]["input"] if "output" in item]
    assert outputs == ["it failed"]


@pytest.mark.parametrize("how", WAYS)
def test_in_the_models_answer(fake: FakeModel, rehearsal: HaltingGuard, how: str) -> None:
    """The connection is closed in the midst of the stream, or before the answer has begun."""
    fake.script({**DONE, "hold_after": 2 if how == "run_streamed" else 0}, DONE)
    with (
        halting_when(lambda: seen(fake, 0, "held"), rehearsal),
        pytest.raises(estoppel.Halted),
    ):
        run(fake, rehearsal, agent(), how)
    seen(fake, 0, "client_left")
    assert len(fake.requests()) == 1


def test_a_stream_gives_out_nothing_after_the_halt(
    fake: FakeModel, rehearsal: HaltingGuard
) -> None:
    """Also of what has come already; and the stream does not end as if it were whole."""
    fake.script(DONE)

    async def main() -> list[str]:
        texts: list[str] = []
        async with AsyncOpenAI(base_url=f"{fake.url}/v1", api_key="none") as client:
            config = configured(client)
            result = EstoppelRunner(rehearsal).run_streamed(agent(), "look", run_config=config)
            with pytest.raises(estoppel.Halted):
                async for event in result.stream_events():
                    delta = getattr(getattr(event, "data", None), "delta", None)
                    if delta:
                        texts.append(delta)
                        rehearsal.halt()
            assert isinstance(result.run_loop_exception, estoppel.Halted)
        return texts

    assert asyncio.run(main()) == ["one "]


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("kind", ["thread", "task"])
def test_in_an_agent_that_is_a_tool(
    fake: FakeModel, rehearsal: HaltingGuard, how: str, kind: str
) -> None:
    """The halt finds a tool of the inner agent, of which only the outer one was given to the runner."""
    begun, effects = Begun(), []

    def spins(what: str) -> str:
        begun.set()
        spin()
        effects.append(what)
        return "output"

    async def sleeps(what: str) -> str:
        begun.set()
        await asyncio.sleep(3600)
        effects.append(what)
        return "output"

    inner = agent(tool("work", spins if kind == "thread" else sleeps), name="inner")

    async def extracted(result: Any) -> str:
        effects.append("delegated")
        return "output"

    own = agent(inner.as_tool("delegate", "works", custom_output_extractor=extracted))
    fake.script(DELEGATES, calls("work"), DONE, DONE)
    with halting_when(begun, rehearsal), pytest.raises(estoppel.Halted):
        run(fake, rehearsal, own, how)
    assert effects == []
    assert len(fake.requests()) == 2


def test_a_halt_of_the_outer_tool_alone_ends_the_agent_below(
    fake: FakeModel, rehearsal: HaltingGuard
) -> None:
    """The steps of the inner agent are not halted themselves; they are cancelled with it."""
    fake.script(DELEGATES, calls("work"), DONE, DONE)
    begun, ended = Begun(), []

    async def sleeps(what: str) -> str:
        begun.set()
        try:
            await asyncio.sleep(3600)
        finally:
            ended.append(what)
        return "output"

    inner = agent(tool("work", sleeps), name="inner")
    own = agent(inner.as_tool("delegate", "works"))
    with halting_when(begun, rehearsal, "tool:delegate"), pytest.raises(estoppel.Halted):
        run(fake, rehearsal, own)
    assert ended == ["x"]
    assert len(fake.requests()) == 2


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("kind", ["agent", "handoff"])
def test_in_an_agent_that_was_handed_off_to(
    fake: FakeModel, rehearsal: HaltingGuard, how: str, kind: str
) -> None:
    transfer = {"tool_calls": [{"name": "transfer_to_inner", "arguments": {}}]}
    fake.script(transfer, calls("work"), DONE)
    begun, effects = Begun(), []

    def work(what: str) -> str:
        begun.set()
        spin()
        effects.append(what)
        return "output"

    inner = agent(tool("work", work), name="inner")
    own = agent(handoffs=[inner if kind == "agent" else handoff(inner)])
    with halting_when(begun, rehearsal), pytest.raises(estoppel.Halted):
        run(fake, rehearsal, own, how)
    assert effects == []
    assert len(fake.requests()) == 2


@pytest.mark.parametrize("kind", ["agent", "handoff"])
def test_a_hand_off_is_a_tool_that_can_be_halted(
    fake: FakeModel, rehearsal: HaltingGuard, kind: str
) -> None:
    fake.script({"tool_calls": [{"name": "transfer_to_inner", "arguments": {}}]}, DONE)
    handed: list[str] = []
    inner = agent(name="inner")
    target = handoff(inner, on_handoff=lambda context: handed.append("off"))
    own = agent(handoffs=[inner if kind == "agent" else target])
    rehearsal.halt("tool:transfer_to_inner")
    with pytest.raises(estoppel.Halted):
        run(fake, rehearsal, own)
    assert handed == []
    assert len(fake.requests()) == 1


def test_a_tool_that_an_agent_gets_while_it_runs(fake: FakeModel, rehearsal: HaltingGuard) -> None:
    fake.script(calls("first"), calls("second"), DONE)
    effects: list[str] = []

    def first(what: str) -> str:
        own.tools.append(tool("second", lambda what: effects.append(what)))
        return "output"

    own = agent(tool("first", first))
    rehearsal.halt("tool:second")
    with pytest.raises(estoppel.Halted):
        run(fake, rehearsal, own)
    assert effects == []


def test_agents_without_the_runner_are_as_they_were(
    fake: FakeModel, rehearsal: HaltingGuard
) -> None:
    """What is wrapped stands by: another runner's guard, or none, is not this one's."""
    own = agent(tool("fetch", lambda what: f"found {what}"))
    fake.script(calls("fetch"), DONE)
    run(fake, rehearsal, own)
    steps = rehearsal.steps
    rehearsal.halt()
    fake.script(calls("fetch"), DONE)

    async def plain() -> None:
        async with AsyncOpenAI(base_url=f"{fake.url}/v1", api_key="none") as client:
            result = await Runner.run(own, "look it up", run_config=configured(client))
            assert result.final_output == DONE["text"]

    asyncio.run(plain())
    assert rehearsal.steps == steps
    fake.script(calls("fetch"), DONE)
    with halting_guard() as other:
        run(fake, other, own)
        assert other.steps == 3


class Adder(BaseModel):
    number: int


def test_what_a_tool_is_otherwise_it_stays(fake: FakeModel, rehearsal: HaltingGuard) -> None:
    """Its schema, policy, timeout, context and models; a method and an object that can be called."""
    told: list[Any] = []

    class Tools:
        def method(self, context: RunContextWrapper[str], what: Adder) -> str:
            told.append((context.context, what))
            return "output"

        async def __call__(self, what: str) -> str:
            told.append(what)
            return "output"

    async def policy(context: Any, params: dict[str, Any], call: str) -> bool:
        told.append(params)
        return False

    async def slow(what: str) -> str:
        await asyncio.sleep(3600)
        return "output"

    tools = [
        function_tool(Tools().method, name_override="method"),
        function_tool(Tools(), name_override="object", needs_approval=policy),
        function_tool(slow, name_override="slow", timeout=0.05),
    ]
    before = [tool.params_json_schema for tool in tools]
    method = {"name": "method", "arguments": {"what": {"number": 1}}}
    others = calls("object", "slow")["tool_calls"]
    fake.script({"tool_calls": [method]}, {"tool_calls": others}, DONE)

    async def main() -> None:
        async with AsyncOpenAI(base_url=f"{fake.url}/v1", api_key="none") as client:
            config = configured(client)
            runner = EstoppelRunner(rehearsal)
            result = await runner.run(agent(*tools), "go", context="mine", run_config=config)
            assert result.final_output == DONE["text"]

    asyncio.run(main())
    assert told == [("mine", Adder(number=1)), {"what": "x"}, "x"]
    assert [tool.params_json_schema for tool in tools] == before
    said = [item["output"] for item in fake.requests()[2]["body"]["input"] if "output" in item]
    assert len(said) == 3 and "timed out" in str(said)


def test_a_guarded_model_is_what_it_stands_for() -> None:
    """The SDK asks of what class a model is, and applications copy their agents."""
    client = AsyncOpenAI(base_url="http://127.0.0.1:9/v1", api_key="none")
    own = agent(model=OpenAIChatCompletionsModel("m", client))
    reach(own)
    guarded = own.model
    assert type(guarded) is GuardedModel
    reach(own)
    assert own.model is guarded, "once"
    for one in (own.model, copy.copy(own.model)):
        assert isinstance(one, Model) and isinstance(one, OpenAIChatCompletionsModel)
        assert one.model == "m"
    asyncio.run(client.close())


def test_a_halt_reaches_the_sessions_run_alone(fake: FakeModel, rehearsal: HaltingGuard) -> None:
    """One agent, two sessions: the one that is current where the run starts, or one that is given."""
    own = agent(tool("fetch", lambda what: f"found {what}"))
    rehearsal.halt("session:mine")
    fake.script(calls("fetch"), DONE)
    with rehearsal.session("mine"), pytest.raises(estoppel.Halted):
        run(fake, rehearsal, own)
    with pytest.raises(estoppel.Halted):
        run(fake, rehearsal.session("mine"), own)
    assert fake.requests() == []
    with rehearsal.session("other"):
        assert run(fake, rehearsal, own) == DONE["text"]
