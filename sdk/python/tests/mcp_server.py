"""A server of the `mcp` package for the tests: over stdio, or streamable HTTP on a free port.

    python mcp_server.py FOLDER [PORT]

What its tools were told, when they have begun, and how they ended is written to files in the folder.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated

import anyio
from mcp.server import MCPServer
from mcp.server.mcpserver import Context, Elicit, Resolve, Sample
from mcp_types import CreateMessageResult, SamplingMessage, TextContent
from pydantic import BaseModel

FOLDER = Path(sys.argv[1])
server = MCPServer("notes")


def note(name: str, text: str = "") -> None:
    """Leaves a mark that is there whole or not at all."""
    part = FOLDER / f".{name}"
    part.write_text(text)
    part.rename(FOLDER / name)


@server.tool()
async def greet(name: str, ctx: Context) -> str:
    """Greets, and says who it was told that acts."""
    meta = dict(ctx.request_context.meta or {})
    note("meta", json.dumps({key: value for key, value in meta.items() if "estoppel" in key}))
    return f"hello {name}"


@server.tool()
async def hold() -> str:
    """Does not end by itself."""
    note("begun", str(os.getpid()))
    try:
        await anyio.sleep(3600)
    except anyio.get_cancelled_exc_class():
        note("cancelled")
        raise
    note("effect")
    return "late"


class Answer(BaseModel):
    text: str


def which() -> Elicit[Answer]:
    return Elicit("which?", Answer)


def thought() -> Sample:
    content = TextContent(type="text", text="what now?")
    return Sample([SamplingMessage(role="user", content=content)], max_tokens=9)


@server.tool()
async def elicits(answer: Annotated[Answer, Resolve(which)]) -> str:
    """Asks the person behind the agent."""
    return answer.text


@server.tool()
async def samples(answer: Annotated[CreateMessageResult, Resolve(thought)]) -> str:
    """Asks the agent's model."""
    return answer.model


@server.resource("notes://{name}")
async def read(name: str) -> str:
    """A note, or one that never comes."""
    if name == "held":
        return await hold()
    return f"note {name}"


@server.prompt()
async def ask(what: str) -> str:
    """A question, or one that never comes."""
    if what == "held":
        return await hold()
    return f"what is {what}?"


if __name__ == "__main__":
    if len(sys.argv) > 2:
        server.run(transport="streamable-http", host="127.0.0.1", port=int(sys.argv[2]))
    else:
        server.run(transport="stdio")
