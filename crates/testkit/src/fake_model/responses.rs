//! OpenAI's responses.

use serde_json::{Value, json};

use super::{
    dialect::{CREATED_AT, Frame, Shaped, argument_pieces, model_of, words},
    script::Answer,
};

pub(super) fn shape(answer: &Answer, asked: &Value, call: usize) -> Shaped {
    let items = items(answer, call);
    let done: Vec<Value> = items.iter().map(Item::done).collect();
    let usage = json!({
        "input_tokens": answer.usage.input_tokens,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": answer.usage.output_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": answer.usage.input_tokens + answer.usage.output_tokens,
    });
    let response = |status: &str, output: Value, usage: Value| {
        json!({
            "id": format!("resp_{call}"), "object": "response", "created_at": CREATED_AT,
            "status": status, "error": null, "incomplete_details": null, "instructions": null,
            "metadata": {}, "model": model_of(asked), "output": output,
            "parallel_tool_calls": true, "temperature": 1.0, "tool_choice": "auto", "tools": [],
            "top_p": 1.0, "usage": usage,
        })
    };
    let whole = response("completed", json!(done), usage);

    let mut stream = Stream { frames: Vec::new() };
    let begun = response("in_progress", json!([]), Value::Null);
    stream.push("response.created", json!({"response": begun}), false);
    stream.push("response.in_progress", json!({"response": begun}), false);
    for (index, item) in items.iter().enumerate() {
        let added = json!({"output_index": index, "item": item.opening()});
        stream.push("response.output_item.added", added, false);
        item.deltas(index, &mut stream);
        let done = json!({"output_index": index, "item": item.done()});
        stream.push("response.output_item.done", done, false);
    }
    stream.push("response.completed", json!({"response": whole}), false);
    Shaped { whole, frames: stream.frames }
}

/// One item of an answer's output.
enum Item<'a> {
    Message { id: String, text: &'a str },
    FunctionCall { id: String, call_id: String, name: &'a str, arguments: String },
}

fn items(answer: &Answer, call: usize) -> Vec<Item<'_>> {
    let message = |text| Item::Message { id: format!("msg_{call}"), text };
    let messages = answer.text.as_deref().map(message).into_iter();
    let calls = answer.tool_calls.iter().enumerate().map(|(index, tool)| Item::FunctionCall {
        id: format!("fc_{call}_{index}"),
        call_id: format!("call_{call}_{index}"),
        name: &tool.name,
        arguments: tool.arguments_text(),
    });
    messages.chain(calls).collect()
}

impl Item<'_> {
    fn opening(&self) -> Value {
        match self {
            Self::Message { id, .. } => json!({
                "type": "message", "id": id, "role": "assistant", "status": "in_progress",
                "content": [],
            }),
            Self::FunctionCall { id, call_id, name, .. } => json!({
                "type": "function_call", "id": id, "call_id": call_id, "name": name,
                "arguments": "", "status": "in_progress",
            }),
        }
    }

    fn done(&self) -> Value {
        let mut item = self.opening();
        item["status"] = "completed".into();
        match self {
            Self::Message { text, .. } => item["content"] = json!([text_part(text)]),
            Self::FunctionCall { arguments, .. } => item["arguments"] = json!(arguments),
        }
        item
    }

    fn deltas(&self, index: usize, stream: &mut Stream) {
        match self {
            Self::Message { id, text } => {
                let at = json!({"item_id": id, "output_index": index, "content_index": 0});
                let part = |text: &str| with(&at, "part", text_part(text));
                stream.push("response.content_part.added", part(""), false);
                for word in words(text) {
                    let delta = with(&with(&at, "delta", json!(word)), "logprobs", json!([]));
                    stream.push("response.output_text.delta", delta, true);
                }
                let done = with(&with(&at, "text", json!(text)), "logprobs", json!([]));
                stream.push("response.output_text.done", done, false);
                stream.push("response.content_part.done", part(text), false);
            }
            Self::FunctionCall { id, name, arguments, .. } => {
                let at = json!({"item_id": id, "output_index": index});
                for piece in argument_pieces(arguments) {
                    let delta = with(&at, "delta", json!(piece));
                    stream.push("response.function_call_arguments.delta", delta, true);
                }
                let done = with(&with(&at, "arguments", json!(arguments)), "name", json!(name));
                stream.push("response.function_call_arguments.done", done, false);
            }
        }
    }
}

fn text_part(text: &str) -> Value {
    json!({"type": "output_text", "text": text, "annotations": [], "logprobs": []})
}

fn with(object: &Value, key: &str, value: Value) -> Value {
    let mut object = object.clone();
    object[key] = value;
    object
}

/// The events, each of which carries its name and its number.
struct Stream {
    frames: Vec<Frame>,
}

impl Stream {
    fn push(&mut self, event: &'static str, mut data: Value, is_piece: bool) {
        data["type"] = event.into();
        data["sequence_number"] = self.frames.len().into();
        self.frames.push(Frame { event: Some(event), data: data.to_string(), is_piece });
    }
}
