//! The cache on disk under processes that are killed, disks that are full or read-only, and a clock that measures.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use perigee::storage::memory::Slot;
use perigee::storage::node::{Node, NotPut};

const ROOT: &str = "PERIGEE_TEST_NODE_ROOT";
const SEED: &str = "PERIGEE_TEST_NODE_SEED";
const LONG: Duration = Duration::from_secs(60);

fn slot(n: u64) -> Slot {
    let mut slot = [0; 16];
    slot.copy_from_slice(&blake3::hash(&n.to_le_bytes()).as_bytes()[..16]);
    slot
}

/// Follows from the key and the version, so that a reader can tell what it should be.
fn payload(n: u64, version: u64, bytes: usize) -> Bytes {
    let mut payload = vec![0; bytes.max(16)];
    payload[..8].copy_from_slice(&version.to_le_bytes());
    let mut hasher = blake3::Hasher::new();
    hasher.update(&n.to_le_bytes()).update(&version.to_le_bytes()).finalize_xof().fill(&mut payload[8..]);
    Bytes::from(payload)
}

/// The version that is stored.
fn version(node: &Node, n: u64) -> Option<u64> {
    let found = node.get(&slot(n))?;
    let version = u64::from_le_bytes(*found.first_chunk().expect("at least 16 bytes"));
    assert!(found == payload(n, version, found.len()), "wrong bytes for {n}");
    Some(version)
}

fn disk_bytes(path: &Path) -> u64 {
    let Ok(metadata) = fs::symlink_metadata(path) else { return 0 };
    let below: u64 = match fs::read_dir(path) {
        Ok(items) => items.flatten().map(|item| disk_bytes(&item.path())).sum(),
        Err(_) => 0,
    };
    metadata.blocks() * 512 + below
}

fn spawn(test: &str, root: &Path, seed: u64) -> Child {
    Command::new(std::env::current_exe().expect("this program"))
        .args(["--exact", test, "--ignored", "--nocapture"])
        .env(ROOT, root)
        .env(SEED, seed.to_string())
        .stdout(Stdio::null())
        .spawn()
        .expect("it starts")
}

const KILLED_BYTES_MAX: u64 = 32 << 20;

#[test]
#[ignore = "a part of the test below"]
fn process_that_is_killed() {
    let Some(root) = std::env::var_os(ROOT) else { return };
    let seed = std::env::var(SEED).ok().and_then(|seed| seed.parse().ok()).expect("a number");
    let node = Node::open(Path::new(&root), KILLED_BYTES_MAX).expect("it opens");
    let mut random = fastrand::Rng::with_seed(seed);
    loop {
        let n = random.u64(0..3_000);
        // Some of a megabyte, most small: about three times of what there is room for.
        let bytes = if random.u8(0..30) == 0 { random.usize(0..1_000_000) } else { random.usize(0..20_000) };
        match random.u8(0..10) {
            0 => node.remove(&slot(n)).expect("writable"),
            1..4 => match node.put(&slot(n), &[payload(n, random.u64(..), bytes)]) {
                Ok(()) | Err(NotPut::Busy) => {}
                Err(error) => panic!("{error}"),
            },
            4 => node.put_behind(slot(n), vec![payload(n, random.u64(..), bytes)]),
            _ => drop(version(&node, n)),
        }
    }
}

#[test]
#[ignore = "takes 20 seconds"]
fn processes_that_are_killed_at_any_moment_leave_no_wrong_byte_and_keep_the_bound() {
    let folder = tempfile::tempdir().expect("a folder");
    let root = folder.path();
    let start = |seed| spawn("node::process_that_is_killed", root, seed);
    let mut random = fastrand::Rng::with_seed(7);
    let mut seed = 2;
    let mut processes = [start(0), start(1)];
    let node = Node::open(root, KILLED_BYTES_MAX).expect("it opens");
    let (begin, mut hits, mut kills, mut disk_bytes_max) = (Instant::now(), 0, 0, 0);
    while begin.elapsed() < Duration::from_secs(20) {
        let until = Instant::now() + Duration::from_millis(random.u64(20..200));
        while Instant::now() < until {
            hits += u64::from(version(&node, random.u64(0..3_000)).is_some());
        }
        disk_bytes_max = disk_bytes_max.max(disk_bytes(root));
        let victim = &mut processes[random.usize(0..2)];
        // Whoever ended by itself has found something wrong.
        assert!(victim.try_wait().expect("ours").is_none(), "a process gave up");
        victim.kill().expect("it runs");
        victim.wait().expect("ours");
        *victim = start(seed);
        (seed, kills) = (seed + 1, kills + 1);
    }
    for mut process in processes {
        assert!(process.try_wait().expect("ours").is_none(), "a process gave up");
        process.kill().expect("it runs");
        process.wait().expect("ours");
    }
    let state = node.state();
    println!("{kills} kills, {hits} hits, {disk_bytes_max} bytes at most, {state:?}");
    assert!(kills > 50 && hits > 1_000);
    assert_eq!(state.corrupt, 0, "half a file never gets its name");
    assert!(disk_bytes_max <= KILLED_BYTES_MAX + KILLED_BYTES_MAX / 10);
    drop(node);
    let node = Node::open(root, KILLED_BYTES_MAX).expect("it opens");
    let left = (0..3_000).filter(|n| version(&node, *n).is_some()).count();
    assert!(left > 500, "{left}");
    assert_eq!(fs::read_dir(root.join("v1/tmp")).expect("there").count(), 0, "files of the dead are cleared");
}

