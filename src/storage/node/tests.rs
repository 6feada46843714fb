use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::{FileExt, symlink};

use super::*;

const LONG: Duration = Duration::from_secs(30);

struct Folder(tempfile::TempDir);

impl Folder {
    /// In memory where that can be had: on ext4, tens of thousands of files made and removed in a row take ten times as long.
    fn new() -> Folder {
        Folder(tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a folder"))
    }

    fn open(&self) -> Node {
        self.open_with(64 << 20)
    }

    fn open_with(&self, bytes_max: u64) -> Node {
        Node::open(self.0.path(), bytes_max).expect("it opens")
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join("v1").join(name)
    }
}

fn slot(n: u64) -> Slot {
    let mut slot = [0; 16];
    slot.copy_from_slice(&blake3::hash(&n.to_le_bytes()).as_bytes()[..16]);
    slot
}

fn path(node: &Node, n: u64) -> PathBuf {
    node.shared.groups.path(&slot(n))
}

fn payload(n: u64, bytes: usize) -> Bytes {
    let mut payload = vec![0; bytes];
    blake3::Hasher::new().update(&n.to_le_bytes()).finalize_xof().fill(&mut payload);
    Bytes::from(payload)
}

fn put(node: &Node, n: u64, bytes: usize) {
    node.put(&slot(n), &[payload(n, bytes)]).expect("there is room");
}

fn holds(node: &Node, n: u64, bytes: usize) -> bool {
    match node.get(&slot(n)) {
        Some(found) => {
            assert_eq!(found, payload(n, bytes), "wrong bytes");
            true
        }
        None => false,
    }
}

/// What `du` would say of the entries' files.
fn disk_bytes(node: &Node) -> u64 {
    (0..=u8::MAX)
        .filter_map(|folder| fs::read_dir(node.shared.root.join(format!("{folder:02x}"))).ok())
        .flat_map(|items| items.flatten())
        .map(|item| item.metadata().expect("nobody removes it").blocks() * 512)
        .sum()
}

/// Damages the file of entry 0 in some way. Entry 1 is another one.
fn damage(node: &Node, random: &mut fastrand::Rng) {
    let (path, other) = (path(node, 0), path(node, 1));
    let mut content = fs::read(&path).expect("it was put");
    let length = content.len();
    match random.u8(0..10) {
        0 => content[random.usize(0..length)] ^= 1 << random.u8(0..8),
        1 => (0..random.usize(1..20)).for_each(|_| content[random.usize(0..length)] ^= 1 << random.u8(0..8)),
        2 => content.truncate(random.usize(0..length)),
        3 => content.extend(std::iter::repeat_n(random.u8(..), random.usize(1..5000))),
        4 => {
            let begin = random.usize(0..length);
            let end = (begin + random.usize(1..4096)).min(length);
            content[begin..end].fill(0);
        }
        // The header of one and the body of another.
        5 => {
            let other = fs::read(&other).expect("it was put");
            content.truncate(HEAD_BYTES);
            content.extend_from_slice(&other[HEAD_BYTES..]);
        }
        6 => {
            let other = fs::read(&other).expect("it was put");
            content.splice(..HEAD_BYTES, other[..HEAD_BYTES].iter().copied());
        }
        // Another format, below and above.
        7 => content[4..8].copy_from_slice(&[0u32, 2, u32::MAX][random.usize(0..3)].to_le_bytes()),
        // The whole file of another key.
        8 => content = fs::read(&other).expect("it was put"),
        _ => {
            content.clear();
            content.resize(random.usize(0..200), 0);
            random.fill(&mut content);
        }
    }
    fs::write(&path, content).expect("writable");
}

#[test]
fn ten_thousand_damaged_files_are_ten_thousand_misses() {
    let folder = Folder::new();
    let node = folder.open();
    // Written down, so that a failure can be had again.
    let mut random = fastrand::Rng::with_seed(20_250_601);
    put(&node, 1, 300);
    let mut damaged = 0;
    while damaged < 10_000 {
        let bytes = if damaged % 100 == 0 { random.usize(0..100_000) } else { random.usize(0..600) };
        put(&node, 0, bytes);
        let before = fs::read(path(&node, 0)).expect("it was put");
        damage(&node, &mut random);
        // Two flips may meet, and zeros may be filled with zeros.
        if fs::read(path(&node, 0)).expect("it is there") == before {
            assert!(holds(&node, 0, bytes));
            continue;
        }
        damaged += 1;
        assert_eq!(node.get(&slot(0)), None, "number {damaged}");
        assert!(is_missing(&path(&node, 0)), "number {damaged} is still there");
    }
    assert!(holds(&node, 1, 300), "its neighbour has nothing to do with it");
    assert_eq!(node.state().corrupt, 10_000);
    *node.shared.usage.lock() = None;
    assert_eq!(node.state().entries, 1);
}

#[test]
fn whatever_else_lies_under_the_name_is_a_miss() {
    let folder = Folder::new();
    let node = folder.open();
    let (path, other) = (path(&node, 0), path(&node, 1));
    put(&node, 0, 100);
    put(&node, 1, 100);

    OpenOptions::new().write(true).open(&path).and_then(|file| file.set_len(1 << 40)).expect("a file with a hole");
    assert!(!holds(&node, 0, 100), "a terabyte is not read");

    symlink(&other, &path).expect("a link");
    assert!(!holds(&node, 0, 100));
    put(&node, 0, 100);
    assert!(holds(&node, 0, 100) && holds(&node, 1, 100), "a put replaces the link and not what it leads to");

    fs::remove_file(&path).expect("it was put");
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).expect("a pipe");
    assert!(!holds(&node, 0, 100), "nobody waits for a pipe");

