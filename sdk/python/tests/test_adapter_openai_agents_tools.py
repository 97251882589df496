"""Rows K3, K7, S2: what the guardrails of the OpenAI Agents SDK do not cover is a step, too.

Shells, patches, computers, custom tools and MCP servers; and what a server is told of a run that it halts.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from agents import (
    Agent,
    ApplyPatchTool,
    AsyncComputer,
    Computer,
    ComputerProvider,
    ComputerTool,
    CustomTool,
    FunctionTool,
    LocalShellTool,
    RunConfig,
    ShellTool,
    Usage,
    function_tool,
)
from agents.mcp import MCPServerStdio
from agents.testing import ScriptedModel, assistant_message, function_call
from conftest import PATIENCE_S, Server, until
from openai.types.responses import (
    ResponseApplyPatchToolCall,
    ResponseComputerToolCall,
    ResponseCustomToolCall,
    ResponseFunctionShellToolCall,
)
from openai.types.responses.response_output_item import LocalShellCall

import estoppel
from estoppel.adapters.openai_agents import EstoppelRunner
from estoppel.testing import HaltingGuard

PROGRAM = str(Path(__file__).with_name("mcp_server.py"))
QUIET = RunConfig(tracing_disabled=True)
ID = {"id": "1", "call_id": "c1", "status": "completed"}

Work = Callable[..., Any]


class Screen(AsyncComputer):
    """A computer all of whose actions are one."""

    def __init__(self, work: Work) -> None:
        self._work = work

    async def click(self, x: int, y: int, button: str) -> None:
        await self._work(x, y)

    async def screenshot(self) -> str:
        return ""

    double_click = scroll = type = wait = move = keypress = drag = click  # type: ignore[assignment]


class Still(Computer):
    """The same without asyncio."""

    def __init__(self, work: Work) -> None:
        self._work = work

    def click(self, x: int, y: int, button: str) -> None:
        self._work(x, y)

    def screenshot(self) -> str:
        return ""

    double_click = scroll = type = wait = move = keypress = drag = click  # type: ignore[assignment]


class Editor:
    """An editor of `apply_patch`."""

    def __init__(self, work: Work) -> None:
        self.create_file = self.update_file = self.delete_file = work


def shell_call() -> Any:
    action = {"commands": ["rm -r /"]}
    return ResponseFunctionShellToolCall.model_validate({**ID, "type": "shell_call", "action": action})


def local_shell_call() -> Any:
    action = {"type": "exec", "command": ["rm", "-r", "/"], "env": {}}
    return LocalShellCall.model_validate({**ID, "type": "local_shell_call", "action": action})


def patch_call() -> Any:
    operation = {"type": "delete_file", "path": "a"}
    values = {**ID, "type": "apply_patch_call", "operation": operation}
    return ResponseApplyPatchToolCall.model_validate(values)


def custom_call() -> Any:
    values = {**ID, "type": "custom_tool_call", "name": "query", "input": "drop"}
    return ResponseCustomToolCall.model_validate(values)


def computer_call() -> Any:
    click = {"type": "click", "x": 1, "y": 2, "button": "left"}
    values = {**ID, "type": "computer_call", "pending_safety_checks": [], "actions": [click]}
    return ResponseComputerToolCall.model_validate(values)


def by_hand(work: Work) -> FunctionTool:
    async def invoke(context: Any, arguments: str) -> Any:
        return await work(arguments)

    return FunctionTool("query", "", {"type": "object", "properties": {}}, invoke)


# What it is called in a scope, how it is made of a coroutine function, and the model's call of it.
KINDS: dict[str, tuple[str, Callable[[Work], Any], Callable[[], Any]]] = {
    "shell": ("shell", lambda work: ShellTool(executor=work), shell_call),
    "local_shell": ("local_shell", lambda work: LocalShellTool(executor=work), local_shell_call),
    "apply_patch": ("apply_patch", lambda work: ApplyPatchTool(editor=Editor(work)), patch_call),
    "custom": (
        "query",
        lambda work: CustomTool("query", "", on_invoke_tool=work),
        custom_call,
    ),
    "computer": ("computer", lambda work: ComputerTool(Screen(work)), computer_call),
    "computer-of-a-provider": (
        "computer",
        lambda work: ComputerTool(ComputerProvider(create=lambda *, run_context: Screen(work))),
        computer_call,
    ),
    "computer-of-a-factory": (
        "computer",
        lambda work: ComputerTool(lambda *, run_context: Screen(work)),
        computer_call,
    ),
    "made-by-hand": ("query", by_hand, lambda: function_call("query", {}, call_id="c1")),
}


def model(*calls: Any) -> ScriptedModel:
    usage = Usage(requests=1, input_tokens=812, output_tokens=90, total_tokens=902)
    steps = [*([call] for call in calls), [assistant_message("done")]]
    return ScriptedModel(steps, default_usage=usage)


def run(guard: HaltingGuard | estoppel.Guard | estoppel.Session, agent: Agent[Any]) -> Any:
    async def main() -> Any:
        result = await EstoppelRunner(guard).run(agent, "go", run_config=QUIET)
        return result.final_output

    return asyncio.run(asyncio.wait_for(main(), PATIENCE_S))


@pytest.mark.parametrize("kind", KINDS)
def test_its_work_is_a_step(rehearsal: HaltingGuard, kind: str) -> None:
    """With another run by the same objects: what was wrapped is not wrapped again."""
    _, make, call = KINDS[kind]
    effects: list[str] = []

    async def work(*args: Any) -> str:
        effects.append("done")
        return "output"

    tool = make(work)
    looks = 1 if kind.startswith("computer") else 0  # Each turn ends with a screenshot.
    for turn in range(1, 3):
        agent = Agent(name="a", model=model(call()), tools=[tool])
        assert run(rehearsal, agent) == "done"
        assert effects == ["done"] * turn
        assert rehearsal.steps == (3 + looks) * turn


@pytest.mark.parametrize("kind", KINDS)
def test_a_halted_tool_does_nothing(rehearsal: HaltingGuard, kind: str) -> None:
    name, make, call = KINDS[kind]
    effects: list[str] = []

    async def work(*args: Any) -> str:
        effects.append("done")
        return "output"

    rehearsal.halt(f"tool:{name}")
    scripted = model(call())
    with pytest.raises(estoppel.Halted):
        run(rehearsal, Agent(name="a", model=scripted, tools=[make(work)]))
    assert effects == []
    assert scripted.remaining_steps == 1, "the model was not asked again"


@pytest.mark.parametrize("kind", KINDS)
def test_in_its_work(rehearsal: HaltingGuard, kind: str) -> None:
    """The SDK makes answers to the model of these tools' failures; of a halt it makes none."""
    _, make, call = KINDS[kind]
    effects: list[str] = []

    async def work(*args: Any) -> str:
        await asyncio.to_thread(rehearsal.halt)
        await asyncio.sleep(3600)
        effects.append("done")
        return "output"

    scripted = model(call())
    with pytest.raises(estoppel.Halted):
        run(rehearsal, Agent(name="a", model=scripted, tools=[make(work)]))
    assert effects == []
    assert scripted.remaining_steps == 1


