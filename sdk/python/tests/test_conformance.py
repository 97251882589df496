"""Rows K3, K4, K6, K7, K10, S2, T2, R5, R6: what every guard does alike, played against this one."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator

import pytest
from conformance import FOLDER, Authority, Place, Player, Values, cases, read_suite, turned_round

CASES = dict(cases())
EXPECTATIONS = ["check", "begin", "call", "access", "expect", "settled", "scope", "scope_check"]


@pytest.fixture(scope="session")
def authority() -> Iterator[Authority]:
    own = Authority()
    yield own
    own.close()


def has_interruptible_work(case: Values) -> bool:
    return any(it["do"] == "begin" and it.get("interruptible", True) for it in case["play"])


def places() -> Iterator[tuple[str, Place]]:
    for name, case in CASES.items():
        yield name, "thread"
        if has_interruptible_work(case):
            yield name, "task"


def test_all_cases_are_here() -> None:
    """A suite of which nothing ran has not passed."""
    assert len(CASES) >= 110
    assert {name.split("/")[0] for name in CASES} == {file.stem for file in FOLDER.glob("*.json")}


@pytest.mark.parametrize(("name", "place"), list(places()))
def test_the_conformance_cases_hold(name: str, place: Place, authority: Authority) -> None:
    Player(CASES[name], authority, place).play()


@pytest.mark.parametrize("kind", EXPECTATIONS)
def test_an_expectation_that_is_wrong_fails(kind: str, authority: Authority) -> None:
    """One of each kind; the runner for Rust turns round every one of every case."""
    wrong = next(filter(None, (turned_round(case, kind) for case in CASES.values())), None)
    assert wrong is not None, f"no case expects anything by `{kind}`"
    with pytest.raises(AssertionError, match="^action"):
        Player(wrong, authority, "thread").play()


@pytest.mark.parametrize("place", ["suite", "case", "guard", "subject", "verdict", "limit", "check", "do"])
def test_what_is_not_known_fails(place: str) -> None:
    """A field that a runner overlooks is a rule that nobody tests."""
    suite = json.loads((FOLDER / "limits.json").read_text())
    read_suite(suite)
    suite = copy.deepcopy(suite)
    case = suite["cases"][0]
    action = next(it for it in case["play"] if it["do"] == "check")
    parts = {
        "suite": suite,
        "case": case,
        "guard": case["guard"],
        "subject": action["subject"],
        "verdict": action["verdict"],
        "limit": action["verdict"]["limit"],
        "check": action,
    }
    if place == "do":
        action["do"] = "something"
    else:
        parts[place]["something"] = 1
    with pytest.raises(AssertionError, match="something"):
        read_suite(suite)
