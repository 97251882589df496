//! What secrets look like, in bytes.

use std::ops::Range;

use super::Rule;

/// A word anywhere in a name makes it secret.
const WITHIN: &[&str] = &[
    "TOKEN",
    "SECRET",
    "PASSWORD",
    "PASSWD",
    "PASSPHRASE",
    "CREDENTIAL",
    "COOKIE",
    "APIKEY",
    "AUTHORIZATION",
    "PRIVATE",
];
/// A whole word of a name makes it secret.
const WORDS: &[&str] = &[
    "KEY",
    "KEYS",
    "AUTH",
    "PASS",
    "PWD",
    "CREDS",
    "CRED",
    "DSN",
    "JWT",
    "PAT",
    "SAS",
    "OTP",
    "BEARER",
    "SIGNATURE",
    "SESSIONID",
];
/// Names that would match and hold no secret.
const HARMLESS: &[&str] = &["PWD", "OLDPWD", "XAUTHORITY"];

/// Prefixes of issuers' tokens, and how many token characters follow at least.
const PREFIXES: &[(&str, usize)] = &[
    ("sk-", 16),
    ("sk_", 16),
    ("rk_", 16),
    ("whsec_", 16), // OpenAI, Anthropic, Stripe
    ("AKIA", 12),
    ("ASIA", 12), // AWS
    ("ghp_", 16),
    ("gho_", 16),
    ("ghu_", 16),
    ("ghs_", 16),
    ("ghr_", 16),
    ("github_pat_", 16),
    ("glpat-", 16),
    ("gldt-", 16), // GitLab
    ("xoxb-", 10),
    ("xoxp-", 10),
    ("xoxa-", 10),
    ("xoxr-", 10),
    ("xoxs-", 10),
    ("xapp-", 10),
    ("npm_", 20),
    ("pypi-", 20),
    ("dckr_pat_", 16),
    ("hf_", 20),
    ("gsk_", 20),
    ("xai-", 20),
    ("AIza", 20),
    ("ya29.", 16),
    ("SG.", 20),
    ("dop_v1_", 20),
    ("shpat_", 16),
    ("lin_api_", 16),
    ("hvs.", 16),
    ("hvb.", 16),
    ("AGE-SECRET-KEY-1", 16),
    ("PMAK-", 16),
    ("egw1.", 16),
];

const JWT_BYTES_MIN: usize = 20;
const AUTHORIZATION_BYTES_MIN: usize = 6;

/// Whether a name says that it holds a secret: `OPENAI_API_KEY`, `dbPassword`, `x-auth`.
pub(super) fn secret_name(name: &[u8]) -> bool {
    let upper = name.to_ascii_uppercase();
    if HARMLESS.iter().any(|harmless| upper == harmless.as_bytes()) {
        return false;
    }
    WITHIN.iter().any(|word| find(&upper, word.as_bytes(), 0).is_some())
        || words(name).any(|word| {
            let word = word.to_ascii_uppercase();
            WORDS.iter().any(|secret| word == secret.as_bytes()) || word.ends_with(b"KEY")
        })
}

/// The words of `SOME_NAME`, `some-name` and `someName`.
fn words(name: &[u8]) -> impl Iterator<Item = &[u8]> {
    name.split(|byte| !byte.is_ascii_alphanumeric()).flat_map(|part| {
        let mut rest = part;
        std::iter::from_fn(move || {
            if rest.is_empty() {
                return None;
            }
            let end = rest
                .windows(2)
                .position(|pair| pair[0].is_ascii_lowercase() && pair[1].is_ascii_uppercase())
                .map_or(rest.len(), |at| at + 1);
            let (word, tail) = rest.split_at(end);
            rest = tail;
            Some(word)
        })
    })
}

/// The secrets in a text by their shape: in order, none empty, none overlapping another.
pub(super) fn secrets(text: &[u8]) -> Vec<(Range<usize>, Rule)> {
    let mut found = Vec::new();
    pem(text, &mut found);
    userinfo(text, &mut found);
    tokens(text, &mut found);
    authorization(text, &mut found);
    assignments(text, &mut found);
    found.sort_by_key(|(span, rule)| (span.start, *rule));
    let mut merged: Vec<(Range<usize>, Rule)> = Vec::new();
    for (span, rule) in found {
        match merged.last_mut() {
            Some((last, _)) if span.start < last.end => last.end = last.end.max(span.end),
            _ => merged.push((span, rule)),
        }
    }
    merged
}

fn pem(text: &[u8], found: &mut Vec<(Range<usize>, Rule)>) {
    let mut from = 0;
    while let Some(start) = find(text, b"-----BEGIN ", from) {
        // Without an end the block goes to the end of the text: it may have been cut.
        let end = find(text, b"-----END ", start)
            .and_then(|at| find(text, b"-----", at + 9))
            .map_or(text.len(), |at| at + 5);
        found.push((start..end, Rule::Pem));
        from = end;
    }
}