def test_a_computer_without_asyncio(rehearsal: HaltingGuard) -> None:
    """It runs on the loop's own thread, where nothing can end it; nothing comes after it."""
    effects: list[str] = []

    def work(*args: Any) -> None:
        rehearsal.halt()
        effects.append("clicked")

    scripted = model(computer_call())
    with pytest.raises(estoppel.Halted):
        run(rehearsal, Agent(name="a", model=scripted, tools=[ComputerTool(Still(work))]))
    assert effects == ["clicked"]
    assert scripted.remaining_steps == 1


@pytest.mark.parametrize("halted", ["global", "plugin:my_notes", "tool:hold"])
def test_in_a_tool_of_an_mcp_server(
    rehearsal: HaltingGuard, tmp_path: Path, halted: str
) -> None:
    """The server's process ends its work; a server that is halted is not called again."""
    scripted = model(function_call("hold", {}, call_id="c1"))

    async def main() -> None:
        params: Any = {"command": sys.executable, "args": ["-W", "ignore", PROGRAM, str(tmp_path)]}
        async with MCPServerStdio(params, name="my notes", client_session_timeout_seconds=60) as server:
            agent = Agent(name="a", model=scripted, mcp_servers=[server])
            halting = asyncio.ensure_future(asyncio.to_thread(halt))
            with pytest.raises(estoppel.Halted):
                await EstoppelRunner(rehearsal).run(agent, "go", run_config=QUIET)
            await halting
            await asyncio.to_thread(until, "cancellation", (tmp_path / "cancelled").exists)
            again = model(function_call("hold", {}, call_id="c1"))
            with pytest.raises(estoppel.Halted):
                agent = Agent(name="a", model=again, mcp_servers=[server])
                await EstoppelRunner(rehearsal).run(agent, "go", run_config=QUIET)

    def halt() -> None:
        until("the call", (tmp_path / "begun").exists)
        (tmp_path / "begun").unlink()
        rehearsal.halt(halted)

    asyncio.run(asyncio.wait_for(main(), PATIENCE_S))
    assert not (tmp_path / "effect").exists() and not (tmp_path / "begun").exists()
    assert scripted.remaining_steps == 1


