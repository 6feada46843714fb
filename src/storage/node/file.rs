//! The file of one entry: a small header that says whose it is and what it must hash to, then the payload.
//!
//! ```text
//!   0        4          8        24               32           48
//!   | "PgL2" | version  | slot   | payload bytes  | checksum   | payload ...
//! ```
//! Every bit of it is checked on each read: the first three by comparison, the length against the size of the file, all of them with the
//! payload by the checksum. A file that is not exactly what was written is no entry, whatever happened to it. Files are never mapped:
//! a page that cannot be read would be a signal instead of an error.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use nix::fcntl::OFlag;

use crate::storage::memory::Slot;

pub const HEAD_BYTES: usize = 48;
/// No file of ours is larger, whatever `bytes_max` was when it was written.
pub const FILE_BYTES_MAX: u64 = 64 * 1_048_576;
const MAGIC: [u8; 4] = *b"PgL2";
const VERSION: u32 = 1;

/// Up to here one `write` of a copy is cheaper than one for the header and one for each part.
const GATHER_BYTES_MAX: usize = 64 * 1024;

/// How exactly the time of the last use is kept. Each note of it is a write to the disk.
const USE_NOTED_AFTER: Duration = Duration::from_secs(60);

/// What a file takes on the disk besides its blocks: its inode and its name. Most file systems are near this.
const INODE_BYTES: u64 = 512;
const BLOCK_BYTES: u64 = 4096;

#[derive(Debug)]
pub enum NotRead {
    Missing,
    /// It is not what was written. `inode` names the file that was looked at: another may have taken its place already.
    Corrupt {
        inode: u64,
    },
    Failed(io::Error),
}

/// What a file of `file_bytes` counts for.
pub fn cost(file_bytes: u64) -> u64 {
    file_bytes.div_ceil(BLOCK_BYTES).saturating_mul(BLOCK_BYTES).saturating_add(INODE_BYTES)
}

/// The payload, verified.
pub fn read(path: &Path, slot: &Slot, now: SystemTime) -> Result<Bytes, NotRead> {
    // Whatever somebody put there under this name, opening it must not wait (a pipe) nor lead elsewhere (a link).
    let flags = (OFlag::O_NONBLOCK | OFlag::O_NOFOLLOW).bits();
    let mut file = match OpenOptions::new().read(true).custom_flags(flags).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(NotRead::Missing),
        Err(error) => return Err(NotRead::Failed(error)),
    };
    let metadata = file.metadata().map_err(NotRead::Failed)?;
    let corrupt = NotRead::Corrupt { inode: metadata.ino() };
    let bytes = metadata.len();
    // The length is looked at before memory is asked for: a damaged inode may claim terabytes.
    if !metadata.is_file() || bytes < HEAD_BYTES as u64 || bytes > FILE_BYTES_MAX {
        return Err(corrupt);
    }
    let Ok(length) = usize::try_from(bytes) else { return Err(corrupt) };
    let mut content = Vec::with_capacity(length);
    // By reference, as the file is needed for the note of the use.
    (&mut file).take(bytes).read_to_end(&mut content).map_err(NotRead::Failed)?;
    if content.len() != length {
        return Err(corrupt);
    }
    let (head, payload) = content.split_at(HEAD_BYTES);
    if head != self::head(slot, &[payload]) {
        return Err(corrupt);
    }
    note_use(&file, metadata.modified(), now);
    Ok(Bytes::from(content).slice(HEAD_BYTES..))
}

/// The time of the last change is that of the last use. Reading times of the file system itself are mostly switched off.
fn note_use(file: &File, noted: io::Result<SystemTime>, now: SystemTime) {
    // A time ahead of the clock would keep an entry for good, so it is corrected.
    let is_exact = noted.is_ok_and(|at| match now.duration_since(at) {
        Ok(ago) => ago < USE_NOTED_AFTER,
        Err(ahead) => ahead.duration() < USE_NOTED_AFTER,
    });
    if !is_exact {
        // On a file system that is read-only nothing is evicted either.
        let _ = file.set_modified(now);
    }
}

/// Writes a new file. It is not synced: after a loss of power it may be short or full of zeros, which the checksum finds.
pub fn write<P: AsRef<[u8]>>(path: &Path, slot: &Slot, parts: &[P]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).open(path)?;
    let head = head(slot, parts);
    let length = HEAD_BYTES + payload_bytes(parts);
    if length <= GATHER_BYTES_MAX {
        let mut all = Vec::with_capacity(length);
        all.extend_from_slice(&head);
        parts.iter().for_each(|part| all.extend_from_slice(part.as_ref()));
        return file.write_all(&all);
    }
    file.write_all(&head)?;
    parts.iter().try_for_each(|part| file.write_all(part.as_ref()))
}

pub fn payload_bytes<P: AsRef<[u8]>>(parts: &[P]) -> usize {
    parts.iter().map(|part| part.as_ref().len()).sum()
}

fn head<P: AsRef<[u8]>>(slot: &Slot, parts: &[P]) -> [u8; HEAD_BYTES] {
    let length = (payload_bytes(parts) as u64).to_le_bytes();
    let mut hasher = blake3::Hasher::new();
    hasher.update(slot).update(&length);
    for part in parts {
        hasher.update(part.as_ref());
    }
    let mut head = [0; HEAD_BYTES];
    head[..4].copy_from_slice(&MAGIC);
    head[4..8].copy_from_slice(&VERSION.to_le_bytes());
    head[8..24].copy_from_slice(slot);
    head[24..32].copy_from_slice(&length);
    head[32..].copy_from_slice(&hasher.finalize().as_bytes()[..16]);
    head
}
