"""A server of the real binary on a free port (``ESTOPPEL_BINARY``), and guards that connect to it."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest
from fake_model import FakeModel, running

import estoppel
from estoppel.testing import HaltingGuard, halting_guard

# Liveness, not speed: ten times what anything here takes.
PATIENCE_S = 60.0
_T = TypeVar("_T")


def until(what: str, ask: Callable[[], _T | None]) -> _T:
    """Asks until there is an answer that counts."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        answer = ask()
        if answer:
            return answer
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.02)


@contextmanager
def halting_when(happens: Callable[[], object], halt: Callable[[], _T]) -> Iterator[list[_T]]:
    """Halts, on a thread of its own, once something has happened; the list gets what came of it."""
    came: list[_T] = []

    def wait_and_halt() -> None:
        until("what the halt is for", happens)
        came.append(halt())

    thread = threading.Thread(target=wait_and_halt)
    thread.start()
    try:
        yield came
    finally:
        thread.join(2 * PATIENCE_S)
    assert not thread.is_alive()


def needed(package: str) -> None:
    """Skips the test where a package is missing; with ``ESTOPPEL_REAL=1`` that is a failure."""
    if importlib.util.find_spec(package) is None:
        why = f"needs the package {package}"
        pytest.fail(why) if os.environ.get("ESTOPPEL_REAL") == "1" else pytest.skip(why)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


class Server:
    """The server as users start it."""

    def __init__(self, folder: Path, gateway: bool = False) -> None:
        self.folder = folder
        self.port = free_port()
        self.gateway_port = free_port() if gateway else None
        self.url = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None
        self.start()
        self.admin = (folder / "data" / "admin.token").read_text().strip()
        until("recovery", lambda: self.api("GET", "/v1/incidents", quiet=True) is not None)

    def start(self) -> None:
        binary = os.environ["ESTOPPEL_BINARY"]
        address = f"127.0.0.1:{self.port}"
        gateway = ["--no-gateway"]
        if self.gateway_port is not None:
            gateway = ["--gateway-listen", f"127.0.0.1:{self.gateway_port}"]
        with open(self.folder / "log", "ab") as log:
            self.process = subprocess.Popen(
                [binary, "serve", "--listen", address, *gateway, "--data", self.folder / "data"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        until("the server", self.is_healthy)

    def is_healthy(self) -> bool:
        assert self.process is not None and self.process.poll() is None, self.log()
        try:
            with urllib.request.urlopen(f"{self.url}/healthz", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")[-4000:]

    def stop(self) -> None:
        """As a power cut does."""
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
            self.process = None

    def api(self, method: str, path: str, body: object = None, quiet: bool = False) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, method=method)
        request.add_header("Authorization", f"Bearer {self.admin}")
        request.add_header("Content-Type", "application/json")
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            said = error.read().decode()
            error.close()
            if quiet:
                return None
            raise AssertionError(f"{method} {path}: {error.code} {said}") from None

    def token(self, name: str, role: str) -> str:
        return str(self.api("POST", "/v1/tokens", {"name": name, "role": role})["token"])

    def halt(self, scope: str, reason: str = "suspected prompt injection") -> str:
        return str(self.api("POST", "/kill-switch", {"scope": scope, "reason": reason})["id"])

    def release(self, scope: str) -> None:
        self.api("POST", "/kill-switch/release", {"scope": scope, "reason": "the test goes on"})

    def settlement(self, halt: str) -> dict[str, Any]:
        """What the only enforcer of the halt came to, once it has settled."""

        def settled() -> dict[str, Any] | None:
            progress = self.api("GET", f"/v1/halts/{halt}")
            enforcers = [one for one in progress["enforcers"] if one.get("settlement")]
            return enforcers[0]["settlement"] if enforcers else None

        return until(f"the halt {halt} to settle", settled)

    def sql(self, query: str) -> list[list[Any]]:
        rows: list[list[Any]] = self.api("POST", "/v1/sql", {"query": query})["rows"]
        return rows

    def rows(self, query: str, count: int = 1) -> list[list[Any]]:
        """The answer, once it has this many rows."""

        def enough() -> list[list[Any]] | None:
            rows = self.sql(query)
            return rows if len(rows) >= count else None

        return until(query, enough)


@pytest.fixture(scope="module")
def fake() -> Iterator[FakeModel]:
    """The model's server, for all tests of a file."""
    with running() as own:
        yield own


@pytest.fixture
def rehearsal() -> Iterator[HaltingGuard]:
    """A guard without a server, which is halted when a test says so."""
    with halting_guard() as own:
        yield own


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    own = Server(tmp_path_factory.mktemp("server"))
    yield own
    own.stop()


@pytest.fixture(scope="session")
def agent_token(server: Server) -> str:
    return server.token("agents", "agent")


@pytest.fixture
def guard(server: Server, agent_token: str) -> Iterator[estoppel.Guard]:
    with estoppel.Guard(server.url, agent_token, agent="support") as own:
        assert own.wait_ready(PATIENCE_S)
        yield own


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """A session of this test alone: halts stay in force for the tests that follow."""
    return f"s-{request.node.name}".translate(str.maketrans("[]", "--"))
