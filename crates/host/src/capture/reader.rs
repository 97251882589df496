//! Reads that may hang, on a thread that may be left behind.
//!
//! A read of `/proc` can wait for a lock that a process in trouble holds, and a read of an
//! executable for a dead file server. No thread can be ended from outside, so one that does not
//! answer in time is abandoned and another takes its place, a few times.

use std::{
    io,
    sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel},
    time::{Duration, Instant},
};

/// Most threads that are left hanging in one capture.
const ABANDONED_MAX: usize = 8;

type Job = Box<dyn FnOnce() + Send>;

/// Runs one read after the other, each with a deadline.
#[derive(Debug)]
pub(super) struct Reader {
    deadline: Instant,
    worker: Option<SyncSender<Job>>,
    abandoned: usize,
}

impl Reader {
    /// A reader that reads nothing more after `deadline`.
    pub(super) const fn new(deadline: Instant) -> Self {
        Self { deadline, worker: None, abandoned: 0 }
    }

    /// Whether the time for the whole capture is over.
    pub(super) fn is_over(&self) -> bool {
        Instant::now() >= self.deadline
    }

    /// Runs a read and waits for it, at most `within`.
    pub(super) fn read<T: Send + 'static>(
        &mut self,
        within: Duration,
        read: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let timed_out = |what: &str| io::Error::new(io::ErrorKind::TimedOut, what.to_owned());
        if self.is_over() {
            return Err(timed_out("the time for the whole capture was over"));
        }
        if self.abandoned == ABANDONED_MAX {
            return Err(timed_out("too many reads before it did not return"));
        }
        let within = within.min(self.deadline.saturating_duration_since(Instant::now()));
        let (answer, result) = sync_channel(1);
        let job: Job = Box::new(move || {
            // Nobody listens any more when it took too long.
            let _ = answer.send(read());
        });
        let worker = match self.worker.take() {
            Some(worker) => worker,
            None => start()?,
        };
        worker.send(job).map_err(|_| io::Error::other("the reading thread ended"))?;
        match result.recv_timeout(within) {
            Ok(result) => {
                self.worker = Some(worker);
                result
            }
            Err(RecvTimeoutError::Timeout) => {
                self.abandoned += 1;
                Err(timed_out(&format!("it was not read within {} ms", within.as_millis())))
            }
            Err(RecvTimeoutError::Disconnected) => Err(io::Error::other("the read panicked")),
        }
    }
}

fn start() -> io::Result<SyncSender<Job>> {
    let (worker, jobs) = sync_channel::<Job>(1);
    std::thread::Builder::new().name("capture".to_owned()).spawn(move || {
        for job in jobs {
            job();
        }
    })?;
    Ok(worker)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn a_read_that_hangs_is_a_gap_and_the_next_one_works() {
        let mut reader = Reader::new(Instant::now() + LONG);
        let (release, hung) = sync_channel::<()>(0);
        let error = reader
            .read(Duration::from_millis(20), move || {
                let _ = hung.recv();
                Ok(())
            })
            .unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert_eq!(reader.read(LONG, || Ok(7)).unwrap(), 7);
        drop(release);
    }

    #[test]
    fn reads_that_hang_are_bounded_in_number() {
        let mut reader = Reader::new(Instant::now() + LONG);
        let mut releases = Vec::new();
        for _ in 0..ABANDONED_MAX {
            let (release, hung) = sync_channel::<()>(0);
            releases.push(release);
            let hang = move || Ok(hung.recv().is_ok());
            assert!(reader.read(Duration::from_millis(1), hang).is_err());
        }
        let error = reader.read(LONG, || Ok(())).unwrap_err();
        assert!(error.to_string().contains("too many"), "{error}");
    }

    #[test]
    fn nothing_is_read_when_the_time_is_over() {
        let mut reader = Reader::new(Instant::now());
        assert!(reader.read(LONG, || Ok(())).is_err());
    }

    #[test]
    fn a_read_that_panics_ends_that_read_alone() {
        let mut reader = Reader::new(Instant::now() + LONG);
        let panics = || -> io::Result<()> { panic!("as a test") };
        assert!(reader.read(LONG, panics).is_err());
        assert!(reader.read(LONG, || Ok(())).is_ok());
    }
}
