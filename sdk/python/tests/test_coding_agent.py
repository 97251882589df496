"""Rows K4, K6, K7, K10: the real program ``claude``, headless, with the hooks that ``estoppel hook install``
writes, against the fake model.

What the hook answers is tested beside its program; here is what Claude Code does upon it: no tool has
an effect, and the model is not asked again.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from claude_program import ASKED, DONE, PROGRAM, bash, calls, environment, is_alive
from conftest import PATIENCE_S, Server, halting_when, until
from fake_model import FakeModel

HALTED = "Your agent session has been suspended."
# What the sub-agent alone is told, so that the model knows which of the two asks.
INNER = "You are the inner worker."
WORKERS = json.dumps({"worker": {"description": "works", "prompt": INNER}})


class Desktop:
    """A user's home with the hook installed for Claude Code, and the folder in which the agent works."""

    def __init__(self, folder: Path, fake: FakeModel, server: Server, token: str) -> None:
        self.fake = fake
        self.work = folder / "work"
        self.work.mkdir()
        self.hook_folder = folder / ".local/state/estoppel/hook"
        self.settings = folder / "config/settings.json"
        self.environment = {
            **environment(fake, folder),
            "USER": "alice",
            "PATH": os.environ["PATH"],
            "ESTOPPEL_URL": server.url,
            "ESTOPPEL_TOKEN": token,
        }
        self.estoppel("hook", "install", "--for", "claude-code", "--deadline-ms", "25000")
        # The agent and its hooks have the installed configuration alone.
        del self.environment["ESTOPPEL_URL"], self.environment["ESTOPPEL_TOKEN"]

    def estoppel(self, *arguments: str) -> None:
        subprocess.run(
            [os.environ["ESTOPPEL_BINARY"], *arguments],
            env=self.environment,
            cwd=self.work,
            stdout=subprocess.DEVNULL,
            timeout=PATIENCE_S,
            check=True,
        )

    def claude(self, session: str, *more: str) -> dict[str, Any]:
        """A turn of the session, and what the program says of it at its end."""
        options = ["--output-format", "json", "--allowed-tools", "Bash,Agent", "--agents", WORKERS]
        done = subprocess.run(
            [PROGRAM, "-p", ASKED, "--session-id", session, *options, *more],
            env=self.environment,
            cwd=self.work,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=2 * PATIENCE_S,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        said: dict[str, Any] = json.loads(done.stdout)
        return said

    def refusal(self, session: str, **more: object) -> str:
        """With what words the hook refuses this session a prompt; nothing where it lets it go."""
        hook = Path(os.environ["ESTOPPEL_BINARY"]).with_name("estoppel-hook")
        event = {"session_id": session, "hook_event_name": "UserPromptSubmit", "prompt": "", **more}
        asked = subprocess.run(
            [hook],
            env=self.environment,
            input=json.dumps(event),
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
        )
        assert asked.returncode in (0, 2), asked
        return asked.stderr if asked.returncode == 2 else ""

    def hasten(self) -> None:
        """From now on the hook waits for an answer no longer than this."""
        file = self.hook_folder / "hook.json"
        config = {**json.loads(file.read_text()), "deadline_ms": 1000}
        file.write_text(json.dumps(config))

    def residents(self) -> list[int]:
        """The processes that answer this user's hooks."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                words = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
            except OSError:
                continue
            if words[1:3] == ["hook", "serve"] and str(self.hook_folder) in words:
                found.append(int(process.name))
        return found

    def effects(self) -> list[str]:
        return sorted(path.name for path in self.work.iterdir())

    def asked(self) -> list[str]:
        """Who has asked the model, in the order in which they did."""
        systems = [str(request["body"].get("system")) for request in self.fake.requests()]
        return ["inner" if INNER in system else "outer" for system in systems]

    @contextmanager
    def while_the_model_speaks(self, happens: Callable[[], object]) -> Iterator[None]:
        """Does something while an answer is held that all others have come before."""

        def is_held() -> bool:
            states = [request["state"] for request in self.fake.requests()]
            return sorted(states) == ["held", *("whole" for _ in states[1:])]

        def then_go_on() -> None:
            happens()
            self.fake.go_on()

        with halting_when(is_held, then_go_on):
            yield


@contextmanager
def installed(fake: FakeModel, server: Server, token: str) -> Iterator[Desktop]:
    """A home with a short name: that of a socket in it is bounded."""
    with tempfile.TemporaryDirectory(prefix="estoppel-") as folder:
        own = Desktop(Path(folder), fake, server, token)
        try:
            yield own
        finally:
            own.estoppel("hook", "uninstall", "--for", "claude-code")
            until("the resident process to end", lambda: not own.residents())


@pytest.fixture
def desktop(fake: FakeModel, server: Server, agent_token: str) -> Iterator[Desktop]:
    with installed(fake, server, agent_token) as own:
        yield own


@pytest.fixture
def session() -> str:
    """The program takes no other names than such."""
    return str(uuid.uuid4())


def halt(desktop: Desktop, server: Server, session: str) -> None:
    server.halt(f"session:{session}")
    until("the halt at the hook", lambda: desktop.refusal(session))


def test_a_session_that_nobody_halts_goes_its_way(
    desktop: Desktop, server: Server, session: str
) -> None:
    desktop.fake.script(calls(bash("echo output | tee file")), DONE)
    assert desktop.claude(session)["result"] == DONE["text"]
    assert (desktop.work / "file").read_text() == "output\n"
    where = f"FROM audit_log WHERE session_id = '{session}'"
    [[decision, user, result]] = server.rows(f"SELECT decision, user_id, result {where} AND tool = 'Bash'")
    assert (decision, user) == ("allowed", "alice")
    assert "output" in str(result)
    until(
        "the records of the turn",
        lambda: {"hook.SessionStart", "hook.UserPromptSubmit", "hook.Stop", "hook.SessionEnd"}
        <= {row[0] for row in server.sql(f"SELECT action {where}")},
    )


def test_a_halted_session_does_not_ask_the_model(
    desktop: Desktop, server: Server, session: str
) -> None:
    halt(desktop, server, session)
    desktop.fake.script(calls(bash("touch file")), DONE)
    result = desktop.claude(session)["result"]
    assert HALTED in result and "suspected prompt injection" in result
    assert desktop.asked() == [] and desktop.effects() == []


def test_a_halt_while_the_model_speaks_refuses_its_tool_and_ends_the_turn(
    desktop: Desktop, server: Server, session: str
) -> None:
    desktop.fake.script({**calls(bash("touch file")), "hold_after": 1}, DONE)
    with desktop.while_the_model_speaks(lambda: halt(desktop, server, session)):
        said = desktop.claude(session)
    assert [denial["tool_name"] for denial in said["permission_denials"]] == ["Bash"]
    assert desktop.effects() == []
    assert desktop.asked() == ["outer"], "what came of the tool was not told to the model"
    server.rows(
        f"SELECT tool FROM audit_log WHERE session_id = '{session}' AND tool = 'Bash' AND decision = 'denied'"
    )


def test_a_halt_in_a_tool_names_it_and_ends_the_turn(
    desktop: Desktop, server: Server, session: str
) -> None:
    """The hook cannot interrupt what runs; its output does not go back, and no tool follows."""
    waits = "touch began; until [ -e go ]; do sleep 0.05; done; echo output"
    desktop.fake.script(calls(bash(waits)), calls(bash("touch next")), DONE)

    def then_halt() -> dict[str, Any]:
        settlement = server.settlement(server.halt(f"session:{session}"))
        (desktop.work / "go").touch()
        return settlement

    with halting_when((desktop.work / "began").exists, then_halt) as settled:
        desktop.claude(session)
    [named] = settled[0]["not_interruptible"]
    assert named.startswith("tool Bash: ")
    assert desktop.effects() == ["began", "go"]
    assert desktop.asked() == ["outer"]


def test_a_tools_halt_refuses_the_tool_and_the_turn_goes_on(
    desktop: Desktop, server: Server, session: str
) -> None:
    desktop.fake.script({**calls(bash("touch file")), "hold_after": 1}, DONE)

    def halt_it() -> None:
        server.halt("tool:Bash")
        # Of a call that is not in the conversation.
        call = {"tool_name": "Bash", "tool_use_id": "probe", "tool_input": {}}
        until(
            "the halt at the hook",
            lambda: desktop.refusal(session, hook_event_name="PreToolUse", **call),
        )

    try:
        with desktop.while_the_model_speaks(halt_it):
            assert desktop.claude(session)["result"] == DONE["text"]
    finally:
        server.release("tool:Bash")
    assert desktop.effects() == []
    told = str(desktop.fake.requests()[1]["body"]["messages"][-1])
    assert HALTED in told and "'is_error': True" in told


def works_below(in_background: bool) -> tuple[str, dict[str, Any]]:
    task = {"description": "works", "prompt": "do it", "subagent_type": "worker"}
    return "Agent", {**task, "run_in_background": in_background}


@pytest.mark.parametrize("in_background", [False, True])
def test_a_halt_reaches_a_sub_agent(
    desktop: Desktop, server: Server, session: str, in_background: bool
) -> None:
    """Neither of the two has an effect or asks the model again, also where the outer has not waited."""
    inner = {**calls(bash("touch file"), of=INNER), "hold_after": 1}
    desktop.fake.script(calls(works_below(in_background)), inner, {**DONE, "for": INNER}, DONE, DONE)

    before: list[str] = []

    def halt_it() -> None:
        until("all who ask before the halt", lambda: len(desktop.asked()) == 2 + in_background)
        halt(desktop, server, session)
        before.extend(desktop.asked())

    with desktop.while_the_model_speaks(halt_it):
        desktop.claude(session)
    assert desktop.effects() == []
    assert desktop.asked() == before


def test_a_sub_agents_own_halt_leaves_the_session_alone(
    desktop: Desktop, server: Server, session: str
) -> None:
    inner = {**calls(bash("touch inner"), of=INNER), "hold_after": 1}
    outer = calls(bash("touch outer"))
    desktop.fake.script(calls(works_below(False)), inner, {"text": "refused", "for": INNER}, outer, DONE)

    def halt_the_task() -> None:
        started = f"session_id = '{session}' AND action = 'hook.SubagentStart'"
        [[task]] = server.rows(f"SELECT task_id FROM audit_log WHERE {started}")
        server.halt(f"task:{task}")
        until("the halt at the hook", lambda: desktop.refusal(session, agent_id=task))

    with desktop.while_the_model_speaks(halt_the_task):
        assert desktop.claude(session)["result"] == DONE["text"]
    assert desktop.effects() == ["outer"]


def test_a_resident_process_that_hangs_refuses(desktop: Desktop, session: str) -> None:
    """The hook's own deadline comes first: the program reads a refusal, and not that the hook was late."""
    [resident] = desktop.residents()
    desktop.fake.script({**calls(bash("touch file")), "hold_after": 1}, DONE)

    def hang() -> None:
        desktop.hasten()
        os.kill(resident, signal.SIGSTOP)

    try:
        with desktop.while_the_model_speaks(hang):
            said = desktop.claude(session)
    finally:
        os.kill(resident, signal.SIGCONT)
    assert [denial["tool_name"] for denial in said["permission_denials"]] == ["Bash"]
    assert desktop.effects() == [] and desktop.asked() == ["outer"]


def test_a_server_that_is_away_refuses(
    fake: FakeModel, session: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A resident process that is started without a server has no lease."""
    server = Server(tmp_path_factory.mktemp("away"))

    try:
        with installed(fake, server, server.token("coder", "agent")) as desktop:

            def both_end() -> None:
                desktop.hasten()
                server.stop()
                [resident] = desktop.residents()
                os.kill(resident, signal.SIGKILL)
                until("the resident process to end", lambda: not is_alive(resident))

            fake.script({**calls(bash("touch file")), "hold_after": 1}, DONE)
            with desktop.while_the_model_speaks(both_end):
                said = desktop.claude(session)
            assert [denial["tool_name"] for denial in said["permission_denials"]] == ["Bash"]
            assert desktop.effects() == [] and desktop.asked() == ["outer"]
            assert "No server has been reached yet." in desktop.refusal(session)
    finally:
        server.stop()


@pytest.mark.parametrize("fails", ["sleep 600", "/gone/estoppel-hook", "kill -9 $$"])
def test_a_hook_that_fails_refuses_by_the_installed_settings(
    desktop: Desktop, session: str, fails: str
) -> None:
    """Late, missing, killed: what is left is ``onFailure: block``, as the install has written it."""
    settings = json.loads(desktop.settings.read_text())
    [group] = settings["hooks"]["PreToolUse"]
    [hook] = group["hooks"]
    hook["command"] = fails
    if fails.startswith("sleep"):
        hook["timeout"] = 1
    desktop.settings.write_text(json.dumps(settings))
    desktop.fake.script(calls(bash("touch file")), DONE)
    said = desktop.claude(session)
    assert [denial["tool_name"] for denial in said["permission_denials"]] == ["Bash"]
    assert desktop.effects() == []
    assert fails in str(desktop.fake.requests()[1]["body"]["messages"][-1])
