//! A lock that the processes of one node share: `flock` on a file, with a bound on the wait.
//!
//! The kernel gives it back when its holder dies, in whatever way. `flock` itself knows no time limit, and a holder that was stopped
//! (a debugger, a frozen container) would stop everybody: so it is asked for again and again instead.

use std::fs::{File, TryLockError};
use std::io;
use std::time::{Duration, Instant};

const PAUSE_FIRST: Duration = Duration::from_micros(50);
const PAUSE_MAX: Duration = Duration::from_millis(5);

/// Locks `file` until it is closed. After `wait` the answer is an error of the kind `TimedOut`.
pub fn lock(file: &File, wait: Duration) -> io::Result<()> {
    let start = Instant::now();
    let mut pause = PAUSE_FIRST;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::Error(error)) => return Err(error),
            Err(TryLockError::WouldBlock) if start.elapsed() >= wait => {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "another process holds the lock for too long"));
            }
            Err(TryLockError::WouldBlock) => std::thread::sleep(pause),
        }
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_that_is_not_given_back_is_waited_for_within_the_bound() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("lock");
        let held = File::create(&path).expect("a file");
        lock(&held, Duration::ZERO).expect("it is free");
        let second = File::open(&path).expect("a file");
        let refused = lock(&second, Duration::from_millis(5)).expect_err("it is held");
        assert_eq!(refused.kind(), io::ErrorKind::TimedOut);
        drop(held);
        lock(&second, Duration::ZERO).expect("closing gives it back");
    }
}
