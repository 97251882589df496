"""Rows K3 and K4: the loop's guard against the real server."""

from __future__ import annotations

import asyncio
import json
import pickle
from datetime import datetime, timezone

import pytest
from conftest import PATIENCE_S, Server, until

import estoppel
from estoppel.testing import halting_guard


def refused(guard: estoppel.Guard, session: str) -> estoppel.Halted:
    def halted() -> estoppel.Halted | None:
        try:
            guard.session(session).check()
        except estoppel.Halted as error:
            return error
        return None

    return until("the refusal", halted)


def test_a_step_leaves_its_record(guard: estoppel.Guard, server: Server, name: str) -> None:
    """Rows P8, R4: what was called with what, by whom, what came out, and what it cost."""
    session = guard.session(name, user="bob", tenant="acme", task="runaway-123")
    step = session.step(
        "fetch", {"url": "https://example.com", "n": [1, 2.5, None, True]}, "scraper", plugin_version="2.1"
    )
    with step:
        step.result({"body": "<html>", "raw": b"12345"})
        step.usage(model="gpt", input_tokens=7, output_tokens=2**40, cost=0.25)
    [row] = server.rows(
        "SELECT user_id, requester_tenant_id, task_id, agent_id, action, tool, plugin, plugin_version, params,"
        " result, model, input_tokens, output_tokens, estimated_cost, decision"
        f" FROM audit_log WHERE session_id = '{name}'"
    )
    assert row[:8] == ["bob", "acme", "runaway-123", "support", "tool_call", "fetch", "scraper", "2.1"]
    assert json.loads(row[8]) == {"url": "https://example.com", "n": [1, 2.5, None, True]}
    assert json.loads(row[9]) == {"body": "<html>", "raw": "<5 bytes>"}
    assert row[10:] == ["gpt", 7, 2**40, 0.25, "allowed"]


def test_a_halted_session_is_refused_with_the_order(
    guard: estoppel.Guard, server: Server, name: str
) -> None:
    """K4: the text, and who, why, since when; other sessions go on."""
    session = guard.session(name)
    session.check()
    before = datetime.now(timezone.utc)
    halt = server.halt(f"session:{name}")
    error = refused(guard, name)
    assert str(error) == "Your agent session has been suspended."
    assert (error.reason, error.message) == ("halted", str(error))
    order = error.order
    assert order is not None
    assert (order.id, order.scope) == (halt, (f"session:{name}",))
    assert (order.reason, order.by) == ("suspected prompt injection", "admin")
    assert abs((order.since - before).total_seconds()) < PATIENCE_S
    assert "suspected prompt injection" in error.line
    again = pickle.loads(pickle.dumps(error))
    assert (again.order, again.line) == (order, error.line)

    ran = False
    with pytest.raises(estoppel.Halted), session.step("fetch"):
        ran = True
    assert not ran
    assert not session.allowed()
    guard.session("another").check()


def test_a_global_halt_has_its_own_text(guard: estoppel.Guard, server: Server) -> None:
    """K4, and a release lets go on."""
    server.halt("global")
    try:
        assert str(refused(guard, "any")) == "Agent operations suspended. Contact security team."
    finally:
        server.release("global")
    assert until("the release", guard.session("any").allowed)


def test_halted_is_no_exception_that_a_loop_swallows(guard: estoppel.Guard, server: Server, name: str) -> None:
    server.halt(f"session:{name}")
    refused(guard, name)
    with pytest.raises(estoppel.Halted):
        try:
            guard.session(name).check()
        except Exception:  # noqa: BLE001 - what agents' retry loops do
            pytest.fail("a stop was taken for a failure")


def test_the_current_session_is_whose_steps_are_checked(
    guard: estoppel.Guard, server: Server, name: str
) -> None:
    server.halt(f"user:{name}")
    refused_user = lambda: not guard.session(user=name).allowed()  # noqa: E731
    assert until("the refusal", refused_user)
    guard.check()
    with guard.session("x", user=name) as session:
        assert estoppel.current_session() is session
        with pytest.raises(estoppel.Halted):
            guard.check()
        with pytest.raises(estoppel.Halted), guard.step("fetch"):
            pytest.fail("the step began")
        with guard.session("y"):
            guard.check()
    assert estoppel.current_session() is None
    guard.check()


