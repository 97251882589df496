"""Rows R1, R5, R6, T2: each breaker trips from Python; what is told, and what lets a task begin anew."""

from __future__ import annotations

import asyncio
import json
import pickle
import re
import threading
import time
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import pytest
from conftest import PATIENCE_S, Server, until

import estoppel
from estoppel import Excess, Halted, Limits, _native
from estoppel.testing import halting_guard

Work = Callable[[estoppel.Session], None]


def excess(limits: Limits, work: Work) -> Excess:
    """For which limit the work of a task is stopped."""
    with halting_guard(limits=limits) as guard:
        session = guard.session("a", task="runaway-123")
        with pytest.raises(Halted) as caught:
            for _ in range(1_000):
                work(session)
        assert caught.value.reason == "limit"
        assert not session.allowed(), "it stays stopped"
        guard.session("a", task="calm").check()
        assert caught.value.limit is not None
        return caught.value.limit


def call(session: estoppel.Session, params: object = None, result: object = None) -> None:
    with session.step("fetch", params) as step:
        if result is not None:
            step.result(result)


def fail(session: estoppel.Session) -> None:
    with pytest.raises(TimeoutError):
        with session.step("fetch"):
            raise TimeoutError


def test_iterations() -> None:
    assert excess(Limits(steps_max=2), call) == Excess("steps", 3, 2, None)


def test_a_bound_of_nothing_is_one() -> None:
    assert excess(Limits(steps_max=0), call) == Excess("steps", 1, 0, None)


def test_cost() -> None:
    def ask(session: estoppel.Session) -> None:
        with session.step(action="model_call") as step:
            step.usage(cost=0.5)

    assert excess(Limits(cost_usd_max=1), ask) == Excess("cost", 1.5, 1, None)


def test_tokens() -> None:
    def ask(session: estoppel.Session) -> None:
        with session.step(action="model_call") as step:
            step.usage(model="gpt", input_tokens=30, output_tokens=10)

    assert excess(Limits(tokens_max=100), ask) == Excess("tokens", 120, 100, None)


def test_errors_in_a_row() -> None:
    assert excess(Limits(errors_in_a_row_max=2), fail) == Excess("errors_in_a_row", 3, 2, None)


def test_one_that_goes_well_ends_a_row_of_errors() -> None:
    with halting_guard(limits=Limits(errors_in_a_row_max=2)) as guard:
        session = guard.session("a")
        for _ in range(3):
            fail(session)
            fail(session)
            call(session)


def test_the_wall_clock_ends_what_is_under_way() -> None:
    """In its midst, on a thread and in a task."""
    over: list[Excess | None] = []

    def spin(session: estoppel.Session) -> None:
        with session.step("spin"):
            while True:
                pass

    over.append(excess(Limits(wall_clock_ms_max=50), spin))

    async def wait(session: estoppel.Session) -> None:
        async with session.step("wait"):
            await asyncio.sleep(PATIENCE_S)

    over.append(excess(Limits(wall_clock_ms_max=50), lambda session: asyncio.run(wait(session))))
    for found in over:
        assert found is not None
        assert (found.breaker, found.max) == ("wall_clock", 50)
        assert found.value > 50


def test_the_concurrency_limit_holds_under_200_threads() -> None:
    """Row R5: never more calls under way than the limit, and all are stopped by the one too many."""
    threads_max, limit = 200, 8
    lock = threading.Lock()
    under_way = peak = 0
    ended: list[BaseException | None] = []
    start = threading.Barrier(threads_max)

    with halting_guard(limits=Limits(concurrency_max=limit)) as guard:

        def one() -> None:
            nonlocal under_way, peak
            start.wait()
            error: BaseException | None = None
            try:
                with guard.session("a", task="fan-out").step("fetch"):
                    with lock:
                        under_way += 1
                        peak = max(peak, under_way)
                    while True:
                        time.sleep(0.001)
            except Halted as halted:
                error = halted
            with lock:
                ended.append(error)

        threads = [threading.Thread(target=one) for _ in range(threads_max)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE_S)
    assert 0 < peak <= limit
    assert len(ended) == threads_max
    for error in ended:
        assert isinstance(error, Halted)
        assert error.limit == Excess("concurrency", limit + 1, limit, None)


@pytest.mark.parametrize("period", range(1, 9))
def test_identical_calls(period: int) -> None:
    """Row R6: the same calls with the same results, over and over, in cycles of up to eight."""
    count = iter(range(1_000))

    def cycle(session: estoppel.Session) -> None:
        number = next(count) % period
        # The order of keys and the spelling of numbers make no difference.
        params = {"n": number, "q": "x"} if number % 2 else {"q": "x", "n": float(number)}
        call(session, params, {"found": number})

    found = excess(Limits(identical_calls_max=3), cycle)
    assert found == Excess("identical_calls", 4, 3, period)
    assert next(count) == 4 * period + 1, "at once"


