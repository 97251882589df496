"""One conversation with the program of the Claude Agent SDK: its steps, and the answers to its hooks.

A step is open for the whole conversation, and one for each call of a tool of the program's. Their work
goes on elsewhere, so a task of its own holds each of them open for a halt to find (:class:`Held`); what
ends with it is whatever carries the conversation's mark in its environment: the program, and all that
it has started. Tools in this process are steps of the tasks that they run in.

``Halted`` leaves no hook and no tool: the SDK would not answer then, and the program would wait. It is
kept, and raised where the conversation's messages are read.
"""

from __future__ import annotations

import asyncio
import re
import uuid
import weakref
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from dataclasses import replace
from typing import Any, TypeVar

from claude_agent_sdk import (
    AssistantMessage,
    ClaudeAgentOptions,
    HookMatcher,
    Message,
    PermissionResultAllow,
    PermissionResultDeny,
    ResultMessage,
    ToolPermissionContext,
)
from mcp.types import CallToolResult

from estoppel import _native
from estoppel._halted import Halted
from estoppel._session import Session
from estoppel._step import Step
from estoppel.adapters._held import Held

_HOOK_MAX_S = 60.0
"""How long the program waits for an answer of ours before it counts as a refusal."""
_INTERRUPT_MAX_S = 2.0
_OF_THE_PROGRAM = "<synthetic>"
"""The model of answers that the program gives itself, such as those to slash commands."""
# The program puts `_` in the place of each.
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9_-]")
_Answer = dict[str, Any]
_T = TypeVar("_T")
_Permission = PermissionResultAllow | PermissionResultDeny

running: ContextVar[Run | None] = ContextVar("estoppel_claude_agent_run", default=None)
"""The conversation that a call of a tool in this process belongs to."""


