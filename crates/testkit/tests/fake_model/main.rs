//! The fake model keeps to its script, and knows when its client has left. That the vendors' clients
//! read it is tested where they are, in `sdk/python`.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::time::Duration;

use estoppel_testkit::fake_model::{Ended, FakeModel, Script};
use serde_json::{Value, json};

const CHAT: &str = "/v1/chat/completions";
const RESPONSES: &str = "/v1/responses";
const MESSAGES: &str = "/v1/messages";

async fn fake(script: Value) -> FakeModel {
    FakeModel::start(serde_json::from_value::<Script>(script).unwrap()).await.unwrap()
}

fn client() -> reqwest::Client {
    let _already = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder().timeout(Duration::from_secs(20)).build().unwrap()
}

async fn ask(fake: &FakeModel, path: &str, body: Value) -> (u16, Value) {
    let response = client().post(format!("{}{path}", fake.url())).json(&body).send().await.unwrap();
    (response.status().as_u16(), response.json().await.unwrap())
}

/// The events of a stream: their names and their data.
async fn stream(fake: &FakeModel, path: &str) -> Vec<(Option<String>, String)> {
    let body = json!({"model": "m", "stream": true, "stream_options": {"include_usage": true}});
    let response = client().post(format!("{}{path}", fake.url())).json(&body).send().await.unwrap();
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let text = response.text().await.unwrap();
    text.split_terminator("\n\n")
        .map(|event| {
            let field = |name: &str| event.lines().find_map(|line| line.strip_prefix(name));
            (field("event: ").map(str::to_owned), field("data: ").unwrap().to_owned())
        })
        .collect()
}