def test_polling_whose_result_changes_passes() -> None:
    with halting_guard(limits=Limits(identical_calls_max=3)) as guard:
        session = guard.session("a")
        for turn in range(50):
            call(session, {"job": 7}, {"percent": turn})


def test_a_decorated_function_in_a_loop_is_stopped() -> None:
    """Arguments and results are recorded by the decorator: nothing else is needed."""
    asked = []
    with halting_guard(limits=Limits(identical_calls_max=3)) as guard:

        @guard.step("search")
        def search(query: str) -> list[str]:
            asked.append(query)
            return []

        with guard.session("a", task="t"), pytest.raises(Halted) as caught:
            while True:
                search("estoppel")
    assert caught.value.limit == Excess("identical_calls", 4, 3, 1)
    assert len(asked) == 4


def test_all_steps_under_way_of_the_task_end_with_the_limit() -> None:
    """An asyncio task beside the one that trips is cancelled; another task's goes on."""

    async def agent() -> None:
        with halting_guard(limits=Limits(steps_max=2)) as guard:
            session = guard.session("a", task="t")
            began = asyncio.Event()

            async def beside(whose: estoppel.Session, seconds: float) -> None:
                async with whose.step("wait"):
                    began.set()
                    await asyncio.sleep(seconds)

            task = asyncio.create_task(beside(session, PATIENCE_S))
            other = asyncio.create_task(beside(guard.session("a", task="u"), 0.1))
            await began.wait()
            call(session)
            with pytest.raises(Halted):
                call(session)
            with pytest.raises(Halted) as caught:
                await task
            assert caught.value.limit == Excess("steps", 3, 2, None)
            await other

    asyncio.run(agent())


def limit_by_order(server: Server, scope: str, **bounds: object) -> str:
    body = {"scope": scope, "limit": bounds, "reason": "it ran away before"}
    return str(server.api("POST", "/v1/limits", body)["id"])


def test_a_trip_is_told_halts_everywhere_and_ends_by_a_release(
    server: Server, agent_token: str, name: str
) -> None:
    """Row R5 at the real server: the audit log, the halt, the incident, and who lets it begin anew."""
    limits = Limits(steps_max=2)
    with estoppel.Guard(server.url, agent_token, agent="support", limits=limits) as guard:
        assert guard.wait_ready(PATIENCE_S)
        session = guard.session(f"session-of-{name}", task=name)
        call(session)
        call(session)
        with pytest.raises(Halted) as caught:
            call(session)
        assert caught.value.limit == Excess("steps", 3, 2, None)
        assert "3 steps of at most 2" in caught.value.line
        assert pickle.loads(pickle.dumps(caught.value)).limit == caught.value.limit
        [row] = server.rows(
            "SELECT decision, attributes FROM audit_log"
            f" WHERE task_id = '{name}' AND action = 'estoppel.limit'"
        )
        assert row[0] == "denied"
        over = {"breaker": "steps", "value": 3.0, "max": 2.0}
        assert json.loads(row[1])["limit"] == over

        def halted_by_the_server() -> Halted | None:
            with pytest.raises(Halted) as caught:
                session.check()
            return caught.value if caught.value.order else None

        halted = until("the server's halt", halted_by_the_server)
        assert halted.reason == "limit" and halted.limit == caught.value.limit
        assert halted.order is not None and halted.order.scope == (f"task:{name}",)
        assert halted.order.incident is not None
        kinds = [one["kind"] for one in server.api("GET", "/v1/incidents")]
        assert "runaway" in kinds, kinds

        def begins_anew() -> bool:
            # The playbook may give a halt of its own.
            for one in server.api("GET", "/v1/halts"):
                if one["scope"] in (f"task:{name}", [f"task:{name}"]):
                    body = {"scope": f"task:{name}", "halts": [one["id"]], "reason": "mended"}
                    server.api("POST", "/kill-switch/release", body, quiet=True)
            return session.allowed()

        until("the release", begins_anew)
        call(session)


def test_of_code_and_orders_the_stricter_holds(server: Server, agent_token: str, name: str) -> None:
    limits = Limits(steps_max=3, tokens_max=1_000)
    with estoppel.Guard(server.url, agent_token, limits=limits) as guard:
        assert guard.wait_ready(PATIENCE_S)
        before = guard.status().orders_in_force
        limit_by_order(server, f"task:{name}-tight", steps_max=1)
        limit_by_order(server, f"task:{name}-loose", steps_max=100)
        until("the orders", lambda: guard.status().orders_in_force == before + 2)
        for task, bound in ((f"{name}-tight", 1), (f"{name}-loose", 3)):
            session = guard.session(task=task)
            for _ in range(bound):
                call(session)
            with pytest.raises(Halted) as caught:
                call(session)
            assert caught.value.limit == Excess("steps", bound + 1, bound, None)


