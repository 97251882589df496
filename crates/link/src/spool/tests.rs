use std::io::Read as _;

use super::*;

const NOW: Timestamp = Timestamp::from_micros(1_770_260_400_000_000);
const PLENTY: u64 = 1 << 30;

fn line(number: u64) -> Line {
    let at = NOW + std::time::Duration::from_millis(number);
    Line { at, json: format!(r#"{{"kind":"audit","task_id":"t{number}","tool":"wörk"}}"#) }
}

fn lines(numbers: std::ops::Range<u64>) -> Vec<Line> {
    numbers.map(line).collect()
}

fn open(dir: &Path) -> Spool {
    Spool::open(dir, PLENTY, NOW).unwrap()
}

/// Delivers all that is there.
fn drain(spool: &mut Spool) -> Vec<Line> {
    let mut all = Vec::new();
    loop {
        let chunk = spool.oldest(7, 100_000);
        if chunk.lines.is_empty() {
            assert_eq!((spool.events(), spool.bytes()), (0, 0), "an empty spool is empty");
            return all;
        }
        spool.delivered(&chunk);
        all.extend(chunk.lines);
    }
}

fn segments(dir: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| segment_number(path).is_some())
        .collect();
    paths.sort();
    paths
}

#[test]
fn events_come_back_in_order_over_restarts() {
    let dir = tempfile::tempdir().unwrap();
    let mut spool = open(dir.path());
    assert_eq!(spool.append(&lines(0..20), Room::Usual).unwrap(), 20);
    assert_eq!(spool.events(), 20);
    drop(spool);
    let mut spool = open(dir.path());
    assert_eq!(spool.append(&lines(20..30), Room::Usual).unwrap(), 10);
    assert_eq!(spool.events(), 30);
    assert_eq!(drain(&mut spool), lines(0..30));
    assert_eq!(spool.take_loss(), None);
    assert!(segments(dir.path()).is_empty(), "what was delivered leaves no file");
    assert_eq!(spool.append(&lines(30..31), Room::Usual).unwrap(), 1);
    assert_eq!(drain(&mut spool), lines(30..31));
}

#[test]
fn what_was_not_delivered_comes_again_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let mut spool = open(dir.path());
    spool.append(&lines(0..10), Room::Usual).unwrap();
    let chunk = spool.oldest(4, usize::MAX);
    assert_eq!(chunk.lines, lines(0..4));
    assert_eq!(spool.oldest(4, usize::MAX).lines, lines(0..4), "until it is delivered");
    spool.delivered(&chunk);
    assert_eq!(spool.events(), 6);
    assert_eq!(spool.oldest(1, usize::MAX).lines, lines(4..5));
    drop(spool);
    // At least once: the file was not used up.
    assert_eq!(drain(&mut open(dir.path())), lines(0..10));
}

#[test]
fn a_large_backlog_lies_in_several_files_that_go_one_by_one() {
    let dir = tempfile::tempdir().unwrap();
    let mut spool = open(dir.path());
    let big = Line { at: NOW, json: format!("\"{}\"", "x".repeat(1_000_000)) };
    for _ in 0..12 {
        assert_eq!(spool.append(std::slice::from_ref(&big), Room::Usual).unwrap(), 1);
    }
    let before = segments(dir.path()).len();
    assert!(before >= 2, "{before} files");
    let chunk = spool.oldest(5, usize::MAX);
    assert_eq!(chunk.lines.len(), 5);
    spool.delivered(&chunk);
    assert_eq!(segments(dir.path()).len(), before - 1);
    assert_eq!(drain(&mut spool).len(), 7);
}

#[test]
fn every_flipped_byte_costs_one_event_which_is_counted() {
    let dir = tempfile::tempdir().unwrap();
    open(dir.path()).append(&lines(0..6), Room::Usual).unwrap();
    let path = segments(dir.path()).remove(0);
    let intact = fs::read(&path).unwrap();
    for byte in 0..intact.len() {
        let mut damaged = intact.clone();
        damaged[byte] ^= 0x55;
        fs::write(&path, &damaged).unwrap();
        let mut spool = open(dir.path());
        let read = drain(&mut spool);
        assert_eq!(read.len(), 5, "byte {byte}");
        assert!(read.iter().all(|line| lines(0..6).contains(line)), "byte {byte}: {read:?}");
        assert_eq!(spool.take_loss().map(|loss| loss.events), Some(1), "byte {byte}");
    }
}

#[test]
fn a_tail_that_was_cut_off_is_counted_and_does_not_harm_what_follows() {
    let dir = tempfile::tempdir().unwrap();
    open(dir.path()).append(&lines(0..4), Room::Usual).unwrap();
    let path = segments(dir.path()).remove(0);
    let intact = fs::read(&path).unwrap();
    let frame_bytes = usize::try_from(frame::bytes(&line(0))).unwrap();
    for length in 0..intact.len() {
        fs::write(&path, &intact[..length]).unwrap();
        let mut spool = open(dir.path());
        spool.append(&lines(50..52), Room::Usual).unwrap();
        let mut expected = lines(0..(length / frame_bytes) as u64);
        expected.extend(lines(50..52));
        assert_eq!(drain(&mut spool), expected, "{length} bytes");
        let torn = u64::from(length % frame_bytes != 0);
        assert_eq!(spool.take_loss().map_or(0, |loss| loss.events), torn, "{length} bytes");
    }
}