def test_a_decorated_function_is_a_step_for_each_call(
    guard: estoppel.Guard, server: Server, name: str
) -> None:
    @guard.step("add")
    def add(one: int, other: int, *, note: str = "") -> int:
        return one + other

    with guard.session(name):
        assert add(1, 2) == 3
        assert add(3, other=4, note="n") == 7
    rows = server.rows(
        f"SELECT params, result FROM audit_log WHERE session_id = '{name}' ORDER BY timestamp", 2
    )
    assert [json.loads(row[0]) for row in rows] == [
        {"one": 1, "other": 2},
        {"one": 3, "other": 4, "note": "n"},
    ]
    assert [row[1] for row in rows] == ["3", "7"]
    assert add.__name__ == "add"


def test_a_decorated_coroutine_leaves_its_record(
    guard: estoppel.Guard, server: Server, name: str
) -> None:
    @guard.step("summarise", plugin="writer", plugin_version="1.4")
    async def summarise(text: str, *, words: int = 3) -> str:
        await asyncio.sleep(0)
        return " ".join(text.split()[:words])

    async def agent() -> list[str]:
        with guard.session(name):
            return list(await asyncio.gather(summarise("a b c d"), summarise("e f", words=1)))

    assert asyncio.run(agent()) == ["a b c", "e"]
    rows = server.rows(
        "SELECT params, result, plugin, plugin_version, decision FROM audit_log"
        f" WHERE session_id = '{name}' ORDER BY result",
        2,
    )
    assert [json.loads(row[0]) for row in rows] == [{"text": "a b c d"}, {"text": "e f", "words": 1}]
    assert [row[1:] for row in rows] == [
        ["a b c", "writer", "1.4", "allowed"],
        ["e", "writer", "1.4", "allowed"],
    ]


def test_a_rehearsal_halts_at_its_step() -> None:
    """Without a server: in the midst of that step, and from then on; other scopes go on."""
    begun = []
    with halting_guard(at_step=3, scope="session:a") as rehearsal:
        with pytest.raises(estoppel.Halted) as caught:
            while True:
                with rehearsal.session("a").step("work"):
                    begun.append(rehearsal.steps)
                    for _ in range(10_000_000 if rehearsal.steps == 3 else 0):
                        pass
        assert begun in ([1, 2], [1, 2, 3])
        assert rehearsal.steps == 3
        assert caught.value.order is not None
        assert caught.value.order.by == "local:testing@localhost"
        assert not rehearsal.session("a").allowed()
        with rehearsal.session("b").step("work"):
            pass


def test_what_a_step_failed_with_is_recorded(guard: estoppel.Guard, server: Server, name: str) -> None:
    with pytest.raises(KeyError), guard.session(name).step("fetch"):
        raise KeyError("secret")
    [row] = server.rows(f"SELECT decision, attributes FROM audit_log WHERE session_id = '{name}'")
    assert row[0] == "allowed"
    assert json.loads(row[1])["error"] == "KeyError"
    assert "secret" not in row[1]


def test_components_are_feature_flags(guard: estoppel.Guard, server: Server) -> None:
    """Row T2: halting ``component:NAME`` turns a part of the product off, and a release on."""
    assert guard.enabled("vector_search")
    server.halt("component:vector_search")
    until("the flag to go off", lambda: not guard.enabled("vector_search"))
    assert guard.enabled("full_text_search")
    server.release("component:vector_search")
    until("the flag to go on", lambda: guard.enabled("vector_search"))


