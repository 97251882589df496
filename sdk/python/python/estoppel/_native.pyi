"""The native module: an implementation detail, typed for the package itself."""

from collections.abc import Awaitable
from types import TracebackType
from typing import Literal, final

from typing_extensions import Self

def after_fork_in_child() -> None: ...
def raised_here() -> tuple[str, str] | None: ...
def version() -> str: ...
def is_release() -> bool: ...
@final
class Guard:
    def __new__(
        cls,
        *,
        servers: list[str],
        token: str | None,
        agent: str | None,
        mode: str,
        state_dir: str | None,
        on_lost: str,
        when_full: str,
        ca: str | None,
        name: str | None,
        text_global: str | None,
        text_other: str | None,
        rehearsal: tuple[int, str, str] | None,
    ) -> Self: ...
    def wait_ready(self, timeout: float) -> bool: ...
    def must_stop(self, scope: str) -> bool: ...
    def halt_locally(self, scope: str, reason: str, by: str) -> str: ...
    def status(self) -> str: ...
    def close(self) -> None: ...
    @property
    def steps(self) -> int: ...
    @property
    def agent_name(self) -> str | None: ...
    @property
    def mode(self) -> Literal["enforce", "observe"]: ...

class Session:
    def __new__(
        cls,
        guard: Guard,
        id: str | None = None,
        *,
        user: str | None = None,
        tenant: str | None = None,
        task: str | None = None,
        component: str | None = None,
    ) -> Self: ...
    def check(self) -> None: ...
    def allowed(self) -> bool: ...
    def enabled(self, component: str) -> bool: ...
    def access(
        self,
        requester_tenant: str | None,
        accessed_tenant: str | None,
        action: str,
        params: object = None,
        component: str | None = None,
    ) -> None: ...
    def load_plugin(self, name: str, version: str | None = None) -> None: ...
    @property
    def guard(self) -> Guard: ...
    @property
    def id(self) -> str | None: ...
    @property
    def user(self) -> str | None: ...
    @property
    def tenant(self) -> str | None: ...
    @property
    def task(self) -> str | None: ...

class Step:
    def __new__(
        cls,
        session: Session,
        tool: str | None = None,
        params: object = None,
        plugin: str | None = None,
        plugin_version: str | None = None,
        destination: str | None = None,
        accessed_tenant: str | None = None,
        action: str | None = None,
        interruptible: bool = True,
        like: Step | None = None,
    ) -> Self: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> Literal[False]: ...
    def __aenter__(self) -> Awaitable[Self]: ...
    def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> Awaitable[None]: ...
    def result(self, value: object) -> None: ...
    def usage(
        self,
        *,
        model: str | None = None,
        input_tokens: int | None = None,
        output_tokens: int | None = None,
        cost: float | None = None,
    ) -> None: ...
    @property
    def stopped(self) -> bool: ...
    def own_process_group(self, group: int) -> None: ...
    def disown_process_group(self, group: int) -> None: ...
