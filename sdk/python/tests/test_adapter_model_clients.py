"""Rows K3, K7: the plain ``openai`` and ``anthropic`` clients under a guard, against the fake model."""

from __future__ import annotations

import asyncio
import sys
import threading
from typing import Any

import anthropic
import openai
import pytest
from conftest import Server, halting_when
from fake_model import FakeModel

import estoppel
from estoppel.adapters.model_clients import async_http_client, http_client
from estoppel.testing import HaltingGuard, halting_guard

ASKED: list[Any] = [{"role": "user", "content": "look it up"}]
HELD = {"text": "one two three four", "hold_after": 2}


def synchronous(fake: FakeModel, guard: HaltingGuard) -> tuple[Any, Any]:
    client = openai.OpenAI(
        base_url=f"{fake.url}/v1", api_key="none", http_client=http_client(guard)
    )
    other = anthropic.Anthropic(base_url=fake.url, api_key="none", http_client=http_client(guard))
    return client, other


def test_between_calls_nothing_is_sent(fake: FakeModel, rehearsal: HaltingGuard) -> None:
    fake.script({"text": "one"}, {"text": "two"}, {"text": "three"})
    client, other = synchronous(fake, rehearsal)
    with client, other:
        answer = client.chat.completions.create(model="m", messages=ASKED)
        assert answer.choices[0].message.content == "one"
        message = other.messages.create(model="m", max_tokens=9, messages=ASKED)
        assert message.content[0].text == "two"
        halt = rehearsal.halt()
        with pytest.raises(estoppel.Halted) as halted:
            client.responses.create(model="m", input="look it up")
        assert halted.value.order is not None and halted.value.order.id == halt
        with pytest.raises(estoppel.Halted):
            other.messages.create(model="m", max_tokens=9, messages=ASKED)
    assert len(fake.requests()) == 2
    assert rehearsal.steps == 4, "no attempt is made again"


def test_a_stream_ends_at_its_next_piece(fake: FakeModel, rehearsal: HaltingGuard) -> None:
    """A thread that waits for a socket cannot be interrupted; no piece that comes then gets through."""
    fake.script(HELD, HELD)
    client, other = synchronous(fake, rehearsal)
    seen: list[str] = []
    with client, other:
        stream = client.chat.completions.create(model="m", messages=ASKED, stream=True)
        with pytest.raises(estoppel.Halted):
            for chunk in stream:
                seen.append(chunk.choices[0].delta.content or "")
                if len(seen) == 3:  # The role, and two words.
                    fake.until(0, "held")
                    rehearsal.halt()
                    fake.go_on()
    assert seen == ["", "one ", "two "]
    assert len(fake.requests()) == 1


def test_a_stream_of_asyncio_is_cut(fake: FakeModel) -> None:
    """The halt finds the task waiting for the next piece: it is cancelled, the connection closed."""
    fake.script(HELD, HELD)

    async def chat(guard: HaltingGuard, seen: list[str]) -> None:
        async with openai.AsyncOpenAI(
            base_url=f"{fake.url}/v1", api_key="none", http_client=async_http_client(guard)
        ) as client:
            stream = await client.chat.completions.create(model="m", messages=ASKED, stream=True)
            async for chunk in stream:
                seen.append(chunk.choices[0].delta.content or "")

    async def messages(guard: HaltingGuard, seen: list[str]) -> None:
        async with (
            anthropic.AsyncAnthropic(
                base_url=fake.url, api_key="none", http_client=async_http_client(guard)
            ) as client,
            client.messages.stream(model="m", max_tokens=9, messages=ASKED) as stream,
        ):
            async for text in stream.text_stream:
                seen.append(text)

    async def halted_when_read(work: Any, guard: HaltingGuard, seen: list[str]) -> None:
        async def halt() -> None:
            while "two " not in seen:
                await asyncio.sleep(0.001)
            guard.halt()

        halting = asyncio.ensure_future(halt())
        try:
            await asyncio.wait_for(work, 30)
        finally:
            await halting

    for call, work in enumerate((chat, messages)):
        seen: list[str] = []
        with pytest.raises(estoppel.Halted), halting_guard() as guard:
            asyncio.run(halted_when_read(work(guard, seen), guard, seen))
        assert "".join(seen) == "one two "
        assert fake.until(call, "client_left")["pieces"] == 2


