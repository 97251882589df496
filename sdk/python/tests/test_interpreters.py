"""The wheel is one for all versions of CPython from 3.10 on (abi3): it is tried with each that is found here.

The tests' own is always among them. Others are found by their names, as ``python3.13``, and where pyenv keeps
them; what adapters need is not installed there, so of them the syntax alone is looked at.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import PATIENCE_S, Server

import estoppel

OLDEST, NEWEST = 10, 15
PACKAGE = Path(estoppel.__file__).parent

PROGRAM = """
import asyncio, pathlib, signal, sys
signal.alarm(50)  # no test hangs for ever
import estoppel
from estoppel import testing

for file in pathlib.Path(estoppel.__file__).parent.rglob("*.py"):
    compile(file.read_text(), str(file), "exec")

def halted(work):
    with testing.halting_guard(at_step=1) as guard:
        try:
            work(guard.session("s"))
        except estoppel.Halted as halted:
            print(work.__name__, *halted.order.scope)

def thread(session):
    with session.step("busy"):
        while True:
            pass

def task(session):
    async def wait():
        async with session.step("waits"):
            await asyncio.sleep(600)
    asyncio.run(wait())

def child(session):
    with session.step("child") as step:
        step.run(["sleep", "600"])

for work in (thread, task, child):
    halted(work)
guard = estoppel.Guard()
assert guard.wait_ready(30)
with guard.session(sys.argv[1]).step("recorded", {"minor": sys.version_info.minor}):
    pass
"""


def interpreters() -> dict[str, str]:
    """Those that start here, by their versions; builds without Python's lock have no abi3."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    candidates = [
        *(shutil.which(f"python3.{minor}") or "" for minor in range(OLDEST, NEWEST + 1)),
        *sorted(map(str, pyenv.glob("3.*/bin/python"))),
    ]
    asked = "import sys, sysconfig; print(*sys.version_info[:2], sysconfig.get_config_var('Py_GIL_DISABLED') or 0)"
    found = {sys.version_info.minor: sys.executable}
    for program in filter(None, candidates):
        said = subprocess.run([program, "-c", asked], capture_output=True, text=True, timeout=PATIENCE_S)
        if said.returncode == 0:
            major, minor, unlocked = map(int, said.stdout.split())
            if major == 3 and OLDEST <= minor and not unlocked:
                found.setdefault(minor, program)
    return {f"3.{minor}": found[minor] for minor in sorted(found)}


FOUND = interpreters()


@pytest.mark.parametrize("version", FOUND)
def test_the_wheel_works_with(
    server: Server, agent_token: str, name: str, version: str, tmp_path: Path
) -> None:
    """Imports without a warning, halts a thread, a task and a child process, and records."""
    (tmp_path / "estoppel").symlink_to(PACKAGE)
    done = subprocess.run(
        [FOUND[version], "-W", "error", "-c", PROGRAM, name],
        env={
            **os.environ,
            "PYTHONPATH": str(tmp_path),
            "ESTOPPEL_URL": server.url,
            "ESTOPPEL_TOKEN": agent_token,
        },
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    assert done.stdout == "thread global\ntask global\nchild global\n"
    [[params]] = server.rows(f"SELECT params FROM audit_log WHERE session_id = '{name}'")
    assert params == f'{{"minor":{version[2:]}}}'