def test_accesses_across_tenants_are_recorded(guard: estoppel.Guard, server: Server, name: str) -> None:
    """Rows T1, T3: the query of the playbook finds them."""
    session = guard.session(name, tenant="acme")
    session.access("acme", "globex", "read_documents", {"n": 3})
    session.access("acme", "acme", "read_documents")
    [row] = server.rows(
        "SELECT requester_tenant_id, accessed_tenant_id, action FROM audit_log "
        f"WHERE requester_tenant_id != accessed_tenant_id AND session_id = '{name}'"
    )
    assert row == ["acme", "globex", "read_documents"]


def test_blocked_versions_of_a_plugin_are_not_loaded(guard: estoppel.Guard, server: Server) -> None:
    """Row S2: by range, and whatever has no version."""
    guard.load_plugin("scraper", "2.2")
    server.halt("plugin:scraper@>=2.1")
    until("the refusal", lambda: not loads(guard, "scraper", "2.2"))
    assert loads(guard, "scraper", "2.0")
    assert not loads(guard, "scraper", None)
    assert loads(guard, "scraper-other", "2.2")
    with pytest.raises(estoppel.Halted), guard.step("fetch", plugin="scraper", plugin_version="3"):
        pytest.fail("the step began")


def loads(guard: estoppel.Guard, plugin: str, version: str | None) -> bool:
    try:
        guard.load_plugin(plugin, version)
    except estoppel.Halted:
        return False
    return True


def test_an_import_of_a_halted_plugin_is_refused(guard: estoppel.Guard, server: Server) -> None:
    """Row S2, where plugins are loaded."""
    version = estoppel.__version__  # of a distribution that is installed for sure
    with estoppel.guard_imports(guard, {"colorsys": "estoppel"}):
        import colorsys

        server.halt(f"plugin:estoppel@={version}")
        until("the refusal", lambda: not loads(guard, "estoppel", version))
        import sys

        del sys.modules["colorsys"]
        with pytest.raises(estoppel.Halted):
            import colorsys  # noqa: F811
    import colorsys

    assert colorsys.rgb_to_hsv(0, 0, 0) == (0.0, 0.0, 0)
    server.release(f"plugin:estoppel@={version}")


def test_observing_refuses_nothing_and_records_it(server: Server, agent_token: str, name: str) -> None:
    with estoppel.Guard(server.url, agent_token, mode="observe") as guard:
        assert guard.wait_ready(PATIENCE_S)
        assert guard.mode == "observe"
        server.halt(f"session:{name}")
        session = guard.session(name)
        query = f"SELECT count(*) FROM audit_log WHERE session_id = '{name}' AND decision = 'would_stop'"

        def would_stop() -> bool:
            with session.step("fetch"):
                pass
            return bool(server.sql(query)[0][0])

        assert until("the record", would_stop)


def test_the_kill_switch_activates_and_checks(guard: estoppel.Guard, server: Server, name: str) -> None:
    """Row K3: with a person's token it stops, with an agent's it does not; both ask."""
    responder = server.token(f"r-{name}", "responder")
    by_hand = estoppel.KillSwitch(url=server.url, token=responder)
    in_loop = estoppel.KillSwitch(guard)
    scope = f"session:{name}"
    assert not by_hand.check(scope) and not in_loop.check(scope)
    halt = by_hand.activate("suspected prompt injection", scope)
    assert halt in {one["id"] for one in server.api("GET", "/v1/halts")}
    assert by_hand.check(scope)
    assert until("the order", lambda: in_loop.check(scope))
    assert not by_hand.check() and not in_loop.check()
    assert in_loop.check("sesion:misspelt"), "what is no scope must stop"
    assert by_hand.check("sesion:misspelt")
    with pytest.raises(ValueError, match="did you mean"):
        by_hand.activate("r", "sesion:x")
    machine = estoppel.KillSwitch(url=server.url, token=server.token(f"m-{name}", "agent"))
    with pytest.raises(PermissionError):
        machine.activate("r", scope)
    nobody = estoppel.KillSwitch(url="http://127.0.0.1:9", token="t", timeout=1)
    assert nobody.check(scope), "what cannot be known must stop"
    with pytest.raises(OSError, match="refused"):
        nobody.activate("r", scope)


