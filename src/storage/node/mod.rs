//! L2: stored responses on the disk of this node, shared by its processes, and still there after a restart.
//!
//! One file an entry: `ROOT/v1/ab/<32 hex of the slot>`. A file that was damaged is a miss and is removed; a write is a new file that is
//! renamed when it is complete, so a process may be killed at any moment; `du` and `rm` do what they say. A database in one mapped file
//! (LMDB) was the alternative: one damaged page of it can crash or hang its reader, it cannot shrink, and large values need contiguous
//! pages.
//!
//! The bound is that of `group`: blocks and inodes of all entries together, over all processes. On top of it come the 257 folders and the
//! counters (1 to 3 MB), and the files that are being written (one a thread that writes).
//!
//! Measured for 16 KiB: a read 20 µs; a write 60 µs on tmpfs, but 450 µs on ext4 with thousands of files removed in the minute before,
//! as ext4 looks past inodes that were freed lately, one by one. That is why responses are put behind.
//!
//! A disk that fails makes us slower, never wrong: reads miss, writes are left out and counted, and tried again after a second. What is
//! newer than the file but cannot be written takes the file with it. Only on a disk that can neither be written nor removed from, old
//! entries stay: `remove` says so, and it is for the log of purges to rule them out.

mod file;
mod group;
mod queue;

use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Once};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use nix::errno::Errno;
use nix::sys::signal;
use nix::unistd::Pid;
use parking_lot::Mutex;

use self::file::{HEAD_BYTES, NotRead};
use self::group::{Groups, Held, Usage};
use self::queue::{Act, Job, Next, Pushed, Queue};
use crate::storage::memory::Slot;

/// The least that `open` takes: entries up to 256 KiB. From 64 MiB on, entries up to 16 MiB are stored.
pub const BYTES_MIN: u64 = 1_048_576;

/// After a write that failed no other is tried for this long.
const REST: Duration = Duration::from_secs(1);

/// How often the same kind of trouble is told.
const TELL_AFTER: Duration = Duration::from_secs(60);

/// The writer looks after the groups when there is nothing to write and this much time went by.
const TIDY_AFTER: Duration = Duration::from_secs(60);

/// What is said about the usage may be this old.
const USAGE_AGE_MAX: Duration = Duration::from_secs(1);

/// Nobody writes one file for so long. The process that began it may be gone and its number be another's now: in containers all are 1.
const TEMPORARY_AGE_MAX: Duration = Duration::from_secs(600);

pub struct Node {
    shared: Arc<Shared>,
    writer: Once,
}

struct Shared {
    /// `ROOT/v1`. Another layout will be another folder.
    root: PathBuf,
    groups: Groups,
    queue: Queue,
    health: Health,
    /// When it was read and what it was.
    usage: Mutex<Option<(Instant, Usage)>>,
    bytes_max: u64,
}

/// Why something was not stored. An older entry of the slot is gone in each case, where the disk allows that.
#[derive(Debug)]
pub enum NotPut {
    /// More than a quarter of a group's budget (it would push out too much), or than 64 MiB.
    TooLarge {
        bytes: u64,
        bytes_max: u64,
    },
    /// The disk failed less than a second ago.
    Resting,
    /// Another process has the group's lock for too long.
    Busy,
    /// Something later was said about this slot.
    Superseded,
    Failed(io::Error),
}

/// For gauges and for the operator.
#[derive(Debug, Clone, Default)]
pub struct State {
    /// On the disk, as of at most a second ago.
    pub bytes: u64,
    pub entries: u64,
    pub bytes_max: u64,
    /// Did the last write succeed?
    pub writable: bool,
    /// Stays when the trouble is over.
    pub error_last: Option<String>,
    pub puts: u64,
    /// Not tried: the queue was full, the disk rested, or the entry was too large.
    pub puts_dropped: u64,
    pub put_failures: u64,
    /// Files that were not what was written. They were removed.
    pub corrupt: u64,
    /// By this process.
    pub evictions: u64,
}

