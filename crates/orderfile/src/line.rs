//! A line: eight hex digits of CRC-32C, a space, one JSON text, a line feed.

use serde::{Serialize, de::DeserializeOwned};

/// Length of the sum and of the space behind it.
const SUM_BYTES: usize = 9;
/// Most places at which lines are looked for in one that is damaged.
const BEGINS_MAX: usize = 64;

/// Returns the line of a thing. JSON holds no raw line feed, so that lines can be told apart.
pub(crate) fn encode(thing: &impl Serialize) -> Result<String, serde_json::Error> {
    let json = serde_json::to_string(thing)?;
    Ok(format!("{:08x} {json}\n", crc32c::crc32c(json.as_bytes())))
}

/// Reads a line without its line feed; `None` when it is damaged or something else.
pub(crate) fn decode<T: DeserializeOwned>(line: &[u8]) -> Option<T> {
    let (sum, json) = line.split_at_checked(SUM_BYTES)?;
    // Compared as text: a number can be written in many ways, and each byte must count.
    (sum == format!("{:08x} ", crc32c::crc32c(json)).as_bytes()).then_some(())?;
    serde_json::from_slice(json).ok()
}

/// Where lines may begin in a line that is damaged: its own begin, and where its line feed may have
/// become another byte. Of more than 64 the first.
///
/// The JSON of a line holds no such place: a brace that begins it is followed by a quotation mark,
/// which inside of a text stands behind a backslash.
pub(crate) fn begins(damaged: &[u8]) -> Vec<usize> {
    let begins_at = |at: &usize| {
        damaged.get(*at..*at + SUM_BYTES + 2).is_some_and(|begin| {
            let (sum, json) = begin.split_at(SUM_BYTES);
            let hex = |byte: &u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
            sum[..SUM_BYTES - 1].iter().all(hex) && sum.ends_with(b" ") && json == b"{\""
        })
    };
    std::iter::once(0).chain((1..damaged.len()).filter(begins_at)).take(BEGINS_MAX).collect()
}
