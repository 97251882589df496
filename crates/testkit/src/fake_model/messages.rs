//! Anthropic's messages.

use serde_json::{Value, json};

use super::{
    dialect::{Frame, Shaped, argument_pieces, model_of, words},
    script::Answer,
};

pub(super) fn shape(answer: &Answer, asked: &Value, call: usize) -> Shaped {
    let stop_reason = if answer.tool_calls.is_empty() { "end_turn" } else { "tool_use" };
    let usage = |output_tokens: u64| {
        json!({
            "input_tokens": answer.usage.input_tokens, "output_tokens": output_tokens,
            "cache_creation_input_tokens": 0, "cache_read_input_tokens": 0,
        })
    };
    let message = |content: Value, stop_reason: Value, usage: Value| {
        json!({
            "id": format!("msg_{call}"), "type": "message", "role": "assistant",
            "model": model_of(asked), "content": content, "stop_reason": stop_reason,
            "stop_sequence": null, "usage": usage,
        })
    };
    let text = answer.text.iter().map(|text| json!({"type": "text", "text": text}));
    let tools = answer.tool_calls.iter().enumerate().map(|(index, tool)| {
        json!({"type": "tool_use", "id": tool_id(call, index), "name": tool.name,
            "input": tool.arguments})
    });
    let whole =
        message(text.chain(tools).collect(), stop_reason.into(), usage(answer.usage.output_tokens));

    let opening = message(json!([]), Value::Null, usage(1));
    let mut frames = vec![frame("message_start", json!({"message": opening}), false)];
    let mut blocks = 0;
    let mut block = |opening: Value, deltas: Vec<Value>| {
        let index = blocks;
        blocks += 1;
        let start = json!({"index": index, "content_block": opening});
        let start = frame("content_block_start", start, false);
        let deltas = deltas.into_iter().map(move |delta| {
            frame("content_block_delta", json!({"index": index, "delta": delta}), true)
        });
        let stop = frame("content_block_stop", json!({"index": index}), false);
        frames.extend(std::iter::once(start).chain(deltas).chain([stop]));
    };
    if let Some(text) = &answer.text {
        let deltas = words(text).map(|word| json!({"type": "text_delta", "text": word}));
        block(json!({"type": "text", "text": ""}), deltas.collect());
    }
    for (index, tool) in answer.tool_calls.iter().enumerate() {
        let opening = json!({"type": "tool_use", "id": tool_id(call, index), "name": tool.name,
            "input": {}});
        let pieces = argument_pieces(&tool.arguments_text()).into_iter();
        let deltas = pieces.map(|piece| json!({"type": "input_json_delta", "partial_json": piece}));
        block(opening, deltas.collect());
    }
    let end = json!({
        "delta": {"stop_reason": stop_reason, "stop_sequence": null},
        "usage": {"output_tokens": answer.usage.output_tokens},
    });
    frames.push(frame("message_delta", end, false));
    frames.push(frame("message_stop", json!({}), false));
    Shaped { whole, frames }
}

/// An event, whose data names it again.
fn frame(event: &'static str, mut data: Value, is_piece: bool) -> Frame {
    data["type"] = event.into();
    Frame { event: Some(event), data: data.to_string(), is_piece }
}

fn tool_id(call: usize, index: usize) -> String {
    format!("toolu_{call}_{index}")
}
