"""Rows K3, K7, S2: clients of the Model Context Protocol under a guard, against real servers.

Over stdio and streamable HTTP, each in the protocol's present form and in that before 2026-07-28.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import mcp_types as types
import pytest
from conftest import PATIENCE_S, Server, free_port, until
from mcp import Client, ClientSession, StdioServerParameters, stdio_client

import estoppel
from estoppel.adapters.mcp import guarded
from estoppel.testing import HaltingGuard, halting_guard

PROGRAM = str(Path(__file__).with_name("mcp_server.py"))


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """A server over HTTP, and the folder that it writes to."""
    folder, port = tmp_path_factory.mktemp("served"), free_port()
    with open(folder / "log", "wb") as log:
        command = [sys.executable, "-W", "ignore", PROGRAM, str(folder), str(port)]
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        until("the server", lambda: "Uvicorn running" in (folder / "log").read_text())
        yield f"http://127.0.0.1:{port}/mcp", folder
    finally:
        process.kill()
        process.wait()


class Notes:
    """A way to the server, and what it has written."""

    def __init__(self, target: str | StdioServerParameters, folder: Path, mode: Any) -> None:
        self.target = target
        self.folder = folder
        self.mode: Literal["auto", "legacy"] = mode
        for name in ("meta", "begun", "cancelled", "effect"):
            (folder / name).unlink(missing_ok=True)

    def client(self, **options: Any) -> Client:
        return Client(self.target, mode=self.mode, **options)

    def has(self, name: str) -> bool:
        return (self.folder / name).exists()

    def read(self, name: str) -> str:
        return (self.folder / name).read_text()


def stdio(folder: Path) -> StdioServerParameters:
    return StdioServerParameters(command=sys.executable, args=["-W", "ignore", PROGRAM, str(folder)])


@pytest.fixture(params=["stdio-auto", "stdio-legacy", "http-auto", "http-legacy"])
def notes(
    request: pytest.FixtureRequest, served: tuple[str, Path], tmp_path: Path
) -> Notes:
    transport, mode = request.param.split("-")
    if transport == "http":
        return Notes(*served, mode)
    return Notes(stdio(tmp_path), tmp_path, mode)


@pytest.fixture
def local(tmp_path: Path) -> Notes:
    return Notes(stdio(tmp_path), tmp_path, "auto")


def run(main: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        await asyncio.wait_for(main(), PATIENCE_S)

    asyncio.run(bounded())


class halting_once:
    """Halts, on a thread of its own, once the server has written this."""

    def __init__(self, notes: Notes, name: str, halt: Callable[[], object]) -> None:
        def wait() -> None:
            until(name, lambda: notes.has(name))
            halt()

        self._thread = threading.Thread(target=wait)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._thread.join(2 * PATIENCE_S)


def test_a_client_that_nobody_halts_goes_its_way(notes: Notes, rehearsal: HaltingGuard) -> None:
    """And the server is told who acts; what the caller tells it stays."""

    async def main() -> None:
        session = rehearsal.session("s1", user="bob", tenant="acme", task="t7")
        async with guarded(notes.client(), rehearsal, server="notes") as client:
            with session:
                meta: Any = {"dev.estoppel/task": "mine"}
                said = await client.call_tool("greet", {"name": "Ann"}, meta=meta)
                assert said.structured_content == {"result": "hello Ann"}
                [contents] = (await client.read_resource("notes://a")).contents
                assert isinstance(contents, types.TextResourceContents)
                assert contents.text == "note a"
                prompt = await client.get_prompt("ask", {"what": "y"})
                assert isinstance(prompt.messages[0].content, types.TextContent)
                assert prompt.messages[0].content.text == "what is y?"
                names = [tool.name for tool in (await client.list_tools()).tools]
                assert "greet" in names

    run(main)
    assert rehearsal.steps == 3
    assert json.loads(notes.read("meta")) == {
        "dev.estoppel/agent": "testing",
        "dev.estoppel/session": "s1",
        "dev.estoppel/user": "bob",
        "dev.estoppel/tenant": "acme",
        "dev.estoppel/task": "mine",
    }


def test_identities_can_be_kept(local: Notes, rehearsal: HaltingGuard) -> None:
    async def main() -> None:
        async with guarded(local.client(), rehearsal, identities=False) as client:
            await client.call_tool("greet", {"name": "Ann"})

    run(main)
    assert json.loads(local.read("meta")) == {}


def test_in_a_tool(notes: Notes, rehearsal: HaltingGuard) -> None:
    """The server is told, and ends its work; `Halted` comes out of the client's block as itself."""

    async def main() -> None:
        async with guarded(notes.client(), rehearsal) as client:
            await client.call_tool("hold")

    with halting_once(notes, "begun", rehearsal.halt), pytest.raises(estoppel.Halted) as halted:
        run(main)
    assert halted.value.order is not None
    until("the server's cancellation", lambda: notes.has("cancelled"))
    assert not notes.has("effect")
    if isinstance(notes.target, StdioServerParameters):
        process = Path(f"/proc/{notes.read('begun')}")
        until("the end of its process, with the block", lambda: not process.exists())