def test_what_is_wrong_is_named(server: Server, agent_token: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("ESTOPPEL_URL", "ESTOPPEL_TOKEN", "ESTOPPEL_MODE"):
        monkeypatch.delenv(variable, raising=False)
    with pytest.raises(ValueError, match="ESTOPPEL_TOKEN"):
        estoppel.Guard(server.url)
    with pytest.raises(ValueError, match="ESTOPPEL_URL"):
        estoppel.Guard(token=agent_token)
    with pytest.raises(ValueError, match="http://HOST:PORT"):
        estoppel.Guard("127.0.0.1:7600", agent_token)
    with pytest.raises(ValueError, match='write "enforce" or "observe"'):
        estoppel.Guard(server.url, agent_token, mode="off")  # type: ignore[arg-type]
    monkeypatch.setenv("ESTOPPEL_MODE", "observe")
    monkeypatch.setenv("ESTOPPEL_URL", server.url)
    monkeypatch.setenv("ESTOPPEL_TOKEN", agent_token)
    with estoppel.Guard(agent="support") as guard:
        assert guard.wait_ready(PATIENCE_S)
        assert guard.mode == "observe"
        assert (guard.status().connected_to or "").startswith(server.url)
        with pytest.raises(ValueError, match="U\\+0020"):
            guard.session("a b")
        with pytest.raises(ValueError, match="empty"):
            guard.step("")
        with pytest.raises(TypeError, match="pickle"):
            pickle.dumps(guard)
    with pytest.raises(TypeError, match="generator"):

        @guard.step("numbers")
        def numbers() -> object:
            yield 1


def test_a_step_is_entered_once_and_used_inside(guard: estoppel.Guard) -> None:
    step = guard.step("fetch")
    with pytest.raises(RuntimeError, match="inside"):
        step.result(1)
    with step:
        with pytest.raises(RuntimeError, match="entered once"), step:
            pass
    with pytest.raises(RuntimeError, match="inside"):
        step.usage(cost=1.0)


def test_a_closed_guard_refuses(server: Server, agent_token: str) -> None:
    guard = estoppel.Guard(server.url, agent_token)
    assert guard.wait_ready(PATIENCE_S)
    guard.close()
    guard.close()
    with pytest.raises(estoppel.Halted) as caught:
        guard.check()
    assert caught.value.reason == "closed"
    assert caught.value.order is None


def test_a_guard_that_reaches_no_server_refuses(agent_token: str) -> None:
    with estoppel.Guard("http://127.0.0.1:9", agent_token) as guard:
        assert not guard.wait_ready(0.2)
        with pytest.raises(estoppel.Halted) as caught:
            guard.check()
        assert caught.value.reason == "not_yet_connected"


def test_hostile_values_are_recorded_within_bounds(guard: estoppel.Guard, server: Server, name: str) -> None:
    class Hostile(dict):  # type: ignore[type-arg]
        def __iter__(self) -> object:  # type: ignore[override]
            raise RuntimeError("no Python code of a parameter is run")

        __str__ = __repr__ = items = keys = __iter__  # type: ignore[assignment]

    deep: list[object] = []
    for _ in range(10_000):
        deep = [deep]
    ring: list[object] = []
    ring.append(ring)
    values = [Hostile(a=1), deep, ring, "\ud800", 10**5000, float("nan"), object(), {1: 2, None: 3}]
    with guard.session(name).step("fetch", values) as step:
        step.result("x" * 10_000_000)
    [row] = server.rows(f"SELECT params, result FROM audit_log WHERE session_id = '{name}'")
    params = json.loads(row[0])
    assert params[0] == {"a": 1}
    assert params[3:] == ["\ufffd" * len(params[3]), "<int of more than 64 bits>", None, "<object>", {"1": 2, "None": 3}]
    assert json.loads(row[1])["truncated"] is True
    assert len(row[1]) < 100_000
