"""Rows K3, K7: agents of the Claude Agent SDK under a guard, with the program that it bundles, against
the fake model.

The halt arrives between steps, in a tool of the program and in one of this process, in the model's
stream, in a sub-agent.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from claude_agent_sdk import (
    AssistantMessage,
    ClaudeAgentOptions,
    HookMatcher,
    PermissionResultAllow,
    ResultMessage,
    TextBlock,
    create_sdk_mcp_server,
    tool,
)
from claude_program import ASKED, DONE, bash, calls, environment, is_alive
from conftest import PATIENCE_S, Server, halting_when, until
from fake_model import FakeModel

import estoppel
from estoppel import _native
from estoppel.adapters import _claude_agent_run, claude_agent
from estoppel.adapters.claude_agent import ClaudeSDKClient, query
from estoppel.testing import HaltingGuard


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home of its own, and the folder in which the agent works."""
    (tmp_path / "work").mkdir()
    return tmp_path


def options(fake: FakeModel, home: Path, *tools: Any, **more: Any) -> ClaudeAgentOptions:
    more.setdefault("allowed_tools", ["Bash", "Agent", *(f"mcp__own__{own.name}" for own in tools)])
    return ClaudeAgentOptions(
        env=environment(fake, home),
        cwd=home / "work",
        setting_sources=[],
        mcp_servers={"own": create_sdk_mcp_server("own", tools=list(tools))} if tools else {},
        **more,
    )


def run(guard: estoppel.Guard | estoppel.Session, given: ClaudeAgentOptions) -> list[Any]:
    async def conversation() -> list[Any]:
        return [message async for message in query(guard, prompt=ASKED, options=given)]

    return asyncio.run(asyncio.wait_for(conversation(), PATIENCE_S))


def said(messages: list[Any]) -> list[str]:
    answers = [one for one in messages if isinstance(one, AssistantMessage)]
    return [part.text for one in answers for part in one.content if isinstance(part, TextBlock)]


def own_tool(name: str, work: Callable[[], Awaitable[str]]) -> Any:
    @tool(name, "works", {})
    async def own(_: dict[str, Any]) -> dict[str, Any]:
        return {"content": [{"type": "text", "text": await work()}]}

    return own


def test_an_agent_that_nobody_halts_goes_its_way(
    fake: FakeModel, home: Path, rehearsal: HaltingGuard
) -> None:
    async def look() -> str:
        return "found it"

    fake.script(calls(bash("echo output > file"), ("mcp__own__look", {})), DONE)
    messages = run(rehearsal, options(fake, home, own_tool("look", look)))
    assert said(messages) == [DONE["text"]]
    assert isinstance(messages[-1], ResultMessage) and not messages[-1].is_error
    assert (home / "work/file").read_text() == "output\n"
    assert "found it" in str(fake.requests()[1]["body"]["messages"][-1])
    assert rehearsal.steps == 4, "the conversation, two tools, and what the model used"


def test_before_the_first_step(fake: FakeModel, home: Path, rehearsal: HaltingGuard) -> None:
    """The program of a halted agent is not started."""
    fake.script(DONE)
    halt = rehearsal.halt()
    with pytest.raises(estoppel.Halted) as halted:
        run(rehearsal, options(fake, home))
    assert halted.value.order is not None and halted.value.order.id == halt
    assert fake.requests() == []
    assert not (home / "config").exists()


@pytest.mark.parametrize("finds_marked", [True, False])
def test_between_steps(
    fake: FakeModel,
    home: Path,
    rehearsal: HaltingGuard,
    monkeypatch: pytest.MonkeyPatch,
    finds_marked: bool,
) -> None:
    """The tool halts its own session and returns: its output does not go back to the model."""
    monkeypatch.setattr(_native, "finds_marked", lambda: finds_marked)

    async def halts() -> str:
        rehearsal.halt()
        return "output"

    fake.script(calls(("mcp__own__halts", {})), DONE)
    with pytest.raises(estoppel.Halted):
        run(rehearsal, options(fake, home, own_tool("halts", halts)))
    assert len(fake.requests()) == 1, "the model was not asked again"


@pytest.mark.parametrize("finds_marked", [True, False])
@pytest.mark.parametrize("scope", ["tool:Bash", "tool:mcp__own__work", "plugin:own"])
def test_before_a_tool(
    fake: FakeModel,
    home: Path,
    rehearsal: HaltingGuard,
    monkeypatch: pytest.MonkeyPatch,
    scope: str,
    finds_marked: bool,
) -> None:
    """A halted tool is not called, in the program or in this process, and ends the conversation."""
    monkeypatch.setattr(_native, "finds_marked", lambda: finds_marked)
    effects: list[str] = []

    async def work() -> str:
        effects.append("worked")
        return "output"

    rehearsal.halt(scope)
    asked = bash("touch file") if scope == "tool:Bash" else ("mcp__own__work", {})
    fake.script(calls(asked), DONE)
    with pytest.raises(estoppel.Halted):
        run(rehearsal, options(fake, home, own_tool("work", work)))
    assert effects == [] and list((home / "work").iterdir()) == []
    assert len(fake.requests()) == 1


