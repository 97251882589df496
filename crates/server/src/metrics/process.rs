//! The process's own metrics, under the names that all programs use for them; from `/proc/self`.
//!
//! What cannot be read is left as it was: a server that has no `/proc` has no such metrics.

use std::sync::atomic::{AtomicU64, Ordering};

use prometheus_client::{
    metrics::{counter::Counter, gauge::Gauge},
    registry::{Registry, Unit},
};

/// Clock ticks a second in `/proc/PID/stat`: `USER_HZ`, which is part of Linux's interface.
const USER_HZ: f64 = 100.0;

#[derive(Debug, Default)]
pub(crate) struct Process {
    cpu_seconds: Counter<f64, AtomicU64>,
    resident_bytes: Gauge<f64, AtomicU64>,
    open_fds: Gauge,
    max_fds: Gauge,
    threads: Gauge,
}

impl Process {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let process = Self::default();
        registry.register_with_unit(
            "process_cpu",
            "Time on a processor, in user and kernel mode",
            Unit::Seconds,
            process.cpu_seconds.clone(),
        );
        registry.register_with_unit(
            "process_resident_memory",
            "Memory that is resident",
            Unit::Bytes,
            process.resident_bytes.clone(),
        );
        let gauges = [
            ("process_open_fds", "Open file descriptors", &process.open_fds),
            ("process_max_fds", "Most file descriptors that may be open", &process.max_fds),
            ("process_threads", "Threads", &process.threads),
        ];
        for (name, help, gauge) in gauges {
            registry.register(name, help, gauge.clone());
        }
        process
    }

    /// Reads all of them.
    pub(super) fn read(&self) {
        if let Ok(stat) = std::fs::read_to_string("/proc/self/stat")
            && let Some(ticks) = cpu_ticks(&stat)
        {
            let seconds = ticks as f64 / USER_HZ;
            self.cpu_seconds.inner().store(seconds.to_bits(), Ordering::Relaxed);
        }
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        if let Some(kib) = number_behind(&status, "VmRSS:") {
            self.resident_bytes.set(kib as f64 * 1024.0);
        }
        if let Some(threads) = number_behind(&status, "Threads:") {
            self.threads.set(threads);
        }
        if let Ok(open) = std::fs::read_dir("/proc/self/fd") {
            self.open_fds.set(i64::try_from(open.count()).unwrap_or(i64::MAX));
        }
        let limits = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
        if let Some(most) = number_behind(&limits, "Max open files") {
            self.max_fds.set(most);
        }
    }
}

/// User and kernel ticks of a line of `/proc/PID/stat`; the name before them may hold anything.
fn cpu_ticks(stat: &str) -> Option<u64> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let kernel: u64 = fields.next()?.parse().ok()?;
    Some(user + kernel)
}

fn number_behind(text: &str, key: &str) -> Option<i64> {
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_brackets_and_blanks_misleads_nobody() {
        let stat = "1 (a) 9 9 (b) S 1 2 3 4 5 6 7 8 9 10 70 30 0 0";
        assert_eq!(cpu_ticks(stat), Some(100));
        assert_eq!(cpu_ticks("1 (a) S 1"), None);
        assert_eq!(number_behind("Threads:\t7\n", "Threads:"), Some(7));
        assert_eq!(number_behind("Max open files   unlimited", "Max open files"), None);
    }
}
