//! What the entries take on the disk, by group of folders, and who has to go when it is too much.
//!
//! The folders are divided over groups, each with its share of the bytes and with a small file that holds its usage. The file is changed
//! only under a lock on it, so all processes of the node keep one bound together. Slots are cut from a hash: groups fill evenly.
//!
//! The counter may be too high (a process was killed between the two steps of a change, which are in that order for this reason), or
//! too low (after a loss of power). Whoever lists the group, to evict or because the last count is long ago, sets it right. A counter
//! that cannot be read, or was kept for another number of groups, is counted anew.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::file;
use crate::storage::file_lock;
use crate::storage::memory::Slot;

/// The least budget of a group, unless the whole is less: a quarter of it holds the largest body.
const GROUP_BYTES_MIN: u64 = 64 * 1_048_576;
const FOLDERS: usize = 256;

/// An eviction takes a while (it lists the group), so it makes room for more than the one entry.
const EVICT_DOWN_TO_PERCENT: u64 = 90;

/// How long a counter is believed. Unmeasured: counting 500,000 files takes about a second.
const COUNT_AGE_MAX: Duration = Duration::from_secs(6 * 3600);

/// Holders list a folder at most, which takes seconds at most.
const LOCK_WAIT_MAX: Duration = Duration::from_secs(2);

const USAGE_BYTES: usize = 40;
const USAGE_MAGIC: [u8; 4] = *b"PgU1";

pub struct Groups {
    root: PathBuf,
    count: usize,
    /// Of each group.
    budget: u64,
    pub evictions: AtomicU64,
}

/// What a group holds, as its file says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    pub bytes: u64,
    pub entries: u64,
    /// Unix time in seconds.
    counted_at: u64,
}

/// A group whose lock we have.
pub struct Held<'a> {
    groups: &'a Groups,
    group: usize,
    file: File,
    pub usage: Usage,
    now: SystemTime,
}

struct Listed {
    used: SystemTime,
    cost: u64,
    slot: Slot,
}

impl Groups {
    pub fn new(root: PathBuf, bytes_max: u64) -> Groups {
        let most = usize::try_from(bytes_max / GROUP_BYTES_MIN).unwrap_or(FOLDERS).clamp(1, FOLDERS);
        // A power of two divides the folders evenly.
        let count = 1 << most.ilog2();
        Groups { root, count, budget: bytes_max / count as u64, evictions: AtomicU64::new(0) }
    }

    /// The largest file that is stored.
    pub fn file_bytes_max(&self) -> u64 {
        (self.budget / 4).min(file::FILE_BYTES_MAX)
    }

    pub fn numbers(&self) -> std::ops::Range<usize> {
        0..self.count
    }

    pub fn path(&self, slot: &Slot) -> PathBuf {
        let name = u128::from_be_bytes(*slot);
        self.root.join(format!("{:02x}/{name:032x}", slot[0]))
    }

    fn usage_path(&self, group: usize) -> PathBuf {
        self.root.join(format!("usage/{group:02x}"))
    }

    /// What all groups hold together. Without locks: a counter that is just being written may be left out.
    pub fn usage(&self) -> Usage {
        self.numbers().filter_map(|group| self.read_usage(&File::open(self.usage_path(group)).ok()?)).fold(
            Usage::default(),
            |sum, usage| Usage {
                bytes: sum.bytes.saturating_add(usage.bytes),
                entries: sum.entries.saturating_add(usage.entries),
                counted_at: 0,
            },
        )
    }

    fn read_usage(&self, file: &File) -> Option<Usage> {
        let mut content = [0; USAGE_BYTES];
        file.read_exact_at(&mut content, 0).ok()?;
        let usage =
            Usage { bytes: number(&content[8..]), entries: number(&content[16..]), counted_at: number(&content[24..]) };
        (content == self.encode(usage)).then_some(usage)
    }

    fn encode(&self, usage: Usage) -> [u8; USAGE_BYTES] {
        let mut content = [0; USAGE_BYTES];
        content[..4].copy_from_slice(&USAGE_MAGIC);
        content[4..8].copy_from_slice(&u32::try_from(self.count).expect("at most 256").to_le_bytes());
        content[8..16].copy_from_slice(&usage.bytes.to_le_bytes());
        content[16..24].copy_from_slice(&usage.entries.to_le_bytes());
        content[24..32].copy_from_slice(&usage.counted_at.to_le_bytes());
        let check = blake3::hash(&content[..32]);
        content[32..].copy_from_slice(&check.as_bytes()[..8]);
        content
    }

    /// Removes the counters of another number of groups: they would be believed when that number comes back, and know nothing of what
    /// happened since. A process that still runs with that number counts anew.
    pub fn forget_others(&self) {
        let Ok(items) = fs::read_dir(self.root.join("usage")) else { return };
        let ours: Vec<PathBuf> = self.numbers().map(|group| self.usage_path(group)).collect();
        for path in items.flatten().map(|item| item.path()) {
            let is_ours = ours.contains(&path) && File::open(&path).is_ok_and(|file| self.read_usage(&file).is_some());
            if !is_ours {
                // What stays is not believed, or only for as long as counters are.
                let _ = fs::remove_file(&path);
            }
        }
    }