# Writes the numbers of its own processes, one of which has left group, session and parent behind, and
# would do its work a moment later.
WORKS = (
    "(setsid sh -c 'echo $$ >> pids; sleep 3; touch after' >/dev/null 2>&1 &)"
    " && echo $$ >> pids && sleep 3 && touch after"
)


def pids(home: Path) -> list[int]:
    try:
        found = [int(line) for line in (home / "work/pids").read_text().split()]
    except OSError:
        return []
    return found if len(found) == 2 else []


def test_in_a_tool_of_the_program(
    fake: FakeModel, home: Path, guard: estoppel.Guard, server: Server, name: str
) -> None:
    """It is killed with all that it has started, and the server is told once nothing is left."""
    fake.script(calls(bash(WORKS)), DONE)
    with (
        halting_when(lambda: pids(home), lambda: server.halt(f"session:{name}")) as halts,
        pytest.raises(estoppel.Halted) as halted,
    ):
        run(guard.session(name), options(fake, home))
    assert not any(map(is_alive, pids(home)))
    assert halted.value.order is not None and halted.value.order.id == halts[0]
    settlement = server.settlement(halts[0])
    assert settlement["steps_cancelled"] == 2, "the conversation, and Bash"
    assert settlement.get("not_interruptible", []) == []
    assert len(fake.requests()) == 1
    rows = server.rows(f"SELECT tool, decision FROM audit_log WHERE session_id = '{name}'", 2)
    assert sorted(rows) == [["Bash", "cancelled"], ["claude", "cancelled"]]
    assert not (home / "work/after").exists()


def test_a_halted_tool_in_flight_ends_the_conversation(
    fake: FakeModel, home: Path, rehearsal: HaltingGuard
) -> None:
    fake.script(calls(bash(WORKS)), DONE)
    with halting_when(lambda: pids(home), lambda: rehearsal.halt("tool:Bash")):
        with pytest.raises(estoppel.Halted):
            run(rehearsal, options(fake, home))
    assert not any(map(is_alive, pids(home)))
    assert len(fake.requests()) == 1


def test_in_a_tool_of_this_process(
    fake: FakeModel, home: Path, guard: estoppel.Guard, server: Server, name: str
) -> None:
    begun, ended = threading.Event(), []

    async def work() -> str:
        begun.set()
        try:
            await asyncio.sleep(3600)
        finally:
            ended.append("cancelled")
        return "output"

    fake.script(calls(("mcp__own__work", {})), DONE)
    with (
        halting_when(begun.is_set, lambda: server.halt(f"session:{name}")) as halts,
        pytest.raises(estoppel.Halted),
    ):
        run(guard.session(name), options(fake, home, own_tool("work", work)))
    assert ended == ["cancelled"]
    settlement = server.settlement(halts[0])
    assert settlement["steps_cancelled"] == 2
    assert settlement.get("not_interruptible", []) == []
    assert len(fake.requests()) == 1


def test_a_tool_of_this_process_that_does_not_yield_is_named(
    fake: FakeModel, home: Path, guard: estoppel.Guard, server: Server, name: str
) -> None:
    """The program is killed meanwhile: that needs nothing of Python."""
    begun, go_on = threading.Event(), threading.Event()

    async def work() -> str:
        begun.set()
        assert go_on.wait(PATIENCE_S)
        return "output"

    def halt() -> dict[str, Any]:
        program = int((home / "work/program").read_text())
        settlement = server.settlement(server.halt(f"session:{name}"))
        until("the program to be killed", lambda: not is_alive(program))
        go_on.set()
        return settlement

    fake.script(calls(bash("echo $PPID > program")), calls(("mcp__own__work", {})), DONE)
    with halting_when(begun.is_set, halt) as settled, pytest.raises(estoppel.Halted):
        run(guard.session(name), options(fake, home, own_tool("work", work)))
    named = sorted(settled[0]["not_interruptible"])
    assert named == ["tool claude: has not yielded", "tool mcp__own__work: has not yielded"]
    assert len(fake.requests()) == 2


