"""The SDK's own tools whose work is done here, as steps: shells, patches, computers, custom tools."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Awaitable, Callable
from typing import Any, cast

from agents.computer import AsyncComputer, Computer
from agents.editor import ApplyPatchEditor, ApplyPatchOperation
from agents.tool import (
    ApplyPatchTool,
    ComputerProvider,
    ComputerTool,
    CustomTool,
    LocalShellTool,
    ShellTool,
    Tool,
)

from estoppel.adapters._names import scope_name
from estoppel.adapters.openai_agents._steps import as_step, is_marked, marked, session, under_way

_COMPUTER_ACTIONS = (
    "screenshot",
    "click",
    "double_click",
    "scroll",
    "type",
    "wait",
    "move",
    "keypress",
    "drag",
)


def reach_local(tool: Tool) -> None:
    """Makes steps of what such a tool does. What the provider runs is none of them, and stays as it is."""
    if isinstance(tool, (ShellTool, LocalShellTool)):
        # A shell of the provider's has no executor: it ends with the model call.
        if tool.executor is not None and not is_marked(tool.executor):
            tool.executor = as_step(scope_name(tool.name), _shell_params, cast(Any, tool.executor))
    elif isinstance(tool, CustomTool):
        if not is_marked(tool.on_invoke_tool):
            tool.on_invoke_tool = as_step(
                scope_name(tool.name),
                lambda _, text: {"input": text},
                cast(Any, tool.on_invoke_tool),
            )
    elif isinstance(tool, ApplyPatchTool):
        if not isinstance(tool.editor, _Editor):
            tool.editor = cast(Any, _Editor(tool.editor, scope_name(tool.name)))
    elif isinstance(tool, ComputerTool):
        _reach_computer(tool)


def _shell_params(request: Any) -> dict[str, Any]:
    action = request.data.action
    commands = getattr(action, "commands", None) or getattr(action, "command", None)
    return {"commands": commands}


class _Editor:
    """An editor of `apply_patch`, each of whose operations is a step."""

    def __init__(self, inner: ApplyPatchEditor, name: str) -> None:
        self._inner = inner
        for kind in ("create_file", "update_file", "delete_file"):
            step = as_step(name, functools.partial(_operation, kind), getattr(inner, kind))
            setattr(self, kind, step)

    def __getattr__(self, name: str) -> Any:
        if name == "_inner":  # A copy is asked for its methods before it has anything.
            raise AttributeError(name)
        return getattr(self._inner, name)

    create_file: Callable[[ApplyPatchOperation], Awaitable[Any]]
    update_file: Callable[[ApplyPatchOperation], Awaitable[Any]]
    delete_file: Callable[[ApplyPatchOperation], Awaitable[Any]]


def _operation(kind: str, operation: ApplyPatchOperation) -> dict[str, Any]:
    return {"operation": kind, "path": operation.path, "diff": operation.diff}


def _reach_computer(tool: ComputerTool[Any]) -> None:
    computer = tool.computer
    if isinstance(computer, (Computer, AsyncComputer)):
        _reach_actions(computer)
    elif isinstance(computer, ComputerProvider) and not is_marked(computer.create):
        create = computer.create

        @functools.wraps(create, updated=())
        async def creating(**options: Any) -> Any:
            made = create(**options)
            made = await made if inspect.isawaitable(made) else made
            _reach_actions(made)
            return made

        computer.create = marked(creating)


def _reach_actions(computer: Any) -> None:
    for action in _COMPUTER_ACTIONS:
        work = getattr(computer, action, None)
        if work is not None and not is_marked(work):
            setattr(computer, action, _acting_on("computer", action, work))


def _acting_on(name: str, action: str, work: Callable[..., Any]) -> Callable[..., Any]:
    def params(args: tuple[Any, ...], options: dict[str, Any]) -> dict[str, Any]:
        return {"action": action, "arguments": list(args), **options}

    if inspect.iscoroutinefunction(work):

        @functools.wraps(work)
        async def asynchronous(*args: Any, **options: Any) -> Any:
            own = session()
            if own is None:
                return await work(*args, **options)
            with under_way():
                async with own.step(name, params(args, options)):
                    return await work(*args, **options)

        return marked(asynchronous)

    @functools.wraps(work)
    def synchronous(*args: Any, **options: Any) -> Any:
        own = session()
        if own is None:
            return work(*args, **options)
        with under_way(), own.step(name, params(args, options)):
            return work(*args, **options)

    return marked(synchronous)
