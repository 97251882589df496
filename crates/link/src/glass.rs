//! The place of a break-glass file in a state folder.
//!
//! Whoever can write there could also give this enforcer another server's key; the file is read with
//! care all the same: a regular file, no link, no more than its longest form.

use std::{
    fs,
    io::{self, Read as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use estoppel_killswitch::break_glass::{FILE_BYTES_MAX, FILE_NAME, SignedBreakGlass};

/// Longest file: its statement may be escaped in it.
const BYTES_MAX: u64 = 2 * FILE_BYTES_MAX as u64;

/// Where the file lies, if there is one.
#[derive(Debug, Clone)]
pub(crate) struct GlassFile {
    path: PathBuf,
}

impl GlassFile {
    /// That of a state folder.
    pub(crate) fn of(dir: &Path) -> Self {
        Self { path: dir.join(FILE_NAME) }
    }

    /// What lies there now. Blocks for the disk.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub(crate) fn read(&self) -> Result<Option<SignedBreakGlass>, String> {
        let mut options = fs::OpenOptions::new();
        // Neither a link nor a pipe that nobody writes into.
        let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
        let flags = i32::try_from(flags.bits()).unwrap_or_default();
        let file = match options.read(true).custom_flags(flags).open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(format!("it cannot be read: {error}")),
        };
        if !file.metadata().is_ok_and(|metadata| metadata.is_file()) {
            return Err("it is no regular file".to_owned());
        }
        let mut text = Vec::new();
        let read = file.take(BYTES_MAX + 1).read_to_end(&mut text);
        read.map_err(|error| format!("it cannot be read: {error}"))?;
        if text.len() as u64 > BYTES_MAX {
            return Err(format!("it is longer than {BYTES_MAX} bytes"));
        }
        let file = serde_json::from_slice(&text);
        file.map(Some).map_err(|error| format!("it is no break-glass file: {error}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_file_of_ours_is_told_and_never_hangs() {
        let dir = tempfile::tempdir().unwrap();
        let glass = GlassFile::of(dir.path());
        assert_eq!(glass.read(), Ok(None));
        let path = dir.path().join(FILE_NAME);
        let told = |content: &[u8]| {
            fs::write(&path, content).unwrap();
            glass.read().unwrap_err()
        };
        assert!(told(b"{").contains("no break-glass file"));
        assert!(told(b"").contains("no break-glass file"));
        assert!(told(&vec![b' '; 40_000]).contains("longer than"));
        let more = br#"{"break_glass":"","key":"","signature":"","halts":"none"}"#;
        assert!(told(more).contains("no break-glass file"));
        let good = br#"{"break_glass":"","key":"","signature":""}"#;
        fs::write(&path, good).unwrap();
        assert!(glass.read().unwrap().is_some());
        fs::rename(&path, dir.path().join("elsewhere")).unwrap();
        std::os::unix::fs::symlink(dir.path().join("elsewhere"), &path).unwrap();
        assert!(glass.read().unwrap_err().contains("cannot be read"));
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert!(glass.read().unwrap_err().contains("no regular file"));
        fs::remove_dir(&path).unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &path,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::from_raw_mode(0o600),
            0,
        )
        .unwrap();
        assert!(glass.read().unwrap_err().contains("no regular file"));
    }
}