def test_strict_tenant_validation_is_ordered_and_audited(
    server: Server, guard: estoppel.Guard, name: str
) -> None:
    """Row T2, at the real server: what differs or is missing is refused and on record."""
    tenant = f"t-{name}"
    session = guard.session(name, tenant=tenant)
    session.access(tenant, "globex", "before")
    order = limit_by_order(server, f"tenant:{tenant}", tenant_validation_strict=True)

    def refused(requester: str | None, accessed: str | None) -> str | None:
        try:
            session.access(requester, accessed, "read_documents", {"n": 3})
        except Halted as halted:
            assert halted.order is None and halted.limit is None
            return halted.reason
        return None

    until("the order", lambda: refused(tenant, "globex"))
    assert refused(tenant, "globex") == "tenant_validation"
    assert refused("globex", tenant) == "tenant_validation"
    assert refused(tenant, None) == "tenant_validation"
    assert refused(None, tenant) == "tenant_validation"
    assert refused(tenant, tenant) is None
    assert refused("globex", "globex") is None, "of neither"
    rows = server.rows(
        "SELECT DISTINCT accessed_tenant_id, decision FROM audit_log WHERE action = 'read_documents'"
        f" AND requester_tenant_id = '{tenant}' ORDER BY decision, accessed_tenant_id",
        4,
    )
    denied = [row[0] for row in rows if row[1] == "denied"]
    # Where no requester is named, the session's tenant is the one on record.
    assert set(denied) == {"globex", tenant, None}
    assert [tenant, "allowed"] in rows
    [row] = server.sql(
        "SELECT decision, attributes FROM audit_log WHERE action = 'read_documents'"
        f" AND accessed_tenant_id = '{tenant}' AND requester_tenant_id = 'globex'"
    )
    assert row[0] == "denied"
    assert json.loads(row[1])["reason"] == "tenant_validation"
    body = {"scope": f"tenant:{tenant}", "halts": [order], "reason": "the leak is mended"}
    server.api("POST", "/kill-switch/release", body)
    until("the release", lambda: refused(tenant, "globex") is None)


def test_the_code_may_be_strict_by_itself() -> None:
    with halting_guard(limits=Limits(tenant_validation_strict=True)) as guard:
        guard.access("acme", "acme", "read")
        with pytest.raises(Halted) as caught:
            guard.access("acme", "globex", "read")
        assert caught.value.reason == "tenant_validation"


def test_the_environment_bounds_where_the_code_does_not(
    server: Server, agent_token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ESTOPPEL_LIMITS", '{"steps_max": 1}')
    with estoppel.Guard(server.url, agent_token) as guard:
        assert guard.wait_ready(PATIENCE_S)
        call(guard.session(task="of the environment".replace(" ", "-")))
        with pytest.raises(Halted):
            call(guard.session(task="of-the-environment"))
    with halting_guard() as rehearsal:
        for _ in range(3):
            call(rehearsal.session("a"))
    monkeypatch.setenv("ESTOPPEL_LIMITS", '{"step_max": 1}')
    with pytest.raises(ValueError, match="ESTOPPEL_LIMITS.*step_max.*expected one of"):
        estoppel.Guard(server.url, agent_token)


def wrong(**bounds: Any) -> str:
    with pytest.raises((TypeError, ValueError)) as caught:
        Limits(**bounds)
    return str(caught.value)


def test_what_is_no_bound_is_refused() -> None:
    assert "steps" in wrong(steps=1)
    assert "-1" in wrong(steps_max=-1)
    assert "1.5" in wrong(steps_max=1.5)
    assert "u32" in wrong(concurrency_max=2**32)
    assert "`true`" in wrong(tokens_max=True)
    assert '"many"' in wrong(tokens_max="many")
    assert "from 0" in wrong(cost_usd_max=-0.5)
    assert "nan" in wrong(cost_usd_max=float("nan"))
    assert "inf" in wrong(cost_usd_max=float("inf"))


def test_the_bounds_are_those_of_the_guard() -> None:
    """None is missing here that an order could set."""
    with pytest.raises(ValueError) as caught:
        _native.check_limits('{"": 1}')
    of_the_guard = re.findall(r"`(\w+)`", str(caught.value))
    assert [field.name for field in fields(Limits)] == of_the_guard
