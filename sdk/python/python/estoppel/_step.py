"""One step of an agent: a context manager, a decorator, and the parent of child processes."""

from __future__ import annotations

import functools
import inspect
import subprocess
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, cast

from estoppel import _native

if TYPE_CHECKING:
    from estoppel._guard import Guard
    from estoppel._session import Session

_F = TypeVar("_F", bound=Callable[..., Any])


class Step(_native.Step):
    """A step, made by ``guard.step(...)`` or ``session.step(...)``, and entered once.

    As a context manager (``with`` or ``async with``) it checks before it begins, and ends its work
    when an order halts it meanwhile: the task of asyncio is cancelled, the thread gets ``Halted`` at
    its next bytecode, child processes of the step are killed. Whichever way the work ends then,
    ``Halted`` is raised, and its result is withheld.

    As a decorator it makes each call of the function a step of its own, with the call's arguments as
    parameters and what it returns as result.
    """

    __slots__ = ("_owner",)
    _owner: Guard | Session

    def __call__(self, function: _F) -> _F:
        """Makes each call of a function, or of a coroutine function, a step like this one."""
        named = _names(function)

        def step(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Step:
            params = {**dict(zip(named, args)), **kwargs}
            return Step(self._owner._acting(), params=params, like=self)

        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def asynchronous(*args: Any, **kwargs: Any) -> Any:
                async with step(args, kwargs) as own:
                    value = await function(*args, **kwargs)
                    own.result(value)
                    return value

            return cast(_F, asynchronous)
        if inspect.isasyncgenfunction(function) or inspect.isgeneratorfunction(function):
            # Between two of its values a generator runs nowhere, and nothing could be stopped.
            raise TypeError(
                f"{function.__qualname__} is a generator: open the step inside of it, or around the "
                "loop that consumes it"
            )

        @functools.wraps(function)
        def synchronous(*args: Any, **kwargs: Any) -> Any:
            with step(args, kwargs) as own:
                value = function(*args, **kwargs)
                own.result(value)
                return value

        return cast(_F, synchronous)

    def popen(self, args: str | Sequence[str], **options: Any) -> subprocess.Popen[Any]:
        """Starts a child process that is killed, with all that it starts, when the step is halted.

        Takes what ``subprocess.Popen`` takes; the child gets a session and process group of its own.
        """
        if options.setdefault("start_new_session", True) is not True:
            raise ValueError("start_new_session: a step's child leads a session of its own")
        if self.stopped:
            raise RuntimeError("the step is halted: no process is started")
        process = _Child(args, **options)
        process.is_child_of(self)
        return process

    def run(
        self,
        args: str | Sequence[str],
        *,
        input: str | bytes | None = None,
        timeout: float | None = None,
        check: bool = False,
        capture_output: bool = False,
        **options: Any,
    ) -> subprocess.CompletedProcess[Any]:
        """As ``subprocess.run``, with a child process that ends with the step."""
        if input is not None:
            options["stdin"] = subprocess.PIPE
        if capture_output:
            options["stdout"] = options["stderr"] = subprocess.PIPE
        with self.popen(args, **options) as process:
            try:
                out, err = process.communicate(input, timeout=timeout)
            except BaseException:
                process.kill()
                raise
            done = subprocess.CompletedProcess(args, process.returncode, out, err)
        if check:
            done.check_returncode()
        return done


class _Child(subprocess.Popen[Any]):
    """A child process whose group is forgotten as soon as its number may become another's."""

    _step: Step | None = None

    def is_child_of(self, step: Step) -> None:
        self._step = step
        step.own_process_group(self.pid)

    def poll(self) -> int | None:
        return self._reaped(super().poll())

    def wait(self, timeout: float | None = None) -> int:
        code = super().wait(timeout)
        self._reaped(code)
        return code

    def communicate(self, input: Any = None, timeout: float | None = None) -> tuple[Any, Any]:
        output = super().communicate(input, timeout)
        self._reaped(self.returncode)
        return output

    def _reaped(self, code: int | None) -> int | None:
        step = self._step
        if code is not None and step is not None:
            self._step = None
            step.disown_process_group(self.pid)
        return code


def _names(function: Callable[..., Any]) -> tuple[str, ...]:
    """The names of a function's positional parameters."""
    try:
        parameters: Mapping[str, inspect.Parameter] = inspect.signature(function).parameters
    except (TypeError, ValueError):  # a function of C without a signature
        return ()
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return tuple(name for name, value in parameters.items() if value.kind in positional)