#[test]
#[ignore = "waits for time limits"]
fn a_lock_that_is_never_given_back_stops_nobody() {
    let folder = tempfile::tempdir().expect("a folder");
    let node = Node::open(folder.path(), 1 << 20).expect("it opens");
    node.put(&slot(0), &[payload(0, 1, 100)]).expect("there is room");
    let held = fs::File::open(folder.path().join("v1/usage/00")).expect("there");
    held.lock().expect("it is free");
    assert!(version(&node, 0).is_some(), "reading needs no lock");
    let begin = Instant::now();
    assert!(matches!(node.put(&slot(1), &[payload(1, 1, 100)]), Err(NotPut::Busy)));
    node.remove(&slot(0)).expect("it is removed without the lock");
    assert_eq!(version(&node, 0), None);
    assert!(begin.elapsed() < Duration::from_secs(10));
    assert!(node.state().writable, "that says nothing about the disk");
}

/// A file system of its own, of a few megabytes.
pub struct Mounted(tempfile::TempDir);

impl Mounted {
    /// `None` where mounting is not allowed.
    pub fn new(bytes: u64) -> Option<Mounted> {
        let folder = tempfile::tempdir().expect("a folder");
        let size = format!("size={bytes}");
        let mounted = run(Command::new("mount").args(["-t", "tmpfs", "-o", &size, "none"]).arg(folder.path()));
        if !mounted {
            eprintln!("not tested: mounting is not allowed");
        }
        mounted.then_some(Mounted(folder))
    }

    pub fn remount(&self, how: &str) {
        let option = format!("remount,{how}");
        assert!(run(Command::new("mount").args(["-o", &option]).arg(self.0.path())));
    }

    pub fn path(&self) -> PathBuf {
        self.0.path().join("cache")
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        run(Command::new("umount").arg("-l").arg(self.0.path()));
    }
}

fn run(command: &mut Command) -> bool {
    command.status().is_ok_and(|status| status.success())
}

#[test]
#[ignore = "mounts a file system"]
fn a_disk_that_is_smaller_than_the_bound_goes_on_with_what_fits() {
    let Some(mounted) = Mounted::new(8 << 20) else { return };
    let node = Node::open(&mounted.path(), 64 << 20).expect("it opens");
    for n in 0..2_000 {
        node.put(&slot(n), &[payload(n, n, 20_000)]).expect("the oldest make room");
        assert_eq!(version(&node, n), Some(n));
    }
    let state = node.state();
    assert!(state.writable && state.evictions > 1_000 && state.put_failures == 0, "{state:?}");
}

#[test]
#[ignore = "mounts a file system"]
fn a_disk_that_somebody_else_filled_costs_writes_and_nothing_else() {
    let Some(mounted) = Mounted::new(8 << 20) else { return };
    let node = Node::open(&mounted.path(), 64 << 20).expect("it opens");
    node.put(&slot(0), &[payload(0, 0, 10_000)]).expect("there is room");
    let hog = mounted.0.path().join("hog");
    let mut zeros = fs::File::create(&hog).expect("writable");
    std::io::copy(&mut std::io::repeat(0), &mut zeros).expect_err("it is full in the end");
    assert!(matches!(node.put(&slot(1), &[payload(1, 1, 1_000_000)]), Err(NotPut::Failed(_))));
    let begin = Instant::now();
    for n in 2..20_000 {
        assert!(node.put(&slot(n), &[payload(n, n, 1_000_000)]).is_err());
        assert_eq!(version(&node, 0).unwrap_or_default(), 0);
        if begin.elapsed() > Duration::from_millis(2_500) {
            break;
        }
    }
    let state = node.state();
    assert!(!state.writable && (2..=4).contains(&state.put_failures), "one try a second: {state:?}");
    println!("{state:?}");
    drop(zeros);
    fs::remove_file(&hog).expect("there");
    std::thread::sleep(Duration::from_millis(1_100));
    node.put(&slot(1), &[payload(1, 1, 1_000_000)]).expect("there is room again");
    assert!(node.state().writable);
}

