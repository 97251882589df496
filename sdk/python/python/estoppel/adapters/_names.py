"""Names of tools and plugins that others have chosen, as scopes can hold them."""

from __future__ import annotations

_BYTES_MAX = 256
_ALSO = "-_.:/"


def scope_name(text: str) -> str:
    """The text with ``_`` for what a scope cannot hold, and its first 256 bytes.

    A server on the net names its tools as it likes, with spaces or line feeds too. Two names that differ
    only in such characters are one here: a halt reaches both.
    """
    kept = "".join(char if char.isalnum() or char in _ALSO else "_" for char in text[:_BYTES_MAX])
    return kept.encode()[:_BYTES_MAX].decode(errors="ignore") or "_"