def test_in_the_models_stream(
    fake: FakeModel, home: Path, guard: estoppel.Guard, server: Server, name: str
) -> None:
    fake.script({**DONE, "hold_after": 2}, DONE)

    def is_held() -> bool:
        return any(asked["state"] == "held" for asked in fake.requests())

    with (
        halting_when(is_held, lambda: server.halt(f"session:{name}")) as halts,
        pytest.raises(estoppel.Halted),
    ):
        run(guard.session(name), options(fake, home))
    assert fake.until(0, "client_left")["pieces"] == 2
    assert server.settlement(halts[0])["steps_cancelled"] == 1
    assert len(fake.requests()) == 1


SUB_AGENT = {"description": "works", "prompt": "do the work below", "subagent_type": "general-purpose"}


def test_in_a_sub_agent(fake: FakeModel, home: Path, rehearsal: HaltingGuard) -> None:
    """The halt finds a tool of the inner agent; neither agent goes on."""
    fake.script(
        calls(("Agent", SUB_AGENT)), calls(bash(WORKS), of="do the work below"), {**DONE, "hold_after": 0}
    )
    with halting_when(lambda: pids(home), rehearsal.halt), pytest.raises(estoppel.Halted):
        run(rehearsal, options(fake, home))
    assert not any(map(is_alive, pids(home)))
    asked = [str(one["body"]["messages"]) for one in fake.requests()]
    assert len([one for one in asked if "do the work below" in one and "pids" in one]) == 0
    assert len(asked) <= 3, "neither of the two was asked again about what came of the tool"


def test_a_sub_agents_tools_are_asked_for(
    fake: FakeModel, home: Path, rehearsal: HaltingGuard
) -> None:
    """The canary: a tool that is halted is refused to a sub-agent, too."""
    rehearsal.halt("tool:Bash")
    fake.script(calls(("Agent", SUB_AGENT)), calls(bash("touch file"), of="do the work below"), DONE, DONE)
    with pytest.raises(estoppel.Halted):
        run(rehearsal, options(fake, home))
    assert list((home / "work").iterdir()) == []


def test_a_hook_that_fails_refuses(
    fake: FakeModel, home: Path, rehearsal: HaltingGuard, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_: object) -> None:
        raise OSError("a fault of ours")

    monkeypatch.setattr(_claude_agent_run, "_server_of", fails)
    fake.script(calls(bash("touch file")), DONE)
    assert said(run(rehearsal, options(fake, home))) == [DONE["text"]]
    assert list((home / "work").iterdir()) == []
    assert "'is_error': True" in str(fake.requests()[1]["body"]["messages"][-1])


