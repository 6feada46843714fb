//! The purges of this node: one file that its processes append to and poll, kept over a restart, as the entries on the disk are.
//!
//! `ROOT/purges` has one JSON object a line, with the beginning of its BLAKE3 before it. A line is written at once, under a lock.
//!
//! What cannot be read may have been a purge, so it counts as one of everything. The first line is a *floor*, which is just that: a
//! deletion of all that is older than its epoch. A writer that finds a line unreadable, torn, or a file without a floor (cut, or just
//! made) writes the file anew with a floor of now in it, so that the loss is taken in once by each process and not at every start.
//! Beyond 8 MiB the file is written anew as well, with the latest purges of each scope; the floor stands for those that find no room.
//! A new file is renamed over the old one; readers notice the other inode and read from the beginning. Purges that they know already do
//! no harm, as an epoch orders purges and entries for good.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::ops::{Deref, DerefMut};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::{Mutex, MutexGuard};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::file_lock;
use crate::cache::purge::{Epoch, Mode, Scope};

/// From here on the file is compacted.
const FILE_BYTES_MAX: u64 = 8 * MEGABYTE;
/// What compaction leaves at most: room for about 50,000 purges, and enough to fill up again not to compact all the time.
const COMPACTED_BYTES_MAX: u64 = 6 * MEGABYTE;
/// More is not read at once. A file grows so large only where it cannot be compacted; what is beyond is lost.
const READ_BYTES_MAX: u64 = 32 * MEGABYTE;
/// Unit tests compact smaller files, to stay in seconds; the slow ones have the real bounds.
const MEGABYTE: u64 = if cfg!(test) { 64 * 1024 } else { 1_048_576 };

/// Of one purge.
pub const SCOPES_MAX: usize = 10_000;
/// Of one line, so that what one flipped bit can spoil stays small.
const SCOPES_PER_LINE_MAX: usize = 1_000;

/// The most that a region may give: leaves room for ours to be above. The clock gets there in the year 2248.
const EPOCH_MAX: Epoch = Epoch(u64::MAX / 2);

/// Holders write one line or compact, which takes a fraction of a second.
const LOCK_WAIT_MAX: Duration = Duration::from_secs(5);

/// A purge as it stands in the file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Kept {
    pub epoch: Epoch,
    pub scopes: Vec<Scope>,
    pub mode: Mode,
    /// The epoch was given by the log of the region, else by this file.
    pub regional: bool,
}

/// What came since the last time.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct News {
    /// As they stand in the file. One with many scopes may come in parts, and one that is known already may come again.
    pub purges: Vec<Kept>,
    /// Something was there that cannot be read: all that was stored until now is to be taken as purged.
    pub lost: bool,
    /// All that is older than this epoch is to be taken as deleted.
    pub floor: Option<Epoch>,
}

pub struct PurgeLog {
    path: PathBuf,
    reader: Reader,
    /// Held while this process writes; `flock` keeps the others out.
    writer: Mutex<Option<Writer>>,
}

enum Reader {
    /// Nothing was read yet.
    New,
    At(Position),
    /// The file is not there, and that was said.
    Absent,
}

/// How far a file was read. It stays open, so that its inode is not given to its successor.
struct Position {
    file: File,
    inode: (u64, u64),
    /// Behind the last complete line.
    offset: u64,
    /// How long the file was then: with the beginning of a line at its end, it is longer than `offset`.
    length: u64,
}

/// The file as this process wrote or read it last.
struct Writer {
    file: File,
    inode: (u64, u64),
    /// All up to here was read.
    offset: u64,
    highest: Epoch,
}

/// A writer with the lock on its file, which ends with this value.
struct Held<'a> {
    place: MutexGuard<'a, Option<Writer>>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    epoch: Epoch,
    act: Act,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    regional: bool,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    scopes: Vec<Scope>,
}

#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Act {
    Invalidate,
    Delete,
    Floor,
}

/// What was read of a file.
#[derive(Default)]
struct Text {
    lines: Vec<Line>,
    is_torn: bool,
    lost: bool,
}