impl Node {
    /// Opens the folder or makes it. `bytes_max` is at least `BYTES_MIN`. A folder that cannot be written is served from as it is.
    ///
    /// Another thread is started by the first `put_behind`, so a process may still fork after `open`.
    pub fn open(root: &Path, bytes_max: u64) -> io::Result<Node> {
        if bytes_max < BYTES_MIN {
            let message = format!("{bytes_max} bytes are too few for the cache on disk; the least are {BYTES_MIN}");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        let place = root.join("v1");
        let shared = Shared {
            groups: Groups::new(place.clone(), bytes_max),
            root: place,
            queue: Queue::default(),
            health: Health::default(),
            usage: Mutex::default(),
            bytes_max,
        };
        match shared.try_out(SystemTime::now()) {
            Ok(()) => shared.health.writable.store(true, Ordering::Relaxed),
            Err(error) if fs::read_dir(root).is_ok() => shared.health.write_failed("open", &error),
            Err(error) => return Err(error),
        }
        Ok(Node { shared: Arc::new(shared), writer: Once::new() })
    }

    /// The payload that was put last, verified. Blocks for one read.
    pub fn get(&self, slot: &Slot) -> Option<Bytes> {
        match self.shared.queue.get(slot) {
            Some(Act::Put(parts)) => Some(Bytes::from(parts.concat())),
            Some(Act::Remove) => None,
            None => self.shared.read(slot),
        }
    }

    /// Stores, in place of what is there. Blocks.
    pub fn put(&self, slot: &Slot, parts: &[Bytes]) -> Result<(), NotPut> {
        self.shared.queue.cancel(slot);
        self.shared.put(slot, parts, &|| true)
    }

    /// Stores soon, or not at all. Never blocks. `get` finds it at once.
    ///
    /// The queue holds 64 MiB and 4096 entries. What finds no room is dropped, and an older entry of the slot removed (unless there is no
    /// room even for noting that).
    pub fn put_behind(&self, slot: Slot, parts: Vec<Bytes>) {
        self.start_writer();
        if self.shared.queue.push(slot, parts) == Pushed::Dropped {
            self.shared.health.puts_dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Blocks. After an error the entry may still be there: whoever must not see it again has to be told otherwise.
    pub fn remove(&self, slot: &Slot) -> io::Result<()> {
        let was_queued = self.shared.queue.cancel(slot);
        // Where nothing was queued and no file is, no lock is needed to see that.
        if !was_queued && is_missing(&self.shared.groups.path(slot)) {
            return Ok(());
        }
        self.shared.remove(slot, &|| true).inspect_err(|error| self.shared.health.write_failed("remove", error))
    }

    /// Removes everything, also what is queued here. Another process may have something in its queue still.
    pub fn clear(&self) -> io::Result<()> {
        self.shared.queue.cancel_all();
        let clear = |group| self.shared.groups.hold_group(group, SystemTime::now())?.remove_all();
        let result = self.shared.groups.numbers().map(clear).fold(Ok(()), Result::and);
        *self.shared.usage.lock() = None;
        result.inspect_err(|error| self.shared.health.write_failed("clear", error))
    }

    /// On the disk, over all processes, as of at most a second ago.
    pub fn bytes(&self) -> u64 {
        self.shared.usage().bytes
    }

    pub fn state(&self) -> State {
        let (health, usage) = (&self.shared.health, self.shared.usage());
        State {
            bytes: usage.bytes,
            entries: usage.entries,
            bytes_max: self.shared.bytes_max,
            writable: health.writable.load(Ordering::Relaxed),
            error_last: health.error_last.lock().clone(),
            puts: health.puts.load(Ordering::Relaxed),
            puts_dropped: health.puts_dropped.load(Ordering::Relaxed),
            put_failures: health.put_failures.load(Ordering::Relaxed),
            corrupt: health.corrupt.load(Ordering::Relaxed),
            evictions: self.shared.groups.evictions.load(Ordering::Relaxed),
        }
    }

    /// Waits until everything queued is on the disk; false if that took longer than `timeout`.
    pub fn flush(&self, timeout: Duration) -> bool {
        self.shared.queue.wait_until_empty(timeout)
    }

    fn start_writer(&self) {
        self.writer.call_once(|| {
            let shared = self.shared.clone();
            let started = std::thread::Builder::new().name("l2-writer".into()).spawn(move || shared.work());
            if let Err(error) = started {
                self.shared.health.write_failed("start the writer", &error);
                self.shared.queue.close();
            }
        });
    }
}

impl Drop for Node {
    /// What is queued is let go: `flush` comes before.
    fn drop(&mut self) {
        self.shared.queue.close();
    }
}

impl Shared {
    /// Is the folder there, and can it be written?
    fn try_out(&self, now: SystemTime) -> io::Result<()> {
        self.clear_temporaries(now);
        self.groups.forget_others();
        let temporary = self.temporary();
        group::with_folder(&temporary.0, || fs::File::create_new(&temporary.0)).map(drop)
    }

    fn read(&self, slot: &Slot) -> Option<Bytes> {
        let path = self.groups.path(slot);
        match file::read(&path, slot, SystemTime::now()) {
            Ok(payload) => Some(payload),
            Err(NotRead::Missing) => None,
            Err(NotRead::Corrupt { inode }) => {
                self.health.found_corrupt(&path);
                let is_the_same = || fs::symlink_metadata(&path).is_ok_and(|metadata| metadata.ino() == inode);
                // Whether it can be removed or not: it was not served.
                let _ = self.remove(slot, &is_the_same);
                None
            }
            // It may be the file or the process (too many open files), so the file is left; a put replaces it.
            Err(NotRead::Failed(error)) => {
                self.health.failed("read", &error);
                None
            }
        }
    }

    /// `is_current` is asked right before the file gets its name, with the lock of its group held.
    fn put(&self, slot: &Slot, parts: &[Bytes], is_current: &dyn Fn() -> bool) -> Result<(), NotPut> {
        let result = self.try_put(slot, parts, is_current);
        let count = |counter: &AtomicU64| counter.fetch_add(1, Ordering::Relaxed);
        match &result {
            Ok(()) => {
                count(&self.health.puts);
                self.health.writable.store(true, Ordering::Relaxed);
                return result;
            }
            Err(NotPut::Superseded) => return result,
            Err(NotPut::TooLarge { .. } | NotPut::Resting) => count(&self.health.puts_dropped),
            Err(NotPut::Busy) => count(&self.health.put_failures),
            Err(NotPut::Failed(error)) => {
                self.health.write_failed("write", error);
                self.health.rest();
                count(&self.health.put_failures)
            }
        };
        // The entry that is there is older than the one that could not be kept. Where this fails as well, all was tried.
        if !is_missing(&self.groups.path(slot)) {
            let _ = self.remove(slot, is_current);
        }
        result
    }

    fn try_put(&self, slot: &Slot, parts: &[Bytes], is_current: &dyn Fn() -> bool) -> Result<(), NotPut> {
        let (bytes, bytes_max) = ((HEAD_BYTES + file::payload_bytes(parts)) as u64, self.groups.file_bytes_max());
        if bytes > bytes_max {
            return Err(NotPut::TooLarge { bytes, bytes_max });
        }
        if self.health.is_resting() {
            return Err(NotPut::Resting);
        }
        match self.write(slot, parts, bytes, is_current) {
            Err(NotPut::Failed(error)) if is_disk_full(&error) => {
                self.groups.hold(slot, SystemTime::now())?.shrink(file::cost(bytes))?;
                self.write(slot, parts, bytes, is_current)
            }
            result => result,
        }
    }

    fn write(&self, slot: &Slot, parts: &[Bytes], bytes: u64, is_current: &dyn Fn() -> bool) -> Result<(), NotPut> {
        let temporary = self.temporary();
        group::with_folder(&temporary.0, || file::write(&temporary.0, slot, parts))?;
        let mut held = self.groups.hold(slot, SystemTime::now())?;
        let cost = file::cost(bytes);
        held.make_room(cost)?;
        if !is_current() {
            return Err(NotPut::Superseded);
        }
        Ok(held.adopt(slot, &temporary.0, cost)?)
    }

    fn remove(&self, slot: &Slot, is_current: &dyn Fn() -> bool) -> io::Result<()> {
        match self.groups.hold(slot, SystemTime::now()) {
            Ok(mut held) => self.remove_held(&mut held, slot, is_current),
            // Without the lock the counter stays too high for a while, which is better than an entry that has to go and stays.
            Err(_) if is_current() => match fs::remove_file(self.groups.path(slot)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            },
            Err(_) => Ok(()),
        }
    }

    fn remove_held(&self, held: &mut Held<'_>, slot: &Slot, is_current: &dyn Fn() -> bool) -> io::Result<()> {
        if is_current() && held.remove(slot)? {
            // The entry is gone; a counter that could not be written is too high.
            let _ = held.save();
        }
        Ok(())
    }

    fn usage(&self) -> Usage {
        let mut known = self.usage.lock();
        match *known {
            Some((at, usage)) if at.elapsed() < USAGE_AGE_MAX => usage,
            _ => known.insert((Instant::now(), self.groups.usage())).1,
        }
    }

    /// The thread that writes what was put behind.
    fn work(&self) {
        let mut tidied_at = None::<Instant>;
        let mut groups = self.groups.numbers();
        loop {
            // One group at a time, so that a put waits for one at most.
            let is_tidying = !groups.is_empty();
            match self.queue.next(if is_tidying { Duration::ZERO } else { TIDY_AFTER }) {
                Next::Closed => return,
                Next::Job(job) => self.perform(&job),
                Next::Nothing => {
                    if let Some(group) = groups.next() {
                        self.tidy(group);
                    }
                }
            }
            if groups.is_empty() && tidied_at.is_none_or(|at| at.elapsed() >= TIDY_AFTER) {
                if tidied_at.is_some() {
                    groups = self.groups.numbers();
                }
                tidied_at = Some(Instant::now());
                self.clear_temporaries(SystemTime::now());
            }
        }
    }

    fn perform(&self, job: &Job) {
        let is_current = || self.queue.is_current(&job.slot, job.ticket);
        match &job.act {
            // It is counted and told by the put itself.
            Act::Put(parts) => drop(self.put(&job.slot, parts, &is_current)),
            Act::Remove => {
                if let Err(error) = self.remove(&job.slot, &is_current) {
                    self.health.write_failed("remove", &error);
                }
            }
        }
        self.queue.done(&job.slot, job.ticket);
    }

    fn tidy(&self, group: usize) {
        if !self.health.writable.load(Ordering::Relaxed) {
            return;
        }
        if let Err(error) = self.groups.tidy(group, SystemTime::now()) {
            self.health.failed("tidy", &error);
        }
    }

    /// A place for a file that is not complete yet. In a folder of their own, so that those of the dead are found without listing all.
    fn temporary(&self) -> Temporary {
        // By chance and not by counting: in containers that share the folder all processes may have the same number.
        Temporary(self.root.join(format!("tmp/{}-{:016x}", std::process::id(), fastrand::u64(..))))
    }

    fn clear_temporaries(&self, now: SystemTime) {
        let Ok(items) = fs::read_dir(self.root.join("tmp")) else { return };
        for item in items.flatten() {
            let written = item.metadata().and_then(|metadata| metadata.modified());
            let is_old = written.is_ok_and(|at| now.duration_since(at).is_ok_and(|age| age > TEMPORARY_AGE_MAX));
            if is_old || !item.file_name().to_str().is_some_and(is_of_the_living) {
                // Another process may do the same.
                let _ = fs::remove_file(item.path());
            }
        }
    }
}

/// Removed unless it was renamed.
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

fn is_of_the_living(name: &str) -> bool {
    let pid = name.split('-').next().and_then(|pid| pid.parse().ok()).filter(|pid| *pid > 0);
    // Not being allowed to signal it says that it is there.
    pid.is_some_and(|pid| signal::kill(Pid::from_raw(pid), None) != Err(Errno::ESRCH))
}

fn is_missing(path: &Path) -> bool {
    fs::symlink_metadata(path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
}

fn is_disk_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// What became of the disk lately.
#[derive(Default)]
struct Health {
    writable: AtomicBool,
    error_last: Mutex<Option<String>>,
    rest_until: Mutex<Option<Instant>>,
    told_failure: Mutex<Told>,
    told_corrupt: Mutex<Told>,
    puts: AtomicU64,
    puts_dropped: AtomicU64,
    put_failures: AtomicU64,
    corrupt: AtomicU64,
}

#[derive(Default)]
struct Told {
    at: Option<Instant>,
    untold: u64,
}

impl Health {
    fn write_failed(&self, act: &str, error: &io::Error) {
        // A lock that was not to be had says nothing about the disk.
        if error.kind() != io::ErrorKind::TimedOut {
            self.writable.store(false, Ordering::Relaxed);
        }
        self.failed(act, error);
    }

    fn failed(&self, act: &str, error: &io::Error) {
        *self.error_last.lock() = Some(format!("{act}: {error}"));
        if let Some(untold) = self.told_failure.lock().tell() {
            log::warn!(
                "the cache on disk cannot {act}: {error}; it goes on without ({untold} like it were not logged)"
            );
        }
    }

    fn found_corrupt(&self, path: &Path) {
        self.corrupt.fetch_add(1, Ordering::Relaxed);
        if let Some(untold) = self.told_corrupt.lock().tell() {
            log::warn!(
                "a cached file was damaged and is removed; if that happens again, check the disk: {} ({untold} like it were not logged)",
                path.display()
            );
        }
    }

    fn rest(&self) {
        *self.rest_until.lock() = Some(Instant::now() + REST);
    }

    fn is_resting(&self) -> bool {
        self.rest_until.lock().is_some_and(|until| Instant::now() < until)
    }
}

impl Told {
    /// How many were kept quiet since the last time, if it is time to tell again.
    fn tell(&mut self) -> Option<u64> {
        if self.at.is_some_and(|at| at.elapsed() < TELL_AFTER) {
            self.untold += 1;
            return None;
        }
        self.at = Some(Instant::now());
        Some(std::mem::take(&mut self.untold))
    }
}

impl From<io::Error> for NotPut {
    fn from(error: io::Error) -> NotPut {
        match error.kind() {
            io::ErrorKind::TimedOut => NotPut::Busy,
            _ => NotPut::Failed(error),
        }
    }
}

impl fmt::Display for NotPut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NotPut::TooLarge { bytes, bytes_max } => {
                write!(f, "{bytes} bytes are too many for one entry; the most are {bytes_max}")
            }
            NotPut::Resting => write!(f, "the disk failed a moment ago"),
            NotPut::Busy => write!(f, "another process holds the lock for too long"),
            NotPut::Superseded => write!(f, "something newer came in between"),
            NotPut::Failed(error) => write!(f, "{error}"),
        }
    }
}

impl std::error::Error for NotPut {}

#[cfg(test)]
mod tests;
