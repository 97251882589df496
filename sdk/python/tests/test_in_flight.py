"""Row K7: a halt ends what is in flight, and its confirmation says what could not be ended."""

from __future__ import annotations

import asyncio
import base64
import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest
from conftest import PATIENCE_S, Server, until

import estoppel
from estoppel import _native
from estoppel.testing import HaltingGuard, halting_guard


class Work(threading.Thread):
    """A step on a thread of its own, and how it ended."""

    def __init__(self, session: estoppel.Session, work: Callable[[estoppel.Step], None]) -> None:
        super().__init__()
        self.session = session
        self.work = work
        self.begun = threading.Event()
        self.error: BaseException | None = None
        self.after = False

    def run(self) -> None:
        try:
            with self.session.step("work") as step:
                self.begun.set()
                self.work(step)
            self.after = True
        except BaseException as error:
            self.error = error

    def halted(self) -> estoppel.Halted:
        self.join(PATIENCE_S)
        assert not self.is_alive()
        assert isinstance(self.error, estoppel.Halted), self.error
        assert not self.after
        return self.error


def begin(session: estoppel.Session, work: Callable[[estoppel.Step], None]) -> Work:
    thread = Work(session, work)
    thread.start()
    assert thread.begun.wait(PATIENCE_S)
    return thread


def spin(_: estoppel.Step) -> None:
    while True:
        pass


def test_a_thread_gets_the_exception_at_its_next_bytecode(
    guard: estoppel.Guard, server: Server, name: str
) -> None:
    """Also of a pure loop, which holds Python's lock as much as it can."""
    thread = begin(guard.session(name), spin)
    other = begin(guard.session("other"), lambda _: wait_for(finish))
    halt = server.halt(f"session:{name}")
    error = thread.halted()
    assert error.order is not None and error.order.id == halt
    settlement = server.settlement(halt)
    assert settlement["steps_cancelled"] == 1
    assert settlement.get("not_interruptible", []) == []
    finish.set()
    other.join(PATIENCE_S)
    assert other.after and other.error is None
    [row] = server.rows(f"SELECT decision, attributes FROM audit_log WHERE session_id = '{name}'")
    assert row[0] == "cancelled"
    assert json.loads(row[1])["order"] == halt


finish = threading.Event()


def spin_until(over: float) -> None:
    while time.perf_counter() < over:
        pass


def wait_for(event: threading.Event) -> None:
    assert event.wait(PATIENCE_S)


def test_what_swallows_the_exception_is_still_stopped(
    guard: estoppel.Guard, server: Server, name: str
) -> None:
    swallowed = threading.Event()

    def swallow(step: estoppel.Step) -> None:
        try:
            spin(step)
        except BaseException as error:
            assert isinstance(error, estoppel.Halted) and error.order is not None
            assert step.stopped
            swallowed.set()

    thread = begin(guard.session(name), swallow)
    server.halt(f"session:{name}")
    thread.halted()
    assert swallowed.is_set()


def test_work_that_fails_of_a_stop_is_stopped(guard: estoppel.Guard, server: Server, name: str) -> None:
    def fail(step: estoppel.Step) -> None:
        with suppress(estoppel.Halted):
            spin(step)
        raise ValueError("after the stop")

    thread = begin(guard.session(name), fail)
    server.halt(f"session:{name}")
    assert isinstance(thread.halted().__context__, ValueError)