    fs::create_dir(&path).expect("a folder");
    assert!(!holds(&node, 0, 100));
    assert!(matches!(node.put(&slot(0), &[payload(0, 100)]), Err(NotPut::Failed(_))));
    assert!(holds(&node, 1, 100));
}

#[test]
fn damaged_counters_are_counted_anew() {
    let folder = Folder::new();
    let node = folder.open();
    (0..20).for_each(|n| put(&node, n, 5000));
    let usage = folder.path("usage/00");
    let good = fs::read(&usage).expect("it is there");
    for damage in [&b""[..], b"rubbish", &[0; 40], &good[..39]] {
        fs::write(&usage, damage).expect("writable");
        put(&node, 100, 1);
        assert_eq!(fs::read(&usage).expect("it is there").len(), good.len());
        *node.shared.usage.lock() = None;
        assert_eq!((node.state().entries, node.bytes()), (21, 20 * file::cost(5048) + file::cost(49)));
    }
    fs::remove_dir_all(folder.path("usage")).expect("it is there");
    put(&node, 101, 1);
    *node.shared.usage.lock() = None;
    assert_eq!(node.state().entries, 22);
}

#[test]
fn the_bound_holds_and_what_was_used_lately_stays() {
    let folder = Folder::new();
    let node = folder.open_with(BYTES_MIN);
    let hot = 0..10;
    for n in hot.clone() {
        put(&node, n, 8000);
    }
    for n in 100..600 {
        put(&node, n, 8000);
        // All others are older than the hot ones: an hour ago, in the order of their making.
        let used = SystemTime::now() - Duration::from_secs(7200 - n);
        OpenOptions::new().write(true).open(path(&node, n)).and_then(|file| file.set_modified(used)).expect("writable");
        assert!(disk_bytes(&node) <= BYTES_MIN, "at {n}");
    }
    assert!(hot.clone().all(|n| holds(&node, n, 8000)));
    assert!(holds(&node, 599, 8000) && !holds(&node, 100, 8000));
    *node.shared.usage.lock() = None;
    let state = node.state();
    assert!(state.bytes <= BYTES_MIN && state.bytes > BYTES_MIN / 2, "{state:?}");
    assert!(state.evictions > 350);
}