/// `scheme://user:password@host`: what is before the last `@` of the URL. A password may hold a raw
/// `/` or `@`; then more goes than must.
fn userinfo(text: &[u8], found: &mut Vec<(Range<usize>, Rule)>) {
    let mut from = 0;
    while let Some(at) = find(text, b"://", from) {
        let start = at + 3;
        let ends = |byte: &u8| byte.is_ascii_whitespace() || b"\"'`<>|".contains(byte);
        let url = until(text, start, ends);
        let authority = until(&text[..url], start, |byte| b"/?#".contains(byte));
        let port = text[start..authority].iter().rposition(|byte| *byte == b':');
        let no_port = port.is_some_and(|colon| {
            !text[start + colon + 1..authority].iter().all(u8::is_ascii_digit)
        });
        let bracketed = text.get(start) == Some(&b'[');
        if (text[start..authority].contains(&b'@') || (no_port && !bracketed))
            && let Some(last) = text[start..url].iter().rposition(|byte| *byte == b'@')
            && last > 0
        {
            found.push((start..start + last, Rule::Userinfo));
        }
        from = start;
    }
}

/// Tokens of known issuers, and JSON web tokens.
fn tokens(text: &[u8], found: &mut Vec<(Range<usize>, Rule)>) {
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
    let mut start = 0;
    while start < text.len() {
        if !is_token(text[start]) || (start > 0 && text[start - 1].is_ascii_alphanumeric()) {
            start += 1;
            continue;
        }
        let end = until(text, start, |byte| !is_token(*byte) && !b".+/=".contains(byte));
        let run = &text[start..end];
        if run.starts_with(b"eyJ")
            && run.len() >= JWT_BYTES_MIN
            && run.iter().filter(|byte| **byte == b'.').count() >= 2
        {
            found.push((start..end, Rule::Jwt));
            start = end;
        } else if PREFIXES.iter().any(|(prefix, least)| {
            run.strip_prefix(prefix.as_bytes()).is_some_and(|rest| {
                rest.iter().take_while(|byte| is_token(**byte)).count() >= *least
            })
        }) {
            found.push((start..end, Rule::Token));
            start = end;
        } else {
            start += 1;
        }
    }
}

/// `Bearer TOKEN` and `Basic BASE64`.
fn authorization(text: &[u8], found: &mut Vec<(Range<usize>, Rule)>) {
    let lower = text.to_ascii_lowercase();
    for scheme in ["bearer ", "basic "] {
        let mut from = 0;
        while let Some(at) = find(&lower, scheme.as_bytes(), from) {
            from = at + scheme.len();
            if at > 0 && text[at - 1].is_ascii_alphanumeric() {
                continue;
            }
            let end =
                until(text, from, |byte| byte.is_ascii_whitespace() || b"\"'`;,)".contains(byte));
            if end - from >= AUTHORIZATION_BYTES_MIN {
                found.push((from..end, Rule::Authorization));
            }
        }
    }
}

/// `NAME=value`, `--name=value`, `"name": "value"`, `Name: value` with a name that is secret.
fn assignments(text: &[u8], found: &mut Vec<(Range<usize>, Rule)>) {
    let in_name = |byte: &u8| byte.is_ascii_alphanumeric() || b"_-.".contains(byte);
    let mut start = 0;
    while start < text.len() {
        let end = until(text, start, |byte| !in_name(byte));
        if end == start {
            start += 1;
            continue;
        }
        if let Some(value) = value_of(text, end).filter(|_| secret_name(&text[start..end])) {
            if !value.is_empty() {
                found.push((value.clone(), Rule::Assignment));
            }
            start = value.end.max(end);
        } else {
            start = end;
        }
    }
}

/// The value assigned to the name that ends at `at`, if one is.
fn value_of(text: &[u8], at: usize) -> Option<Range<usize>> {
    let quote = |byte: &u8| b"\"'".contains(byte);
    let skip = |from: usize, what: &dyn Fn(&u8) -> bool| until(text, from, |byte| !what(byte));
    // `"name\": ` within a quoted text has its quotes escaped.
    let name_end = skip(at, &|byte| quote(byte) || *byte == b'\\');
    let quoted = name_end > at;
    let sign = skip(name_end, &|byte| quoted && *byte == b' ');
    let after = sign + 1;
    let header = match text.get(sign)? {
        b'=' => false,
        // `KEY:value` without a space is more often a path or a host than an assignment.
        b':' if quoted => false,
        b':' if text.get(after) == Some(&b' ') => true,
        _ => return None,
    };
    let open = skip(after, &|byte| *byte == b' ' && !(sign == name_end && text[sign] == b'='));
    let start = skip(open, &|byte| quote(byte) || *byte == b'\\');
    let end = if start > open {
        let mark = text[start - 1];
        until(text, start, |byte| *byte == mark || *byte == b'\\')
    } else if header {
        until(text, start, |byte| quote(byte) || *byte == b'\n')
    } else {
        until(text, start, |byte| {
            byte.is_ascii_whitespace() || quote(byte) || b";&,`}".contains(byte)
        })
    };
    Some(start..end)
}

/// The first place from `from` on where `stop` holds, or the end.
fn until(text: &[u8], from: usize, stop: impl Fn(&u8) -> bool) -> usize {
    text[from..].iter().position(stop).map_or(text.len(), |at| from + at)
}

fn find(text: &[u8], needle: &[u8], from: usize) -> Option<usize> {
    text.get(from..)?.windows(needle.len()).position(|window| window == needle).map(|at| from + at)
}