class Run:
    """One conversation: from before its program is started until after its end."""

    def __init__(
        self,
        session: Session,
        given: ClaudeAgentOptions,
        interrupt: Callable[[], Awaitable[None]],
    ) -> None:
        self.session = session
        self._mark = f"ESTOPPEL_MARK_{uuid.uuid4().hex}"
        self._interrupt = interrupt
        self._conversation: Held | None = None
        self._calls: dict[str, tuple[Held, str | None]] = {}
        """Calls of the program's tools under way, each with the sub-agent that makes it."""
        self._halted: Halted | None = None
        self._told = False
        self._has_asked = False
        self._used: dict[str, tuple[int, int, float]] = {}
        # Servers in this process, by the name that the program knows them by.
        self._servers = {
            name: config["instance"]
            for name, config in _servers(given).items()
            if config.get("type") == "sdk" and _reach(config["instance"])
        }
        self._model = given.model
        self.options = self._guarded(given)

    # The conversation's own step

    async def begin(self) -> None:
        """Raises ``Halted`` when it must not begin."""
        step = self.session.step("claude", {"model": self._model}, action="conversation")
        self._conversation = await self._hold(step, self._end_without_marks)

    async def end(self) -> None:
        for held, _ in list(self._calls.values()):
            await held.end(failed=True)
        self._calls.clear()
        if self._conversation is not None:
            await self._conversation.end()

    async def check(self, once: bool = False) -> None:
        """Raises ``Halted`` when the conversation is over; if ``once``, not a second time."""
        # Calls that a halt cannot end may go on for as long as they like.
        calls = [held for held, _ in self._calls.values()] if _native.finds_marked() else []
        for held in (self._conversation, *calls):
            if held is not None:
                await held.ended_if_stopped()
        if self._halted is not None and not (once and self._told):
            self._told = True
            raise self._halted

    async def came(self, message: Message) -> None:
        """A message is here; it goes no further when a halt came before it."""
        await self.check()
        is_answer = isinstance(message, AssistantMessage) and message.model != _OF_THE_PROGRAM
        if is_answer and not self._has_asked:
            await self._kill()
            raise RuntimeError(
                "claude does not ask its hooks, so nothing could be refused; it is ended"
            )
        if isinstance(message, ResultMessage):
            try:
                self._note_usage(message)
            except Halted as halted:
                self._halt(halted)
                await self.check()

    def _note_usage(self, message: ResultMessage) -> None:
        """Puts on record what the turn used, sub-agents with it; the program counts from its start."""
        for model, usage in (message.model_usage or {}).items():
            now = (
                usage.get("inputTokens", 0),
                usage.get("outputTokens", 0),
                usage.get("costUSD", 0.0),
            )
            before = self._used.get(model, (0, 0, 0.0))
            self._used[model] = now
            if now == before:
                continue
            params = {"model": model, "turns": message.num_turns}
            with self.session.step(action="model_call", params=params) as step:
                step.usage(
                    model=model,
                    input_tokens=max(now[0] - before[0], 0),
                    output_tokens=max(now[1] - before[1], 0),
                    cost=max(now[2] - before[2], 0.0),
                )

    async def _hold(
        self, step: Step, at_stop: Callable[[], Awaitable[None]] | None = None
    ) -> Held:
        mark = self._variable() if _native.finds_marked() else None
        return await Held.begin(step, mark, self._halt, at_stop)

    async def _end_without_marks(self) -> None:
        """Where its processes cannot be found the program is asked to end its turn, with its tools."""
        if not _native.finds_marked():
            try:
                await asyncio.wait_for(self._interrupt(), _INTERRUPT_MAX_S)
            except Exception:
                return  # It is gone, or does not answer; the hooks refuse what it asks for.

    async def _kill(self) -> bool:
        """Whether nothing of the program is left."""
        if not _native.finds_marked():
            return False
        return await asyncio.to_thread(_native.kill_marked, self._variable())

    async def _refuse(self, answer: _T) -> _T:
        """Ends the conversation: what a halt found in flight is dead already, the rest is killed here.

        Returns the answer for a program that goes on. To one that is dead none can be given; who
        would give it waits until the SDK cancels it, which it does when it is closed.
        """
        if await self._kill():
            await asyncio.get_running_loop().create_future()
        return answer

    def _halt(self, halted: Halted) -> None:
        if self._halted is None:
            self._halted = halted

    def _variable(self) -> str:
        return f"{self._mark}=1"

    # What the program asks

    def _guarded(self, given: ClaudeAgentOptions) -> ClaudeAgentOptions:
        hooks = {event: list(matchers) for event, matchers in (given.hooks or {}).items()}
        ours: dict[Any, Callable[..., Awaitable[Any]]] = {
            "UserPromptSubmit": self._before_a_prompt,
            "PreToolUse": self._before_a_tool,
            "PostToolUse": self._after_a_tool,
            "PostToolUseFailure": self._after_a_failure,
            "PermissionRequest": self._before_permission,
            "SubagentStart": self._before_a_turn,
            "SubagentStop": self._after_a_turn,
            "Stop": self._after_a_turn,
            "PreCompact": self._before_a_turn,
        }
        for event, hook in ours.items():
            matcher = HookMatcher(hooks=[hook], timeout=_HOOK_MAX_S, on_failure="block")
            hooks[event] = [matcher, *hooks.get(event, [])]
        theirs = given.can_use_tool
        return replace(
            given,
            hooks=hooks,
            env={**given.env, self._mark: "1"},
            can_use_tool=None if theirs is None else self._asking(theirs),
        )

    def _refusal(self) -> str | None:
        """Why the agent must not go on, for it and for its user."""
        if self._halted is None:
            try:
                self.session.check()
            except Halted as halted:
                # No hook raises it: the SDK would not answer, and the program would wait.
                self._halt(halted)
        return None if self._halted is None else self._halted.message

    async def _before_a_prompt(self, asked: Any, *_: object) -> _Answer:
        self._has_asked = True
        return await self._before_a_turn(asked)

    async def _before_a_turn(self, asked: Any, *_: object) -> _Answer:
        why = self._refusal()
        return {} if why is None else await self._refuse(_blocked(why))

    async def _after_a_turn(self, asked: Any, *_: object) -> _Answer:
        """Calls of whoever has ended its turn that were refused by somebody else never came back."""
        whose = asked.get("agent_id")
        for call, (held, agent) in list(self._calls.items()):
            if agent == whose:
                del self._calls[call]
                await held.end(failed=True)
        # To block would make it go on.
        why = self._refusal()
        return {} if why is None else await self._refuse({"continue_": False, "stopReason": why})

    async def _before_a_tool(self, asked: Any, *_: object) -> _Answer:
        self._has_asked = True
        why = self._refusal()
        server = _server_of(asked)
        # A tool in this process makes its step itself, in its own task.
        if why is None and server not in self._servers:
            try:
                step = self.session.step(
                    asked["tool_name"],
                    asked["tool_input"],
                    server,
                    interruptible=_native.finds_marked(),
                )
                held = await self._hold(step)
                self._calls[asked["tool_use_id"]] = (held, asked.get("agent_id"))
            except Halted as halted:
                self._halt(halted)
                why = halted.message
        if why is None:
            return {}
        decision = {"permissionDecision": "deny", "permissionDecisionReason": why}
        return await self._refuse(
            {
                "continue_": False,
                "stopReason": why,
                "hookSpecificOutput": {"hookEventName": "PreToolUse", **decision},
            }
        )

    async def _after_a_tool(self, asked: Any, *_: object) -> _Answer:
        await self._returned(asked, asked["tool_response"])
        return await self._before_a_turn(asked)

    async def _after_a_failure(self, asked: Any, *_: object) -> _Answer:
        await self._returned(asked, failed=True)
        return await self._before_a_turn(asked)

    async def _returned(self, asked: Any, result: Any = None, *, failed: bool = False) -> None:
        call = self._calls.pop(asked["tool_use_id"], None)
        if call is not None:
            await call[0].end(result, failed=failed)

    async def _before_permission(self, asked: Any, *_: object) -> _Answer:
        why = self._refusal()
        if why is None:
            return {}
        decision = {"behavior": "deny", "message": why, "interrupt": True}
        return await self._refuse(
            {
                "continue_": False,
                "stopReason": why,
                "hookSpecificOutput": {"hookEventName": "PermissionRequest", "decision": decision},
            }
        )

    def _asking(self, theirs: Callable[..., Awaitable[_Permission]]) -> Callable[..., Any]:
        """``can_use_tool``, and the halt before it and after it: a person may think for long."""

        async def can_use_tool(
            tool: str, params: dict[str, Any], context: ToolPermissionContext
        ) -> _Permission:
            why = self._refusal()
            if why is None:
                answer = await theirs(tool, params, context)
                why = self._refusal()
                if why is None:
                    return answer
            return await self._refuse(PermissionResultDeny(message=why, interrupt=True))

        return can_use_tool

    # Tools in this process

    async def call(
        self, server: object, params: Any, work: Callable[[], Awaitable[Any]]
    ) -> Any:
        """Calls a tool as a step."""
        name = next((name for name, known in self._servers.items() if known is server), None)
        if name is None:
            return await work()
        tool = f"mcp__{_NOT_IN_NAMES.sub('_', name)}__{params.name}"
        try:
            async with self.session.step(tool, params.arguments, name) as step:
                result = await work()
                step.result([getattr(block, "text", block.type) for block in result.content])
                return result
        except Halted as halted:
            self._halt(halted)
            # No error: of a failed tool the program does not heed that it is to end.
            content = [{"type": "text", "text": halted.message}]
            return await self._refuse(CallToolResult.model_validate({"content": content}))