#[test]
fn a_hit_is_noted_as_a_use_at_most_once_a_minute() {
    let folder = Folder::new();
    let node = folder.open();
    put(&node, 0, 10);
    let used = |ago: i64| {
        let now = SystemTime::now();
        let ago_s = Duration::from_secs(ago.unsigned_abs());
        let at = if ago < 0 { now + ago_s } else { now - ago_s };
        OpenOptions::new().write(true).open(path(&node, 0)).and_then(|file| file.set_modified(at)).expect("writable");
        assert!(holds(&node, 0, 10));
        fs::metadata(path(&node, 0)).and_then(|metadata| metadata.modified()).expect("there") != at
    };
    assert!(!used(30));
    assert!(used(70));
    assert!(used(-3600), "a time ahead of the clock would keep the entry for good");
}

#[test]
fn a_smaller_bound_and_other_groups_are_taken_over() {
    let folder = Folder::new();
    let large = folder.open_with(256 << 20);
    (0..400).for_each(|n| put(&large, n, 10_000));
    drop(large);
    let small = folder.open_with(2 << 20);
    small.shared.tidy(0);
    assert!(disk_bytes(&small) <= 2 << 20);
    *small.shared.usage.lock() = None;
    assert!(small.state().entries > 100, "and no more was evicted than had to be: {:?}", small.state());
    drop(small);
    let large = folder.open_with(256 << 20);
    large.shared.groups.numbers().for_each(|group| large.shared.tidy(group));
    let state = large.state();
    let entries = (0..400).filter(|n| holds(&large, *n, 10_000)).count() as u64;
    assert_eq!((state.entries, state.bytes), (entries, entries * file::cost(10_048)));
}

#[test]
fn the_largest_response_fits_and_what_is_larger_takes_the_older_one_with_it() {
    let folder = Folder::new();
    let node = folder.open();
    put(&node, 0, 10 << 20);
    put(&node, 1, 10 << 20);
    assert!(holds(&node, 0, 10 << 20) && holds(&node, 1, 10 << 20));
    let refused = node.put(&slot(0), &[payload(0, 17 << 20)]);
    assert!(matches!(refused, Err(NotPut::TooLarge { .. })), "{refused:?}");
    assert_eq!(node.get(&slot(0)), None, "the older one would come back");
    assert!(Node::open(folder.0.path(), BYTES_MIN - 1).is_err());
}

#[test]
fn a_disk_that_fails_is_left_alone_for_a_while_and_told_of() {
    let folder = Folder::new();
    let node = folder.open();
    put(&node, 0, 100);
    put(&node, 1, 100);
    // A file in the place of the folder for new files: works for a superuser as well.
    fs::remove_dir(folder.path("tmp")).expect("it is empty");
    fs::File::create(folder.path("tmp")).expect("writable");
    assert!(matches!(node.put(&slot(0), &[payload(9, 1)]), Err(NotPut::Failed(_))));
    assert!(matches!(node.put(&slot(2), &[payload(2, 1)]), Err(NotPut::Resting)));
    assert!(!holds(&node, 0, 100), "it is older than what could not be written");
    assert!(holds(&node, 1, 100), "reading goes on");
    let state = node.state();
    assert_eq!((state.writable, state.put_failures, state.puts_dropped), (false, 1, 1));
    assert!(state.error_last.is_some_and(|error| error.starts_with("write: ")));

    fs::remove_file(folder.path("tmp")).expect("there");
    *node.shared.health.rest_until.lock() = None;
    put(&node, 2, 100);
    assert!(holds(&node, 2, 100) && node.state().writable);
}

#[test]
fn a_root_that_is_no_folder_is_refused() {
    let folder = Folder::new();
    let file = folder.0.path().join("file");
    fs::File::create(&file).expect("writable").write_all(b"x").expect("writable");
    assert!(Node::open(&file, BYTES_MIN).is_err());
    assert!(Node::open(&file.join("below"), BYTES_MIN).is_err());
}

