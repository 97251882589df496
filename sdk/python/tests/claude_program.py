"""The program ``claude`` that the Claude Agent SDK bundles: how tests start it, and what its model says."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import claude_agent_sdk
import pytest
from fake_model import FakeModel

PROGRAM = Path(claude_agent_sdk.__file__).parent / "_bundled" / "claude"
if not PROGRAM.exists() and os.environ.get("ESTOPPEL_REAL") != "1":
    pytest.skip(f"needs the program that the SDK bundles: {PROGRAM}", allow_module_level=True)

DONE = {"text": "one two three four"}
ASKED = "look it up"


def calls(*tools: tuple[str, dict[str, Any]], of: str | None = None) -> dict[str, Any]:
    answer = {"tool_calls": [{"name": name, "arguments": params} for name, params in tools]}
    return answer if of is None else {"for": of, **answer}


def bash(command: str) -> tuple[str, dict[str, Any]]:
    return "Bash", {"command": command, "description": "works"}


def environment(fake: FakeModel, home: Path) -> dict[str, str]:
    """A home of its own, and no other server than the fake."""
    return {
        "HOME": str(home),
        "CLAUDE_CONFIG_DIR": str(home / "config"),
        "ANTHROPIC_BASE_URL": fake.url,
        "ANTHROPIC_API_KEY": "none",
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "CLAUDE_CODE_MAX_RETRIES": "0",
        "DISABLE_AUTOUPDATER": "1",
    }


def is_alive(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rsplit(") ", 1)[1][0] not in "ZX"
