"""Plays the cases of ``tests/conformance`` against the guard; the README there says what each part means.

The server's part is played by the ``authority`` of the Rust testkit (``ESTOPPEL_AUTHORITY``), which speaks
the real stream; the guard is the one that users import. Steps run on threads or in tasks of asyncio.
"""

from __future__ import annotations

import asyncio
import copy
import json
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from conftest import PATIENCE_S, until

import estoppel

FOLDER = Path(__file__).parents[3] / "tests" / "conformance"
Values = dict[str, Any]
Place = Literal["thread", "task"]
Refusal = estoppel.Halted | estoppel.Refused

SUBJECT = {"agent", "session", "user", "task", "tenant", "tool", "component", "plugin"}
REFUSAL = {"order", "message", "why", "by", "since", "limit", "retry_within"}
SCHEMA: dict[str, tuple[set[str], set[str]]] = {
    "order": (
        {"name", "kind", "scope"},
        {"at", "reason", "by", "tenant", "destination", "ends", "limit"},
    ),
    "check": ({"subject", "verdict"}, set()),
    "begin": ({"step", "subject", "tool", "verdict"}, {"plugin", "destination", "interruptible"}),
    "end": ({"step"}, set()),
    "call": (
        {"subject", "verdict"},
        {"tool", "read_only", "params", "result", "error", "tokens", "cost", "times"},
    ),
    "access": ({"subject", "verdict"}, {"requester", "accessed"}),
    "expect": ({"step", "state"}, {"order", "reason", "message", "limit"}),
    "settled": ({"order", "cancelled", "not_interruptible"}, {"observed_only"}),
    "scope": ({"text", "valid"}, set()),
    "scope_check": ({"scope", "stop"}, set()),
    "silence": ({"seconds"}, set()),
    "pass": ({"seconds"}, set()),
    "answer": (set(), set()),
    "reconnect": (set(), set()),
    "forget": (set(), set()),
}
"""The fields that each action must have, and those that it may have."""


def is_known(what: str, values: Values, needed: set[str], allowed: set[str]) -> None:
    """Fails on a field that is missing, and on one that this runner would overlook."""
    assert needed <= values.keys(), f"{what}: {needed - values.keys()} missing"
    unknown = values.keys() - needed - allowed
    assert not unknown, f"{what}: {unknown} not known"


def read_action(action: Values) -> None:
    kind = action["do"]
    assert kind in SCHEMA, f"no action: {kind}"
    needed, allowed = SCHEMA[kind]
    is_known(kind, action, needed | {"do"}, allowed)
    if "subject" in action:
        is_known("subject", action["subject"], set(), SUBJECT)
    refusal = action if kind == "expect" else action.get("verdict", "allowed")
    if refusal == "allowed":
        return
    if kind != "expect":
        is_known("verdict", refusal, {"reason"}, REFUSAL)
    if "limit" in refusal:
        is_known("limit", refusal["limit"], {"breaker", "max"}, {"value", "period"})


def read_suite(suite: Values) -> list[Values]:
    """The cases of a file; fails on whatever is not known."""
    is_known("suite", suite, {"version", "about", "cases"}, set())
    assert suite["version"] == 1 and suite["about"]
    for case in suite["cases"]:
        is_known("case", case, {"case", "why", "play"}, {"guard"})
        assert case["why"]
        is_known("guard", case.get("guard", {}), set(), {"mode", "on_lost", "tenant", "limits"})
        for action in case["play"]:
            read_action(action)
    return list(suite["cases"])


def cases() -> Iterator[tuple[str, Values]]:
    """All cases, by file and name."""
    for file in sorted(FOLDER.glob("*.json")):
        for case in read_suite(json.loads(file.read_text())):
            yield f"{file.stem}/{case['case']}", case


class Authority:
    """The server's part."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [os.environ["ESTOPPEL_AUTHORITY"]],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        # A guard takes a moment to send its last events: the next case need not wait for that.
        self._closing = ThreadPoolExecutor()

    def ask(self, **request: object) -> Any:
        """Asks for something, and waits until it is done."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline() or '{"error": "it has ended"}')
        assert "error" not in answer, f"{request}: {answer['error']}"
        return answer["ok"]

    def leave(self, guard: estoppel.Guard) -> None:
        """Closes the guard of a case that is over."""
        self._closing.submit(guard.close)

    def close(self) -> None:
        """Ends it, once all guards are closed."""
        self._closing.shutdown()
        self._process.communicate(timeout=PATIENCE_S)


class CaseGuard(estoppel.Guard):
    """The guard of a case: with a clock that can be moved."""

    def __init__(self, url: str, spec: Values) -> None:
        self._rehearsal = (0, "global", "local:conformance@localhost")
        super().__init__(
            url,
            "token",
            mode=spec.get("mode", "enforce"),
            on_lost=spec.get("on_lost", "refuse"),
            state_dir="",
            limits=estoppel.Limits(**spec.get("limits", {})),
        )

    def session_of(self, subject: Values) -> estoppel.Session:
        names = ("user", "task", "tenant", "component", "agent")
        return self.session(subject.get("session"), **{name: subject.get(name) for name in names})

    def let_pass(self, seconds: int) -> None:
        self._native.let_pass(seconds)