@pytest.fixture
def restless() -> Iterator[None]:
    """Threads take turns as often as they can."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(usual)


@pytest.mark.usefixtures("restless")
def test_the_exception_is_never_raised_outside() -> None:
    """The race between leaving a step and its interruption: many steps, each halted about its end."""
    ends = {"inside": 0, "outside": 0}
    with halting_guard() as own:
        for turn in range(400):
            name = f"s-{turn}"
            session = own.session(name)
            go = threading.Barrier(2)

            def halt(scope: str = f"session:{name}", go: threading.Barrier = go) -> None:
                go.wait()
                own.halt(scope)

            halting = threading.Thread(target=halt)
            halting.start()
            left = False
            try:
                with session.step("work"):
                    go.wait()
                    over = time.perf_counter() + (turn % 40) * 100e-6
                    # CPython 3.13.0 leaves the jump of `while ...: pass` out of its exception table.
                    spin_until(over)
                left = True
                for _ in range(2_000):
                    len("")
                ends["outside"] += 1
            except estoppel.Halted:
                assert not left, "raised outside of the step"
                ends["inside"] += 1
            halting.join()
            for _ in range(2_000):
                len("")
    assert ends["inside"] and ends["outside"], ends


def test_a_task_is_cancelled(guard: estoppel.Guard, server: Server, name: str) -> None:
    async def agent() -> None:
        began = asyncio.Event()
        cleaned = False

        async def work() -> None:
            nonlocal cleaned
            async with guard.session(name).step("work"):
                began.set()
                try:
                    await asyncio.sleep(PATIENCE_S)
                finally:
                    cleaned = True

        task = asyncio.create_task(work())
        await began.wait()
        loop = asyncio.get_running_loop()
        halt = await loop.run_in_executor(None, server.halt, f"session:{name}")
        with pytest.raises(estoppel.Halted) as caught:
            await asyncio.wait_for(asyncio.shield(task), PATIENCE_S)
        assert cleaned
        assert caught.value.order is not None and caught.value.order.id == halt
        assert not task.cancelled(), "the stop was told as a cancellation"
        settlement = await loop.run_in_executor(None, server.settlement, halt)
        assert settlement["steps_cancelled"] == 1

    asyncio.run(agent())


def test_a_task_goes_on_after_a_stop_that_it_handles(
    guard: estoppel.Guard, server: Server, name: str
) -> None:
    """The cancellation is taken back: what the task awaits next is not cancelled."""

    async def agent() -> str:
        task = asyncio.current_task()
        assert task is not None
        try:
            async with guard.session(name).step("work"):
                await asyncio.get_running_loop().run_in_executor(None, server.halt, f"session:{name}")
                await asyncio.sleep(PATIENCE_S)
        except estoppel.Halted:
            await asyncio.wait_for(asyncio.sleep(0.01), PATIENCE_S)
            if sys.version_info >= (3, 11):
                assert task.cancelling() == 0
            return "went on"
        return "was not stopped"

    assert asyncio.run(agent()) == "went on"


def test_a_cancellation_of_somebody_else_stays_one(guard: estoppel.Guard, name: str) -> None:
    async def agent() -> None:
        began = asyncio.Event()

        async def work() -> None:
            async with guard.session(name).step("work"):
                began.set()
                await asyncio.sleep(PATIENCE_S)

        task = asyncio.create_task(work())
        await began.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert task.cancelled()

    asyncio.run(agent())


def test_a_decorated_coroutine_is_cancelled(guard: estoppel.Guard, server: Server, name: str) -> None:
    began = threading.Event()

    @guard.step("work")
    async def work(seconds: float) -> None:
        began.set()
        await asyncio.sleep(seconds)

    async def agent() -> None:
        with guard.session(name):
            await work(PATIENCE_S)

    def halt() -> None:
        assert began.wait(PATIENCE_S)
        server.halt(f"session:{name}")

    halting = threading.Thread(target=halt)
    halting.start()
    with pytest.raises(estoppel.Halted):
        asyncio.run(agent())
    halting.join()


def test_a_synchronous_step_in_a_task_cancels_the_task(
    guard: estoppel.Guard, server: Server, name: str
) -> None:
    """An exception set for the thread would hit whichever task runs then."""

    async def agent() -> None:
        other_ended = asyncio.Event()

        async def other() -> None:
            until_over = time.monotonic() + 0.3
            while time.monotonic() < until_over:
                await asyncio.sleep(0)
            other_ended.set()

        bystander = asyncio.create_task(other())
        with pytest.raises(estoppel.Halted):
            with guard.session(name).step("work"):
                await asyncio.get_running_loop().run_in_executor(None, server.halt, f"session:{name}")
                await asyncio.sleep(PATIENCE_S)
        await bystander
        assert other_ended.is_set()

    asyncio.run(agent())


def test_a_child_process_is_killed_with_what_it_started(
    guard: estoppel.Guard, server: Server, name: str
) -> None:
    pids: list[int] = []

    def work(step: estoppel.Step) -> None:
        child = step.popen(["sh", "-c", "sleep 600 & echo $!; wait"], stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        with child:
            pids.append(child.pid)
            pids.append(int(child.stdout.readline()))
            ready.set()
            child.wait()

    ready = threading.Event()
    thread = begin(guard.session(name), work)
    assert ready.wait(PATIENCE_S)
    halt = server.halt(f"session:{name}")
    thread.halted()
    until("the processes to be gone", lambda: not any(map(is_alive, pids)))
    assert server.settlement(halt)["steps_cancelled"] == 1


def is_alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rsplit(") ", 1)[1][0] not in "ZX"
    except OSError:
        return False


# Reads the number of whoever writes it: a process that left group, session and parent behind, one
# that cleared its environment and has a parent, and that parent.
MARKED = (
    "(setsid sh -c 'echo $$; sleep 600' &) ; (env -i sh -c 'echo $$; sleep 600') & echo $$; wait"
)


@pytest.mark.skipif(not _native.finds_marked(), reason="processes are found by their mark on Linux")
def test_marked_processes_are_killed_wherever_they_went(
    guard: estoppel.Guard, server: Server, name: str
) -> None:
    """Of a child that something else has started; the thread's exception comes after their end."""
    mark, own = f"ESTOPPEL_TEST_{os.urandom(16).hex()}", os.environ
    child = subprocess.Popen(
        ["sh", "-c", MARKED], stdout=subprocess.PIPE, text=True, env={**own, mark: "1"}
    )
    bystander = subprocess.Popen(["sleep", "600"], env={**own, f"{mark}X": "1"})
    alive_after: list[int] = []

    def work(step: estoppel.Step) -> None:
        with pytest.raises(ValueError, match="is no mark"):
            step.own_marked("SHORT=1")
        step.own_marked(f"{mark}=1")
        ready.set()
        try:
            spin(step)
        finally:
            alive_after.extend(filter(is_alive, pids))

    assert child.stdout is not None
    pids = [int(child.stdout.readline()) for _ in range(3)]
    ready = threading.Event()
    thread = begin(guard.session(name), work)
    assert ready.wait(PATIENCE_S)
    halt = server.halt(f"session:{name}")
    thread.halted()
    assert alive_after == []
    assert server.settlement(halt)["steps_cancelled"] == 1
    assert is_alive(bystander.pid)
    assert _native.kill_marked(f"{mark}X=1")
    assert bystander.wait(PATIENCE_S) == -signal.SIGKILL
    child.communicate()


