//! The archive: POSIX ustar, reduced to what a bundle needs, so that each header has one text.
//!
//! Regular files alone, mode 0644, owner 0, time 0, no extensions. A header is never parsed but for
//! the length of the first entry: it is computed and compared.

/// Unit of the archive, in bytes.
pub(super) const BLOCK: usize = 512;
/// Largest entry: what eleven octal digits can say.
pub(super) const BYTES_MAX: u64 = (1 << 33) - 1;
/// Zero bytes after the last entry.
pub(super) const TRAILER_BYTES: usize = 2 * BLOCK;

const SIZE_AT: usize = 124;
const SIZE_DIGITS: usize = 11;

/// The header of an entry; names have at most 100 ASCII bytes.
pub(super) fn header(name: &str, bytes: u64) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    let mut put = |at: usize, text: &str| {
        for (slot, byte) in block.iter_mut().skip(at).zip(text.bytes()) {
            *slot = byte;
        }
    };
    put(0, name);
    put(100, "0000644");
    put(108, "0000000");
    put(116, "0000000");
    put(SIZE_AT, &format!("{bytes:011o}"));
    put(136, "00000000000");
    // The sum is taken with blanks in its own place.
    put(148, "        ");
    put(156, "0");
    put(257, "ustar");
    put(263, "00");
    put(329, "0000000");
    put(337, "0000000");
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    for (slot, byte) in block.iter_mut().skip(148).zip(format!("{sum:06o}\0 ").bytes()) {
        *slot = byte;
    }
    block
}

/// The length that a header states; `None` when it is no octal number.
pub(super) fn stated_bytes(header: &[u8; BLOCK]) -> Option<u64> {
    let digits = std::str::from_utf8(header.get(SIZE_AT..SIZE_AT + SIZE_DIGITS)?).ok()?;
    digits.bytes().all(|digit| digit.is_ascii_digit()).then_some(())?;
    u64::from_str_radix(digits, 8).ok()
}

/// Zero bytes behind a content, up to the next block.
pub(super) const fn padding(bytes: u64) -> usize {
    // Less than a block.
    ((BLOCK as u64 - bytes % BLOCK as u64) % BLOCK as u64) as usize
}

/// Bytes of an entry with its header and padding.
pub(super) const fn entry_bytes(bytes: u64) -> u64 {
    BLOCK as u64 + bytes + padding(bytes) as u64
}
