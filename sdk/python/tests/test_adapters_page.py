"""The examples of docs/adapters.md run, against the real server and the fake model."""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path

import pytest
from agents import set_tracing_disabled
from conftest import Server
from fake_model import running

import estoppel

PAGE = Path(__file__).parents[3] / "docs/adapters.md"


def examples_of_the_page() -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)


def test_the_examples_of_the_page_run(
    server: Server,
    agent_token: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    """One after the other, as a reader would type them; and what they did is on record."""
    examples = [one for one in examples_of_the_page() if "claude_agent_sdk" not in one]
    assert len(examples) == 5
    monkeypatch.setenv("ESTOPPEL_URL", server.url)
    monkeypatch.setenv("ESTOPPEL_TOKEN", agent_token)
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    monkeypatch.setenv("ANTHROPIC_API_KEY", "none")
    # The SDK would send its traces to its vendor.
    set_tracing_disabled(True)
    (tmp_path / "notes").mkdir()
    shutil.copy(Path(__file__).with_name("mcp_server.py"), tmp_path / "notes_server.py")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", os.path.dirname(sys.executable), prepend=os.pathsep)
    names: dict[str, object] = {}
    with running() as fake:
        monkeypatch.setenv("OPENAI_BASE_URL", f"{fake.url}/v1")
        monkeypatch.setenv("ANTHROPIC_BASE_URL", fake.url)
        look_up = {"name": "look_up", "arguments": {"city": "Paris"}}
        fake.script(
            {"text": "Paris."},
            {"text": "Rome."},
            {"tool_calls": [{"name": "how_old", "arguments": {"city": "Rome"}}]},
            {"text": "Very old."},
            {"tool_calls": [look_up], "usage": {"input_tokens": 812, "output_tokens": 90}},
            {"text": "Two million."},
            {"tool_calls": [{"name": "how_big", "arguments": {"city": "Rome"}}]},
            {"text": "Three million."},
        )
        for number, example in enumerate(examples):
            exec(compile(example, f"{PAGE.name}, example {number + 1}", "exec"), names)
        assert len(fake.requests()) == 8
    said = capsys.readouterr().out
    texts = "Paris.", "Rome.", "Very old.", "Two million.", "Three million.", "hello Ann"
    assert all(text in said for text in texts), said
    guard = names["guard"]
    assert isinstance(guard, estoppel.Guard)
    guard.close()
    [[result]] = server.rows("SELECT result FROM audit_log WHERE tool = 'how_old'")
    assert "2,800 years old" in str(result)
    [[result]] = server.rows("SELECT result FROM audit_log WHERE tool = 'look_up'")
    assert "2 million people" in str(result)
    [[result]] = server.rows("SELECT result FROM audit_log WHERE tool = 'how_big'")
    assert "3 million people" in str(result)
    [[plugin]] = server.rows("SELECT plugin FROM audit_log WHERE tool = 'greet' AND session_id = 'abc123'")
    assert plugin == "notes"
    tokens = "SELECT input_tokens, output_tokens FROM audit_log WHERE action = 'model_call'"
    rows = server.rows(f"{tokens} AND params LIKE '%/v1/%' AND task_id = 'ticket-77'", 2)
    assert sorted(tuple(row) for row in rows) == [(10, 5), (812, 90)]


def test_the_example_of_the_claude_agent_sdk_runs(
    server: Server,
    agent_token: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    """With the guard of the page's first example; in a home and a folder of its own."""
    import test_adapter_claude_agent  # skips where the SDK's program is missing

    [example] = [one for one in examples_of_the_page() if "claude_agent_sdk" in one]
    with running() as fake:
        own = test_adapter_claude_agent.options(fake, tmp_path)
        for name, value in own.env.items():
            monkeypatch.setenv(name, value)
        monkeypatch.chdir(tmp_path)
        list_it = {"name": "Bash", "arguments": {"command": "ls -a", "description": "lists"}}
        fake.script({"tool_calls": [list_it]}, {"text": "Nothing."})
        with estoppel.Guard(server.url, agent_token, agent="support") as guard:
            assert guard.wait_ready(10)
            exec(compile(example, PAGE.name, "exec"), {"guard": guard})
    assert "Nothing." in capsys.readouterr().out
    query = "SELECT decision FROM audit_log WHERE session_id = 'abc123' AND task_id = 'ticket-77'"
    assert server.rows(f"{query} AND tool IN ('claude', 'Bash')", 2) == [["allowed"], ["allowed"]]