def test_a_step_runs_a_process(guard: estoppel.Guard) -> None:
    with guard.step("shell") as step:
        done = step.run(["sort"], input="b\na\n", capture_output=True, text=True, check=True)
        assert done.stdout == "a\nb\n"
        with pytest.raises(subprocess.CalledProcessError):
            step.run(["sh", "-c", "exit 3"], check=True)
        with pytest.raises(subprocess.TimeoutExpired):
            step.run(["sleep", "600"], timeout=0.1)
        with pytest.raises(ValueError, match="session of its own"):
            step.popen(["true"], start_new_session=False)
    with pytest.raises(ValueError, match="no group"):
        step.own_process_group(1)


def test_a_blocked_socket_read_is_not_interruptible(
    guard: estoppel.Guard, server: Server, name: str
) -> None:
    """Confirmed as what it is, and its result withheld when it comes back."""
    near, far = socket.socketpair()
    got: list[bytes] = []
    thread = begin(guard.session(name), lambda _: got.append(near.recv(16)))
    halt = server.halt(f"session:{name}")
    settlement = server.settlement(halt)
    assert settlement.get("steps_cancelled", 0) == 0
    assert settlement["not_interruptible"] == ["tool work: has not yielded"]
    assert thread.is_alive()
    far.send(b"late")
    thread.halted()
    near.close()
    far.close()
    [row] = server.rows(f"SELECT decision FROM audit_log WHERE session_id = '{name}'")
    assert row == ["cancelled"]
    settlement = server.settlement(halt)
    assert settlement.get("steps_cancelled", 0) == 0, "the first word stays"