def test_an_answer_that_has_not_begun_is_cut(fake: FakeModel, rehearsal: HaltingGuard) -> None:
    fake.script({"text": "late", "hold_after": 0})

    async def ask() -> None:
        async with openai.AsyncOpenAI(
            base_url=f"{fake.url}/v1", api_key="none", http_client=async_http_client(rehearsal)
        ) as client:
            halt = asyncio.get_running_loop().run_in_executor(None, halt_when_held)
            try:
                await client.responses.create(model="m", input="look it up")
            finally:
                await halt

    def halt_when_held() -> None:
        fake.until(0, "held")
        rehearsal.halt()

    with pytest.raises(estoppel.Halted):
        asyncio.run(ask())
    fake.until(0, "client_left")
    assert len(fake.requests()) == 1


def test_a_stream_that_another_task_reads_is_cut(
    fake: FakeModel, rehearsal: HaltingGuard
) -> None:
    """Who asked is no longer there; the task that reads is the one that is ended."""
    fake.script(HELD)

    async def ask() -> None:
        async with openai.AsyncOpenAI(
            base_url=f"{fake.url}/v1", api_key="none", http_client=async_http_client(rehearsal)
        ) as client:
            asking = asyncio.ensure_future(
                client.chat.completions.create(model="m", messages=ASKED, stream=True)
            )
            stream = await asking
            halt = asyncio.get_running_loop().run_in_executor(None, halt_when_held)
            try:
                async for _ in stream:
                    pass
            finally:
                await halt

    def halt_when_held() -> None:
        fake.until(0, "held")
        rehearsal.halt()

    with pytest.raises(estoppel.Halted):
        asyncio.run(ask())
    assert fake.until(0, "client_left")["pieces"] == 2


def test_a_halt_reaches_the_sessions_client_alone(fake: FakeModel, rehearsal: HaltingGuard) -> None:
    """A session's halt reaches the client that was made for the session, and no other."""
    fake.script({"text": "goes on"})
    mine, others = rehearsal.session("mine"), rehearsal.session("other")
    rehearsal.halt("session:mine")
    url = f"{fake.url}/v1"
    with (
        openai.OpenAI(base_url=url, api_key="none", http_client=http_client(mine)) as client,
        pytest.raises(estoppel.Halted),
    ):
        client.responses.create(model="m", input="look it up")
    with openai.OpenAI(base_url=url, api_key="none", http_client=http_client(others)) as client:
        assert client.responses.create(model="m", input="x").output_text == "goes on"
    assert len(fake.requests()) == 1


def is_held(fake: FakeModel) -> bool:
    return any(asked["state"] == "held" for asked in fake.requests())


def test_the_server_is_told_that_a_stream_of_asyncio_was_cut(
    fake: FakeModel, guard: estoppel.Guard, server: Server, name: str
) -> None:
    fake.script(HELD)

    async def ask() -> None:
        async with (
            anthropic.AsyncAnthropic(
                base_url=fake.url, api_key="none", http_client=async_http_client(guard.session(name))
            ) as client,
            client.messages.stream(model="m", max_tokens=9, messages=ASKED) as stream,
        ):
            async for _ in stream.text_stream:
                pass

    with (
        halting_when(lambda: is_held(fake), lambda: server.halt(f"session:{name}")) as halts,
        pytest.raises(estoppel.Halted),
    ):
        asyncio.run(ask())
    settlement = server.settlement(halts[0])
    assert settlement["steps_cancelled"] == 1
    assert settlement.get("not_interruptible", []) == []


def test_the_server_is_told_that_a_synchronous_answer_runs_on(
    fake: FakeModel, guard: estoppel.Guard, server: Server, name: str
) -> None:
    """A thread that waits for a socket: confirmed as what it is, and no further piece gets through."""
    fake.script(HELD)

    def halt() -> dict[str, Any]:
        settlement = server.settlement(server.halt(f"session:{name}"))
        fake.go_on()
        return settlement

    seen: list[str] = []
    own = threading.get_ident()
    looks: list[tuple[object, int]] = [(None, 0)]

    def waits_for_more() -> bool:
        """Between two looks the thread has not moved, and it has nothing left to do."""
        frame = sys._current_frames()[own]
        looks.append((frame.f_code, frame.f_lasti))
        return "two " in seen and looks[-1] == looks[-2]

    with (
        halting_when(waits_for_more, halt) as settled,
        openai.OpenAI(
            base_url=f"{fake.url}/v1", api_key="none", http_client=http_client(guard.session(name))
        ) as client,
        pytest.raises(estoppel.Halted),
    ):
        for chunk in client.chat.completions.create(model="m", messages=ASKED, stream=True):
            seen.append(chunk.choices[0].delta.content or "")
    assert settled[0]["not_interruptible"] == ["a step without a tool: has not yielded"]
    assert settled[0].get("steps_cancelled", 0) == 0
    assert "".join(seen) == "one two "
