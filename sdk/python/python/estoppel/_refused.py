"""What is raised when one step must not be, and its agent may go on."""

from __future__ import annotations

import json


class Refused(Exception):
    """This step must not be: it comes too soon behind others, or may change something.

    A limit is in force that bounds the steps of each minute, or lets only steps be that are declared to
    change nothing (``read_only=True``). Nobody is stopped: an ``Exception``, which a loop may take as a
    tool's failure, and wait or do something else. Its text is the one for the agent's user.
    """

    message: str
    """The text for the agent's user."""
    reason: str
    """``too_many_requests`` or ``read_only``."""
    retry_after: float | None
    """In how many seconds to try again, where that is known."""

    def __init__(self, denied: str, line: str) -> None:
        super().__init__(denied, line)
        values = json.loads(denied)
        self.message = values["message"]
        self.reason = values["reason"]
        wait_ms = values.get("retry_after_ms")
        self.retry_after = None if wait_ms is None else wait_ms / 1000

    def __str__(self) -> str:
        return self.message

    def __repr__(self) -> str:
        return f"Refused({self.message!r})"
