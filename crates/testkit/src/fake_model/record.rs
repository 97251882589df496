//! What was asked, how each answer ended, and the script that is left.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::watch;

use super::script::{Answer, Script, WhenOver};

/// How long a test waits for a call's state.
const WAIT_MAX: Duration = Duration::from_secs(10);
/// Most calls that are kept; more are refused.
const CALLS_MAX: usize = 10_000;

/// A call of the model.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Asked {
    /// Its number, from 0.
    pub call: usize,
    /// The path, which tells the shape.
    pub path: &'static str,
    /// Whether a stream was asked for.
    pub stream: bool,
    /// The request.
    pub body: Value,
    /// Pieces of the answer that were handed over.
    pub pieces: usize,
    /// How the answer stands.
    pub state: Ended,
}

/// How an answer stands or ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ended {
    /// It is being given.
    Answering,
    /// It stands still, as its script says.
    Held,
    /// It was given whole.
    Whole,
    /// The client closed the connection before that.
    ClientLeft,
    /// There was no answer for it, or an error was scripted.
    Refused,
}

impl Ended {
    /// The state's word, as in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Answering => "answering",
            Self::Held => "held",
            Self::Whole => "whole",
            Self::ClientLeft => "client_left",
            Self::Refused => "refused",
        }
    }
}

#[derive(Debug)]
pub(crate) struct Record {
    inner: Mutex<Inner>,
    /// Counts the changes.
    changed: watch::Sender<u64>,
    /// Counts how often those that stand still were told to go on.
    going_on: watch::Sender<u64>,
}

#[derive(Debug)]
struct Inner {
    /// Counts the scripts: what belongs to an earlier one is not written down any more.
    script: u64,
    answers: Vec<Answer>,
    last: Option<Answer>,
    asked: Vec<Asked>,
}

impl Inner {
    fn new(script: u64, Script { answers, when_over }: Script) -> Self {
        let last = answers.last().filter(|_| when_over == WhenOver::RepeatLast).cloned();
        Self { script, answers, last, asked: Vec::new() }
    }

    /// Takes the answer for a request of this text.
    fn take(&mut self, request: &str) -> Option<Answer> {
        let is_for = |answer: &Answer| {
            answer.for_text.as_ref().is_none_or(|text| request.contains(text.as_str()))
        };
        match self.answers.iter().position(is_for) {
            Some(place) => Some(self.answers.remove(place)),
            None => self.last.clone(),
        }
    }
}

impl Record {
    pub(crate) fn new(script: Script) -> Self {
        Self {
            inner: Mutex::new(Inner::new(0, script)),
            changed: watch::Sender::new(0),
            going_on: watch::Sender::new(0),
        }
    }

    pub(crate) fn begin_anew(&self, script: Script) {
        {
            let mut inner = self.lock();
            *inner = Inner::new(inner.script + 1, script);
        }
        self.go_on();
        self.say_changed();
    }

    pub(crate) fn all(&self) -> Vec<Asked> {
        self.lock().asked.clone()
    }

    pub(crate) fn go_on(&self) {
        self.going_on.send_modify(|count| *count += 1);
    }

    pub(crate) async fn until(&self, call: usize, state: Ended) -> Option<Asked> {
        let mut changed = self.changed.subscribe();
        let wait = async {
            loop {
                changed.borrow_and_update();
                let asked = self.lock().asked.get(call).cloned();
                match asked {
                    Some(asked) if asked.state == state => return asked,
                    // The sender lives in `self`.
                    _ => drop(changed.changed().await),
                }
            }
        };
        tokio::time::timeout(WAIT_MAX, wait).await.ok()
    }

    /// Writes a call down and takes its answer; `None` for the answer when there is none.
    pub(crate) fn ask(
        self: &Arc<Self>,
        path: &'static str,
        stream: bool,
        body: Value,
        text: &str,
    ) -> (Call, Option<Answer>) {
        let (call, answer) = {
            let mut inner = self.lock();
            let answer = (inner.asked.len() < CALLS_MAX).then(|| inner.take(text)).flatten();
            let number = inner.asked.len();
            let state = Ended::Answering;
            inner.asked.push(Asked { call: number, path, stream, body, pieces: 0, state });
            let call = Call { record: Arc::clone(self), script: inner.script, number, over: false };
            (call, answer)
        };
        self.say_changed();
        (call, answer)
    }

    fn say_changed(&self) {
        self.changed.send_modify(|count| *count += 1);
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Each change is whole before anything that could panic.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A call that is being answered. Dropped before [`Call::over`], its client has left.
#[derive(Debug)]
pub(crate) struct Call {
    record: Arc<Record>,
    script: u64,
    pub(crate) number: usize,
    over: bool,
}

impl Call {
    pub(crate) fn piece(&self) {
        self.note(|asked| asked.pieces += 1);
    }

    /// Stands still until it is told to go on.
    pub(crate) async fn hold(&self) {
        let mut going_on = self.record.going_on.subscribe();
        self.note(|asked| asked.state = Ended::Held);
        // The sender lives in the record.
        drop(going_on.changed().await);
        self.note(|asked| asked.state = Ended::Answering);
    }

    pub(crate) fn over(mut self, state: Ended) {
        self.over = true;
        self.note(|asked| asked.state = state);
    }

    fn note(&self, change: impl FnOnce(&mut Asked)) {
        {
            let mut inner = self.record.lock();
            if inner.script != self.script {
                return;
            }
            if let Some(asked) = inner.asked.get_mut(self.number) {
                change(asked);
            }
        }
        self.record.say_changed();
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        if !self.over {
            self.note(|asked| asked.state = Ended::ClientLeft);
        }
    }
}
