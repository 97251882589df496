//! The write-ahead log: what is in it is acknowledged, until it is sealed.
//!
//! A segment is a file `FIRST_SEQ.wal` of frames, preallocated, so zeros follow the last frame. One
//! frame is one group of events that was made durable by one sync, so at most the last frame can be
//! torn by a crash: a bad frame with a good one behind it was acknowledged, and is damage that has
//! to be told. Integers are little-endian:
//!
//! ```text
//! frame  = FF 45 57 01 | u32 bytes of records | u64 first seq | u32 count | u32 CRC32C | record*
//! record = u32 bytes of event | u32 CRC32C | event
//! ```
//!
//! A frame's checksum covers its header before it and its records. A record's covers its sequence
//! number (`u64`) and its event, so that the good events of a damaged frame can be told from the
//! bad. `FF` is in no UTF-8 text: an event cannot imitate the start of a frame with its own text.

pub(crate) mod recover;
pub(crate) mod writer;

use std::{ops::Range, path::PathBuf};

const MAGIC: [u8; 4] = [0xff, b'E', b'W', 1];
const FRAME_HEAD: usize = 24;
const RECORD_HEAD: usize = 8;

/// A part of the log that cannot be read back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// The file.
    pub file: PathBuf,
    /// Where in the file.
    pub bytes: Range<u64>,
    /// The sequence numbers that the part held; empty when nothing says how many.
    pub seqs: Range<u64>,
    /// How many of these events are lost; the others were read in spite of the damage.
    pub lost: u64,
    /// What it looks like.
    pub kind: DamageKind,
}

/// What damage looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DamageKind {
    /// The last group was not completely written: a crash before it was acknowledged.
    Torn,
    /// A group that was acknowledged has changed since.
    Corrupt,
    /// A file or part of one is gone: sequence numbers are missing.
    Missing,
}

/// One segment as a reader needs it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Segment {
    /// The first event's sequence number, which names the file.
    pub(crate) first_seq: u64,
    /// One more than the last event's.
    pub(crate) next_seq: u64,
    /// Length of the durable part.
    pub(crate) end: u64,
}

impl Segment {
    pub(crate) fn file_name(&self) -> String {
        file_name(self.first_seq)
    }
}

pub(crate) fn file_name(first_seq: u64) -> String {
    format!("{first_seq:020}.wal")
}

/// The bytes of a frame.
pub(crate) fn encode_frame<'a>(
    first_seq: u64,
    events: impl Iterator<Item = &'a [u8]>,
    out: &mut Vec<u8>,
) {
    out.clear();
    out.resize(FRAME_HEAD, 0);
    let mut count = 0_u32;
    for event in events {
        // Groups are bounded to a few megabytes, far below what 32 bits count.
        out.extend_from_slice(&u32::try_from(event.len()).unwrap_or(u32::MAX).to_le_bytes());
        out.extend_from_slice(&record_crc(first_seq + u64::from(count), event).to_le_bytes());
        out.extend_from_slice(event);
        count += 1;
    }
    let bytes = u32::try_from(out.len() - FRAME_HEAD).unwrap_or(u32::MAX);
    out[0..4].copy_from_slice(&MAGIC);
    out[4..8].copy_from_slice(&bytes.to_le_bytes());
    out[8..16].copy_from_slice(&first_seq.to_le_bytes());
    out[16..20].copy_from_slice(&count.to_le_bytes());
    let crc = frame_crc(&out[..FRAME_HEAD], &out[FRAME_HEAD..]);
    out[20..24].copy_from_slice(&crc.to_le_bytes());
}

fn frame_crc(head: &[u8], records: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&head[..20]), records)
}

fn record_crc(seq: u64, event: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&seq.to_le_bytes()), event)
}

/// A frame's header, and its records if they are all there.
struct Frame<'a> {
    first_seq: u64,
    count: u32,
    records: &'a [u8],
    intact: bool,
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn frame_at(bytes: &[u8]) -> Option<Frame<'_>> {
    let head = bytes.get(..FRAME_HEAD)?;
    if head[..4] != MAGIC {
        return None;
    }
    let length = usize::try_from(u32_at(head, 4)?).ok()?;
    let first_seq = u64::from_le_bytes(head.get(8..16)?.try_into().ok()?);
    let count = u32_at(head, 16)?;
    let rest = &bytes[FRAME_HEAD..];
    let records = &rest[..length.min(rest.len())];
    let intact = records.len() == length && u32_at(head, 20)? == frame_crc(head, records);
    Some(Frame { first_seq, count, records, intact })
}