def test_a_run_that_a_server_halts_is_confirmed_and_on_record(
    guard: estoppel.Guard, server: Server, name: str
) -> None:
    """Model, tokens, tenant; and a tool on a thread that gets the exception counts as cancelled."""
    begun = threading.Event()
    halts: list[str] = []

    def work(what: str) -> str:
        begun.set()
        for _ in range(10**12):
            pass
        return "output"

    def halt() -> None:
        assert begun.wait(PATIENCE_S)
        halts.append(server.halt(f"session:{name}"))

    halting = threading.Thread(target=halt)
    halting.start()
    tool = function_tool(work, name_override="work")
    agent = Agent(
        name="a", model=model(function_call("work", {"what": "x"}, call_id="c1")), tools=[tool]
    )
    with guard.session(name, tenant="acme"), pytest.raises(estoppel.Halted) as halted:
        run(guard, agent)
    halting.join(PATIENCE_S)
    assert halted.value.order is not None and halted.value.order.id == halts[0]
    settlement = server.settlement(halts[0])
    assert settlement["steps_cancelled"] == 1
    assert settlement.get("not_interruptible", []) == []
    columns = "action, tool, requester_tenant_id, input_tokens, output_tokens, decision, params"
    rows = server.rows(f"SELECT {columns} FROM audit_log WHERE session_id = '{name}'", 2)
    asked, called = sorted(rows)
    assert asked[:6] == ["model_call", None, "acme", 812, 90, "allowed"]
    assert called[:6] == ["tool_call", "work", "acme", None, None, "cancelled"]
    assert json.loads(asked[6]) == {"model": None, "messages": 1, "stream": False}
    assert json.loads(called[6]) == {"what": "x"}


def test_a_blocked_tool_of_a_run_is_not_interruptible(
    guard: estoppel.Guard, server: Server, name: str
) -> None:
    """A thread that waits in a read: confirmed as what it is, and its output withheld."""
    near, far = os.pipe()
    begun = threading.Event()
    words: list[Any] = []

    def work(what: str) -> str:
        begun.set()
        return os.read(near, 16).decode()

    def halt() -> None:
        assert begun.wait(PATIENCE_S)
        words.append(server.settlement(server.halt(f"session:{name}")))
        os.write(far, b"late")

    halting = threading.Thread(target=halt)
    halting.start()
    scripted = model(function_call("work", {"what": "x"}, call_id="c1"))
    agent = Agent(name="a", model=scripted, tools=[function_tool(work, name_override="work")])
    with pytest.raises(estoppel.Halted):
        run(guard.session(name), agent)
    halting.join(PATIENCE_S)
    os.close(near)
    os.close(far)
    assert words[0]["not_interruptible"] == ["tool work: has not yielded"]
    assert words[0].get("steps_cancelled", 0) == 0
    assert scripted.remaining_steps == 1


def test_an_observed_run_goes_on(
    server: Server, agent_token: str, name: str
) -> None:
    server.halt(f"session:{name}")
    tool = function_tool(lambda what: f"found {what}", name_override="work")
    agent = Agent(
        name="a", model=model(function_call("work", {"what": "x"}, call_id="c1")), tools=[tool]
    )
    with estoppel.Guard(server.url, agent_token, mode="observe") as guard:
        assert guard.wait_ready(PATIENCE_S)
        assert run(guard.session(name), agent) == "done"
    where = f"session_id = '{name}' AND tool = 'work'"
    assert server.rows(f"SELECT decision FROM audit_log WHERE {where}") == [["would_stop"]]