    /// Takes the lock of the group that the slot is in.
    pub fn hold(&self, slot: &Slot, now: SystemTime) -> io::Result<Held<'_>> {
        self.hold_group(usize::from(slot[0]) % self.count, now)
    }

    pub fn hold_group(&self, group: usize, now: SystemTime) -> io::Result<Held<'_>> {
        let path = self.usage_path(group);
        let open = || OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let file = with_folder(&path, open)?;
        file_lock::lock(&file, LOCK_WAIT_MAX)?;
        let known = self.read_usage(&file);
        let mut held = Held { groups: self, group, file, usage: known.unwrap_or_default(), now };
        if known.is_none() {
            held.count()?;
            held.save()?;
        }
        Ok(held)
    }

    /// Counts the group if that is due, and evicts from it if it is over its budget, as after a start with fewer bytes.
    pub fn tidy(&self, group: usize, now: SystemTime) -> io::Result<()> {
        let known = File::open(self.usage_path(group)).ok().and_then(|file| self.read_usage(&file));
        if known.is_some_and(|usage| usage.is_recent(now) && usage.bytes <= self.budget) {
            return Ok(());
        }
        let mut held = self.hold_group(group, now)?;
        if !held.usage.is_recent(now) {
            held.count()?;
        }
        if held.usage.bytes > self.budget {
            held.evict(self.budget / 100 * EVICT_DOWN_TO_PERCENT)?;
        }
        held.save()
    }

    fn folders(&self, group: usize) -> impl Iterator<Item = u8> + use<> {
        (0..=u8::MAX).skip(group).step_by(self.count)
    }
}

impl Held<'_> {
    /// Evicts if `cost` more would be over the budget.
    pub fn make_room(&mut self, cost: u64) -> io::Result<()> {
        if self.usage.bytes.saturating_add(cost) <= self.groups.budget {
            return Ok(());
        }
        self.evict((self.groups.budget / 100 * EVICT_DOWN_TO_PERCENT).saturating_sub(cost))?;
        // Should files remain that cannot be removed, the bound holds and the newcomer stays out.
        if self.usage.bytes.saturating_add(cost) <= self.groups.budget {
            return Ok(());
        }
        Err(io::Error::new(io::ErrorKind::QuotaExceeded, "nothing can be evicted to make room"))
    }

    /// The disk is full before the budget is: gives a tenth back, and at least `cost`. While somebody else fills the disk, the
    /// cache gives way, a tenth of a group a second.
    pub fn shrink(&mut self, cost: u64) -> io::Result<()> {
        self.evict(self.usage.bytes.saturating_sub((self.usage.bytes / 10).max(cost)))
    }

    /// Removes what was not used for longest until no more than `bytes` are left.
    fn evict(&mut self, bytes: u64) -> io::Result<()> {
        let mut all = self.count()?;
        all.sort_unstable_by_key(|listed| listed.used);
        for listed in all {
            if self.usage.bytes <= bytes {
                break;
            }
            if self.unlink(&listed.slot, listed.cost).is_ok() {
                self.groups.evictions.fetch_add(1, Ordering::Relaxed);
            }
        }
        self.save()
    }

    pub fn remove_all(&mut self) -> io::Result<()> {
        let all = self.count()?;
        let removed = all.iter().map(|listed| self.unlink(&listed.slot, listed.cost)).fold(Ok(()), Result::and);
        removed.and(self.save())
    }

    /// Removes the file of an entry; true if there was one. Does not save.
    pub fn remove(&mut self, slot: &Slot) -> io::Result<bool> {
        match self.cost_of(slot) {
            Some(cost) => self.unlink(slot, cost).map(|()| true),
            None => Ok(false),
        }
    }

    fn unlink(&mut self, slot: &Slot, cost: u64) -> io::Result<()> {
        match fs::remove_file(self.groups.path(slot)) {
            // Gone already, by an operator's hand: it does not count any more either.
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => self.subtract(cost),
        }
        Ok(())
    }

    /// Gives a complete file its name. The counter goes first: a death in between leaves it too high and never too low.
    pub fn adopt(&mut self, slot: &Slot, written: &Path, cost: u64) -> io::Result<()> {
        let before = self.usage;
        if let Some(cost) = self.cost_of(slot) {
            self.subtract(cost);
        }
        self.usage.bytes = self.usage.bytes.saturating_add(cost);
        self.usage.entries += 1;
        self.save()?;
        let path = self.groups.path(slot);
        with_folder(&path, || fs::rename(written, &path)).inspect_err(|_| {
            self.usage = before;
            // The error of the rename is the one to tell.
            let _ = self.save();
        })
    }

    pub fn cost_of(&self, slot: &Slot) -> Option<u64> {
        fs::symlink_metadata(self.groups.path(slot)).ok().map(|metadata| file::cost(metadata.len()))
    }

    fn subtract(&mut self, cost: u64) {
        self.usage.bytes = self.usage.bytes.saturating_sub(cost);
        self.usage.entries = self.usage.entries.saturating_sub(1);
    }

    pub fn save(&self) -> io::Result<()> {
        self.file.write_all_at(&self.groups.encode(self.usage), 0)
    }

    /// Lists the group and sets the counter right. Does not save.
    fn count(&mut self) -> io::Result<Vec<Listed>> {
        let mut all = Vec::new();
        for folder in self.groups.folders(self.group) {
            list(&self.groups.root.join(format!("{folder:02x}")), folder, &mut all)?;
        }
        self.usage = Usage {
            bytes: all.iter().map(|listed| listed.cost).fold(0, u64::saturating_add),
            entries: all.len() as u64,
            counted_at: unix_s(self.now),
        };
        Ok(all)
    }
}

