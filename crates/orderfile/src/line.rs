//! A line: eight hex digits of CRC-32C, a space, one JSON text, a line feed.

use serde::{Serialize, de::DeserializeOwned};

/// Returns the line of a thing. JSON holds no raw line feed, so that lines can be told apart.
pub(crate) fn encode(thing: &impl Serialize) -> Result<String, serde_json::Error> {
    let json = serde_json::to_string(thing)?;
    Ok(format!("{:08x} {json}\n", crc32c::crc32c(json.as_bytes())))
}

/// Reads a line without its line feed; `None` when it is damaged or something else.
pub(crate) fn decode<T: DeserializeOwned>(line: &[u8]) -> Option<T> {
    let (sum, json) = line.split_at_checked(9)?;
    let sum = std::str::from_utf8(sum.strip_suffix(b" ")?).ok()?;
    (u32::from_str_radix(sum, 16).ok()? == crc32c::crc32c(json)).then_some(())?;
    serde_json::from_slice(json).ok()
}
