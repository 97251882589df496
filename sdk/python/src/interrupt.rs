//! How work in Python is ended: what a step's [`Stopper`] does when an order stops it, and the thread
//! that carries it into Python.
//!
//! Child processes are killed at once, by the guard's own thread, without Python's lock. Those that are
//! known by a mark alone have to be looked for, which is slow: a thread of its own does it, and what
//! runs in Python is ended after them. Everything else needs the lock, which a call into C may hold
//! for as long as it likes; so a thread of its own waits for it, and the order's confirmation does not.
//!
//! - A *task* of asyncio is cancelled, in its own loop. The callback runs between the steps of tasks,
//!   so it sees exactly whether the task is still inside of the step.
//! - A *greenlet* of gevent gets the exception from its hub, which is exact for the same reason.
//! - A *thread* gets the exception at its next bytecode. It is set and taken back under Python's lock
//!   only ([`Pending`]): set while the thread is inside of the step, and taken back when it leaves the
//!   step before it was raised. So it is never raised outside.
//!
//! Nothing here interrupts a thread that is blocked in native code; it gets the exception when it
//! comes back, and until then the step is confirmed as not interruptible.

use std::{
    collections::HashMap,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{
            AtomicBool,
            Ordering::{AcqRel, Acquire, Relaxed, Release},
        },
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use estoppel_guard::{Denied, OnStop, OpenStep};
use pyo3::{prelude::*, sync::PyOnceLock};
use rustix::process::{Pid, Signal, kill_process_group};

use crate::{
    halted,
    marked::{self, Mark},
    place::Place,
};

/// How long marked processes may take to end before what runs in Python is ended without them.
pub(crate) const KILL_MAX: Duration = Duration::from_secs(2);

/// One step, as the guard's thread, the interrupter and the step's own thread see it.
pub(crate) struct Stopper {
    /// Where the work runs.
    pub(crate) place: Place,
    interrupter: Arc<Interrupter>,
    /// Locked only while Python's lock is held.
    step: Mutex<Option<OpenStep>>,
    /// Whether the work is between the step's begin and its end. Changes under Python's lock only.
    inside: AtomicBool,
    stopped: AtomicBool,
    /// Whether the interrupter has it.
    told: AtomicBool,
    /// Whether a task was cancelled or a greenlet thrown into for this.
    interrupted: AtomicBool,
    /// Whether a process was killed for this.
    killed: AtomicBool,
    /// Groups of processes that end with the step.
    groups: Mutex<Vec<Pid>>,
    /// What processes carry that end with the step, where their groups are not known.
    marks: Mutex<Vec<Mark>>,
}

impl Stopper {
    pub(crate) fn new(place: Place, interrupter: Arc<Interrupter>) -> Arc<Self> {
        Arc::new(Self {
            place,
            interrupter,
            step: Mutex::new(None),
            inside: AtomicBool::new(true),
            stopped: AtomicBool::new(false),
            told: AtomicBool::new(false),
            interrupted: AtomicBool::new(false),
            killed: AtomicBool::new(false),
            groups: Mutex::default(),
            marks: Mutex::default(),
        })
    }

    pub(crate) fn begun(&self, step: OpenStep) {
        *lock(&self.step) = Some(step);
    }

    /// Takes the step out: its work has ended, or it never began.
    pub(crate) fn leave(&self) -> Option<OpenStep> {
        self.inside.store(false, Release);
        lock(&self.step).take()
    }

    pub(crate) fn with_step<R>(&self, with: impl FnOnce(&OpenStep) -> R) -> Option<R> {
        lock(&self.step).as_ref().map(with)
    }

    pub(crate) fn is_inside(&self) -> bool {
        self.inside.load(Acquire)
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.stopped.load(Acquire)
    }

    pub(crate) fn note_interrupted(&self) {
        self.interrupted.store(true, Release);
    }

    pub(crate) fn was_interrupted(&self) -> bool {
        self.interrupted.load(Acquire)
    }

    /// Ends this group of processes with the step; at once, if the step is stopped already.
    pub(crate) fn owns_group(&self, group: Pid) {
        lock(&self.groups).push(group);
        if self.is_stopped() {
            self.kill_groups();
        }
    }

    /// The group has ended: its number may soon be another's.
    pub(crate) fn disowns_group(&self, group: Pid) {
        lock(&self.groups).retain(|own| *own != group);
    }

    fn kill_groups(&self) {
        for group in lock(&self.groups).drain(..) {
            if kill_process_group(group, Signal::KILL).is_ok() {
                self.killed.store(true, Release);
            }
        }
    }

    /// Ends the processes that carry this mark with the step; at once, if the step is stopped already.
    pub(crate) fn owns_marked(self: &Arc<Self>, mark: Mark) {
        lock(&self.marks).push(mark);
        if self.is_stopped() {
            self.kill_marked();
        }
    }

    /// Kills what is marked, and ends what runs in Python only then: a step that was left says that
    /// nothing of it is left.
    fn kill_marked(self: &Arc<Self>) {
        let marks = std::mem::take(&mut *lock(&self.marks));
        if marks.is_empty() {
            return self.interrupt();
        }
        let own = Arc::clone(self);
        let kill = move || {
            for mark in &marks {
                if marked::kill(mark, KILL_MAX).any {
                    own.killed.store(true, Release);
                }
            }
            own.interrupt();
        };
        if thread::Builder::new().name("estoppel-kill".to_owned()).spawn(kill).is_err() {
            // There are no threads left: what runs in Python can still be ended.
            self.interrupt();
        }
    }

    /// Has what runs in Python interrupted, once.
    fn interrupt(self: &Arc<Self>) {
        if self.place.is_interruptible() && !self.told.swap(true, AcqRel) {
            self.interrupter.push(Arc::clone(self));
        }
    }

    pub(crate) fn was_killed(&self) -> bool {
        self.killed.load(Acquire)
    }

    /// Why the step is stopped, while it is open.
    pub(crate) fn denied(&self) -> Option<Denied> {
        self.with_step(OpenStep::stopped_by).flatten()
    }
}

/// What the guard is given: the step's stopper itself.
pub(crate) struct Told(pub(crate) Arc<Stopper>);

impl OnStop for Told {
    fn stopped(&self) {
        self.0.stopped.store(true, Release);
        self.0.kill_groups();
        self.0.kill_marked();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Each change is one assignment or one element.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The thread that takes Python's lock to interrupt.
pub(crate) struct Interrupter {
    queue: Mutex<Queue>,
    arrived: Condvar,
    settled: Condvar,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// Holds each open step once at most, and so is bounded by them.
#[derive(Default)]
struct Queue {
    stopped: Vec<Arc<Stopper>>,
    /// Taken out, and not yet interrupted.
    busy: bool,
    ended: bool,
}

impl Interrupter {
    pub(crate) fn start() -> std::io::Result<Arc<Self>> {
        let interrupter = Arc::new(Self {
            queue: Mutex::default(),
            arrived: Condvar::new(),
            settled: Condvar::new(),
            thread: Mutex::new(None),
        });
        let own = Arc::clone(&interrupter);
        let thread = thread::Builder::new()
            .name("estoppel-interrupt".to_owned())
            .spawn(move || own.run())?;
        *lock(&interrupter.thread) = Some(thread);
        Ok(interrupter)
    }

    fn push(&self, stopper: Arc<Stopper>) {
        lock(&self.queue).stopped.push(stopper);
        self.arrived.notify_one();
    }

    fn run(&self) {
        loop {
            let mut queue = lock(&self.queue);
            while queue.stopped.is_empty() && !queue.ended {
                queue = self.arrived.wait(queue).unwrap_or_else(PoisonError::into_inner);
            }
            if queue.ended {
                return;
            }
            let stopped = std::mem::take(&mut queue.stopped);
            queue.busy = true;
            drop(queue);
            // `None`: the interpreter ends, and there is nothing left to interrupt.
            let _ = Python::try_attach(move |py| {
                for stopper in stopped {
                    Place::interrupt(py, &stopper);
                }
            });
            lock(&self.queue).busy = false;
            self.settled.notify_all();
        }
    }

    /// Waits until all that was stopped until now is interrupted. Python's lock must not be held.
    pub(crate) fn settle(&self) {
        let mut queue = lock(&self.queue);
        while (queue.busy || !queue.stopped.is_empty()) && !queue.ended {
            queue = self.settled.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Ends the thread, without waiting for that.
    pub(crate) fn end_soon(&self) {
        lock(&self.queue).ended = true;
        self.arrived.notify_one();
        self.settled.notify_all();
    }

    /// Ends the thread, and waits for that. Python's lock must not be held: the thread may be about
    /// to take it.
    pub(crate) fn end(&self) {
        self.end_soon();
        let thread = lock(&self.thread).take();
        if let Some(thread) = thread {
            // A panic of its own is on standard error already.
            let _ = thread.join();
        }
    }
}

/// An exception that is set for a thread of Python's.
struct Pending {
    stopper: Arc<Stopper>,
    /// Whether the thread has made the exception; it cannot be taken back then.
    raised: AtomicBool,
}

/// Touched only while Python's lock is held, so that a fork finds it unlocked.
static PENDING: PyOnceLock<Mutex<HashMap<u64, Pending>>> = PyOnceLock::new();

fn pending(py: Python<'_>) -> MutexGuard<'_, HashMap<u64, Pending>> {
    lock(PENDING.get_or_init(py, Mutex::default))
}

/// Raises `Halted` in a thread at its next bytecode, for a step that it is inside of. Not twice: an
/// exception on its way ends the steps around it, too.
pub(crate) fn raise_in_thread(py: Python<'_>, thread: u64, stopper: &Arc<Stopper>) {
    let mut pending = pending(py);
    if pending.get(&thread).is_some_and(|known| known.stopper.is_inside()) {
        return;
    }
    let Ok(class) = halted::class(py) else { return };
    if set_async_exception(thread, Some(class)) {
        let raised = AtomicBool::new(false);
        pending.insert(thread, Pending { stopper: Arc::clone(stopper), raised });
    }
}

/// The thread leaves the step: what was set for it and not raised is taken back.
pub(crate) fn take_back(py: Python<'_>, thread: u64, stopper: &Arc<Stopper>) {
    let mut all = pending(py);
    if !all.get(&thread).is_some_and(|known| Arc::ptr_eq(&known.stopper, stopper)) {
        return;
    }
    if let Some(known) = all.remove(&thread)
        && !known.raised.load(Relaxed)
    {
        set_async_exception(thread, None);
    }
}

/// Why the calling thread is interrupted; for the exception, which Python makes without arguments.
pub(crate) fn raised_here(py: Python<'_>) -> Option<Denied> {
    let all = pending(py);
    let known = all.get(&this_thread())?;
    known.raised.store(true, Relaxed);
    known.stopper.denied()
}

/// The number by which Python knows the calling thread, whatever gevent makes of it.
pub(crate) fn this_thread() -> u64 {
    #[expect(unsafe_code, reason = "PyO3 does not wrap it")]
    // SAFETY: it has no preconditions.
    let ident = unsafe { pyo3::ffi::PyThread_get_thread_ident() };
    ident
}

/// Sets or takes back a thread's exception; whether there is such a thread.
fn set_async_exception(thread: u64, class: Option<&Bound<'_, PyAny>>) -> bool {
    let class = class.map_or(std::ptr::null_mut(), Bound::as_ptr);
    #[expect(unsafe_code, reason = "PyO3 does not wrap it")]
    // SAFETY: Python's lock is held: the callers have a `Python`. The class is borrowed for the call,
    // which takes a reference of its own; null takes the exception back.
    let threads = unsafe { pyo3::ffi::PyThreadState_SetAsyncExc(thread as _, class) };
    threads > 0
}
