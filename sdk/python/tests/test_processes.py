"""Forks, multiprocessing, gevent, notebooks, and the end of the interpreter; each in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap

import pytest
from conftest import PATIENCE_S, Server, needed

HEAD = """
import os, signal, sys, threading, time
signal.alarm(50)  # no test hangs for ever
import estoppel
def until(ask):
    end = time.monotonic() + 30
    while not (answer := ask()):
        assert time.monotonic() < end
        time.sleep(0.01)
    return answer
"""


def start(
    server: Server, token: str, code: str, *arguments: str, **environment: str
) -> subprocess.Popen[str]:
    """Starts a program with warnings as errors and memory checked.

    Not `-X dev`, which has both: its asyncio says on standard error when a machine is slow.
    """
    checks = {"PYTHONFAULTHANDLER": "1", "PYTHONMALLOC": "debug", "PYTHONWARNINGS": "error"}
    own = {"ESTOPPEL_URL": server.url, "ESTOPPEL_TOKEN": token}
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *arguments],
        env={**os.environ, **checks, **own, **environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def line(child: subprocess.Popen[str]) -> str:
    """What it prints next."""
    assert child.stdout is not None
    return child.stdout.readline().strip()


def end(child: subprocess.Popen[str], said: str = "") -> str:
    """Waits for its end, which is a good one without a word on standard error; returns what it printed."""
    try:
        stdout, stderr = child.communicate(said, timeout=PATIENCE_S)
    finally:
        child.kill()
    assert child.returncode == 0, stdout + stderr
    assert stderr == "", stderr
    return stdout


def run(server: Server, token: str, code: str, *arguments: str, **environment: str) -> str:
    """Runs a program from its start to its end."""
    return end(start(server, token, HEAD + textwrap.dedent(code), *arguments, **environment))


def test_the_end_of_the_interpreter_sends_what_is_left(
    server: Server, agent_token: str, name: str
) -> None:
    """Without `close`, and without a word on standard error."""
    run(
        server,
        agent_token,
        """
        guard = estoppel.Guard()
        assert guard.wait_ready(30)
        with guard.session(sys.argv[1]).step("last"):
            pass
        """,
        name,
    )
    server.rows(f"SELECT tool FROM audit_log WHERE session_id = '{name}' AND tool = 'last'")


def test_what_no_server_takes_is_on_disk_for_the_next_start(
    server: Server, agent_token: str, name: str, tmp_path: object
) -> None:
    code = """
        guard = estoppel.Guard(on_lost="allow")
        with guard.session(sys.argv[1]).step("away"):
            pass
    """
    state = {"ESTOPPEL_STATE_DIR": str(tmp_path)}
    run(server, agent_token, code, name, ESTOPPEL_URL="http://127.0.0.1:9", **state)
    run(
        server,
        agent_token,
        "guard = estoppel.Guard(); assert guard.wait_ready(30); until(lambda: not guard.status().events_spooled)",
        **state,
    )
    server.rows(f"SELECT tool FROM audit_log WHERE session_id = '{name}' AND tool = 'away'")


def test_nothing_is_lost_while_the_server_is_away_for_an_hour(
    tmp_path_factory: pytest.TempPathFactory, name: str
) -> None:
    """The hour by its events: as many as an agent leaves that takes three steps a second."""
    steps = 3 * 3_600
    own = Server(tmp_path_factory.mktemp("away"))
    token = own.token("a", "agent")
    state = {"ESTOPPEL_STATE_DIR": str(tmp_path_factory.mktemp("state"))}
    try:
        own.stop()
        code = f"""
            guard = estoppel.Guard(on_lost="allow")
            session = guard.session(sys.argv[1])
            for number in range({steps}):
                with session.step("away", {{"number": number}}) as step:
                    step.result("as large as what an agent's tools return: " + "x" * 200)
            guard.close()
            print(guard.status().events_lost)
        """
        assert run(own, token, code, name, **state) == "0\n"
        own.start()
        delivered = run(
            own,
            token,
            """
            guard = estoppel.Guard()
            assert guard.wait_ready(30)
            until(lambda: not guard.status().events_spooled)
            print(guard.status().events_delivered, guard.status().events_lost)
            """,
            **state,
        )
        assert delivered == f"{steps} 0\n"
        query = f"SELECT count(DISTINCT params), count(*) FROM audit_log WHERE session_id = '{name}'"
        assert own.sql(query) == [[steps, steps]]
    finally:
        own.stop()


def test_a_halted_process_ends_with_a_traceback_and_no_noise(server: Server, agent_token: str, name: str) -> None:
    server.halt(f"session:{name}")
    printed = run(
        server,
        agent_token,
        """
        guard = estoppel.Guard()
        assert guard.wait_ready(30)
        try:
            with guard.session(sys.argv[1]).step("x"):
                pass
        except estoppel.Halted as halted:
            print(halted)
        """,
        name,
    )
    assert printed == "Your agent session has been suspended.\n"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_the_child_of_a_fork_has_a_guard_of_its_own(server: Server, agent_token: str, name: str) -> None:
    """Forked in the midst of a step and under load; it refuses, connects, obeys, records, and ends."""
    printed = run(
        server,
        agent_token,
        """
        import warnings
        warnings.simplefilter("ignore", DeprecationWarning)  # Python's, of a fork with threads
        guard = estoppel.Guard(agent="parent")
        assert guard.wait_ready(30)
        session = guard.session(sys.argv[1])
        stop = threading.Event()
        def load():
            while not stop.wait(0.001):
                with session.step("load"):
                    pass
        parent = guard.status().enforcer
        threads = [threading.Thread(target=load, daemon=True) for _ in range(2)]
        for thread in threads: thread.start()
        for _ in range(20):
            with session.step("around"):
                child = os.fork()
                if child == 0:
                    signal.alarm(20)
                    code = 1
                    try:
                        with session.step("early"):
                            code = 2
                    except estoppel.Halted as halted:
                        code = 0 if halted.reason == "not_yet_connected" else 3
                    if guard.status().enforcer == parent:
                        code = 4
                    elif code == 2 and guard.status().connected_to:
                        code = 0  # it was quick
                    os._exit(code)
                assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        stop.set()
        for thread in threads: thread.join()
        with session.step("outer"):
            child = os.fork()
        if child == 0:
            signal.alarm(40)
            assert guard.wait_ready(30)
            with session.step("in_the_child"):
                pass
            print("child", flush=True)
            sys.exit(0)  # with `atexit`: the last events are sent
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        with session.step("in_the_parent"):
            pass
        print("parent")
        """,
        name,
    )
    assert printed == "child\nparent\n"
    where = f"FROM audit_log WHERE session_id = '{name}' AND tool IN ('in_the_child', 'in_the_parent', 'outer')"
    rows = server.rows(f"SELECT tool, count(*) {where} GROUP BY tool ORDER BY tool", 3)
    assert rows == [["in_the_child", 1], ["in_the_parent", 1], ["outer", 1]]


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_multiprocessing(server: Server, agent_token: str, name: str, method: str, tmp_path: object) -> None:
    program = os.path.join(str(tmp_path), "program.py")
    with open(program, "w") as file:
        file.write(
            HEAD
            + textwrap.dedent("""
            import multiprocessing, warnings
            warnings.simplefilter("ignore", DeprecationWarning)  # Python's, of a fork with threads
            guard = estoppel.Guard(agent="worker")
            def work(number):
                assert guard.wait_ready(30)
                with guard.session(sys.argv[1]).step("work", {"number": number}):
                    return number * 2
            if __name__ == "__main__":
                assert guard.wait_ready(30)
                context = multiprocessing.get_context(sys.argv[2])
                with context.Pool(2) as pool:
                    print(sum(pool.map(work, range(4))))
                    pool.close()
                    pool.join()
            """)
        )
    done = subprocess.run(
        [sys.executable, program, name, method],
        env={**os.environ, "ESTOPPEL_URL": server.url, "ESTOPPEL_TOKEN": agent_token},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "12\n", "")
    rows = server.rows(f"SELECT params FROM audit_log WHERE session_id = '{name}'", 4)
    assert sorted(json.loads(row[0])["number"] for row in rows) == [0, 1, 2, 3]


def test_a_greenlet_is_thrown_into_and_others_go_on(server: Server, agent_token: str, name: str) -> None:
    needed("gevent")
    child = start(
        server,
        agent_token,
        "from gevent import monkey; monkey.patch_all()\nimport gevent\n"
        + HEAD
        + textwrap.dedent("""
        guard = estoppel.Guard()
        assert guard.wait_ready(30)
        ended = []
        def work(session):
            try:
                with guard.session(session).step("work"):
                    gevent.sleep(30 if session == sys.argv[1] else 1)
                ended.append("went on")
            except estoppel.Halted as halted:
                ended.append(halted.order.scope[0])
        halted, other = gevent.spawn(work, sys.argv[1]), gevent.spawn(work, "other")
        gevent.sleep(0)
        print("begun", flush=True)
        gevent.joinall([halted, other])
        print(*ended)
        """),
        name,
    )
    assert line(child) == "begun"
    halt = server.halt(f"session:{name}")
    assert end(child) == f"session:{name} went on\n"
    assert server.settlement(halt)["steps_cancelled"] == 1


def test_a_task_of_trio_is_not_interrupted_and_named_so(
    server: Server, agent_token: str, name: str
) -> None:
    """An exception set for its thread would hit whichever task runs then."""
    needed("trio")
    child = start(
        server,
        agent_token,
        HEAD
        + textwrap.dedent("""
        import trio
        guard = estoppel.Guard()
        assert guard.wait_ready(30)
        async def work():
            try:
                async with guard.session(sys.argv[1]).step("work") as step:
                    print("begun", flush=True)
                    while not step.stopped:
                        await trio.sleep(0.01)
                    await trio.sleep(0.1)
                    print("to its end", flush=True)
            except estoppel.Halted:
                print("halted")
        trio.run(work)
        """),
        name,
    )
    assert line(child) == "begun"
    settlement = server.settlement(server.halt(f"session:{name}"))
    assert settlement["not_interruptible"] == ["tool work: blocking work, its result is withheld"]
    assert end(child) == "to its end\nhalted\n"


def test_a_cell_of_a_notebook_runs_in_a_loop(server: Server, agent_token: str, name: str) -> None:
    """What is called without `await` inside of a running loop neither nests a loop nor blocks it for good."""
    printed = run(
        server,
        agent_token,
        """
        import asyncio
        async def cell():
            guard = estoppel.Guard()
            assert guard.wait_ready(30)
            assert await guard.ready(30)
            with guard.session(sys.argv[1]) as session:
                with guard.step("cell") as step:
                    step.result(1)
                async with session.step("awaited"):
                    await asyncio.sleep(0)
            print("done")
        asyncio.run(cell())
        """,
        name,
    )
    assert printed == "done\n"
    rows = server.rows(f"SELECT tool FROM audit_log WHERE session_id = '{name}' ORDER BY timestamp", 2)
    assert rows == [["cell"], ["awaited"]]


def test_a_kernel_of_jupyter_outlives_a_halt(
    server: Server, agent_token: str, name: str
) -> None:
    """A cell that awaits is ended in its midst, one that does not when it asks; the next cell runs."""
    needed("ipykernel")
    notebook = start(
        server,
        agent_token,
        """
        import signal, sys, tempfile
        signal.alarm(100)
        from jupyter_client.manager import KernelManager
        # Over TCP the kernel would say on standard error what it thinks of that.
        folder = tempfile.TemporaryDirectory()
        manager = KernelManager(transport="ipc", ip=f"{folder.name}/kernel")
        manager.start_kernel()
        client = manager.client()
        client.start_channels()
        client.wait_for_ready(timeout=50)
        def tell(message):
            if message["msg_type"] == "stream":
                print(message["content"]["text"].strip(), flush=True)
        def run(cell):
            answer = client.execute_interactive(cell, timeout=50, output_hook=tell)["content"]
            print(answer.get("ename", answer["status"]), flush=True)
        awaited, busy = sys.argv[1:]
        run("import asyncio, estoppel; guard = estoppel.Guard(); assert guard.wait_ready(30)")
        run(f"async with guard.session({awaited!r}).step('cell'):\\n"
            "    print('begun', flush=True)\\n    await asyncio.sleep(50)")
        run("await asyncio.sleep(0); guard.check()")
        run(f"with guard.session({busy!r}).step('cell') as step:\\n"
            "    print('begun', flush=True)\\n    while not step.stopped: pass")
        run("await asyncio.sleep(0); guard.check()")
        client.stop_channels()
        manager.shutdown_kernel()
        folder.cleanup()
        """,
        f"{name}-awaited",
        f"{name}-busy",
        # The kernel's own, of the way in which it ends.
        PYTHONWARNINGS="error,ignore::PendingDeprecationWarning",
    )
    assert [line(notebook) for _ in range(2)] == ["ok", "begun"]
    halt = server.halt(f"session:{name}-awaited")
    assert [line(notebook) for _ in range(3)] == ["Halted", "ok", "begun"]
    assert server.settlement(halt)["steps_cancelled"] == 1
    server.halt(f"session:{name}-busy")
    assert end(notebook) == "Halted\nok\n"


def test_a_guard_of_a_killed_server_ends_in_time(agent_token: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    own = Server(tmp_path_factory.mktemp("killed"))
    token = own.token("a", "agent")
    child = start(
        own,
        token,
        HEAD + "guard = estoppel.Guard(); assert guard.wait_ready(30); print('ready', flush=True)\n"
        "sys.stdin.readline()\nwith guard.step('x'): pass\n",
    )
    assert line(child) == "ready"
    own.stop()
    end(child, "\n")
