"""The kill switch for loops that ask scope by scope, and the hand that throws it."""

from __future__ import annotations

import json
import logging
import os
import ssl
import urllib.error
import urllib.parse
import urllib.request
from http.client import HTTPException, HTTPMessage
from typing import IO, Any

from estoppel._guard import Guard

_log = logging.getLogger("estoppel")
_ANSWER_BYTES_MAX = 1024 * 1024


class KillSwitch:
    """``activate`` stops what a scope names, ``check`` says whether it is stopped.

        kill_switch = estoppel.KillSwitch(guard)
        while not kill_switch.check("global") and not kill_switch.check("session:abc123"):
            ...

    With a guard, ``check`` asks the orders in this process, in well under a microsecond. Without one it
    asks the server each time. Whenever it cannot know, it says that the agent must stop.

    ``activate`` needs the token of a person (or of a machine that may halt): ``token``, else
    ``ESTOPPEL_TOKEN``. An agent's own token may not. Servers are ``url``, else ``ESTOPPEL_URL``;
    ``timeout`` is in seconds, for each of them.
    """

    __slots__ = ("_guard", "_opener", "_servers", "_timeout", "_token")

    def __init__(
        self,
        guard: Guard | None = None,
        *,
        url: str | None = None,
        token: str | None = None,
        ca: str | os.PathLike[str] | None = None,
        timeout: float = 5.0,
    ) -> None:
        servers = (url if url is not None else os.environ.get("ESTOPPEL_URL", "")).split(",")
        self._guard = guard
        self._servers = [server.strip().rstrip("/") for server in servers if server.strip()]
        self._token = token if token is not None else os.environ.get("ESTOPPEL_TOKEN", "")
        self._timeout = timeout
        ca = ca if ca is not None else os.environ.get("ESTOPPEL_CA") or None
        if any(not server.startswith(("http://", "https://")) for server in self._servers):
            raise ValueError(f"url is {url!r}: write http://HOST:PORT or https://HOST:PORT")
        if guard is None and not self._servers:
            raise ValueError("no server is given: set ESTOPPEL_URL, such as http://127.0.0.1:7600")
        self._opener = urllib.request.build_opener(
            # The way to the servers is the operator's: no proxy of the agent's.
            urllib.request.ProxyHandler({}),
            urllib.request.HTTPSHandler(context=ssl.create_default_context(cafile=ca)),
            _NoRedirect(),
        )

    def activate(self, reason: str, scope: str = "global") -> str:
        """Halts what the scope names, everywhere. Returns the halt's id.

        Raises ``PermissionError`` when the token may not, ``ValueError`` when there is no such scope,
        and ``OSError`` when no server takes it.
        """
        if not self._servers:
            raise ValueError("no server is given: set ESTOPPEL_URL, such as http://127.0.0.1:7600")
        body = json.dumps({"scope": scope, "reason": reason}).encode()
        return str(self._ask("/kill-switch", body)["id"])

    def check(self, scope: str = "global") -> bool:
        """Whether what the scope names must stop; also by a global halt.

        ``True`` for a text that is no scope, and while it cannot be known.
        """
        if self._guard is not None:
            return self._guard._native.must_stop(scope)
        try:
            answer = self._ask("/kill-switch?" + urllib.parse.urlencode({"scope": scope}), None)
        except (OSError, ValueError) as error:
            _log.error("the kill switch cannot be asked for %r: stop: %s", scope, error)
            return True
        return answer.get("stop") is not False

    def _ask(self, path: str, body: bytes | None) -> dict[str, Any]:
        unreachable: OSError | None = None
        for server in self._servers:
            request = urllib.request.Request(server + path, body)
            request.add_header("Authorization", f"Bearer {self._token}")
            request.add_header("Content-Type", "application/json")
            try:
                with self._opener.open(request, timeout=self._timeout) as answer:
                    values = json.loads(answer.read(_ANSWER_BYTES_MAX))
            except urllib.error.HTTPError as error:
                with error:
                    said = _said(error)
                if error.code in (401, 403):
                    raise PermissionError(f"{server}: {said}") from None
                if 400 <= error.code < 500:
                    raise ValueError(said) from None
                unreachable = OSError(f"{server}: {said}")
            except HTTPException as error:
                unreachable = OSError(f"{server}: {error}")
            except OSError as error:
                unreachable = error
            else:
                if isinstance(values, dict):
                    return values
                unreachable = OSError(f"{server}: the answer is no object")
        raise unreachable or OSError("no server is given")


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """The token goes to nobody else."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: HTTPMessage,
        newurl: str,
    ) -> None:
        return None


def _said(error: urllib.error.HTTPError) -> str:
    """What a problem document says (RFC 9457), else the status."""
    try:
        problem = json.loads(error.read(_ANSWER_BYTES_MAX))
        return str(problem.get("detail") or problem["title"])
    except (AttributeError, KeyError, OSError, ValueError, HTTPException):
        return f"status {error.code}"