#[test]
fn a_file_that_someone_deleted_is_counted_with_its_times() {
    let dir = tempfile::tempdir().unwrap();
    for first in [0, 10, 20] {
        // Each process starts a file of its own.
        open(dir.path()).append(&lines(first..first + 10), Room::Usual).unwrap();
    }
    fs::remove_file(&segments(dir.path())[1]).unwrap();
    let mut spool = open(dir.path());
    let mut expected = lines(0..10);
    expected.extend(lines(20..30));
    assert_eq!(drain(&mut spool), expected);
    let loss = spool.take_loss().unwrap();
    assert_eq!(loss, Loss { events: 10, from: line(9).at, to: line(9).at });
}

#[test]
fn an_event_cannot_pass_for_a_frame() {
    let dir = tempfile::tempdir().unwrap();
    let mut inner = Vec::new();
    frame::write(&mut inner, 1, &line(99));
    // The nearest to a frame that a text can hold: JSON has no byte FF.
    let forged = Line { at: NOW, json: String::from_utf8_lossy(&inner).into_owned() };
    open(dir.path()).append(&[line(0), forged, line(2)], Room::Usual).unwrap();
    let path = segments(dir.path()).remove(0);
    let mut content = fs::read(&path).unwrap();
    let second = usize::try_from(frame::bytes(&line(0))).unwrap();
    content[second + 1] ^= 1;
    fs::write(&path, content).unwrap();
    assert_eq!(drain(&mut open(dir.path())), [line(0), line(2)]);
}

#[test]
fn there_is_a_bound_and_a_reserve_for_the_report() {
    let dir = tempfile::tempdir().unwrap();
    let max = frame::bytes(&line(0)) * 5;
    let mut spool = Spool::open(dir.path(), max, NOW).unwrap();
    assert_eq!(spool.append(&lines(0..9), Room::Usual).unwrap(), 5);
    assert_eq!(spool.append(&lines(5..6), Room::Usual).unwrap(), 0);
    assert_eq!(spool.append(&lines(5..6), Room::Reserve).unwrap(), 1);
    assert_eq!(drain(&mut spool), lines(0..6));
    assert_eq!(spool.append(&lines(6..9), Room::Usual).unwrap(), 3, "there is room again");
}

#[test]
fn a_file_that_failed_is_never_written_again() {
    let dir = tempfile::tempdir().unwrap();
    let mut spool = open(dir.path());
    spool.append(&lines(0..3), Room::Usual).unwrap();
    // A file that is open for reading only: writing to it and cutting it both fail.
    spool.writer = Some(File::open(&segments(dir.path())[0]).unwrap());
    spool.append(&lines(3..5), Room::Usual).unwrap_err();
    assert_eq!(spool.events(), 3, "what failed is not kept");
    assert_eq!(spool.append(&lines(3..5), Room::Usual).unwrap(), 2);
    assert_eq!(segments(dir.path()).len(), 2);
    assert_eq!(drain(&mut spool), lines(0..5));
    assert_eq!(spool.take_loss(), None);
}

#[test]
fn what_a_failed_fsync_left_behind_is_not_delivered_twice() {
    let dir = tempfile::tempdir().unwrap();
    let mut spool = open(dir.path());
    spool.append(&lines(0..5), Room::Usual).unwrap();
    drop(spool);
    // As after an fsync that failed for events 3 and 4 while the file could not be cut: the next
    // file starts with the same numbers.
    let mut next = Vec::new();
    for number in 3..7 {
        frame::write(&mut next, number, &line(number));
    }
    fs::write(path(dir.path(), 3), next).unwrap();
    let mut spool = open(dir.path());
    assert_eq!(drain(&mut spool), lines(0..7));
    assert_eq!(spool.take_loss(), None);
}

#[test]
fn a_folder_belongs_to_one_process() {
    let dir = tempfile::tempdir().unwrap();
    let first = open(dir.path());
    let error = Spool::open(dir.path(), PLENTY, NOW).unwrap_err();
    assert!(matches!(error, SpoolError::InUse { .. }), "{error}");
    drop(first);
    open(dir.path());
}

#[test]
fn what_lies_in_the_folder_beside_is_left_alone_and_files_are_private() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("spool");
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("notes.events"), "x").unwrap();
    fs::write(path(&dir, 3), "").unwrap();
    let mut spool = open(&dir);
    spool.append(&lines(0..1), Room::Usual).unwrap();
    let mode = fs::metadata(&segments(&dir)[0]).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(drain(&mut spool), lines(0..1));
    let mut notes = String::new();
    File::open(dir.join("notes.events")).unwrap().read_to_string(&mut notes).unwrap();
    assert_eq!(notes, "x");
}
