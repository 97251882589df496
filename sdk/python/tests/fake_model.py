"""The fake model server of the test kit (``ESTOPPEL_FAKE_MODEL``), and what it was asked."""

from __future__ import annotations

import json
import os
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class FakeModel:
    """A running fake; ``script`` gives it another script."""

    def __init__(self, url: str) -> None:
        self.url = url

    def script(self, *answers: dict[str, Any]) -> None:
        self._ask("PUT", "/_/script", json.dumps({"answers": answers}).encode())

    def requests(self) -> list[dict[str, Any]]:
        asked: list[dict[str, Any]] = json.loads(self._ask("GET", "/_/requests"))
        return asked

    def until(self, call: int, state: str) -> dict[str, Any]:
        """The call once it has this state: the server waits, ten seconds at most."""
        asked: dict[str, Any] = json.loads(self._ask("GET", f"/_/requests/{call}?state={state}"))
        return asked

    def go_on(self) -> None:
        self._ask("POST", "/_/go_on", b"")

    def _ask(self, method: str, path: str, body: bytes | None = None) -> bytes:
        request = urllib.request.Request(self.url + path, body, method=method)
        with urllib.request.urlopen(request, timeout=20) as answer:
            said: bytes = answer.read()
            return said


@contextmanager
def running() -> Iterator[FakeModel]:
    command = [os.environ["ESTOPPEL_FAKE_MODEL"]]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stdout is not None
        try:
            yield FakeModel(process.stdout.readline().decode().strip())
        finally:
            process.stdin.close()  # It ends with its input.