@pytest.mark.parametrize("kind", ["resource", "prompt"])
def test_in_a_resource_and_a_prompt(local: Notes, rehearsal: HaltingGuard, kind: str) -> None:
    async def main() -> None:
        async with guarded(local.client(), rehearsal) as client:
            if kind == "resource":
                await client.read_resource("notes://held")
            else:
                await client.get_prompt("ask", {"what": "held"})

    with halting_once(local, "begun", rehearsal.halt), pytest.raises(estoppel.Halted):
        run(main)
    until("the server's cancellation", lambda: local.has("cancelled"))
    assert not local.has("effect")


def test_in_a_sub_agent(local: Notes, rehearsal: HaltingGuard) -> None:
    """Another task, inside of a step of the agent that has started it: both end."""
    effects: list[str] = []

    async def main() -> None:
        async with guarded(local.client(), rehearsal) as client:
            try:
                async with rehearsal.step("delegate"):
                    await asyncio.create_task(client.call_tool("hold"))
            finally:
                with pytest.raises(estoppel.Halted):
                    await client.call_tool("greet", {"name": "Ann"})
            effects.append("went on")

    with halting_once(local, "begun", rehearsal.halt), pytest.raises(estoppel.Halted):
        run(main)
    until("the server's cancellation", lambda: local.has("cancelled"))
    assert effects == [] and not local.has("meta")


def test_between_steps(notes: Notes, rehearsal: HaltingGuard) -> None:
    """Nothing is sent any more, not even a question for the tools that there are."""

    async def main() -> None:
        async with guarded(notes.client(), rehearsal) as client:
            await client.session.list_prompts()
            rehearsal.halt()
            for request in (
                lambda: client.call_tool("greet", {"name": "Ann"}),
                lambda: client.session.call_tool("greet", {"name": "Ann"}),
                lambda: client.read_resource("notes://a"),
                lambda: client.session.list_tools(),
            ):
                with pytest.raises(estoppel.Halted):
                    await request()
            if notes.mode == "legacy":  # Later forms of the protocol have none.
                await client.session.send_ping()

    run(main)
    assert not notes.has("meta")


def test_a_halted_tool_and_a_halted_server(local: Notes, rehearsal: HaltingGuard) -> None:
    """By their names; a session that is not halted goes on with what is left."""

    async def main() -> None:
        async with guarded(local.client(), rehearsal, server="my notes") as client:
            rehearsal.halt("tool:hold")
            with pytest.raises(estoppel.Halted):
                await client.call_tool("hold")
            rehearsal.halt("session:mine")
            with rehearsal.session("mine"), pytest.raises(estoppel.Halted):
                await client.call_tool("greet", {"name": "Ann"})
            await client.call_tool("greet", {"name": "Ann"})
            rehearsal.halt("plugin:my_notes")
            with pytest.raises(estoppel.Halted):
                await client.call_tool("greet", {"name": "Ann"})

    run(main)
    assert not local.has("begun")


