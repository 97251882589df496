//! What is hashed of a record.
//!
//! ```text
//! leaf = SHA-256(0x00 ‖ salt ‖ entry)
//! entry = "estoppel.dev/ledger/record/1\n"
//!       ‖ seq: u64 ‖ at: i64, microseconds since 1970
//!       ‖ len(kind): u64 ‖ kind
//!       ‖ 0x00                      without a key, or
//!         0x01 ‖ len(key): u64 ‖ key
//!       ‖ len(body): u64 ‖ body
//! ```
//!
//! Numbers are big-endian, texts UTF-8, the body byte for byte as it was appended. `0x00` first is
//! RFC 6962's mark of a leaf; the name and version keep an entry from being read as any other. The
//! salt is 32 random bytes of each record's own: once salt and payload are purged, the leaf that
//! stays says nothing about a body that could be guessed.

use estoppel_model::Record;

use crate::Hash;

/// Random bytes before an entry.
pub(crate) const SALT_BYTES: usize = 32;

const DOMAIN: &[u8] = b"estoppel.dev/ledger/record/1\n";

/// Returns the leaf of a record with its salt.
pub fn hash(record: &Record, salt: &[u8]) -> Hash {
    let kind = record.kind.as_str().as_bytes();
    let length = |bytes: &[u8]| (bytes.len() as u64).to_be_bytes();
    let (key_mark, key_length, key) = match &record.key {
        Some(key) => (&[1][..], &length(key.as_bytes())[..], key.as_bytes()),
        None => (&[0][..], &[][..], &[][..]),
    };
    Hash::leaf(&[
        salt,
        DOMAIN,
        &record.seq.to_be_bytes(),
        &record.at.as_micros().to_be_bytes(),
        &length(kind),
        kind,
        key_mark,
        key_length,
        key,
        &length(record.body.as_bytes()),
        record.body.as_bytes(),
    ])
}

#[cfg(test)]
mod tests {
    use estoppel_model::{RecordKind, Timestamp};

    use super::*;

    fn record() -> Record {
        Record {
            seq: 7,
            kind: RecordKind::new("order"),
            key: Some("ab".into()),
            at: Timestamp::from_micros(1_000_000),
            body: "{}".into(),
        }
    }

    #[test]
    fn the_leaf_is_the_documented_one() {
        let mut entry = vec![0];
        entry.extend([9; 32]);
        entry.extend(b"estoppel.dev/ledger/record/1\n");
        entry.extend([0, 0, 0, 0, 0, 0, 0, 7]);
        entry.extend([0, 0, 0, 0, 0, 0x0f, 0x42, 0x40]);
        entry.extend(b"\0\0\0\0\0\0\0\x05order");
        entry.extend(b"\x01\0\0\0\0\0\0\0\x02ab");
        entry.extend(b"\0\0\0\0\0\0\0\x02{}");
        let expect: [u8; 32] = sha2::Digest::finalize(sha2::Digest::chain_update(
            <sha2::Sha256 as sha2::Digest>::new(),
            entry,
        ))
        .into();
        assert_eq!(hash(&record(), &[9; 32]), Hash::from_bytes(expect));
    }

    #[test]
    fn no_two_records_share_a_leaf() {
        let base = record();
        let changed = [
            Record { seq: 8, ..base.clone() },
            Record { at: Timestamp::from_micros(1_000_001), ..base.clone() },
            Record { kind: RecordKind::new("orde"), ..base.clone() },
            Record { key: Some("a".into()), ..base.clone() },
            Record { key: Some(String::new()), ..base.clone() },
            Record { key: None, ..base.clone() },
            Record { body: "{} ".into(), ..base.clone() },
            // A byte that moves over a boundary.
            Record { key: Some("abb".into()), body: "{".into(), ..base.clone() },
        ];
        for record in changed {
            assert_ne!(hash(&record, &[9; 32]), hash(&base, &[9; 32]), "{record:?}");
        }
        assert_ne!(hash(&base, &[8; 32]), hash(&base, &[9; 32]));
    }
}
