"""Finds all that a run may call, and makes steps of it, once.

The objects are the user's. What is put on them asks at each call who acts, and does nothing where no
guarded run is under way; so it does not matter how many runners share an agent.
"""

from __future__ import annotations

import functools
import threading
from typing import Any

from agents import Agent, FunctionTool, Handoff, handoff
from agents.mcp import MCPServer
from agents.models.interface import Model

from estoppel.adapters._names import scope_name
from estoppel.adapters.openai_agents._functions import reach_function
from estoppel.adapters.openai_agents._local import reach_local
from estoppel.adapters.openai_agents._model import guarded_model
from estoppel.adapters.openai_agents._steps import is_marked, marked, parsed, session, under_way

_REACHING = threading.Lock()
"""Two runs on two threads may share an agent."""


def reach(agent: Agent[Any]) -> None:
    """Makes steps of what this agent calls, and all agents that it can hand off to or call as tools."""
    with _REACHING:
        _reach_all(agent)


def _reach_all(agent: Agent[Any]) -> None:
    seen: list[Agent[Any]] = []
    waiting = [agent]
    while waiting:
        one = waiting.pop()
        if any(known is one for known in seen):
            continue
        seen.append(one)
        if isinstance(one.model, Model):
            one.model = guarded_model(one.model)
        for tool in one.tools:
            if isinstance(tool, FunctionTool):
                reach_function(tool)
            else:
                reach_local(tool)
            inner = getattr(tool, "_agent_instance", None)
            if isinstance(inner, Agent):
                waiting.append(inner)
        for server in one.mcp_servers:
            _reach_server(server)
        for number, target in enumerate(one.handoffs):
            if isinstance(target, Agent):
                waiting.append(target)
                # What the SDK itself makes of it, at each turn.
                target = one.handoffs[number] = handoff(target)
            _reach_handoff(target)
            to = getattr(target, "_agent_ref", None)
            if to is not None and isinstance(to(), Agent):
                waiting.append(to())


def _reach_handoff(target: Handoff[Any, Any]) -> None:
    invoke = target.on_invoke_handoff
    if is_marked(invoke):
        return
    name = scope_name(target.tool_name)

    @functools.wraps(invoke, updated=())
    async def invoking(context: Any, arguments: str) -> Any:
        own = session()
        if own is None:
            return await invoke(context, arguments)
        with under_way():
            async with own.step(name, parsed(arguments), action="handoff"):
                agent = await invoke(context, arguments)
        if isinstance(agent, Agent):
            reach(agent)
        return agent

    target.on_invoke_handoff = marked(invoking)


def _reach_server(server: MCPServer) -> None:
    """Calls to an MCP server of the SDK's: the server is the tool's plugin."""
    if is_marked(server.call_tool):
        return
    call_tool, get_prompt, read_resource = server.call_tool, server.get_prompt, server.read_resource
    plugin = scope_name(server.name)

    async def calling(tool_name: str, arguments: dict[str, Any] | None, *more: Any, **kw: Any) -> Any:
        own = session()
        if own is None:
            return await call_tool(tool_name, arguments, *more, **kw)
        with under_way():
            async with own.step(scope_name(tool_name), arguments, plugin) as step:
                result = await call_tool(tool_name, arguments, *more, **kw)
                step.result(result.model_dump(mode="json", exclude_none=True))
                return result

    async def prompting(name: str, arguments: dict[str, Any] | None = None) -> Any:
        own = session()
        if own is None:
            return await get_prompt(name, arguments)
        values = {"prompt": name, "arguments": arguments}
        async with own.step(None, values, plugin, action="mcp_prompt"):
            return await get_prompt(name, arguments)

    async def reading(uri: str) -> Any:
        own = session()
        if own is None:
            return await read_resource(uri)
        async with own.step(None, {"uri": uri}, plugin, action="mcp_resource"):
            return await read_resource(uri)

    for name, method in (
        ("call_tool", functools.wraps(call_tool, updated=())(calling)),
        ("get_prompt", functools.wraps(get_prompt, updated=())(prompting)),
        ("read_resource", functools.wraps(read_resource, updated=())(reading)),
    ):
        setattr(server, name, marked(method))
