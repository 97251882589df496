//! Pub/sub of Redis, over RESP3, so that a subscriber can answer on its own connection.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use super::{ANSWERS, CHANNEL, Heard, Inbox, Speaker};

pub(super) struct Redis {
    answer: Vec<u8>,
}

impl Redis {
    pub(super) fn new(answer: bool) -> Self {
        Self { answer: if answer { command(&["INCR", ANSWERS]) } else { Vec::new() } }
    }
}

/// A command as Redis reads it.
pub(in super::super) fn command(words: &[&str]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", words.len()).into_bytes();
    for word in words {
        bytes.extend(format!("${}\r\n{word}\r\n", word.len()).into_bytes());
    }
    bytes
}

impl Speaker for Redis {
    fn open(&mut self, _subscriber: usize) -> Vec<u8> {
        // Pushed messages come all the same; the answers' own answers would cost it for nothing.
        let mut words = command(&["HELLO", "3"]);
        words.extend(command(&["CLIENT", "REPLY", "OFF"]));
        words.extend(command(&["SUBSCRIBE", CHANNEL]));
        words
    }

    fn take(&mut self, inbox: &mut Inbox, answer: &mut Vec<u8>) -> Result<Option<Heard>> {
        let Some(value) = whole(&inbox.bytes)? else { return Ok(None) };
        let message = inbox.bytes.get(..value).unwrap_or_default();
        let heard = if message.starts_with(b">3\r\n$7\r\nmessage\r\n") {
            answer.extend_from_slice(&self.answer);
            // What was published is its own name: `NUMBER ...`.
            let text = String::from_utf8_lossy(message);
            let body = text.split("\r\n").nth(6).context("a message without a body")?;
            Heard::Told(body.split(' ').next().unwrap_or_default().to_owned())
        } else if message.starts_with(b">3\r\n$9\r\nsubscribe\r\n") {
            Heard::Subscribed
        } else if message.starts_with(b"-") {
            bail!("redis refuses: {}", String::from_utf8_lossy(message).escape_debug());
        } else {
            Heard::Other
        };
        inbox.bytes.drain(..value);
        Ok(Some(heard))
    }

    fn every(&self) -> Option<Duration> {
        None
    }

    fn beat(&mut self) -> Vec<u8> {
        Vec::new()
    }
}

/// The length of the first whole value (RESP3).
fn whole(bytes: &[u8]) -> Result<Option<usize>> {
    let mut at = 0;
    let mut values = 1_usize;
    while values > 0 {
        let rest = bytes.get(at..).unwrap_or_default();
        let Some(end) = rest.windows(2).position(|two| two == b"\r\n") else { return Ok(None) };
        let line = std::str::from_utf8(rest.get(..end).unwrap_or_default())?;
        at += end + 2;
        values -= 1;
        let (kind, number) = line.split_at_checked(1).context("an empty line")?;
        match kind {
            "$" | "=" => at += number.parse::<usize>().map_or(0, |length| length + 2),
            "*" | ">" | "~" => values += number.parse::<usize>().unwrap_or(0),
            "%" => values += 2 * number.parse::<usize>()?,
            "+" | "-" | ":" | "_" | "#" | "," => {}
            other => bail!("redis says {other:?}"),
        }
        if at > bytes.len() {
            return Ok(None);
        }
    }
    Ok(Some(at))
}
