//! Keeping vCPUs out of the guest while one of them is in it with pages open.
//!
//! Each vCPU passes its door before it enters the guest. Closing all doors but one takes a kick of each vCPU that is inside, and
//! waits until it is out; it then waits in front of its door, or does what it does outside.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::sys::kick::Kick;

/// When a vCPU that is still inside is kicked again. No kick is lost; this bounds the harm of an unforeseen way to lose one.
const AGAIN: Duration = Duration::from_millis(20);
/// How long those run that had to wait: some ten times what it takes to call them out.
const MOMENT: Duration = Duration::from_micros(200);
/// How long all may take to come out, as for a pause.
const LIMIT: Duration = Duration::from_secs(10);

#[derive(Debug)]
struct Door {
    inside: AtomicBool,
    kick: Arc<Kick>,
}

/// One for each vCPU.
#[derive(Debug)]
pub(super) struct Doors {
    each: Vec<Door>,
    /// Whether they are closed. Set before `inside` is looked at, as a vCPU sets `inside` before it looks at this.
    closed: AtomicBool,
    /// How many wait in front of theirs.
    waiting: Mutex<usize>,
    changed: Condvar,
}

impl Doors {
    pub(super) fn new(kicks: &[Arc<Kick>]) -> Self {
        let door = |kick: &Arc<Kick>| Door { inside: AtomicBool::new(false), kick: Arc::clone(kick) };
        Self {
            each: kicks.iter().map(door).collect(),
            closed: AtomicBool::new(false),
            waiting: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    /// A vCPU is about to enter the guest; waits while the doors are closed, no longer than one step of another vCPU takes.
    pub(super) fn enter(&self, vcpu: usize) {
        let door = &self.each[vcpu];
        loop {
            door.inside.store(true, Ordering::SeqCst);
            if !self.closed.load(Ordering::SeqCst) {
                return;
            }
            self.leave(vcpu);
            let mut waiting = self.waiting.lock();
            *waiting += 1;
            while self.closed.load(Ordering::SeqCst) {
                self.changed.wait(&mut waiting);
            }
            *waiting -= 1;
            self.changed.notify_all();
        }
    }

    /// It has left the guest.
    pub(super) fn leave(&self, vcpu: usize) {
        self.each[vcpu].inside.store(false, Ordering::SeqCst);
        if self.closed.load(Ordering::SeqCst) {
            drop(self.waiting.lock());
            self.changed.notify_all();
        }
    }

    /// Closes them; returns when no vCPU is inside, or how many do not come out. The caller is outside itself, and the only one to
    /// close them.
    pub(super) fn close(&self) -> Result<(), usize> {
        self.let_pass();
        self.closed.store(true, Ordering::SeqCst);
        let deadline = Instant::now() + LIMIT;
        loop {
            for door in self.each.iter().filter(|door| door.inside.load(Ordering::SeqCst)) {
                if let Err(error) = door.kick.send() {
                    tracing::error!("cannot signal a vCPU thread: {error}");
                }
            }
            let again = Instant::now() + AGAIN;
            let mut state = self.waiting.lock();
            let inside = |door: &&Door| door.inside.load(Ordering::SeqCst);
            while self.each.iter().any(|door| inside(&door)) {
                if self.changed.wait_until(&mut state, again).timed_out() {
                    break;
                }
            }
            let left = self.each.iter().filter(inside).count();
            drop(state);
            if left == 0 {
                return Ok(());
            }
            if Instant::now() >= deadline {
                self.open();
                return Err(left);
            }
        }
    }

    /// Lets those pass, and run for a moment, that still wait since the last time: one that is trapped again and again would keep
    /// them out for good.
    fn let_pass(&self) {
        let deadline = Instant::now() + AGAIN;
        let mut waiting = self.waiting.lock();
        if *waiting == 0 {
            return;
        }
        while *waiting > 0 && !self.changed.wait_until(&mut waiting, deadline).timed_out() {}
        drop(waiting);
        std::thread::sleep(MOMENT);
    }

    /// Opens them again.
    pub(super) fn open(&self) {
        self.closed.store(false, Ordering::SeqCst);
        drop(self.waiting.lock());
        self.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;
    use std::thread;

    use super::*;

    #[test]
    fn nobody_is_inside_while_they_are_closed() {
        let kicks: Vec<Arc<Kick>> = (0..4).map(|_| Arc::default()).collect();
        let (doors, inside, stop) = (Doors::new(&kicks), AtomicU64::new(0), AtomicBool::new(false));
        thread::scope(|scope| {
            for vcpu in 0..4 {
                let (doors, inside, stop) = (&doors, &inside, &stop);
                scope.spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        doors.enter(vcpu);
                        inside.fetch_add(1, Ordering::SeqCst);
                        thread::yield_now();
                        inside.fetch_sub(1, Ordering::SeqCst);
                        doors.leave(vcpu);
                    }
                });
            }
            for _ in 0..200 {
                doors.close().unwrap();
                for _ in 0..10 {
                    assert_eq!(inside.load(Ordering::SeqCst), 0);
                    thread::yield_now();
                }
                doors.open();
            }
            stop.store(true, Ordering::Relaxed);
        });
    }
}