#[test]
fn files_of_the_dead_are_cleared_and_those_of_the_living_stay() {
    let folder = Folder::new();
    drop(folder.open());
    let me = std::process::id();
    let file = |name: &str| fs::File::create(folder.path("tmp").join(name)).expect("writable");
    // No process has such a number: the kernel's bound is 2^22.
    ["999999999-1", "rubbish", "-1", "0-1"].iter().for_each(|name| drop(file(name)));
    file(&format!("{me}-1"));
    file(&format!("{me}-2")).set_modified(SystemTime::now() - 2 * TEMPORARY_AGE_MAX).expect("writable");
    drop(folder.open());
    let left: Vec<_> =
        fs::read_dir(folder.path("tmp")).expect("there").flatten().map(|item| item.file_name()).collect();
    assert_eq!(left, [format!("{me}-1").as_str()]);
}

#[test]
fn an_operator_may_remove_everything_at_any_time() {
    let folder = Folder::new();
    let node = folder.open();
    (0..50).for_each(|n| put(&node, n, 1000));
    fs::remove_dir_all(folder.path("")).expect("there");
    assert!((0..50).all(|n| !holds(&node, n, 1000)));
    (0..50).for_each(|n| put(&node, n, 1000));
    assert!((0..50).all(|n| holds(&node, n, 1000)));
    *node.shared.usage.lock() = None;
    assert_eq!(node.state().entries, 50);
}

#[test]
fn what_cannot_be_an_entry_is_cleared_when_the_group_is_listed() {
    let folder = Folder::new();
    let node = folder.open();
    put(&node, 0, 10);
    let place = path(&node, 0);
    let stranger = place.with_file_name("stranger");
    fs::write(&stranger, b"x").expect("writable");
    fs::remove_dir_all(folder.path("usage")).expect("there");
    put(&node, 1, 10);
    assert!(is_missing(&stranger) && holds(&node, 0, 10));
}

#[test]
fn what_is_queued_is_found_at_once_and_after_a_restart() {
    let folder = Folder::new();
    let node = folder.open();
    for n in 0..200 {
        node.put_behind(slot(n), vec![payload(n, 500).slice(..100), payload(n, 500).slice(100..)]);
        assert!(holds(&node, n, 500));
    }
    assert!(node.flush(LONG));
    assert_eq!(node.state().puts, 200);
    drop(node);
    let node = folder.open();
    assert!((0..200).all(|n| holds(&node, n, 500)));
    assert_eq!(node.state().entries, 200);
    assert!(node.bytes() >= disk_bytes(&node));
}

#[test]
fn the_latest_word_about_a_slot_wins_over_what_is_queued() {
    let folder = Folder::new();
    let node = folder.open();
    for round in 0..300 {
        // The writer is busy with the large one at some point of each of these.
        node.put_behind(slot(0), vec![payload(round, 200_000)]);
        if round % 2 == 0 {
            std::thread::yield_now();
        }
        match round % 3 {
            0 => {
                node.remove(&slot(0)).expect("writable");
                assert_eq!(node.get(&slot(0)), None, "round {round}");
                assert!(node.flush(LONG));
                assert_eq!(node.get(&slot(0)), None, "round {round}");
            }
            1 => {
                node.put(&slot(0), &[payload(1, 10)]).expect("there is room");
                assert!(node.flush(LONG));
                assert_eq!(node.get(&slot(0)), Some(payload(1, 10)), "round {round}");
            }
            _ => {
                node.put_behind(slot(0), vec![payload(2, 10)]);
                assert!(node.flush(LONG));
                assert_eq!(node.get(&slot(0)), Some(payload(2, 10)), "round {round}");
            }
        }
    }
}