impl Usage {
    /// A count of the future is from a clock that was wrong.
    fn is_recent(&self, now: SystemTime) -> bool {
        unix_s(now).abs_diff(self.counted_at) <= COUNT_AGE_MAX.as_secs()
    }
}

fn list(path: &Path, folder: u8, all: &mut Vec<Listed>) -> io::Result<()> {
    let items = match fs::read_dir(path) {
        Ok(items) => items,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for item in items {
        let item = item?;
        let metadata = match item.metadata() {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        let slot = item.file_name().to_str().and_then(slot_of).filter(|slot| slot[0] == folder);
        match slot {
            Some(slot) => all.push(Listed {
                used: metadata.modified().unwrap_or(UNIX_EPOCH),
                cost: file::cost(metadata.len()),
                slot,
            }),
            // The folder is ours. What cannot be an entry would never be evicted. Folders and what cannot be removed are left.
            None => drop(fs::remove_file(item.path())),
        }
    }
    Ok(())
}

fn slot_of(name: &str) -> Option<Slot> {
    let is_ours = name.len() == 32 && name.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    if !is_ours {
        return None;
    }
    u128::from_str_radix(name, 16).ok().map(u128::to_be_bytes)
}

/// Does something with a file whose folder may be missing: at the beginning, and after an operator's `rm -r`.
pub fn with_folder<T>(path: &Path, act: impl Fn() -> io::Result<T>) -> io::Result<T> {
    match act() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            fs::create_dir_all(path.parent().expect("our files are in folders"))?;
            act()
        }
        result => result,
    }
}

fn unix_s(at: SystemTime) -> u64 {
    at.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

fn number(bytes: &[u8]) -> u64 {
    u64::from_le_bytes(*bytes.first_chunk().expect("within the file's fixed size"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_groups_follows_the_bytes() {
        for (bytes_max, count) in [
            (1 << 20, 1),
            (64 << 20, 1),
            (127 << 20, 1),
            (128 << 20, 2),
            (200 << 20, 2),
            (1 << 40, 256),
            (u64::MAX, 256),
        ] {
            let groups = Groups::new(PathBuf::new(), bytes_max);
            assert_eq!(groups.count, count, "of {bytes_max} bytes");
            assert!(bytes_max < 64 << 20 || groups.file_bytes_max() >= 16 << 20);
            let mut folders: Vec<u8> = groups.numbers().flat_map(|group| groups.folders(group)).collect();
            folders.sort_unstable();
            assert!(folders.into_iter().eq(0..=u8::MAX), "each folder is in one group");
        }
    }

    #[test]
    fn only_names_of_entries_are_entries() {
        let groups = Groups::new(PathBuf::from("/"), 1 << 20);
        let slot = [0xab; 16];
        let name = groups.path(&slot).file_name().and_then(|name| name.to_str().map(str::to_owned)).expect("hex");
        assert_eq!(slot_of(&name), Some(slot));
        for wrong in ["", "ab", "+bababababababababababababababab", "ABABABABABABABABABABABABABABABAB"] {
            assert_eq!(slot_of(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_usage_with_any_flipped_bit_is_not_believed() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("usage");
        let groups = Groups::new(folder.path().into(), 1 << 30);
        let content = groups.encode(Usage { bytes: 5, entries: 2, counted_at: 7 });
        for bit in 0..USAGE_BYTES * 8 {
            let mut flipped = content;
            flipped[bit / 8] ^= 1 << (bit % 8);
            fs::write(&path, flipped).expect("writable");
            assert_eq!(groups.read_usage(&File::open(&path).expect("there")), None, "bit {bit}");
        }
        fs::write(&path, content).expect("writable");
        let file = File::open(&path).expect("there");
        assert!(groups.read_usage(&file).is_some());
        assert_eq!(Groups::new(PathBuf::new(), 1 << 40).read_usage(&file), None, "it is of another number of groups");
    }
}
