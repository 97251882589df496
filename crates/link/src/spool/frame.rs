//! How one event lies in a segment.
//!
//! `FF | length u32 | number u64 | time i64 | CRC32C u32 | JSON`, little-endian; the checksum covers
//! all but the mark and itself. JSON is UTF-8 and so never holds the byte `FF`: an event's own text
//! cannot pass for the start of a frame, and a reader that meets damage goes on at the next mark
//! from which a frame with a right checksum follows.

use estoppel_model::{EVENT_BYTES_MAX, Timestamp};

use super::Line;

const MARK: u8 = 0xff;
const HEADER_BYTES: usize = 25;
const CHECKED_BYTES: std::ops::Range<usize> = 1..21;

/// An intact event.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Frame<'a> {
    pub(super) number: u64,
    pub(super) at: Timestamp,
    pub(super) json: &'a str,
}

/// Bytes that the frame of an event takes.
pub(super) const fn bytes(line: &Line) -> u64 {
    (HEADER_BYTES + line.json.len()) as u64
}

/// Appends the frame of an event.
pub(super) fn write(out: &mut Vec<u8>, number: u64, line: &Line) {
    let start = out.len();
    // Longer events were refused long before.
    let length = u32::try_from(line.json.len()).unwrap_or(u32::MAX);
    out.push(MARK);
    out.extend_from_slice(&length.to_le_bytes());
    out.extend_from_slice(&number.to_le_bytes());
    out.extend_from_slice(&line.at.as_micros().to_le_bytes());
    let checksum = checksum(&out[start + CHECKED_BYTES.start..], line.json.as_bytes());
    out.extend_from_slice(&checksum.to_le_bytes());
    out.extend_from_slice(line.json.as_bytes());
}

fn checksum(header: &[u8], json: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(header), json)
}

/// The intact frames of a segment, in order, damage skipped.
#[derive(Debug)]
pub(super) struct Frames<'a> {
    content: &'a [u8],
    at_byte: usize,
    skipped: bool,
}

impl<'a> Frames<'a> {
    /// Reads `content` from `at_byte` on.
    pub(super) const fn new(content: &'a [u8], at_byte: usize) -> Self {
        Self { content, at_byte, skipped: false }
    }

    /// Where reading stands: behind the last frame, at the very end once all is read.
    pub(super) const fn at_byte(&self) -> usize {
        self.at_byte
    }

    /// Whether damage follows the last intact frame, once all is read.
    pub(super) const fn end_damaged(&self) -> bool {
        self.skipped
    }
}

impl<'a> Iterator for Frames<'a> {
    type Item = Frame<'a>;

    fn next(&mut self) -> Option<Frame<'a>> {
        self.skipped = false;
        while self.at_byte < self.content.len() {
            let rest = &self.content[self.at_byte..];
            if let Some((frame, bytes)) = read(rest) {
                self.at_byte += bytes;
                return Some(frame);
            }
            self.skipped = true;
            let next = rest[1..].iter().position(|byte| *byte == MARK);
            self.at_byte += next.map_or(rest.len(), |next| next + 1);
        }
        None
    }
}

/// Reads the frame that starts here, and its length.
fn read(bytes: &[u8]) -> Option<(Frame<'_>, usize)> {
    let (header, rest) = bytes.split_first_chunk::<HEADER_BYTES>()?;
    let length = u32::from_le_bytes(*header[1..5].first_chunk()?) as usize;
    if header[0] != MARK || length > EVENT_BYTES_MAX {
        return None;
    }
    let json = rest.get(..length)?;
    let expected = u32::from_le_bytes(*header[21..].first_chunk()?);
    if checksum(&header[CHECKED_BYTES], json) != expected {
        return None;
    }
    let frame = Frame {
        number: u64::from_le_bytes(*header[5..13].first_chunk()?),
        at: Timestamp::from_micros(i64::from_le_bytes(*header[13..21].first_chunk()?)),
        json: std::str::from_utf8(json).ok()?,
    };
    Some((frame, HEADER_BYTES + length))
}
