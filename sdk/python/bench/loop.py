"""What a check and a step cost, and how long a halt takes to become an exception; prints JSON.

    ESTOPPEL_BINARY=.../estoppel python sdk/python/bench/loop.py

It starts a server (``ESTOPPEL_BINARY``) and Redis (``redis-server``) on free ports of this machine, and
measures side by side in one process: the guard's ``check`` and an empty ``step``, a context manager that
does nothing, and the two GETs by which a loop asks Redis for the global switch and its session's. A wheel
that was not built for release is said so, and not worth reading.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import timeit
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import redis

import estoppel
from estoppel import _native

PATIENCE_S = 60.0
HALTS = 50


class Nothing:
    """The least that a ``with`` can cost."""

    __slots__ = ()

    def __enter__(self) -> Nothing:
        return self

    def __exit__(self, *_: object) -> None:
        return None


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def until(what: str, ask: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not ask():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited in vain for {what}")
        time.sleep(0.02)


def each_ns(work: Callable[[], object], number: int) -> float:
    """The median of seven runs, in nanoseconds for each call."""
    runs = timeit.repeat(work, number=number, repeat=7)
    return statistics.median(runs) / number * 1e9


def processor_ns(work: Callable[[], object], number: int) -> float:
    """Of the calling thread, in nanoseconds for each call: what others do meanwhile counts not."""
    before = time.thread_time_ns()
    for _ in range(number):
        work()
    return (time.thread_time_ns() - before) / number


class Server:
    """The server, and the requests that the measurement needs."""

    def __init__(self, folder: Path) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        with open(folder / "log", "ab") as log:
            command = [os.environ["ESTOPPEL_BINARY"], "serve", "--no-gateway"]
            command += ["--listen", f"127.0.0.1:{port}", "--data", str(folder / "data")]
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        until("the server", self.is_ready)
        self.admin = (folder / "data" / "admin.token").read_text().strip()

    def is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/readyz", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def post(self, path: str, body: object) -> Any:
        request = urllib.request.Request(self.url + path, json.dumps(body).encode())
        request.add_header("Authorization", f"Bearer {self.admin}")
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)


def costs(guard: estoppel.Guard, switch: redis.Redis) -> dict[str, float]:
    session = guard.session("bench")
    nothing = Nothing()

    def empty_step() -> None:
        with session.step("fetch"):
            pass

    def step_with_params() -> None:
        with session.step("fetch", {"url": "https://example.com", "timeout": 5}) as step:
            step.result("ok")

    def no_op() -> None:
        with nothing:
            pass

    def two_gets() -> bool:
        return any(
            value is not None and json.loads(value)["active"]
            for value in (switch.get("kill_switch:global"), switch.get("kill_switch:session:bench"))
        )

    check = each_ns(session.check, 200_000)
    gets = each_ns(two_gets, 2_000)
    step = each_ns(empty_step, 10_000)
    return {
        "check_ns": check,
        "guard_check_ns": each_ns(guard.check, 200_000),
        "step_ns": step,
        "step_of_processor_time_ns": processor_ns(empty_step, 50_000),
        "step_with_params_and_result_ns": each_ns(step_with_params, 10_000),
        "no_op_context_manager_ns": each_ns(no_op, 200_000),
        "redis_two_gets_ns": gets,
        "redis_over_check": gets / check,
        "redis_over_step": gets / step,
    }


class Hand:
    """Halts from a process of its own, so that Python's lock here does not delay it."""

    PROGRAM = """
import json, sys, time, urllib.request
url, token = sys.argv[1:]
for line in sys.stdin:
    body = json.dumps({"scope": line.strip(), "reason": "bench"}).encode()
    request = urllib.request.Request(url + "/kill-switch", body, {"Authorization": "Bearer " + token})
    time.sleep(0.01)
    at = time.perf_counter()
    urllib.request.urlopen(request, timeout=30).close()
    print(at, flush=True)
"""

    def __init__(self, server: Server) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", self.PROGRAM, server.url, server.admin],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def throw(self, session: estoppel.Session) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"session:{session.id}\n".encode())
        self.process.stdin.flush()

    def thrown_at(self) -> float:
        """When the last halt was posted; Linux counts for all processes alike."""
        assert self.process.stdout is not None
        return float(self.process.stdout.readline())


Run = Callable[[estoppel.Session, Hand], None]


def latencies(guard: estoppel.Guard, hand: Hand, run: Run) -> dict[str, float]:
    """From the request that halts, in another process, to the exception here, in microseconds."""
    taken = []
    for number in range(HALTS):
        try:
            run(guard.session(f"{run.__name__}-{number}"), hand)
        except estoppel.Halted:
            raised = time.perf_counter()
        else:
            raise AssertionError("not halted")
        taken.append((raised - hand.thrown_at()) * 1e6)
    taken.sort()
    return {
        "p50_us": taken[len(taken) // 2],
        "p99_us": taken[int(len(taken) * 0.99)],
        "max_us": taken[-1],
    }


def asyncio_task(session: estoppel.Session, hand: Hand) -> None:
    async def work() -> None:
        async with session.step("work"):
            hand.throw(session)
            await asyncio.sleep(PATIENCE_S)

    asyncio.run(work())


def busy_thread(session: estoppel.Session, hand: Hand) -> None:
    with session.step("work"):
        hand.throw(session)
        while True:
            pass


def child_process(session: estoppel.Session, hand: Hand) -> None:
    with session.step("work") as step, step.popen(["sleep", "600"]) as child:
        hand.throw(session)
        child.wait()


@contextmanager
def stage() -> Iterator[tuple[Server, Path, list[subprocess.Popen[bytes]]]]:
    """A server, a folder, and the processes that end with it, to which more may be added."""
    folder = Path(tempfile.mkdtemp(prefix="estoppel-bench-"))
    processes: list[subprocess.Popen[bytes]] = []
    try:
        server = Server(folder)
        processes.append(server.process)
        yield server, folder, processes
    finally:
        for process in processes:
            process.kill()
            process.wait()
        shutil.rmtree(folder)


@contextmanager
def ready_guard(server: Server) -> Iterator[estoppel.Guard]:
    """A guard with a token of its own, once it has a lease."""
    token = server.post("/v1/tokens", {"name": "bench", "role": "agent"})["token"]
    with estoppel.Guard(server.url, token, agent="bench") as guard:
        if not guard.wait_ready(PATIENCE_S):
            raise TimeoutError("the guard is not ready")
        yield guard


def main() -> None:
    with stage() as (server, folder, processes):
        port = free_port()
        command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)]
        processes.append(subprocess.Popen(command, stdout=subprocess.DEVNULL))
        switch = redis.Redis(port=port)
        until("redis", lambda: answers(switch))
        with ready_guard(server) as guard:
            hand = Hand(server)
            processes.append(hand.process)
            runs: list[Run] = [asyncio_task, busy_thread, child_process]
            figures = {
                "python": sys.version.split()[0],
                "release_build": _native.is_release(),
                "cost": costs(guard, switch),
                "halt_to_exception": {
                    run.__name__: latencies(guard, hand, run) for run in runs
                },
            }
        json.dump(figures, sys.stdout, indent=2)
        print()


def answers(switch: redis.Redis) -> bool:
    try:
        return bool(switch.ping())
    except redis.ConnectionError:
        return False


if __name__ == "__main__":
    main()