def _blocked(why: str) -> _Answer:
    return {"continue_": False, "stopReason": why, "decision": "block", "reason": why}


def _server_of(asked: Any) -> str | None:
    """The MCP server of a tool; older programs name it in the tool's name alone."""
    if "mcp_server" in asked:
        return str(asked["mcp_server"]["name"])
    kind, _, rest = asked["tool_name"].partition("__")
    return rest.partition("__")[0] if kind == "mcp" else None


def _servers(options: ClaudeAgentOptions) -> dict[str, Any]:
    servers = options.mcp_servers
    return dict(servers) if isinstance(servers, dict) else {}


_reached: weakref.WeakSet[Any] = weakref.WeakSet()


def _reach(server: Any) -> bool:
    """Puts a step around the tools of a server in this process, once; whether that can be done.

    Those of a server of mcp 1 are checked and recorded by the hooks, as the program's own are.
    """
    if server in _reached:
        return True
    find = getattr(server, "get_request_handler", None)
    entry = None if find is None else find("tools/call")
    if entry is None:
        return False

    async def call(context: Any, params: Any) -> Any:
        run = running.get()

        async def work() -> Any:
            return await entry.handler(context, params)

        return await (work() if run is None else run.call(server, params, work))

    server.add_request_handler("tools/call", entry.params_type, call)
    _reached.add(server)
    return True