def test_a_hook_that_answers_too_late_refuses(
    fake: FakeModel, home: Path, rehearsal: HaltingGuard, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The event loop is blocked until the program has gone on without an answer."""
    guarded = _claude_agent_run.Run._guarded

    def hasty(self: Any, given: ClaudeAgentOptions) -> ClaudeAgentOptions:
        made = guarded(self, given)
        assert made.hooks is not None
        made.hooks["PreToolUse"][0].timeout = 0.5
        return made

    def blocks(_: object) -> None:
        until("the program to go on", lambda: len(fake.requests()) == 2)

    monkeypatch.setattr(_claude_agent_run.Run, "_guarded", hasty)
    monkeypatch.setattr(_claude_agent_run, "_server_of", blocks)
    fake.script(calls(bash("touch file")), DONE)
    assert said(run(rehearsal, options(fake, home))) == [DONE["text"]]
    assert list((home / "work").iterdir()) == []


@pytest.mark.parametrize("more", [{"extra_args": {"bare": None}}, {"env": {"CLAUDE_CODE_SIMPLE": "1"}}])
def test_a_program_that_skips_its_hooks_is_not_started(
    fake: FakeModel, home: Path, rehearsal: HaltingGuard, more: dict[str, Any]
) -> None:
    fake.script(DONE)
    with pytest.raises(ValueError, match="skips its hooks"):
        run(rehearsal, replace(options(fake, home), **more))
    assert fake.requests() == []


def test_a_program_that_does_not_ask_is_ended(
    fake: FakeModel, home: Path, rehearsal: HaltingGuard, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the reason: as if nobody knew that `--bare` is one."""
    monkeypatch.setattr(claude_agent, "_refuse_bare", lambda _: None)
    fake.script(calls(bash("echo $$ > pid; sleep 600; touch file")), DONE)
    with pytest.raises(RuntimeError, match="does not ask its hooks"):
        run(rehearsal, options(fake, home, extra_args={"bare": None}))
    assert not (home / "work/file").exists()
    assert len(fake.requests()) == 1


def test_what_is_halted_while_a_person_thinks_is_not_done(
    fake: FakeModel, home: Path, rehearsal: HaltingGuard
) -> None:
    fake.script(calls(bash("touch file")), DONE)

    async def permit(*_: object) -> PermissionResultAllow:
        rehearsal.halt("session:thinks")
        return PermissionResultAllow()

    with pytest.raises(estoppel.Halted):
        run(rehearsal.session("thinks"), options(fake, home, allowed_tools=[], can_use_tool=permit))
    assert list((home / "work").iterdir()) == []
    assert len(fake.requests()) == 1


def test_a_client_goes_on_after_the_release(
    fake: FakeModel, home: Path, guard: estoppel.Guard, server: Server, name: str
) -> None:
    """A halt between two prompts: the second is not sent. Released, the client is connected anew."""
    fake.script({"text": "first"}, {"text": "second"})

    async def conversation() -> None:
        loop = asyncio.get_running_loop()
        client = ClaudeSDKClient(guard.session(name), options(fake, home))
        with pytest.raises(estoppel.Halted):
            async with client:
                await client.query(ASKED)
                assert said([one async for one in client.receive_response()]) == ["first"]
                halt = await loop.run_in_executor(None, server.halt, f"session:{name}")
                await loop.run_in_executor(None, server.settlement, halt)
                await client.query(ASKED)
        assert len(fake.requests()) == 1
        await loop.run_in_executor(None, server.release, f"session:{name}")
        await loop.run_in_executor(None, until, "the release", guard.session(name).allowed)
        async with client:
            await client.query(ASKED)
            assert said([one async for one in client.receive_response()]) == ["second"]

    asyncio.run(asyncio.wait_for(conversation(), 2 * PATIENCE_S))


def test_who_is_not_told_by_a_message_is_told_at_the_end(
    fake: FakeModel, home: Path, rehearsal: HaltingGuard
) -> None:
    async def conversation() -> None:
        async with ClaudeSDKClient(rehearsal, options(fake, home)):
            rehearsal.halt()

    with pytest.raises(estoppel.Halted):
        asyncio.run(asyncio.wait_for(conversation(), PATIENCE_S))


def test_where_processes_cannot_be_found_the_program_is_interrupted(
    fake: FakeModel,
    home: Path,
    guard: estoppel.Guard,
    server: Server,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As on a system without ``/proc``: the program ends its tools itself, which nobody vouches for."""
    monkeypatch.setattr(_native, "finds_marked", lambda: False)
    fake.script(calls(bash("echo $$ > pid; sleep 600; touch file")), DONE)

    def began() -> bool:
        return (home / "work/pid").exists() and (home / "work/pid").read_text() != ""

    with (
        halting_when(began, lambda: server.halt(f"session:{name}")) as halts,
        pytest.raises(estoppel.Halted),
    ):
        run(guard.session(name), options(fake, home))
    pid = int((home / "work/pid").read_text())
    until("the tool to end", lambda: not is_alive(pid))
    settlement = server.settlement(halts[0])
    assert "tool Bash: blocking work, its result is withheld" in settlement["not_interruptible"]
    assert len(fake.requests()) == 1


def test_what_the_model_used_is_on_record(
    fake: FakeModel, home: Path, guard: estoppel.Guard, server: Server, name: str
) -> None:
    """Each turn what it used itself; the program counts from its start."""
    usage = {"input_tokens": 812, "output_tokens": 90}
    fake.script({**calls(bash("echo output")), "usage": usage}, DONE, DONE)

    async def conversation() -> None:
        async with ClaudeSDKClient(guard.session(name), options(fake, home)) as client:
            for _ in range(2):
                await client.query(ASKED)
                async for _ in client.receive_response():
                    pass

    asyncio.run(asyncio.wait_for(conversation(), PATIENCE_S))
    columns = "tool, input_tokens, output_tokens, result FROM audit_log"
    rows = server.rows(f"SELECT {columns} WHERE session_id = '{name}'", 4)
    tokens = sorted(tuple(row[1:3]) for row in rows if row[1] is not None)
    assert tokens == [(10, 5), (822, 95)]
    [result] = [row[3] for row in rows if row[0] == "Bash"]
    assert "output" in str(result)


def test_the_users_own_hooks_are_asked_too(
    fake: FakeModel, home: Path, rehearsal: HaltingGuard
) -> None:
    async def refuse(*_: object) -> Any:
        decision = {"hookEventName": "PreToolUse", "permissionDecision": "deny"}
        return {"hookSpecificOutput": decision}

    fake.script(calls(bash("touch file")), DONE)
    hooks: Any = {"PreToolUse": [HookMatcher(hooks=[refuse])]}
    assert said(run(rehearsal, options(fake, home, hooks=hooks))) == [DONE["text"]]
    assert list((home / "work").iterdir()) == []