impl PurgeLog {
    /// Opens the log or begins it, with a floor of `now`: what is stored already may have been purged in a log that is gone.
    ///
    /// A folder that cannot be written does not keep the log from being read.
    pub fn open(root: &Path, now: SystemTime) -> io::Result<PurgeLog> {
        let made = fs::create_dir_all(root);
        if !root.is_dir() {
            return made.and(Err(io::Error::new(io::ErrorKind::NotADirectory, root.display().to_string())));
        }
        let log = PurgeLog { path: root.join("purges"), reader: Reader::New, writer: Mutex::default() };
        if let Err(error) = log.hold(now) {
            log::warn!("purges cannot be written to {}: {error}", log.path.display());
        }
        Ok(log)
    }

    /// Gives the purge its epoch (above all in the file and above `at_least`, from the clock where that is higher) and keeps it.
    ///
    /// It is on the disk when this returns.
    pub fn append(&self, scopes: &[Scope], mode: Mode, at_least: Epoch, now: SystemTime) -> io::Result<Epoch> {
        let mut held = self.hold(now)?;
        let epoch = held.next_epoch(at_least, now)?;
        self.write(&mut held, &Kept { epoch, scopes: scopes.to_vec(), mode, regional: false })?;
        held.file.sync_data()?;
        Ok(epoch)
    }

    /// Keeps a purge that has its epoch from the region. Twice does no harm.
    ///
    /// It is not waited for the disk: after a loss of power the region tells it again.
    pub fn keep(&self, purge: &Kept, now: SystemTime) -> io::Result<()> {
        if purge.epoch > EPOCH_MAX {
            return Err(invalid(format!("{} is no epoch", purge.epoch.0)));
        }
        let mut held = self.hold(now)?;
        self.write(&mut held, purge)
    }

    /// What came since the last call, by whomever; the first call yields all. With nothing new it is one `stat`.
    pub fn read(&mut self) -> News {
        let (text, is_beginning) = match self.read_text() {
            Ok(read) => read,
            Err(_) if matches!(self.reader, Reader::Absent) => return News::default(),
            // Gone, or not to be read: said once, until it can be read again.
            Err(_) => {
                self.reader = Reader::Absent;
                return News { lost: true, ..News::default() };
            }
        };
        let mut news = News { lost: text.lost || (is_beginning && !text.begins_with_floor()), ..News::default() };
        for line in text.lines {
            match line.purge() {
                Ok(purge) => news.purges.push(purge),
                Err(floor) => news.floor = news.floor.max(Some(floor)),
            }
        }
        news
    }

    /// The new lines, and whether they are the first of their file.
    fn read_text(&mut self) -> io::Result<(Text, bool)> {
        let metadata = fs::metadata(&self.path)?;
        let mut cut = false;
        if let Reader::At(at) = &mut self.reader
            && at.inode == inode(&metadata)
        {
            if metadata.len() == at.length {
                return Ok((Text::default(), false));
            }
            if metadata.len() >= at.offset {
                return Ok((at.advance(metadata.len())?, false));
            }
            cut = true;
        }
        let file = File::open(&self.path)?;
        let metadata = file.metadata()?;
        let mut at = Position { file, inode: inode(&metadata), offset: 0, length: 0 };
        let mut text = at.advance(metadata.len())?;
        text.lost |= cut;
        self.reader = Reader::At(at);
        Ok((text, true))
    }

