//! The stage of the runaway: a model that bills each call, a mail server one of whose boxes is full,
//! and a pager. Plain threads and sockets on loopback; each counts what really arrives.

use std::{
    net::{SocketAddr, TcpListener},
    sync::{Arc, Mutex},
};

use estoppel_model::{Clock as _, SystemClock, Timestamp};
use serde::Serialize;
use serde_json::json;

use super::stage::{Delivered, lock, request, respond, serve};

/// The names under which the agent knows the services.
pub(super) const MODEL_NAME: &str = "model.example";
pub(super) const MAIL_NAME: &str = "mail.example";
/// What one call of the model costs, in US dollars: a quarter is exact in binary, and so is any sum.
const CALL_USD: f64 = 0.25;
const INPUT_TOKENS: u64 = 1_200;
const OUTPUT_TOKENS: u64 = 300;
/// Whoever is mailed at this box is not.
const FULL: &str = "full@example.com";

/// What the services were asked for, by their own count.
#[derive(Debug, Clone, Default, Serialize)]
pub(super) struct Bill {
    /// Calls of the model.
    pub calls: u64,
    /// Tokens in and out.
    pub tokens: u64,
    /// What they cost, in US dollars.
    pub cost_usd: f64,
    /// Letters that were delivered.
    pub mails_sent: u64,
    /// Letters that were not.
    pub mails_refused: u64,
    /// When the first letter was refused: that is where the retries begin.
    pub first_refused_at: Option<Timestamp>,
    /// When the model was called last.
    pub last_call_at: Option<Timestamp>,
}

/// The three servers, as long as the process lives.
#[derive(Debug)]
pub(super) struct Services {
    pub model: SocketAddr,
    pub mail: SocketAddr,
    pub pager: SocketAddr,
    bill: Arc<Mutex<Bill>>,
    pages: Arc<Mutex<Vec<Delivered>>>,
}

impl Services {
    /// Opens the servers on free ports of loopback.
    pub(super) fn open() -> std::io::Result<Self> {
        let listen = || TcpListener::bind(("127.0.0.1", 0));
        let (model, mail, pager) = (listen()?, listen()?, listen()?);
        let bill = Arc::new(Mutex::new(Bill::default()));
        let pages = Arc::new(Mutex::new(Vec::new()));
        let services = Self {
            model: model.local_addr()?,
            mail: mail.local_addr()?,
            pager: pager.local_addr()?,
            bill: Arc::clone(&bill),
            pages: Arc::clone(&pages),
        };
        let of_mail = Arc::clone(&bill);
        serve(model, move |stream| {
            request(&stream)?;
            {
                let mut bill = lock(&bill);
                bill.calls += 1;
                bill.tokens += INPUT_TOKENS + OUTPUT_TOKENS;
                bill.cost_usd += CALL_USD;
                bill.last_call_at = Some(SystemClock.now());
            }
            let answer = json!({
                "model": "demo-1",
                "text": "Dear reader, here is the news.",
                "input_tokens": INPUT_TOKENS,
                "output_tokens": OUTPUT_TOKENS,
                "cost_usd": CALL_USD,
            });
            respond(stream, "200 OK", "application/json", &answer.to_string())
        });
        serve(mail, move |stream| {
            let letter = request(&stream)?;
            if letter.contains(FULL) {
                {
                    let mut bill = lock(&of_mail);
                    bill.mails_refused += 1;
                    bill.first_refused_at.get_or_insert(SystemClock.now());
                }
                return respond(stream, "503 Mailbox Full", "application/json", "{}");
            }
            lock(&of_mail).mails_sent += 1;
            respond(stream, "200 OK", "application/json", r#"{"sent":true}"#)
        });
        serve(pager, move |stream| {
            let body = request(&stream)?;
            lock(&pages).push(Delivered { at: SystemClock.now(), body });
            respond(stream, "202 Accepted", "application/json", "{}")
        });
        Ok(services)
    }

    pub(super) fn bill(&self) -> Bill {
        lock(&self.bill).clone()
    }

    pub(super) fn pages(&self) -> Vec<Delivered> {
        lock(&self.pages).clone()
    }
}
