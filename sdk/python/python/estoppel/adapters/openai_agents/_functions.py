"""Function tools as steps."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Awaitable, Callable
from typing import Any, cast

from agents import Agent, FunctionTool, function_tool
from agents.run_context import RunContextWrapper
from pydantic import BaseModel

from estoppel.adapters._names import scope_name
from estoppel.adapters.openai_agents._steps import (
    is_marked,
    marked,
    nested,
    parsed,
    recorded,
    session,
    under_way,
)


def reach_function(tool: FunctionTool) -> None:
    """Makes each call of the tool a step; its name, schema, policies and guardrails stay as they are."""
    function = getattr(tool, "__wrapped__", None)
    if function is None:
        # It was made without `function_tool`, such as an agent as a tool: it is asynchronous.
        if not is_marked(tool.on_invoke_tool):
            tool.on_invoke_tool = _invoking(
                scope_name(tool.name), tool.on_invoke_tool, _calls_an_agent(tool)
            )
    elif not is_marked(function):
        # The same tool of the wrapped function: only it knows on which thread the function runs.
        tool.on_invoke_tool = function_tool(
            _stepping(scope_name(tool.name), function),
            name_override=tool.name,
            use_docstring_info=False,
            strict_mode=tool.strict_json_schema,
            output_json_schema=tool.output_json_schema if tool.allowed_callers else None,
            allowed_callers=tool.allowed_callers,
        ).on_invoke_tool
        cast(Any, FunctionTool).__post_init__(tool)  # binds its handling of errors to this tool


def _calls_an_agent(tool: FunctionTool) -> bool:
    return isinstance(getattr(tool, "_agent_instance", None), Agent)


def _stepping(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with each call a step, on the thread or in the task in which it runs."""
    if not inspect.isroutine(function) and not inspect.isclass(function):
        function = cast(Any, function).__call__  # An object: the SDK takes its method.
    named = tuple(inspect.signature(function).parameters)

    def params(args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        values = {**dict(zip(named, args)), **kwargs}
        return {
            key: value.model_dump() if isinstance(value, BaseModel) else value
            for key, value in values.items()
            if not isinstance(value, RunContextWrapper)
        }

    if inspect.iscoroutinefunction(function):
        call = cast(Any, function)

        @functools.wraps(function)
        async def asynchronous(*args: Any, **kwargs: Any) -> Any:
            own = session()
            if own is None:
                return await call(*args, **kwargs)
            with under_way():
                async with own.step(name, params(args, kwargs)) as step:
                    value = await call(*args, **kwargs)
                    step.result(recorded(value))
                    return value

        return marked(asynchronous)

    @functools.wraps(function)
    def synchronous(*args: Any, **kwargs: Any) -> Any:
        own = session()
        if own is None:
            return function(*args, **kwargs)
        with under_way(), own.step(name, params(args, kwargs)) as step:
            value = function(*args, **kwargs)
            step.result(recorded(value))
            return value

    return marked(synchronous)


def _invoking(
    name: str, invoke: Callable[[Any, str], Awaitable[Any]], calls_an_agent: bool
) -> Callable[[Any, str], Awaitable[Any]]:
    @functools.wraps(invoke, updated=())
    async def invoking(context: Any, arguments: str) -> Any:
        own = session()
        if own is None:
            return await invoke(context, arguments)
        params = parsed(arguments)
        if calls_an_agent:
            return await nested(own, name, params, lambda: invoke(context, arguments))
        with under_way():
            async with own.step(name, params) as step:
                value = await invoke(context, arguments)
                step.result(recorded(value))
                return value

    return marked(invoking)
