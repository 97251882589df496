"""Agents of LangChain and LangGraph: ``create_agent(..., middleware=[EstoppelMiddleware(guard)])``.

Each model call and each tool call is a step: checked before it, ended when a halt comes in its midst,
and checked before the tool's output goes back to the model. A tool that is an agent of its own is
stopped with it; give that agent the middleware, too, so that its steps are checked one by one.

LangChain runs a synchronous tool of an asynchronous agent on a thread, where cancelling the task does
not reach it: it would go on after the halt. The middleware makes the step inside of that thread.
"""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from typing import Any

from langchain.agents.middleware import AgentMiddleware
from langchain.agents.middleware.types import (
    ExtendedModelResponse,
    ModelRequest,
    ModelResponse,
    ToolCallRequest,
)
from langchain_core.messages import AIMessage, BaseMessage, ToolMessage
from langchain_core.tools import BaseTool, StructuredTool
from langgraph.types import Command

from estoppel._guard import Guard
from estoppel._session import Session
from estoppel._step import Step

__all__ = ["EstoppelMiddleware"]

_Model = ModelResponse[Any] | AIMessage | ExtendedModelResponse[Any]
_Tool = ToolMessage | Command[Any]


class EstoppelMiddleware(AgentMiddleware[Any, Any, Any]):
    """Puts an agent's model calls and tool calls under a guard.

    With a guard, they belong to the session that is current where the agent is invoked; with a
    session, to that one. Put it last in the list: then it stands next to the call, and no other
    middleware can repeat a call behind its back.
    """

    def __init__(self, guard: Guard | Session) -> None:
        super().__init__()
        self._guard = guard

    def wrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], ModelResponse[Any]]
    ) -> _Model:
        with self._model_step(request) as step:
            response = handler(request)
            _note_usage(step, response)
            return response

    async def awrap_model_call(
        self,
        request: ModelRequest[Any],
        handler: Callable[[ModelRequest[Any]], Awaitable[ModelResponse[Any]]],
    ) -> _Model:
        async with self._model_step(request) as step:
            response = await handler(request)
            _note_usage(step, response)
            return response

    def wrap_tool_call(
        self, request: ToolCallRequest, handler: Callable[[ToolCallRequest], _Tool]
    ) -> _Tool:
        with self._tool_step(request) as step:
            result = handler(request)
            _note_result(step, result)
            return result

    async def awrap_tool_call(
        self, request: ToolCallRequest, handler: Callable[[ToolCallRequest], Awaitable[_Tool]]
    ) -> _Tool:
        tool = request.tool
        if isinstance(tool, StructuredTool) and tool.coroutine is None and tool.func is not None:
            return await self._on_its_thread(request, tool, tool.func, handler)
        # Of a tool that may run on a thread that cannot be reached it is said that it runs on.
        async with self._tool_step(request, interruptible=_is_asynchronous(tool)) as step:
            result = await handler(request)
            _note_result(step, result)
            return result

    async def _on_its_thread(
        self,
        request: ToolCallRequest,
        tool: StructuredTool,
        func: Callable[..., Any],
        handler: Callable[[ToolCallRequest], Awaitable[_Tool]],
    ) -> _Tool:
        session = self._guard._acting()
        session.check()

        @functools.wraps(func)
        def stepping(*args: Any, **kwargs: Any) -> Any:
            with session.step(tool.name, request.tool_call["args"]) as step:
                value = func(*args, **kwargs)
                step.result(value if isinstance(value, (str, int, float, bool)) else str(value))
                return value

        result = await handler(request.override(tool=tool.model_copy(update={"func": stepping})))
        session.check()
        return result

    def _model_step(self, request: ModelRequest[Any]) -> Step:
        model = getattr(request.model, "model_name", None) or getattr(request.model, "model", None)
        params = {"model": model, "messages": len(request.messages)}
        return self._guard.step(action="model_call", params=params)

    def _tool_step(self, request: ToolCallRequest, interruptible: bool = True) -> Step:
        call = request.tool_call
        return self._guard.step(call["name"], call["args"], interruptible=interruptible)


def _is_asynchronous(tool: BaseTool | None) -> bool:
    """Whether a tool's work is a coroutine, and not a thread behind one."""
    if isinstance(tool, StructuredTool):
        return tool.coroutine is not None
    return tool is not None and type(tool)._arun is not BaseTool._arun


def _note_usage(step: Step, response: _Model) -> None:
    messages: list[BaseMessage] = []
    if isinstance(response, AIMessage):
        messages = [response]
    elif isinstance(response, ModelResponse):
        messages = list(response.result)
    for message in messages:
        if isinstance(message, AIMessage) and message.usage_metadata is not None:
            step.usage(
                model=message.response_metadata.get("model_name"),
                input_tokens=message.usage_metadata["input_tokens"],
                output_tokens=message.usage_metadata["output_tokens"],
            )


def _note_result(step: Step, result: _Tool) -> None:
    if isinstance(result, ToolMessage):
        step.result(result.text)
