//! The log of purges under writers that are killed.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use perigee::cache::purge::{Epoch, Mode, Scope};
use perigee::storage::purge_log::PurgeLog;

const ROOT: &str = "PERIGEE_TEST_PURGES_ROOT";
const MARK: &str = "purged ";

#[test]
#[ignore = "a part of the test below"]
fn process_that_is_killed() {
    let Some(root) = std::env::var_os(ROOT) else { return };
    let log = PurgeLog::open(Path::new(&root), SystemTime::now()).expect("it opens");
    let mut out = std::io::stdout().lock();
    loop {
        let scopes: Vec<Scope> = (0..fastrand::usize(1..50)).map(|_| Scope(fastrand::u128(..).to_be_bytes())).collect();
        let epoch = log.append(&scopes, Mode::Delete, Epoch::default(), SystemTime::now()).expect("it is written");
        writeln!(out, "{MARK}{}", epoch.0).and_then(|()| out.flush()).expect("somebody listens");
    }
}

fn spawn(root: &Path) -> Child {
    Command::new(std::env::current_exe().expect("this program"))
        .args(["--exact", "purge_log::process_that_is_killed", "--ignored", "--nocapture"])
        .env(ROOT, root)
        .stdout(Stdio::piped())
        .spawn()
        .expect("it starts")
}

#[test]
#[ignore = "takes 10 seconds"]
fn a_purge_that_was_acknowledged_is_read_by_all_whoever_is_killed() {
    let folder = tempfile::tempdir().expect("a folder");
    let root = folder.path();
    let mut follower = PurgeLog::open(root, SystemTime::now()).expect("it opens");
    let (mut followed, mut acknowledged, mut kills) = (BTreeSet::new(), BTreeSet::new(), 0);
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_secs(10) {
        let mut processes = [spawn(root), spawn(root)];
        let until = Instant::now() + Duration::from_millis(fastrand::u64(20..150));
        while Instant::now() < until {
            let news = follower.read();
            assert!(!news.lost, "a kill tears no line");
            followed.extend(news.purges.iter().map(|purge| purge.epoch.0));
            std::thread::sleep(Duration::from_millis(1));
        }
        for process in &mut processes {
            process.kill().expect("it runs");
            kills += 1;
        }
        for process in &mut processes {
            let out = BufReader::new(process.stdout.take().expect("a pipe"));
            // The harness writes the name of the test into the same line.
            let told = out.lines().map_while(Result::ok);
            acknowledged.extend(
                told.filter_map(|line| line.split(MARK).nth(1).and_then(|epoch| epoch.trim().parse::<u64>().ok())),
            );
            process.wait().expect("ours");
        }
    }
    followed.extend(follower.read().purges.iter().map(|purge| purge.epoch.0));
    let news = PurgeLog::open(root, SystemTime::now()).expect("it opens").read();
    let kept: BTreeSet<u64> = news.purges.iter().map(|purge| purge.epoch.0).collect();
    println!("{kills} kills, {} acknowledged, {} kept", acknowledged.len(), kept.len());
    assert!(acknowledged.len() > 100);
    assert!(acknowledged.is_subset(&kept) && acknowledged.is_subset(&followed));
    assert!(!news.lost);
}

#[test]
#[ignore = "measures; run it with --release --nocapture"]
fn how_long_a_purge_and_a_look_take() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut log = PurgeLog::open(folder.path(), SystemTime::now()).expect("it opens");
    let begin = Instant::now();
    for n in 0..200_u128 {
        let scope = Scope(n.to_be_bytes());
        log.append(&[scope], Mode::Delete, Epoch::default(), SystemTime::now()).expect("it is written");
    }
    println!("append {:?}", begin.elapsed() / 200);
    log.read();
    let begin = Instant::now();
    (0..10_000).for_each(|_| assert!(log.read().purges.is_empty()));
    println!("a look without news {:?}", begin.elapsed() / 10_000);
    let purge = |n: u128| perigee::storage::purge_log::Kept {
        epoch: Epoch(n as u64),
        scopes: vec![Scope(n.to_be_bytes())],
        mode: Mode::Invalidate,
        regional: true,
    };
    let (begin, mut slowest) = (Instant::now(), Duration::ZERO);
    for n in 0..150_000 {
        let begin = Instant::now();
        log.keep(&purge(n), SystemTime::now()).expect("it is written");
        slowest = slowest.max(begin.elapsed());
    }
    println!("keep {:?}, the slowest (it compacts) {slowest:?}", begin.elapsed() / 150_000);
    let begin = Instant::now();
    let mut log = PurgeLog::open(folder.path(), SystemTime::now()).expect("it opens");
    println!("open {:?}", begin.elapsed());
    let begin = Instant::now();
    let news = log.read();
    println!("the first look {:?}: {} purges, floor {:?}", begin.elapsed(), news.purges.len(), news.floor);
}