    /// Takes the lock and takes in what others wrote. The file is sound then.
    fn hold(&self, now: SystemTime) -> io::Result<Held<'_>> {
        let mut place = self.writer.lock();
        // The highest epoch outlives the file, should somebody remove it.
        let highest = place.as_ref().map(|writer| writer.highest).unwrap_or_default();
        let mut writer = match place.take() {
            Some(writer) if writer.is_at(&self.path) => writer,
            _ => Writer::open(&self.path)?,
        };
        file_lock::lock(&writer.file, LOCK_WAIT_MAX)?;
        // Whoever had the lock before may have written the file anew. Not endlessly: each time somebody else came forward.
        for _ in 0..100 {
            if writer.is_at(&self.path) {
                break;
            }
            writer = Writer::open(&self.path)?;
            file_lock::lock(&writer.file, LOCK_WAIT_MAX)?;
        }
        let is_beginning = writer.offset == 0;
        let text = writer.catch_up()?;
        writer.highest = writer.highest.max(highest);
        *place = Some(writer);
        let mut held = Held { place };
        if text.lost || text.is_torn || (is_beginning && !text.begins_with_floor()) {
            let floor = held.next_epoch(Epoch::default(), now)?;
            self.rewrite(&mut held, Some(floor))?;
        }
        Ok(held)
    }

    fn write(&self, held: &mut Held<'_>, purge: &Kept) -> io::Result<()> {
        if purge.scopes.len() > SCOPES_MAX {
            return Err(invalid(format!(
                "{} scopes are too many for one purge; the most are {SCOPES_MAX}",
                purge.scopes.len()
            )));
        }
        let lines = encode(purge);
        if held.offset + lines.len() as u64 > FILE_BYTES_MAX
            && let Err(error) = self.rewrite(held, None)
        {
            // The purge may find its room all the same; it is more important.
            log::warn!("{} cannot be compacted: {error}", self.path.display());
            if held.offset + lines.len() as u64 > READ_BYTES_MAX {
                return Err(error);
            }
        }
        held.append(&lines, purge.epoch)
    }

    /// Puts a compacted file in the place of this one, and the lock with it.
    fn rewrite(&self, held: &mut Held<'_>, floor: Option<Epoch>) -> io::Result<()> {
        let (_, text) = parse(&read_range(&held.file, 0, held.file.metadata()?.len().min(READ_BYTES_MAX))?);
        let content = compact(text.lines, floor);
        let temporary = self.path.with_extension("new");
        // Only the holder of the lock writes it, so one that is there is left over from a death.
        let _ = fs::remove_file(&temporary);
        let mut file = OpenOptions::new().read(true).append(true).create_new(true).open(&temporary)?;
        file_lock::lock(&file, Duration::ZERO)?;
        let written =
            file.write_all(&content).and_then(|()| file.sync_all()).and_then(|()| fs::rename(&temporary, &self.path));
        if let Err(error) = written {
            let _ = fs::remove_file(&temporary);
            return Err(error);
        }
        // From here on the new file is the log, also if its name is not on the disk yet.
        let highest = held.highest.max(floor.unwrap_or_default());
        let metadata = file.metadata()?;
        **held = Writer { inode: inode(&metadata), file, offset: content.len() as u64, highest };
        File::open(self.path.parent().expect("the log is in a folder"))?.sync_all()
    }
}

impl Position {
    fn advance(&mut self, length: u64) -> io::Result<Text> {
        self.length = length;
        let begin = self.offset.max(length.saturating_sub(READ_BYTES_MAX));
        let skipped = begin > self.offset;
        let (bytes, mut text) = parse(&read_range(&self.file, begin, length)?);
        text.lost |= skipped;
        self.offset = begin + bytes as u64;
        Ok(text)
    }
}

impl Writer {
    fn open(path: &Path) -> io::Result<Writer> {
        let file = OpenOptions::new().read(true).append(true).create(true).open(path)?;
        let inode = inode(&file.metadata()?);
        Ok(Writer { file, inode, offset: 0, highest: Epoch::default() })
    }

    fn is_at(&self, path: &Path) -> bool {
        fs::metadata(path).is_ok_and(|metadata| inode(&metadata) == self.inode)
    }

    /// Reads what is new, with the lock held.
    fn catch_up(&mut self) -> io::Result<Text> {
        let length = self.file.metadata()?.len();
        let cut = length < self.offset;
        if cut {
            self.offset = 0;
        }
        let begin = self.offset.max(length.saturating_sub(READ_BYTES_MAX));
        let skipped = begin > self.offset;
        let (_, mut text) = parse(&read_range(&self.file, begin, length)?);
        text.lost |= cut || skipped;
        self.offset = length;
        self.highest = text.lines.iter().map(|line| line.epoch).fold(self.highest, Epoch::max);
        Ok(text)
    }