def test_a_blocked_socket_read_is_cut_by_the_gateway(
    tmp_path_factory: pytest.TempPathFactory, name: str
) -> None:
    """Nothing inside of the process ends the read; the gateway on its way does, and says so.

    Which of the two hears of the halt first is open: the work may see the cut before the guard does.
    """
    own = Server(tmp_path_factory.mktemp("gateway"), gateway=True)
    try:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            # It accepts, and never answers.
            destination = f"127.0.0.1:{silent.getsockname()[1]}"
            own.api("PUT", "/v1/allowlist", {"domains": [destination]})
            minted = own.api("POST", "/v1/gateway/credentials", {"subject": {"session": name}})
            credential = base64.b64encode(f"estoppel:{minted['credential']}".encode()).decode()
            reads: list[bytes] = []

            def ask(path: str) -> socket.socket:
                way = socket.create_connection(("127.0.0.1", own.gateway_port or 0))
                way.sendall(
                    f"GET http://{destination}{path} HTTP/1.1\r\nHost: {destination}\r\n"
                    f"Proxy-Authorization: Basic {credential}\r\n\r\n".encode()
                )
                return way

            def asked_for(path: bytes) -> socket.socket:
                silent.settimeout(PATIENCE_S)
                while True:
                    far = silent.accept()[0]
                    if path in far.recv(1024):
                        return far
                    far.close()

            def knows_the_list() -> bool:
                try:
                    with ask("/probe"):
                        silent.settimeout(1)
                        silent.accept()[0].close()
                except (ConnectionRefusedError, TimeoutError):
                    return False
                return True

            until("the gateway to know its list", knows_the_list)
            with ask("/work") as way, estoppel.Guard(own.url, own.token("a", "agent")) as guard:
                assert guard.wait_ready(PATIENCE_S)
                # The exception may come at any bytecode, also while a `with` of the thread closes things.
                thread = begin(guard.session(name), lambda _: reads.append(way.recv(1024)))
                with asked_for(b"/work"):
                    halt = own.halt(f"session:{name}")
                    thread.join(PATIENCE_S)
                    # Until here the far end has not sent a byte.
                    assert isinstance(thread.error, (estoppel.Halted, ConnectionResetError))
                    assert not reads and not thread.after
                assert until("the refusal", lambda: not thread.session.allowed())

                def cut() -> bool:
                    enforcers = own.api("GET", f"/v1/halts/{halt}")["enforcers"]
                    settled = [one["settlement"] for one in enforcers if one.get("settlement")]
                    return any(one.get("connections_cut") == 1 for one in settled)

                until("the gateway's word", cut)
    finally:
        own.stop()


def test_work_that_is_declared_is_not_interrupted(
    guard: estoppel.Guard, server: Server, name: str
) -> None:
    go_on = threading.Event()
    done: list[str] = []

    def run() -> None:
        with pytest.raises(estoppel.Halted):
            with guard.session(name).step("work", interruptible=False) as step:
                begun.set()
                go_on.wait()
                for _ in range(10_000):
                    pass
                assert step.stopped
                done.append("whole")

    begun = threading.Event()
    thread = threading.Thread(target=run)
    thread.start()
    assert begun.wait(PATIENCE_S)
    settlement = server.settlement(server.halt(f"session:{name}"))
    assert settlement["not_interruptible"] == ["tool work: blocking work, its result is withheld"]
    go_on.set()
    thread.join(PATIENCE_S)
    assert done == ["whole"]