#[test]
fn clear_takes_what_is_queued_as_well() {
    let folder = Folder::new();
    let node = folder.open_with(256 << 20);
    for n in 0..300 {
        node.put_behind(slot(n), vec![payload(n, 20_000)]);
    }
    node.clear().expect("writable");
    assert!(node.flush(LONG));
    assert!((0..300).all(|n| !holds(&node, n, 20_000)));
    assert_eq!((node.bytes(), node.state().entries, disk_bytes(&node)), (0, 0, 0));
}

#[test]
fn removing_what_is_not_there_is_no_error() {
    let folder = Folder::new();
    let node = folder.open();
    node.remove(&slot(0)).expect("nothing to do");
    put(&node, 0, 0);
    assert_eq!(node.get(&slot(0)), Some(Bytes::new()), "an empty payload is a payload");
    node.remove(&slot(0)).expect("writable");
    node.remove(&slot(0)).expect("nothing to do");
    *node.shared.usage.lock() = None;
    assert_eq!(node.state().entries, 0);
}

#[test]
fn two_of_one_folder_see_each_other_and_keep_one_bound() {
    let folder = Folder::new();
    let (one, two) = (folder.open_with(BYTES_MIN), folder.open_with(BYTES_MIN));
    put(&one, 0, 1000);
    assert!(holds(&two, 0, 1000));
    two.remove(&slot(0)).expect("writable");
    assert!(!holds(&one, 0, 1000));
    for n in 0..500 {
        put(if n % 2 == 0 { &one } else { &two }, n, 9000);
        assert!(disk_bytes(&one) <= BYTES_MIN);
    }
}

#[test]
fn many_threads_at_once_never_see_a_wrong_byte() {
    let folder = Folder::new();
    let nodes = [folder.open_with(BYTES_MIN), folder.open_with(BYTES_MIN)];
    let hits = AtomicU64::new(0);
    std::thread::scope(|threads| {
        for thread in 0..4_u64 {
            let (node, hits) = (&nodes[usize::from(thread % 2 == 0)], &hits);
            threads.spawn(move || {
                let mut random = fastrand::Rng::with_seed(thread);
                for _ in 0..1500 {
                    let n = random.u64(0..300);
                    match random.u8(0..10) {
                        0 => node.remove(&slot(n)).expect("writable"),
                        1..4 => drop(node.put(&slot(n), &[payload(n, 8000)])),
                        4..6 => node.put_behind(slot(n), vec![payload(n, 8000)]),
                        _ => drop(hits.fetch_add(u64::from(holds(node, n, 8000)), Ordering::Relaxed)),
                    }
                }
            });
        }
    });
    assert!(nodes.iter().all(|node| node.flush(LONG)));
    assert!(hits.into_inner() > 100);
    assert!(disk_bytes(&nodes[0]) <= BYTES_MIN);
    let counted = |node: &Node| {
        *node.shared.usage.lock() = None;
        node.state().entries
    };
    let entries = (0..300).filter(|n| holds(&nodes[0], *n, 8000)).count() as u64;
    assert_eq!(counted(&nodes[0]), entries, "the counter is exact where nobody dies");
}

#[test]
fn a_counter_that_is_too_low_is_set_right_when_it_is_old() {
    let folder = Folder::new();
    let node = folder.open();
    (0..30).for_each(|n| put(&node, n, 100));
    let usage = fs::OpenOptions::new().read(true).write(true).open(folder.path("usage/00")).expect("there");
    // All zero but for the number of groups: counted in 1970, and nothing was there.
    let mut forged = [0; 40];
    forged[..4].copy_from_slice(b"PgU1");
    forged[4] = 1;
    let check = blake3::hash(&forged[..32]);
    forged[32..].copy_from_slice(&check.as_bytes()[..8]);
    usage.write_all_at(&forged, 0).expect("writable");
    *node.shared.usage.lock() = None;
    assert_eq!(node.state().entries, 0);
    node.shared.tidy(0);
    *node.shared.usage.lock() = None;
    assert_eq!(node.state().entries, 30);
}