#[tokio::test]
async fn each_shape_says_the_same_whole_and_as_a_stream() {
    let answer = json!({
        "text": "I shall look it up.",
        "tool_calls": [{"name": "fetch", "arguments": {"url": "https://example.com/päge"}}],
    });
    let fake = fake(json!({"answers": vec![answer; 6]})).await;
    let asked = json!({"model": "m"});

    let (_, chat) = ask(&fake, CHAT, asked.clone()).await;
    let message = &chat["choices"][0]["message"];
    let arguments = message["tool_calls"][0]["function"]["arguments"].as_str().unwrap();
    assert_eq!(arguments, r#"{"url":"https://example.com/päge"}"#);
    let (mut text, mut streamed) = (String::new(), String::new());
    let events = stream(&fake, CHAT).await;
    assert_eq!(events.last().unwrap().1, "[DONE]");
    for (_, data) in &events[..events.len() - 1] {
        let data: Value = serde_json::from_str(data).unwrap();
        let delta = &data["choices"][0]["delta"];
        text += delta["content"].as_str().unwrap_or_default();
        let part = &delta["tool_calls"][0]["function"]["arguments"];
        streamed += part.as_str().unwrap_or_default();
    }
    assert_eq!((text.as_str(), streamed.as_str()), ("I shall look it up.", arguments));

    let (_, responses) = ask(&fake, RESPONSES, asked.clone()).await;
    assert_eq!(responses["output"][1]["arguments"], arguments);
    let events = stream(&fake, RESPONSES).await;
    let (name, last) = events.last().unwrap();
    assert_eq!(name.as_deref(), Some("response.completed"));
    let last: Value = serde_json::from_str(last).unwrap();
    assert_eq!(last["sequence_number"], events.len() - 1);
    assert_eq!(last["response"]["output"][0]["content"], responses["output"][0]["content"]);

    let (_, message) = ask(&fake, MESSAGES, asked).await;
    assert_eq!(message["content"][1]["input"]["url"], "https://example.com/päge");
    let input: String = stream(&fake, MESSAGES)
        .await
        .iter()
        .map(|(_, data)| serde_json::from_str::<Value>(data).unwrap())
        .map(|data| data["delta"]["partial_json"].as_str().unwrap_or_default().to_owned())
        .collect();
    assert_eq!(input, arguments);
    assert!(fake.requests().iter().all(|asked| asked.state == Ended::Whole));
}

#[tokio::test]
async fn a_stream_stands_still_goes_on_and_knows_when_its_client_left() {
    let held = json!({"text": "one two three", "hold_after": 2});
    let fake = fake(json!({"answers": [held, held]})).await;
    let body = json!({"stream": true});
    let open = async || {
        let response =
            client().post(format!("{}{MESSAGES}", fake.url())).json(&body).send().await.unwrap();
        assert!(response.status().is_success());
        response
    };
    let first = open().await;
    assert_eq!(fake.until(0, Ended::Held).await.unwrap().pieces, 2);
    fake.go_on();
    assert!(first.text().await.unwrap().contains("three"));
    assert_eq!(fake.until(0, Ended::Whole).await.unwrap().pieces, 3);

    let second = open().await;
    fake.until(1, Ended::Held).await.unwrap();
    drop(second);
    assert_eq!(fake.until(1, Ended::ClientLeft).await.unwrap().pieces, 2);
}

#[tokio::test]
async fn a_client_that_leaves_before_the_answer_begins_is_seen() {
    let fake = fake(json!({"answers": [{"text": "late", "hold_after": 0}]})).await;
    let asking = client().post(format!("{}{CHAT}", fake.url())).json(&json!({})).send();
    let left = async {
        fake.until(0, Ended::Held).await.unwrap();
    };
    tokio::select! {
        _ = asking => unreachable!("it stands still"),
        () = left => {}
    }
    fake.until(0, Ended::ClientLeft).await.unwrap();
}

#[tokio::test]
async fn answers_are_given_to_those_that_they_are_for() {
    let fake = fake(json!({"answers": [
        {"for": "sub-agent", "text": "two"}, {"text": "one"}, {"status": 503},
    ]}))
    .await;
    let text = |message: &Value| message["content"][0]["text"].clone();
    let (_, first) = ask(&fake, MESSAGES, json!({"system": "main"})).await;
    let (_, second) = ask(&fake, MESSAGES, json!({"system": "sub-agent"})).await;
    assert_eq!((text(&first), text(&second)), (json!("one"), json!("two")));
    let (status, _) = ask(&fake, MESSAGES, json!({})).await;
    assert_eq!(status, 503);
    let (status, over) = ask(&fake, MESSAGES, json!({})).await;
    assert_eq!(status, 400);
    assert_eq!(over["error"]["message"], "the script has no answer for call 3");
    let states: Vec<Ended> = fake.requests().iter().map(|asked| asked.state).collect();
    assert_eq!(states, [Ended::Whole, Ended::Whole, Ended::Refused, Ended::Refused]);
}

#[tokio::test]
async fn a_runaway_agents_model_says_the_same_for_ever() {
    let script = json!({"answers": [{"text": "again"}], "when_over": "repeat_last"});
    let fake = fake(script).await;
    for _ in 0..20 {
        let (_, chat) = ask(&fake, CHAT, json!({})).await;
        assert_eq!(chat["choices"][0]["message"]["content"], "again");
    }
    assert_eq!(fake.requests().len(), 20);
}

#[tokio::test]
async fn a_script_is_changed_and_what_is_none_is_refused() {
    let fake = fake(json!({"answers": []})).await;
    let put = async |script: &str| {
        let put = client().put(format!("{}/_/script", fake.url()));
        put.body(script.to_owned()).send().await.unwrap().status().as_u16()
    };
    assert_eq!(put(r#"{"answers": [{"txt": "typo"}]}"#).await, 400);
    let (status, _) = ask(&fake, CHAT, json!({})).await;
    assert_eq!(status, 400);
    assert_eq!(put(r#"{"answers": [{"text": "new"}]}"#).await, 200);
    assert!(fake.requests().is_empty());
    let (status, _) = ask(&fake, CHAT, json!({})).await;
    assert_eq!(status, 200);
}
