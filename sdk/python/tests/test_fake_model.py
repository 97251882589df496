"""The vendors' own clients read every answer of the fake model, in strict mode: its shapes are theirs."""

from __future__ import annotations

from typing import Any

import anthropic
import openai
import pytest
from fake_model import FakeModel

ANSWER: dict[str, Any] = {
    "text": "I shall look it up.",
    "tool_calls": [{"name": "fetch", "arguments": {"url": "https://example.com/päge"}}],
    "usage": {"input_tokens": 812, "output_tokens": 90},
}
ARGUMENTS = '{"url":"https://example.com/päge"}'
ASKED: list[Any] = [{"role": "user", "content": "look it up"}]


def openai_client(fake: FakeModel) -> Any:
    return openai.OpenAI(
        base_url=f"{fake.url}/v1", api_key="none", _strict_response_validation=True
    )


def test_chat_completions(fake: FakeModel) -> None:
    fake.script(ANSWER, ANSWER)
    with openai_client(fake) as client:
        whole = client.chat.completions.create(model="m", messages=ASKED)
        message = whole.choices[0].message
        assert message.content == ANSWER["text"]
        assert message.tool_calls[0].function.arguments == ARGUMENTS
        assert whole.choices[0].finish_reason == "tool_calls"
        with client.chat.completions.stream(
            model="m", messages=ASKED, stream_options={"include_usage": True}
        ) as stream:
            streamed = stream.get_final_completion()
    assert streamed.choices[0].message.content == ANSWER["text"]
    assert streamed.choices[0].message.tool_calls[0].function.arguments == ARGUMENTS
    assert streamed.usage == whole.usage
    assert whole.usage.total_tokens == 902


def test_responses(fake: FakeModel) -> None:
    fake.script(ANSWER, ANSWER)
    with openai_client(fake) as client:
        whole = client.responses.create(model="m", input="look it up")
        assert whole.output_text == ANSWER["text"]
        assert whole.output[1].arguments == ARGUMENTS
        with client.responses.stream(model="m", input="look it up") as stream:
            streamed = stream.get_final_response()
    assert streamed.output_text == ANSWER["text"]
    assert streamed.output[1].arguments == ARGUMENTS
    assert streamed.usage == whole.usage


def test_messages(fake: FakeModel) -> None:
    fake.script(ANSWER, ANSWER)
    with anthropic.Anthropic(
        base_url=fake.url, api_key="none", _strict_response_validation=True
    ) as client:
        whole = client.messages.create(model="m", max_tokens=99, messages=ASKED)
        with client.messages.stream(model="m", max_tokens=99, messages=ASKED) as stream:
            streamed = stream.get_final_message()
    for message in (whole, streamed):
        text, tool_use = (block.to_dict() for block in message.content)
        assert (text["type"], text["text"]) == ("text", ANSWER["text"])
        assert (tool_use["type"], tool_use["name"]) == ("tool_use", "fetch")
        assert tool_use["input"] == {"url": "https://example.com/päge"}
        assert message.stop_reason == "tool_use"
        assert (message.usage.input_tokens, message.usage.output_tokens) == (812, 90)


def test_errors_are_the_vendors(fake: FakeModel) -> None:
    fake.script({"status": 404})
    with openai_client(fake) as client, pytest.raises(openai.NotFoundError, match="script"):
        client.chat.completions.create(model="m", messages=ASKED)
    with (
        anthropic.Anthropic(base_url=fake.url, api_key="none") as client,
        pytest.raises(anthropic.BadRequestError, match="no answer for call 1"),
    ):
        client.messages.create(model="m", max_tokens=99, messages=ASKED)
