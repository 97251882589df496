"""Plugins are refused where they are loaded: at ``import`` (row S2)."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType, TracebackType

from estoppel._guard import Guard


class GuardedImports(MetaPathFinder):
    """In force from its making until :meth:`remove`; also a context manager."""

    def __init__(self, guard: Guard, plugins: Mapping[str, str]) -> None:
        self._guard = guard
        self._plugins = dict(plugins)
        sys.meta_path.insert(0, self)

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,
        target: ModuleType | None = None,
    ) -> ModuleSpec | None:
        """Raises ``Halted`` for a plugin that must not be loaded; finds nothing itself."""
        distribution = self._plugins.get(fullname)
        if distribution is not None:
            from importlib import metadata  # costs more than the rest of this package

            try:
                version = metadata.version(distribution)
            except metadata.PackageNotFoundError:
                version = None
            self._guard.load_plugin(distribution, version)
        return None

    def remove(self) -> None:
        """Ends it."""
        if self in sys.meta_path:
            sys.meta_path.remove(self)

    def __enter__(self) -> GuardedImports:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.remove()


def guard_imports(guard: Guard, plugins: Mapping[str, str] | Sequence[str]) -> GuardedImports:
    """From now on importing one of these modules asks the guard first, and is recorded.

    ``plugins``: names of modules, such as ``"scraper"`` or ``"vendor.scraper"``, each with the
    distribution that it comes from where that is called otherwise. The distribution is the plugin's
    name, its installed version the version. What is imported already stays: ask
    :meth:`estoppel.Guard.load_plugin` or name the plugin in its steps.
    """
    named = plugins if isinstance(plugins, Mapping) else {name: name for name in plugins}
    return GuardedImports(guard, named)