def step_of(guard: CaseGuard, of: Values, **options: Any) -> estoppel.Step:
    """The step of an action, or the one by which a subject with a tool or a plugin is checked."""
    subject = of["subject"]
    plugin = of.get("plugin", subject.get("plugin", {}))
    is_known("plugin", plugin, set(), {"name", "version"})
    return guard.session_of(subject).step(
        of.get("tool", subject.get("tool")),
        of.get("params"),
        plugin.get("name"),
        plugin_version=plugin.get("version"),
        destination=of.get("destination"),
        **options,
    )


class Work(threading.Thread):
    """A step whose work goes on until it is told to end."""

    def __init__(self, step: estoppel.Step, interruptible: bool) -> None:
        super().__init__(daemon=True)
        self.step = step
        self.interruptible = interruptible
        self.answered = threading.Event()
        self.begun = False
        self.may_end = threading.Event()
        self.worked = False
        self.halted: estoppel.Halted | None = None

    def run(self) -> None:
        try:
            with self.step:
                self.begun = True
                self.answered.set()
                # Blocking work is deaf; other work comes back to Python now and then.
                while not self.may_end.wait(None if not self.interruptible else 0.005):
                    pass
                self.worked = True
        except estoppel.Halted as halted:
            self.halted = halted
        finally:
            self.answered.set()

    def end(self) -> None:
        self.may_end.set()

    def has_ended(self) -> bool:
        return not self.is_alive()