#[test]
#[ignore = "mounts a file system"]
fn a_disk_that_is_read_only_is_served_from() {
    let Some(mounted) = Mounted::new(8 << 20) else { return };
    let node = Node::open(&mounted.path(), 64 << 20).expect("it opens");
    (0..10).for_each(|n| node.put(&slot(n), &[payload(n, n, 1_000)]).expect("there is room"));
    mounted.remount("ro");
    let later = Node::open(&mounted.path(), 64 << 20).expect("it opens");
    assert!(!later.state().writable && node.state().writable);
    for node in [&node, &later] {
        node.put_behind(slot(20), vec![payload(20, 1, 10)]);
        node.put_behind(slot(21), vec![payload(21, 1, 10)]);
        assert!(node.flush(LONG));
        assert!((0..10).all(|n| version(node, n) == Some(n)));
        assert!(version(node, 20).is_none());
        assert!(node.remove(&slot(0)).is_err(), "it is still there, and that is said");
        assert!(node.clear().is_err());
        let state = node.state();
        assert!(!state.writable && state.error_last.is_some() && state.entries == 10, "{state:?}");
    }
    let nothing = Node::open(&mounted.0.path().join("nothing"), 64 << 20);
    assert!(nothing.is_err(), "a folder that is not there and cannot be made is a mistake to tell");
    mounted.remount("rw");
    std::thread::sleep(Duration::from_millis(1_100));
    later.put(&slot(20), &[payload(20, 1, 10)]).expect("writable again");
    assert!(later.state().writable);
}

#[test]
#[ignore = "measures; run it with --release --nocapture"]
fn how_long_get_and_put_take() {
    let folder = tempfile::tempdir().expect("a folder");
    let node = Node::open(folder.path(), 1 << 30).expect("it opens");
    for (bytes, count) in [(1 << 10, 4_000_u64), (16 << 10, 4_000), (1 << 20, 300)] {
        let all: Vec<_> = (0..count).map(|n| (slot(n), [payload(n, n, bytes)])).collect();
        let put = time(|| all.iter().for_each(|(slot, parts)| node.put(slot, parts).expect("there is room")), count);
        let again = time(|| all.iter().for_each(|(slot, parts)| node.put(slot, parts).expect("there is room")), count);
        let get = time(|| all.iter().for_each(|(slot, _)| assert!(node.get(slot).is_some())), count);
        let miss = time(|| (0..count).for_each(|n| assert!(node.get(&slot(n + count)).is_none() || n > count)), count);
        println!("{bytes:>8} bytes: put {put:.1} µs, put over it {again:.1} µs, get {get:.1} µs, miss {miss:.1} µs");
        node.clear().expect("writable");
    }
    let small = Node::open(&folder.path().join("small"), 64 << 20).expect("it opens");
    let begin = Instant::now();
    let (mut slowest, count) = (Duration::ZERO, 10_000);
    for n in 0..count {
        let begin = Instant::now();
        small.put(&slot(n), &[payload(n, n, 16 << 10)]).expect("there is room");
        slowest = slowest.max(begin.elapsed());
    }
    println!(
        "16 KiB into full 64 MiB: {:.1} µs each with evictions, the slowest {slowest:?}, {} evicted",
        begin.elapsed().as_secs_f64() * 1e6 / count as f64,
        small.state().evictions
    );
    let begin = Instant::now();
    drop(Node::open(folder.path(), 1 << 30).expect("it opens"));
    println!("open {:?} at {:?}", begin.elapsed(), SystemTime::now());
}

fn time(act: impl FnOnce(), count: u64) -> f64 {
    let begin = Instant::now();
    act();
    begin.elapsed().as_secs_f64() * 1e6 / count as f64
}
