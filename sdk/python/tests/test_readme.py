"""The examples of the README, of docs/python.md and of docs/limits.md run."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from conftest import PATIENCE_S, Server

import estoppel

TOP = Path(__file__).parents[3]
PAGES = [TOP / "sdk/python/README.md", TOP / "docs/python.md", TOP / "docs/limits.md"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.name))
def test_the_examples_run(
    page: Path, server: Server, agent_token: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """One after the other, as a reader would type them."""
    monkeypatch.setenv("ESTOPPEL_URL", server.url)
    monkeypatch.setenv("ESTOPPEL_TOKEN", agent_token)
    monkeypatch.chdir(tmp_path)
    examples = re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    assert len(examples) >= 3
    names: dict[str, object] = {
        "fetch": lambda url: f"<html>{url}",
        "ask_the_model": lambda: "42",
        "wait_for_the_next": lambda: None,
        "url": "https://example.com",
    }
    meta_path = list(sys.meta_path)
    try:
        for number, example in enumerate(examples):
            code = compile(example, f"{page.name}, example {number + 1}", "exec")
            exec(code, names)
    finally:
        sys.meta_path[:] = meta_path
        guard = names.get("guard")
        if isinstance(guard, estoppel.Guard):
            assert guard.wait_ready(PATIENCE_S)
            guard.close()