    fn append(&mut self, lines: &[u8], epoch: Epoch) -> io::Result<()> {
        let written = match self.file.write(lines) {
            Ok(bytes) if bytes == lines.len() => Ok(()),
            Ok(_) => Err(io::ErrorKind::StorageFull.into()),
            Err(error) => Err(error),
        };
        if written.is_err() {
            // Half a line has no end, so nobody took it in. If it cannot be taken back, the next writer finds it torn.
            let _ = self.file.set_len(self.offset);
            return written;
        }
        self.offset += lines.len() as u64;
        self.highest = self.highest.max(epoch);
        Ok(())
    }

    fn next_epoch(&self, at_least: Epoch, now: SystemTime) -> io::Result<Epoch> {
        let ms = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis());
        let clock = u64::try_from(ms << 20).unwrap_or(u64::MAX);
        let above = self.highest.max(at_least).0.checked_add(1).ok_or_else(|| invalid("no epochs are left".into()))?;
        Ok(Epoch(above.max(clock)))
    }
}

impl Deref for Held<'_> {
    type Target = Writer;

    fn deref(&self) -> &Writer {
        self.place.as_ref().expect("it is put there before")
    }
}

impl DerefMut for Held<'_> {
    fn deref_mut(&mut self) -> &mut Writer {
        self.place.as_mut().expect("it is put there before")
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        // The file stays open, so its lock is to be given back by hand. If that fails, closing does it.
        if self.file.unlock().is_err() {
            *self.place = None;
        }
    }
}

impl Text {
    fn begins_with_floor(&self) -> bool {
        self.lines.first().is_some_and(|line| line.act == Act::Floor)
    }
}

impl Line {
    /// The purge that it tells of, or the floor.
    fn purge(self) -> Result<Kept, Epoch> {
        let mode = match self.act {
            Act::Invalidate => Mode::Invalidate,
            Act::Delete => Mode::Delete,
            Act::Floor => return Err(self.epoch),
        };
        Ok(Kept { epoch: self.epoch, scopes: self.scopes, mode, regional: self.regional })
    }

    fn encode(&self, text: &mut Vec<u8>) {
        let json = serde_json::to_vec(self).expect("numbers and strings are JSON");
        text.extend_from_slice(check(&json).as_bytes());
        text.push(b' ');
        text.extend_from_slice(&json);
        text.push(b'\n');
    }

    fn decode(text: &[u8]) -> Option<Line> {
        let (sum, json) = text.split_at_checked(8)?;
        let json = json.strip_prefix(b" ")?;
        if sum != check(json).as_bytes() {
            return None;
        }
        serde_json::from_slice(json).ok()
    }
}

fn check(json: &[u8]) -> String {
    blake3::hash(json).to_hex()[..8].to_owned()
}

fn parse(bytes: &[u8]) -> (usize, Text) {
    let mut text = Text::default();
    let complete = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
    text.is_torn = complete < bytes.len();
    for line in bytes[..complete].split_inclusive(|byte| *byte == b'\n') {
        match Line::decode(&line[..line.len() - 1]) {
            Some(line) => text.lines.push(line),
            None => text.lost = true,
        }
    }
    (complete, text)
}

fn encode(purge: &Kept) -> Vec<u8> {
    let act = match purge.mode {
        Mode::Invalidate => Act::Invalidate,
        Mode::Delete => Act::Delete,
    };
    let mut text = Vec::new();
    let line = |scopes: &[Scope]| Line { epoch: purge.epoch, act, regional: purge.regional, scopes: scopes.to_vec() };
    if purge.scopes.is_empty() {
        line(&[]).encode(&mut text);
    }
    purge.scopes.chunks(SCOPES_PER_LINE_MAX).for_each(|scopes| line(scopes).encode(&mut text));
    text
}

