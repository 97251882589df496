"""Limits that refuse a step and stop nobody: so many each minute, and only what changes nothing."""

from __future__ import annotations

import time

import pytest
from conftest import Server, until

import estoppel


def _limit(server: Server, scope: str, limit: dict[str, object]) -> str:
    body = {"scope": scope, "limit": limit, "reason": "a test"}
    order: str = server.api("POST", "/v1/limits", body)["id"]
    return order


def test_a_step_that_comes_too_soon_says_when_to_try_again(
    guard: estoppel.Guard, server: Server, name: str
) -> None:
    session = guard.session(name, task=name)
    orders = guard.status().orders_in_force
    _limit(server, f"task:{name}", {"requests_per_minute": 600})
    until("the limit", lambda: guard.status().orders_in_force > orders)
    refused: estoppel.Refused | None = None
    for _ in range(20_000):
        try:
            with session.step("poll"):
                pass
        except Exception as error:  # no Halted, which would not be caught here
            assert isinstance(error, estoppel.Refused)
            refused = error
            break
    assert refused is not None and refused.reason == "too_many_requests"
    assert refused.retry_after is not None and 0 < refused.retry_after <= 0.1
    assert str(refused).startswith("Refused for now: at most 600 requests each minute")
    session.check()
    wait = refused.retry_after

    def again() -> bool:
        time.sleep(wait)
        try:
            with session.step("poll"):
                return True
        except estoppel.Refused:
            return False

    until("room for one more", again)


def test_only_what_is_declared_to_change_nothing_may_be(
    guard: estoppel.Guard, server: Server, name: str
) -> None:
    session = guard.session(name, task=name)
    orders = guard.status().orders_in_force
    _limit(server, f"task:{name}", {"read_only": True})
    until("the limit", lambda: guard.status().orders_in_force > orders)
    with session.step("search", read_only=True), session.step(action="model_call"):
        pass

    @guard.step("read_file", read_only=True)
    def read(path: str) -> str:
        return path

    with session:
        assert read("notes.txt") == "notes.txt"
    for step in (session.step("send_mail"), session.step(action="deploy")):
        with pytest.raises(estoppel.Refused) as refused, step:
            raise AssertionError("it must not begin")
        assert (refused.value.reason, refused.value.retry_after) == ("read_only", None)
    session.check()