/// The frame's events, each with whether it is good. Ends early where a length cannot be.
fn records<'a>(frame: &Frame<'a>) -> impl Iterator<Item = (u64, &'a [u8], bool)> + use<'a> {
    let (mut rest, first_seq) = (frame.records, frame.first_seq);
    (0..u64::from(frame.count)).map_while(move |index| {
        let length = usize::try_from(u32_at(rest, 0)?).ok()?;
        let crc = u32_at(rest, 4)?;
        let event = rest.get(RECORD_HEAD..RECORD_HEAD.checked_add(length)?)?;
        rest = &rest[RECORD_HEAD + length..];
        let seq = first_seq.checked_add(index)?;
        Some((seq, event, crc == record_crc(seq, event)))
    })
}

/// A damaged part of a scanned range.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Hole {
    pub(crate) bytes: Range<u64>,
    pub(crate) seqs: Range<u64>,
    pub(crate) lost: u64,
}

/// What a scan found besides the events.
#[derive(Debug, Default)]
pub(crate) struct Scanned {
    /// End of the last good frame.
    pub(crate) end: u64,
    /// The sequence number after the last good frame.
    pub(crate) next_seq: u64,
    /// Damage before `end`.
    pub(crate) holes: Vec<Hole>,
    /// Bytes behind `end` up to the last that is not zero: a group that was not acknowledged.
    pub(crate) tail: Range<u64>,
    /// Good events in that tail.
    pub(crate) tail_events: Vec<(u64, Vec<u8>)>,
}

/// Reads the frames in `bytes`, which start at `offset` of their file, and gives each good event to
/// `on_event` in order.
pub(crate) fn scan<'a>(
    bytes: &'a [u8],
    offset: u64,
    first_seq: u64,
    mut on_event: impl FnMut(u64, &'a [u8]),
) -> Scanned {
    let place = |at: usize| offset + at as u64;
    let mut scanned = Scanned { next_seq: first_seq, end: offset, ..Scanned::default() };
    let mut at = 0;
    while at < bytes.len() {
        let expected = scanned.next_seq;
        let good = |frame: &Frame<'_>| frame.intact && frame.first_seq >= expected;
        let Some((found, frame)) = next_frame(bytes, at, good) else {
            let used = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
            if used > at {
                scanned.tail = place(at)..place(used);
                salvage(&bytes[at..], expected, |seq, event| {
                    scanned.tail_events.push((seq, event.to_vec()));
                });
            }
            return scanned;
        };
        if found > at || frame.first_seq > expected {
            let mut lost = frame.first_seq - expected;
            salvage(&bytes[at..found], expected, |seq, event| {
                if seq < frame.first_seq {
                    lost -= 1;
                    on_event(seq, event);
                }
            });
            let seqs = expected..frame.first_seq;
            scanned.holes.push(Hole { bytes: place(at)..place(found), seqs, lost });
        }
        for (seq, event, _) in records(&frame) {
            on_event(seq, event);
        }
        at = found + FRAME_HEAD + frame.records.len();
        scanned.end = place(at);
        scanned.next_seq = frame.first_seq + u64::from(frame.count);
    }
    scanned
}

fn next_frame<'a>(
    bytes: &'a [u8],
    mut at: usize,
    good: impl Fn(&Frame<'_>) -> bool,
) -> Option<(usize, Frame<'a>)> {
    loop {
        let rest = bytes.get(at..)?;
        if let Some(frame) = frame_at(rest)
            && good(&frame)
        {
            return Some((at, frame));
        }
        at += 1 + rest.get(1..)?.iter().position(|byte| *byte == MAGIC[0])?;
    }
}