/// The latest purges of each scope, of each mode and origin, in order and behind a floor. The oldest go where there are too many.
fn compact(lines: Vec<Line>, floor: Option<Epoch>) -> Vec<u8> {
    let mut floor = floor.unwrap_or_default();
    let mut latest = HashMap::<(Scope, Mode, bool), Epoch>::new();
    for line in lines {
        match line.purge() {
            Ok(purge) => purge.scopes.iter().for_each(|scope| {
                let epoch = latest.entry((*scope, purge.mode, purge.regional)).or_default();
                *epoch = purge.epoch.max(*epoch);
            }),
            Err(epoch) => floor = floor.max(epoch),
        }
    }
    let mut all: Vec<_> =
        latest.into_iter().map(|((scope, mode, regional), epoch)| (epoch, mode, regional, scope)).collect();
    all.sort_unstable_by_key(|(epoch, mode, regional, scope)| (*epoch, *mode == Mode::Delete, *regional, *scope));
    // From the newest down, until there is no more room.
    let (mut kept, mut bytes) = (Vec::new(), 0_u64);
    for group in all.chunk_by(|a, b| (a.0, a.1, a.2) == (b.0, b.1, b.2)).rev() {
        let (epoch, mode, regional, _) = group[0];
        let text = encode(&Kept { epoch, scopes: group.iter().map(|purge| purge.3).collect(), mode, regional });
        bytes += text.len() as u64;
        if bytes > COMPACTED_BYTES_MAX {
            floor = floor.max(epoch);
            break;
        }
        kept.push(text);
    }
    let mut content = Vec::new();
    Line { epoch: floor, act: Act::Floor, regional: false, scopes: Vec::new() }.encode(&mut content);
    kept.iter().rev().for_each(|text| content.extend_from_slice(text));
    content
}

fn read_range(file: &File, begin: u64, end: u64) -> io::Result<Vec<u8>> {
    let length = usize::try_from(end.saturating_sub(begin)).map_err(|_| invalid("the log is too long".into()))?;
    let mut bytes = vec![0; length];
    let mut filled = 0;
    while filled < length {
        match file.read_at(&mut bytes[filled..], begin + filled as u64) {
            // Cut in this very moment.
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    bytes.truncate(filled);
    Ok(bytes)
}

fn inode(metadata: &fs::Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

fn invalid(message: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, message)
}

impl Serialize for Epoch {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(self.0)
    }
}

impl<'de> Deserialize<'de> for Epoch {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Epoch, D::Error> {
        u64::deserialize(deserializer).map(Epoch)
    }
}

impl Serialize for Scope {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{:032x}", u128::from_be_bytes(self.0)))
    }
}