def test_what_the_server_asks_is_a_step(notes: Notes, rehearsal: HaltingGuard) -> None:
    async def main() -> None:
        client = notes.client(sampling_callback=sampling, elicitation_callback=elicitation)
        async with guarded(client, rehearsal) as client:
            for tool in ("elicits", "samples"):
                said = await client.call_tool(tool)
                assert said.structured_content == {"result": "me"}

    async def sampling(context: Any, params: Any) -> types.CreateMessageResult:
        content = types.TextContent(type="text", text="rest")
        return types.CreateMessageResult(role="assistant", content=content, model="me")

    async def elicitation(context: Any, params: Any) -> types.ElicitResult:
        return types.ElicitResult(action="accept", content={"text": "me"})

    run(main)
    # Since 2026-07-28 the client makes its request again, with the answer.
    assert rehearsal.steps == (4 if notes.mode == "legacy" else 6)


@pytest.mark.parametrize("tool", ["elicits", "samples"])
def test_in_what_the_server_asks(notes: Notes, tool: str) -> None:
    """The halt comes while the agent is about to answer: no answer is given, and the agent ends."""
    effects: list[str] = []

    async def main(guard: HaltingGuard) -> None:
        client = notes.client(sampling_callback=answers, elicitation_callback=answers)
        async with guarded(client, guard) as client:
            await client.call_tool(tool)
            effects.append("went on")

    async def answers(context: Any, params: Any) -> Any:
        await asyncio.sleep(3600)
        effects.append("answered")

    with halting_guard(at_step=2) as guard, pytest.raises(estoppel.Halted):
        run(lambda: main(guard))
    assert effects == []


def test_a_session_over_a_transport_that_was_opened_by_hand(
    tmp_path: Path, rehearsal: HaltingGuard
) -> None:
    notes = Notes(stdio(tmp_path), tmp_path, "auto")

    async def main() -> None:
        async with stdio_client(stdio(tmp_path)) as (read, write):
            with pytest.raises(estoppel.Halted):
                async with guarded(ClientSession(read, write), rehearsal) as session:
                    await session.initialize()
                    await session.call_tool("greet", {"name": "Ann"})
                    await session.call_tool("hold")

    with halting_once(notes, "begun", rehearsal.halt):
        run(main)
    until("the server's cancellation", lambda: notes.has("cancelled"))


def test_what_is_no_halt_leaves_the_block_as_without_a_guard(
    local: Notes, rehearsal: HaltingGuard
) -> None:
    async def main() -> None:
        async with guarded(local.client(), rehearsal) as client:
            said = await client.call_tool("no such tool")
            assert said.is_error
            raise ValueError("mine")

    with pytest.raises(BaseException) as raised:
        run(main)
    assert "ValueError('mine')" in repr(raised.value) and hasattr(raised.value, "exceptions")


def test_a_request_that_a_server_halts_is_confirmed_and_on_record(
    guard: estoppel.Guard, server: Server, name: str, local: Notes
) -> None:
    async def main() -> None:
        async with guarded(local.client(), guard, server="notes") as client:
            with guard.session(name, tenant="acme"):
                await client.call_tool("greet", {"name": "Ann"})
                await client.call_tool("hold")

    halts: list[str] = []
    halting = halting_once(local, "begun", lambda: halts.append(server.halt(f"session:{name}")))
    with halting, pytest.raises(estoppel.Halted):
        run(main)
    settlement = server.settlement(halts[0])
    assert settlement["steps_cancelled"] == 1
    assert settlement.get("not_interruptible", []) == []
    columns = "tool, plugin, requester_tenant_id, decision"
    rows = server.rows(f"SELECT {columns} FROM audit_log WHERE session_id = '{name}'", 2)
    assert sorted(tuple(row) for row in rows) == [
        ("greet", "notes", "acme", "allowed"),
        ("hold", "notes", "acme", "cancelled"),
    ]


def test_an_observed_request_goes_on(
    server: Server, agent_token: str, name: str, local: Notes
) -> None:
    server.halt(f"session:{name}")

    async def main() -> None:
        with estoppel.Guard(server.url, agent_token, mode="observe") as guard:
            assert guard.wait_ready(PATIENCE_S)
            async with guarded(local.client(), guard.session(name)) as client:
                said = await client.call_tool("greet", {"name": "Ann"})
                assert said.structured_content == {"result": "hello Ann"}

    run(main)
    where = f"session_id = '{name}' AND tool = 'greet'"
    assert server.rows(f"SELECT decision FROM audit_log WHERE {where}") == [["would_stop"]]
