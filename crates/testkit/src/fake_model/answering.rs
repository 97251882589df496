//! From a request to its answer, at the script's pace.

use std::{collections::VecDeque, convert::Infallible, sync::Arc, time::Duration};

use axum::{
    Json,
    body::Body,
    http::{StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse as _, Response},
};
use futures_util::stream::unfold;
use serde_json::Value;

use super::{
    dialect::{Dialect, Frame},
    record::{Call, Ended, Record},
    script::Answer,
};

pub(super) async fn answer(record: &Arc<Record>, dialect: Dialect, text: &str) -> Response {
    let error =
        |status: StatusCode, message: &str| (status, Json(dialect.error(message))).into_response();
    let Ok(body) = serde_json::from_str::<Value>(text) else {
        return error(StatusCode::BAD_REQUEST, "the body is not JSON");
    };
    let stream = body["stream"] == true;
    let (call, answer) = record.ask(dialect.path(), stream, body.clone(), text);
    let number = call.number;
    let Some(answer) = answer else {
        call.over(Ended::Refused);
        let message = format!("the script has no answer for call {number}");
        return error(StatusCode::BAD_REQUEST, &message);
    };
    if let Some(status) = answer.status {
        call.over(Ended::Refused);
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        return error(status, "as the script says");
    }
    let shaped = dialect.shape(&answer, &body, number);
    if stream {
        let pace = Pace { frames: shaped.frames.into(), pieces: 0, held: false, answer, call };
        let body = Body::from_stream(unfold(pace, Pace::next));
        return ([(CONTENT_TYPE, "text/event-stream")], body).into_response();
    }
    if answer.hold_after.is_some() {
        call.hold().await;
    }
    tokio::time::sleep(Duration::from_millis(answer.pause_ms)).await;
    call.over(Ended::Whole);
    Json(shaped.whole).into_response()
}

/// A stream that is under way. Dropped before its end, its client has left.
struct Pace {
    frames: VecDeque<Frame>,
    pieces: usize,
    held: bool,
    answer: Answer,
    call: Call,
}

impl Pace {
    async fn next(mut self) -> Option<(Result<String, Infallible>, Self)> {
        if !self.held && self.answer.hold_after == Some(self.pieces) {
            self.held = true;
            self.call.hold().await;
        }
        let Some(frame) = self.frames.pop_front() else {
            self.call.over(Ended::Whole);
            return None;
        };
        if frame.is_piece {
            tokio::time::sleep(Duration::from_millis(self.answer.pause_ms)).await;
            self.pieces += 1;
            self.call.piece();
        }
        Some((Ok(frame.text()), self))
    }
}