impl<'de> Deserialize<'de> for Scope {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Scope, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        let number = u128::from_str_radix(&text, 16).ok().filter(|_| text.len() == 32);
        number
            .map(|number| Scope(number.to_be_bytes()))
            .ok_or_else(|| serde::de::Error::custom("32 hexadecimal digits"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: SystemTime = SystemTime::UNIX_EPOCH;

    fn at(ms: u64) -> SystemTime {
        NOW + Duration::from_millis(ms)
    }

    fn scope(n: usize) -> Scope {
        Scope(u128::try_from(n).expect("fits").to_be_bytes())
    }

    struct Folder {
        folder: tempfile::TempDir,
    }

    impl Folder {
        fn new() -> Folder {
            Folder { folder: tempfile::tempdir().expect("a folder") }
        }

        fn open(&self) -> PurgeLog {
            PurgeLog::open(self.folder.path(), at(1)).expect("it opens")
        }

        fn path(&self) -> PathBuf {
            self.folder.path().join("purges")
        }

        fn text(&self) -> Vec<u8> {
            fs::read(self.path()).expect("the log is there")
        }
    }

    fn invalidate(log: &PurgeLog, n: usize) -> Epoch {
        log.append(&[scope(n)], Mode::Invalidate, Epoch::default(), at(5)).expect("it is written")
    }

    fn scopes(news: &News) -> Vec<Scope> {
        news.purges.iter().flat_map(|purge| purge.scopes.clone()).collect()
    }

    #[test]
    fn a_torn_line_is_left_until_the_next_purge_and_counts_as_lost_then() {
        let folder = Folder::new();
        let mut reader = folder.open();
        invalidate(&reader, 1);
        reader.read();
        let mut file = OpenOptions::new().append(true).open(folder.path()).expect("there");
        file.write_all(br#"deadbeef {"epoch":9,"act":"dele"#).expect("writable");
        assert_eq!(reader.read(), News::default());
        assert_eq!(reader.read(), News::default());
        let epoch = invalidate(&folder.open(), 2);
        let news = reader.read();
        assert!(news.floor.is_some_and(|floor| floor < epoch && floor > Epoch(5 << 20)), "{news:?}");
        assert_eq!(scopes(&news), [scope(1), scope(2)]);
        let again = folder.open().read();
        assert!(!again.lost, "the floor says it to all who come later");
        assert_eq!(again.floor, news.floor);
    }

    #[test]
    fn a_line_that_is_written_in_two_goes_is_read_when_it_is_complete() {
        let folder = Folder::new();
        let mut reader = folder.open();
        reader.read();
        let purge = Kept { epoch: Epoch(7 << 20), scopes: vec![scope(1)], mode: Mode::Delete, regional: true };
        let line = encode(&purge);
        let mut file = OpenOptions::new().append(true).open(folder.path()).expect("there");
        file.write_all(&line[..20]).expect("writable");
        assert_eq!(reader.read(), News::default());
        file.write_all(&line[20..]).expect("writable");
        assert_eq!(reader.read(), News { purges: vec![purge], lost: false, floor: None });
    }

    #[test]
    fn any_flipped_bit_is_noticed() {
        let folder = Folder::new();
        let log = folder.open();
        for n in 0..3 {
            invalidate(&log, n);
        }
        let text = folder.text();
        // Without the last line end, which would make it a line that is still being written.
        for bit in 0..(text.len() - 1) * 8 {
            let mut flipped = text.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            fs::write(folder.path(), &flipped).expect("writable");
            let mut reader = PurgeLog { path: folder.path(), reader: Reader::New, writer: Mutex::default() };
            assert!(reader.read().lost, "bit {bit}");
        }
        let flipped = [&text[..text.len() - 1], b"\x0b"].concat();
        fs::write(folder.path(), &flipped).expect("writable");
        let news = folder.open().read();
        assert!(
            news.floor.is_some_and(|floor| floor > Epoch(5 << 20)),
            "a line without an end is lost at the next start"
        );
    }

    #[test]
    fn damage_is_told_once_and_repaired_by_the_next_start() {
        let folder = Folder::new();
        let log = folder.open();
        let last = (0..10).map(|n| invalidate(&log, n)).max().expect("ten of them");
        let mut text = folder.text();
        let middle = text.len() / 2;
        text[middle..middle + 8].fill(0);
        fs::write(folder.path(), &text).expect("writable");
        let mut second = folder.open();
        let news = second.read();
        assert!(!news.lost && news.floor.is_some_and(|floor| floor > last), "{news:?}");
        assert_eq!(scopes(&news).len(), 9);
        assert!(
            second.append(&[], Mode::Delete, Epoch::default(), at(0)).expect("written") > news.floor.expect("a floor")
        );
    }

    #[test]
    fn a_file_that_is_gone_or_cut_is_lost_and_begins_anew_with_a_floor() {
        let folder = Folder::new();
        let mut log = folder.open();
        let before = invalidate(&log, 1);
        log.read();
        fs::remove_file(folder.path()).expect("there");
        assert!(log.read().lost);
        assert_eq!(log.read(), News::default(), "it is said once");
        let after = invalidate(&log, 2);
        let news = log.read();
        assert!(news.floor.is_some_and(|floor| floor > before && floor < after));
        assert_eq!(scopes(&news), [scope(2)]);

        File::create(folder.path()).expect("writable");
        assert!(log.read().lost, "cut to nothing");
        let last = invalidate(&log, 3);
        assert!(last > after);
        assert!(log.read().floor.is_some_and(|floor| floor > after));

        File::create(folder.path()).expect("writable");
        let news = folder.open().read();
        assert!(news.floor.is_some(), "cut while nobody looked");
    }

    #[test]
    fn a_log_that_was_opened_before_its_file_went_away_finds_the_floor_of_the_new_one() {
        let folder = Folder::new();
        let (mut first, second) = (folder.open(), folder.open());
        first.read();
        fs::remove_file(folder.path()).expect("there");
        invalidate(&second, 1);
        let news = first.read();
        assert!(news.floor.is_some() && scopes(&news) == [scope(1)]);
    }

    #[test]
    fn epochs_rise_whatever_the_clock_and_the_region_say() {
        let folder = Folder::new();
        let (one, two) = (folder.open(), folder.open());
        let give = |log: &PurgeLog, at_least, ms| {
            log.append(&[scope(1)], Mode::Delete, Epoch(at_least), at(ms)).expect("it is written")
        };
        assert_eq!(give(&one, 0, 1_000), Epoch(1_000 << 20));
        assert_eq!(give(&two, 0, 1_000), Epoch((1_000 << 20) + 1));
        assert_eq!(give(&one, 0, 500), Epoch((1_000 << 20) + 2), "the clock went back");
        assert_eq!(give(&one, 2_000 << 20, 1_000), Epoch((2_000 << 20) + 1));
        let regional = Kept { epoch: Epoch(3_000 << 20), scopes: vec![scope(2)], mode: Mode::Delete, regional: true };
        two.keep(&regional, at(1_000)).expect("it is written");
        assert_eq!(give(&one, 0, 1_000), Epoch((3_000 << 20) + 1));
        drop((one, two));
        assert_eq!(give(&folder.open(), 0, 1_000), Epoch((3_000 << 20) + 2), "after a restart as well");
        let absurd = Kept { epoch: Epoch(u64::MAX), ..regional };
        assert!(folder.open().keep(&absurd, at(1)).is_err());
    }

    #[test]
    fn a_purge_is_read_by_all_and_after_a_restart() {
        let folder = Folder::new();
        let (mut one, mut two) = (folder.open(), folder.open());
        one.read();
        two.read();
        let epoch = one.append(&[scope(1), scope(2)], Mode::Delete, Epoch::default(), at(9)).expect("it is written");
        let purge = Kept { epoch, scopes: vec![scope(1), scope(2)], mode: Mode::Delete, regional: false };
        let news = News { purges: vec![purge.clone()], lost: false, floor: None };
        assert_eq!((one.read(), two.read()), (news.clone(), news));
        assert_eq!((one.read(), two.read()), (News::default(), News::default()));
        assert_eq!(folder.open().read().purges, [purge]);
    }

    #[test]
    fn many_scopes_come_in_parts_and_too_many_are_refused() {
        let folder = Folder::new();
        let mut log = folder.open();
        let many: Vec<Scope> = (0..SCOPES_MAX).map(scope).collect();
        log.append(&many, Mode::Delete, Epoch::default(), at(1)).expect("it is written");
        assert_eq!(scopes(&log.read()), many);
        assert!(log.append(&vec![scope(1); SCOPES_MAX + 1], Mode::Delete, Epoch::default(), at(1)).is_err());
    }

    #[test]
    fn compaction_keeps_the_latest_of_each_scope_and_mode() {
        let purge = |epoch, n, mode| {
            let (_, text) =
                parse(&encode(&Kept { epoch: Epoch(epoch), scopes: vec![scope(n)], mode, regional: false }));
            text.lines
        };
        let lines = [
            purge(1, 1, Mode::Invalidate),
            purge(2, 1, Mode::Delete),
            purge(4, 1, Mode::Invalidate),
            purge(3, 2, Mode::Delete),
            purge(3, 3, Mode::Delete),
        ];
        let (_, text) = parse(&compact(lines.into_iter().flatten().collect(), Some(Epoch(9))));
        assert!(text.begins_with_floor());
        let left: Vec<_> = text.lines.into_iter().map(|line| (line.epoch.0, line.scopes)).collect();
        assert_eq!(
            left,
            [(9, vec![]), (2, vec![scope(1)]), (3, vec![scope(2), scope(3)]), (4, vec![scope(1)])],
            "the floor, then in order"
        );
    }

    #[test]
    fn a_file_that_is_too_long_is_compacted_and_readers_go_on() {
        let folder = Folder::new();
        let mut reader = folder.open();
        let log = folder.open();
        // 3.5 KB each, and the same scopes each time.
        let same: Vec<Scope> = (0..100).map(scope).collect();
        let keep = |n: u64| {
            let purge = Kept { epoch: Epoch(n << 20), scopes: same.clone(), mode: Mode::Invalidate, regional: true };
            log.keep(&purge, at(1)).expect("it is written");
        };
        for n in 1..500 {
            keep(n);
            let news = reader.read();
            assert!(!news.lost && news.purges.last().is_some_and(|purge| purge.epoch == Epoch(n << 20)), "{n}");
            assert!(news.floor.is_none_or(|floor| floor < Epoch(2 << 20)), "nothing was dropped");
        }
        assert!((folder.text().len() as u64) < FILE_BYTES_MAX);
        assert_eq!(fs::read_dir(folder.folder.path()).expect("there").count(), 1, "no other file is left");
    }

    #[test]
    fn where_too_much_is_left_the_oldest_go_and_the_floor_stands_for_them() {
        let lines = |range: std::ops::Range<usize>| {
            range.map(|n| Line { epoch: Epoch(n as u64), act: Act::Delete, regional: false, scopes: vec![scope(n)] })
        };
        let content = compact(lines(1..10_000).collect(), None);
        assert!((content.len() as u64) < COMPACTED_BYTES_MAX + 100);
        let (_, text) = parse(&content);
        let floor = text.lines[0].epoch;
        assert!(text.begins_with_floor() && text.lines.len() > 2_000);
        assert_eq!(text.lines[1].epoch, Epoch(floor.0 + 1), "it stands for all that were dropped and for no other");
        assert_eq!(text.lines.last().map(|line| line.epoch), Some(Epoch(9_999)));
    }

    #[test]
    fn a_log_that_cannot_be_written_says_so_and_can_be_read() {
        let folder = Folder::new();
        // A folder in the file's place: works for a superuser as well.
        fs::create_dir(folder.path()).expect("writable");
        let mut log = folder.open();
        assert!(log.append(&[scope(1)], Mode::Delete, Epoch::default(), at(1)).is_err());
        assert!(log.read().lost);
        fs::remove_dir(folder.path()).expect("empty");
        invalidate(&log, 1);
        let news = log.read();
        assert!(news.floor.is_some() && scopes(&news) == [scope(1)]);
        let file = folder.folder.path().join("file");
        File::create(&file).expect("writable");
        assert!(PurgeLog::open(&file, at(1)).is_err(), "a file is no folder");
    }

    #[test]
    fn threads_and_logs_write_at_once_and_nothing_is_lost_or_doubled() {
        let folder = Folder::new();
        let logs = [folder.open(), folder.open()];
        std::thread::scope(|threads| {
            for n in 0..4 {
                let log = &logs[n % 2];
                threads.spawn(move || (0..50).map(|k| invalidate(log, 50 * n + k)).max());
            }
        });
        let news = folder.open().read();
        assert!(!news.lost && news.purges.is_sorted_by(|a, b| a.epoch < b.epoch));
        let mut all = scopes(&news);
        all.sort_unstable();
        assert_eq!(all, (0..200).map(scope).collect::<Vec<_>>());
    }
}
