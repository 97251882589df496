"""Agents of the Claude Agent SDK: its ``query`` and its ``ClaudeSDKClient`` under a guard.

    from estoppel.adapters.claude_agent import query

    async for message in query(guard, prompt="...", options=options):
        ...

The agent runs in a program of its own, ``claude``, which asks the model and runs tools such as Bash.
So a conversation is a step that lasts as long as the program does, and a halt kills it with whatever it
has started. Inside of it each tool call is a step, checked before it and before its output goes back:
of the program's own tools by the SDK's hooks, of tools in this process around the call itself.

A hook that fails counts as a refusal, and so does one that does not answer in time, as when the event
loop is blocked. A program that would not ask its hooks is not started, or ended at its first answer.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterable, AsyncIterator
from typing import Any

import claude_agent_sdk
from claude_agent_sdk import ClaudeAgentOptions, Message

from estoppel._guard import Guard
from estoppel._session import Session
from estoppel.adapters._claude_agent_run import Run, running
from estoppel.adapters._held import ToolFailed

__all__ = ["ClaudeSDKClient", "ToolFailed", "query"]


async def query(
    guard: Guard | Session,
    *,
    prompt: str | AsyncIterable[dict[str, Any]],
    options: ClaudeAgentOptions | None = None,
) -> AsyncIterator[Message]:
    """The SDK's ``query`` under a guard. Raises :class:`estoppel.Halted` when the agent is halted."""
    client = ClaudeSDKClient(guard, options)
    try:
        await client.connect(_once(prompt) if isinstance(prompt, str) else prompt)
        async for message in client.receive_messages():
            yield message
    finally:
        # Who gave the conversation up is told at the next one; here nobody listens.
        await client._leave()


async def _once(prompt: str) -> AsyncIterator[dict[str, Any]]:
    yield {
        "type": "user",
        "session_id": "",
        "message": {"role": "user", "content": prompt},
        "parent_tool_use_id": None,
    }


class ClaudeSDKClient(claude_agent_sdk.ClaudeSDKClient):
    """The SDK's client under a guard.

    With a guard, a conversation belongs to the session that is current where it is connected; with a
    session, to that one. A halt ends it; once that is released, connect the client anew. For asyncio.
    """

    def __init__(
        self, guard: Guard | Session, options: ClaudeAgentOptions | None = None
    ) -> None:
        super().__init__(options)
        self._guard = guard
        self._given = self.options
        self._run: Run | None = None

    async def connect(self, prompt: str | AsyncIterable[dict[str, Any]] | None = None) -> None:
        """As the SDK's. Raises :class:`estoppel.Halted`, and starts nothing, when the agent is halted.

        Raises ``ValueError`` for options with which the program does not ask its hooks.
        """
        if self._run is not None:
            await self._leave()
        _refuse_bare(self._given)
        run = Run(self._guard._acting(), self._given, super().interrupt)
        await run.begin()
        self._run = run
        self.options: ClaudeAgentOptions = run.options
        # The tasks that the SDK starts inherit it, and so do calls of tools in this process.
        token = running.set(run)
        try:
            await super().connect(prompt)
        except BaseException:
            await self.disconnect()
            raise
        finally:
            running.reset(token)
        await run.check()

    async def query(
        self, prompt: str | AsyncIterable[dict[str, Any]], session_id: str = "default"
    ) -> None:
        """As the SDK's. Raises :class:`estoppel.Halted`, and sends nothing, when the agent is halted."""
        if self._run is not None:
            await self._run.check()
        try:
            await super().query(prompt, session_id)
        except Exception:
            if self._run is not None:
                await self._run.check()
            raise

    async def receive_messages(self) -> AsyncIterator[Message]:
        """As the SDK's. Raises :class:`estoppel.Halted` once the agent is halted."""
        run = self._run
        try:
            async for message in super().receive_messages():
                if run is not None:
                    await run.came(message)
                yield message
        except Exception:
            # It was killed, and so it looks like a failure to the SDK.
            if run is not None:
                await run.check()
            raise
        if run is not None:
            await run.check()

    async def disconnect(self) -> None:
        """As the SDK's. Raises :class:`estoppel.Halted` when the agent was halted and nobody was told."""
        run = await self._leave()
        if run is not None:
            await run.check(once=True)

    async def _leave(self) -> Run | None:
        run, self._run = self._run, None
        try:
            await super().disconnect()
        finally:
            if run is not None:
                await run.end()
        return run


def _refuse_bare(options: ClaudeAgentOptions) -> None:
    simple = {**os.environ, **options.env}.get("CLAUDE_CODE_SIMPLE", "").lower()
    if "bare" in options.extra_args or simple not in ("", "0", "false", "no", "off"):
        raise ValueError(
            "claude skips its hooks with --bare and CLAUDE_CODE_SIMPLE, so nothing could be refused: "
            "leave them out"
        )