class TaskWork(Work):
    """The same in a task of asyncio, in a loop of its own."""

    def run(self) -> None:
        asyncio.run(self._work())
        self.answered.set()

    async def _work(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._may_end = asyncio.Event()
        try:
            async with self.step:
                self.begun = True
                self.answered.set()
                await self._may_end.wait()
                self.worked = True
        except estoppel.Halted as halted:
            self.halted = halted

    def end(self) -> None:
        # Who was stopped hears it no more.
        if self.is_alive():
            try:
                self._loop.call_soon_threadsafe(self._may_end.set)
            except RuntimeError:
                assert self._loop.is_closed()


class Player:
    """Plays one case to its end; an ``AssertionError`` says what did not hold."""

    def __init__(self, case: Values, authority: Authority, place: Place) -> None:
        self.case = case
        self.authority = authority
        self.place = place
        spec = case.get("guard", {})
        tenant = spec.get("tenant")
        started = authority.ask(do="start", **({"tenant": tenant} if tenant else {}))
        self.epoch = datetime.fromisoformat(started["epoch"].replace("Z", "+00:00"))
        self.guard = CaseGuard(started["url"], spec)
        self.ids: dict[str, str] = {}
        self.works: dict[str, Work] = {}

    def play(self) -> None:
        try:
            assert self.guard.wait_ready(PATIENCE_S)
            self.authority.ask(do="enforced")
            for number, action in enumerate(self.case["play"], 1):
                try:
                    getattr(self, "do_" + action["do"])(action)
                except AssertionError as error:
                    raise AssertionError(f"action {number}, {action}: {error}") from None
        finally:
            for work in self.works.values():
                work.end()
            for work in self.works.values():
                work.join(PATIENCE_S)
            self.authority.leave(self.guard)

    def do_order(self, action: Values) -> None:
        self.ids[action["name"]] = self.authority.ask(**action)["id"]

    def do_check(self, action: Values) -> None:
        subject = action["subject"]
        if "tool" in subject or "plugin" in subject:
            self.verdict(action, step_of(self.guard, action, action="check"))
        else:
            self.verdict(action, self.guard.session_of(subject).check)

    def do_begin(self, action: Values) -> None:
        interruptible = action.get("interruptible", True)
        step = step_of(self.guard, action, interruptible=interruptible)
        kind = TaskWork if self.place == "task" and interruptible else Work
        work = kind(step, interruptible)
        work.start()
        assert work.answered.wait(PATIENCE_S)
        if work.begun:
            self.works[action["step"]] = work
        self.is_verdict(action["verdict"], None if work.begun else work.halted)

    def do_end(self, action: Values) -> None:
        self.works[action["step"]].end()

    def do_call(self, action: Values) -> None:
        for _ in range(action.get("times", 1)):
            options: Values = {} if "tool" in action else {"action": "model_call"}
            options["read_only"] = action.get("read_only", False)
            self.verdict(action, step_of(self.guard, action, **options), action)

    def do_access(self, action: Values) -> None:
        session = self.guard.session_of(action["subject"])
        tenants = action.get("requester"), action.get("accessed")
        self.verdict(action, lambda: session.access(*tenants, "read"))

    def do_expect(self, action: Values) -> None:
        work = self.works[action["step"]]
        if action["state"] == "running":
            assert not work.has_ended(), "it has ended"
            return
        if action["state"] == "withheld":
            # In Python a result is withheld when there is one: once it is stopped, the work may end.
            until("the stop", lambda: work.step.stopped)
            work.end()
        work.join(PATIENCE_S)
        assert work.has_ended(), "it goes on"
        state = "finished" if work.halted is None else "withheld" if work.worked else "cancelled"
        assert state == action["state"], f"it is {state}"
        if work.halted is not None:
            refusal = {"reason": "halted"} | {
                name: action[name] for name in ("order", "reason", "message", "limit") if name in action
            }
            self.is_verdict(refusal, work.halted)

    def do_settled(self, action: Values) -> None:
        found = self.authority.ask(do="settled", order=action["order"])
        expected = {name: action[name] for name in ("cancelled", "not_interruptible")}
        expected["observed_only"] = action.get("observed_only", False)
        assert found == expected, f"it is {found}"

    def do_scope(self, action: Values) -> None:
        # Nothing is halted in these cases, and what is no scope must stop.
        stop = self.kill_switch.check(action["text"])
        assert stop != action["valid"], f"stop: {stop}"

    def do_scope_check(self, action: Values) -> None:
        stop = self.kill_switch.check(action["scope"])
        assert stop == action["stop"], f"stop: {stop}"

    def do_silence(self, action: Values) -> None:
        self.authority.ask(do="silence")
        self.guard.let_pass(action["seconds"])

    def do_pass(self, action: Values) -> None:
        self.guard.let_pass(action["seconds"])

    def do_answer(self, _: Values) -> None:
        self.authority.ask(do="answer")
        until("the lease", lambda: (self.guard.status().lease_left_s or 0) > 0)

    def do_reconnect(self, _: Values) -> None:
        self.authority.ask(do="reconnect")

    def do_forget(self, _: Values) -> None:
        self.authority.ask(do="forget")

    @cached_property
    def kill_switch(self) -> estoppel.KillSwitch:
        return estoppel.KillSwitch(self.guard)

    def verdict(
        self, action: Values, asked: estoppel.Step | Callable[[], None], notes: Values | None = None
    ) -> None:
        """Asks, or takes a step that ends at once, and compares what came out."""
        refusal: Refusal | None = None
        try:
            if isinstance(asked, estoppel.Step):
                self.step(asked, notes or {})
            else:
                asked()
        except (estoppel.Halted, estoppel.Refused) as error:
            refusal = error
        self.is_verdict(action["verdict"], refusal)

    def step(self, step: estoppel.Step, notes: Values) -> None:
        try:
            with step:
                if "result" in notes:
                    step.result(notes["result"])
                step.usage(output_tokens=notes.get("tokens"), cost=notes.get("cost"))
                if "error" in notes:
                    raise Failure(notes["error"])
        except Failure:
            pass

    def is_verdict(self, verdict: str | Values, refusal: Refusal | None) -> None:
        if not isinstance(verdict, dict):
            assert refusal is None, f"refused: {refusal!r}"
            return
        assert refusal is not None, "allowed"
        assert refusal.reason == verdict["reason"], refusal.reason
        assert refusal.message == verdict.get("message", refusal.message), refusal.message
        # What refuses a step and stops nobody is another exception, by no order and over no limit.
        if isinstance(refusal, estoppel.Refused):
            wait, longest = refusal.retry_after, verdict.get("retry_within")
            assert (wait is None) == (longest is None) and (wait or 0) <= (longest or 0), wait
            assert not verdict.keys() - {"reason", "message", "retry_within"}, refusal
            return
        assert "retry_within" not in verdict, f"it stops: {refusal!r}"
        halted, order = refusal, refusal.order
        expected = self.ids.get(verdict["order"], "of no order") if "order" in verdict else None
        assert (order and order.id) == expected, f"by {order}, of {self.ids}"
        if order is not None:
            assert order.reason == verdict.get("why", order.reason), order
            assert order.by == verdict.get("by", order.by), order
            if "since" in verdict:
                assert order.since == self.epoch + timedelta(seconds=verdict["since"]), order
        else:
            assert not {"why", "by", "since"} & verdict.keys(), "by no order"
        limit, over = verdict.get("limit"), halted.limit
        assert (limit is None) == (over is None), f"limit: {over}"
        if limit is not None and over is not None:
            assert (over.breaker, over.max) == (limit["breaker"], limit["max"]), over
            assert over.period == limit.get("period"), over
            assert over.value == limit.get("value", over.value), over


class Failure(Exception):
    """A step's own failure."""


def turned_round(case: Values, kind: str) -> Values | None:
    """The case with its first expectation of a kind turned round, if it has one."""
    case = copy.deepcopy(case)
    for action in case["play"]:
        if action["do"] != kind or action.get("state") == "running":
            continue
        if "verdict" in action:
            is_allowed = action["verdict"] == "allowed"
            action["verdict"] = {"reason": "halted"} if is_allowed else "allowed"
        elif kind == "expect":
            action["state"] = "cancelled" if action["state"] == "finished" else "finished"
        elif kind == "settled":
            action["cancelled"] += 1
        else:
            name = "valid" if kind == "scope" else "stop"
            action[name] = not action[name]
        return case
    return None