def test_an_interpreter_whose_lock_is_held_confirms_and_is_refused(
    guard: estoppel.Guard, server: Server, name: str
) -> None:
    """A call into C that holds the lock: the confirmation comes meanwhile, from the native thread."""
    # `PyDLL` keeps the lock for the call, unlike `CDLL`.
    libc = ctypes.PyDLL(None)
    asking = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys, time, json, urllib.request as u\n"
            "url, token, scope = sys.argv[1:]\n"
            "def ask(path, body=None):\n"
            "    r = u.Request(url + path, body and json.dumps(body).encode())\n"
            "    r.add_header('Authorization', 'Bearer ' + token)\n"
            "    return json.load(u.urlopen(r))\n"
            "print('ready', flush=True); sys.stdin.readline()\n"
            "begun = time.monotonic()\n"
            "halt = ask('/kill-switch', {'scope': scope, 'reason': 'r'})['id']\n"
            "while not any(e.get('settlement') for e in ask('/v1/halts/' + halt)['enforcers']):\n"
            "    assert time.monotonic() < begun + 60\n"
            "print(time.monotonic() - begun)\n",
            server.url,
            server.admin,
            f"session:{name}",
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert asking.stdin is not None and asking.stdout is not None
    assert asking.stdout.readline() == "ready\n"
    session = guard.session(name)
    begun = time.monotonic()
    with pytest.raises(estoppel.Halted), session.step("work"):
        asking.stdin.write("\n")
        asking.stdin.flush()
        # No thread of Python's runs meanwhile; what confirms is native.
        libc.usleep(3_000_000)
    held = time.monotonic() - begun
    took = float(asking.stdout.readline())
    asking.communicate()
    assert took < held, f"confirmed after {took} s, while the lock was held for {held} s"
    assert not session.allowed()


def test_nested_steps_end_with_one_exception(guard: estoppel.Guard, server: Server, name: str) -> None:
    session = guard.session(name)

    def work(_: estoppel.Step) -> None:
        with session.step("inner") as inner:
            began.set()
            spin(inner)

    began = threading.Event()
    thread = begin(session, work)
    assert began.wait(PATIENCE_S)
    halt = server.halt(f"session:{name}")
    thread.halted()
    assert server.settlement(halt)["steps_cancelled"] == 2


def test_a_halt_of_the_outer_step_ends_the_inner(
    guard: estoppel.Guard, server: Server, name: str
) -> None:
    outer = guard.session(name, task=name)
    inner = guard.session(name)
    ended: list[BaseException] = []

    def work(_: estoppel.Step) -> None:
        try:
            with inner.step("inner") as step:
                began.set()
                spin(step)
        except BaseException as error:
            ended.append(error)
            raise

    began = threading.Event()
    thread = begin(outer, work)
    assert began.wait(PATIENCE_S)
    server.halt(f"task:{name}")
    assert thread.halted() is ended[0]


def test_a_lost_lease_ends_steps_and_a_server_that_returns_lets_go_on(
    tmp_path_factory: pytest.TempPathFactory, name: str
) -> None:
    """Invariant *lease*, and nothing of the log is lost while the server is away."""
    own = Server(tmp_path_factory.mktemp("lease"))
    state = tmp_path_factory.mktemp("state")
    try:
        with estoppel.Guard(own.url, own.token("a", "agent"), state_dir=state) as guard:
            assert guard.wait_ready(PATIENCE_S)
            session = guard.session(name)
            thread = begin(session, spin)
            own.stop()
            for number in range(20):
                with session.step("offline", {"number": number}):
                    pass
            assert thread.halted().reason == "lease_lost"
            with pytest.raises(estoppel.Halted):
                session.check()
            own.start()
            assert until("the lease", session.allowed)
            rows = own.rows(
                f"SELECT params FROM audit_log WHERE session_id = '{name}' AND tool = 'offline'"
                " AND decision = 'allowed'",
                20,
            )
            assert {json.loads(row[0])["number"] for row in rows} == set(range(20))
    finally:
        own.stop()


def test_keyboard_interrupts_a_wait(agent_token: str) -> None:
    # A shell's background job begins with the signal ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with estoppel.Guard("http://127.0.0.1:9", agent_token) as guard:
            timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
            timer.start()
            with pytest.raises(KeyboardInterrupt):
                guard.wait_ready(PATIENCE_S)
            timer.join()
    finally:
        signal.signal(signal.SIGINT, before)
