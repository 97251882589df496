//! OpenAI's chat completions.

use serde_json::{Value, json};

use super::{
    dialect::{CREATED_AT, Frame, Shaped, argument_pieces, model_of, words},
    script::Answer,
};

pub(super) fn shape(answer: &Answer, asked: &Value, call: usize) -> Shaped {
    let id = format!("chatcmpl-{call}");
    let finish_reason = if answer.tool_calls.is_empty() { "stop" } else { "tool_calls" };
    let usage = json!({
        "prompt_tokens": answer.usage.input_tokens,
        "completion_tokens": answer.usage.output_tokens,
        "total_tokens": answer.usage.input_tokens + answer.usage.output_tokens,
    });
    let mut message = json!({"role": "assistant", "content": answer.text, "refusal": null});
    if !answer.tool_calls.is_empty() {
        let tool_calls = answer.tool_calls.iter().enumerate().map(|(index, tool)| {
            json!({"id": tool_id(call, index), "type": "function", "function": {
                "name": tool.name, "arguments": tool.arguments_text(),
            }})
        });
        message["tool_calls"] = tool_calls.collect();
    }
    let whole = json!({
        "id": id, "object": "chat.completion", "created": CREATED_AT, "model": model_of(asked),
        "choices": [{
            "index": 0, "message": message, "logprobs": null, "finish_reason": finish_reason,
        }],
        "usage": usage,
    });

    let frame = |choices: Value, usage: Value, is_piece: bool| {
        let data = json!({
            "id": id, "object": "chat.completion.chunk", "created": CREATED_AT,
            "model": model_of(asked), "choices": choices, "usage": usage,
        });
        Frame { event: None, data: data.to_string(), is_piece }
    };
    let delta = |delta: Value, is_piece: bool| {
        let choice = json!({"index": 0, "delta": delta, "logprobs": null, "finish_reason": null});
        frame(json!([choice]), Value::Null, is_piece)
    };
    let mut frames = vec![delta(json!({"role": "assistant", "content": ""}), false)];
    for word in answer.text.iter().flat_map(|text| words(text)) {
        frames.push(delta(json!({"content": word}), true));
    }
    for (index, tool) in answer.tool_calls.iter().enumerate() {
        let opening = json!({"index": index, "id": tool_id(call, index), "type": "function",
            "function": {"name": tool.name, "arguments": ""}});
        frames.push(delta(json!({"tool_calls": [opening]}), false));
        for piece in argument_pieces(&tool.arguments_text()) {
            let part = json!({"index": index, "function": {"arguments": piece}});
            frames.push(delta(json!({"tool_calls": [part]}), true));
        }
    }
    let end = json!({"index": 0, "delta": {}, "logprobs": null, "finish_reason": finish_reason});
    frames.push(frame(json!([end]), Value::Null, false));
    if asked["stream_options"]["include_usage"] == true {
        frames.push(frame(json!([]), usage, false));
    }
    frames.push(Frame { event: None, data: "[DONE]".to_owned(), is_piece: false });
    Shaped { whole, frames }
}

fn tool_id(call: usize, index: usize) -> String {
    format!("call_{call}_{index}")
}