/// Gives out the good events of a damaged frame at the start of `bytes`.
fn salvage<'a>(bytes: &'a [u8], expected: u64, mut on_event: impl FnMut(u64, &'a [u8])) {
    let Some(frame) = frame_at(bytes).filter(|frame| frame.first_seq == expected) else { return };
    for (seq, event, good) in records(&frame) {
        if good {
            on_event(seq, event);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(first_seq: u64, events: &[&str]) -> Vec<u8> {
        let mut out = Vec::new();
        encode_frame(first_seq, events.iter().map(|event| event.as_bytes()), &mut out);
        out
    }

    fn read(bytes: &[u8]) -> (Vec<(u64, String)>, Scanned) {
        let mut events = Vec::new();
        let scanned = scan(bytes, 0, 0, |seq, event| {
            events.push((seq, String::from_utf8_lossy(event).into_owned()));
        });
        (events, scanned)
    }

    fn seqs(events: &[(u64, String)]) -> Vec<u64> {
        events.iter().map(|(seq, _)| *seq).collect()
    }

    #[test]
    fn frames_are_read_up_to_the_zeros() {
        let mut bytes = [frame(0, &["a", "b"]), frame(2, &["c"])].concat();
        let end = bytes.len() as u64;
        bytes.resize(4096, 0);
        let (events, scanned) = read(&bytes);
        assert_eq!(events, [(0, "a".into()), (1, "b".into()), (2, "c".into())]);
        assert_eq!((scanned.end, scanned.next_seq), (end, 3));
        assert!(scanned.holes.is_empty() && scanned.tail.is_empty());
    }

    #[test]
    fn a_torn_last_frame_is_a_tail_and_its_good_events_are_kept() {
        let first = frame(0, &["a"]);
        let torn = frame(1, &["bbbb", "cccc", "dddd"]);
        let bytes = [first.as_slice(), &torn[..torn.len() - 2]].concat();
        let (events, scanned) = read(&bytes);
        assert_eq!(seqs(&events), [0]);
        assert_eq!(scanned.tail, first.len() as u64..bytes.len() as u64);
        assert_eq!(scanned.tail_events, [(1, b"bbbb".to_vec()), (2, b"cccc".to_vec())]);
    }

    /// Every flipped bit in a frame that was acknowledged is found, costs at most that frame, and
    /// is told with the exact number of events.
    #[test]
    fn every_flipped_bit_in_the_middle_is_told() {
        let frames = [frame(0, &["a"]), frame(1, &["bb", "cc", "dd"]), frame(4, &["e"])];
        let intact = frames.concat();
        let middle = frames[0].len()..frames[0].len() + frames[1].len();
        for at in middle.clone() {
            for bit in 0..8 {
                let mut bytes = intact.clone();
                bytes[at] ^= 1 << bit;
                let (events, scanned) = read(&bytes);
                let place = format!("bit {bit} of byte {at}: {events:?} {scanned:?}");
                let [hole] = scanned.holes.as_slice() else { panic!("{place}") };
                assert_eq!(hole.seqs, 1..4, "{place}");
                assert_eq!(hole.bytes, middle.start as u64..middle.end as u64, "{place}");
                assert_eq!(events.len() as u64 + hole.lost, 5, "{place}");
                let read = [(0, "a"), (1, "bb"), (2, "cc"), (3, "dd"), (4, "e")];
                assert!(
                    events.iter().all(|(seq, text)| read.contains(&(*seq, text.as_str()))),
                    "{place}"
                );
                assert!(!events.is_empty() && scanned.next_seq == 5, "{place}");
            }
        }
    }

    #[test]
    fn one_bad_event_costs_only_itself() {
        let frames = [frame(0, &["aaaa", "bbbb", "cccc"]), frame(3, &["d"])];
        let mut bytes = frames.concat();
        let at = bytes.windows(4).position(|window| window == b"bbbb").unwrap();
        bytes[at] = b'B';
        let (events, scanned) = read(&bytes);
        assert_eq!(seqs(&events), [0, 2, 3]);
        assert_eq!(scanned.holes[0].lost, 1);
    }

    #[test]
    fn a_frame_that_is_gone_a_second_time_or_swapped_is_told() {
        let [a, b, c] = [frame(0, &["a"]), frame(1, &["b"]), frame(2, &["c"])];
        let (events, scanned) = read(&[a.clone(), c.clone()].concat());
        assert_eq!((seqs(&events), scanned.holes[0].seqs.clone()), (vec![0, 2], 1..2));
        let (events, scanned) = read(&[a.clone(), a.clone(), b.clone()].concat());
        assert_eq!((seqs(&events), scanned.holes[0].lost), (vec![0, 1], 0));
        assert_eq!(scanned.holes.len(), 1);
        let (events, scanned) = read(&[a, c, b].concat());
        assert_eq!((seqs(&events), scanned.holes[0].seqs.clone()), (vec![0, 2], 1..2));
        assert!(!scanned.tail.is_empty());
    }
}
