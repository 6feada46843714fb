//! Deployments, from the command line to the disk and back: whole or not at all, whatever comes between.

use std::io::Write;
use std::net::{Shutdown, TcpStream};
use std::path::Path;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::edge::{eventually, raw, request, write_files};
use crate::support::{Place, Server, Url};

/// A project whose every file says which version it is of.
fn write_site(folder: &Path, version: usize, files: usize) {
    for n in 0..files {
        let text = format!("v{version} f{n} ").repeat(2_000);
        write_files(folder, &[(format!("files/{n}.txt").as_str(), text.as_str())]);
    }
    write_files(folder, &[("index.html", &format!("version {version}")), ("404.html", "none")]);
    write_files(
        folder,
        &[("api/version.js", &format!("module.exports = (req, res) => res.send('version {version}')"))],
    );
}

/// Asks for every file of a deployment and compares it to what was deployed.
async fn assert_whole(server: &Server, host: &str, files: usize) -> String {
    let index = server.get(host, "/").await;
    assert_eq!(index.status, 200, "{host}: {index:?}");
    let version = index.text().strip_prefix("version ").expect("a version").to_owned();
    for n in 0..files {
        let answer = server.get(host, &format!("/files/{n}.txt")).await;
        assert_eq!((answer.status, answer.complete), (200, true), "{host} {n}");
        assert_eq!(answer.text(), format!("v{version} f{n} ").repeat(2_000), "{host} {n}");
    }
    assert_eq!(server.get(host, "/nothing").await.text(), "none", "{host}");
    version
}

fn ids(deployments: &[Value]) -> Vec<String> {
    let mut ids: Vec<String> =
        deployments.iter().map(|deployment| deployment["id"].as_str().expect("an id").to_owned()).collect();
    ids.sort();
    ids
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deployment_is_made_promoted_rolled_back_and_removed() {
    let place = Place::new();
    place.configure("");
    let server = place.start().await;
    let site = place.path("site");
    write_site(&site, 1, 3);
    assert_eq!(server.get("www.test", "/").await.status, 404);

    let first = server.deploy(&site, &["--alias", "www.test", "--alias", "Other.TEST", "--name", "hello"]);
    assert!(first.host.starts_with("hello-") && first.host.ends_with(".now.test"), "{first:?}");
    assert_eq!(first.whole, format!("http://{}:{}", first.host, place.http.port()));
    for host in [first.host.as_str(), "www.test", "other.test"] {
        assert_eq!(assert_whole(&server, host, 3).await, "1", "{host}");
        assert_eq!(server.get(host, "/api/version").await.text(), "version 1");
    }
    assert_eq!(server.get("www.test", "/").await.cache(), "HIT");

    // The same is the same; another name or another byte is not.
    assert_eq!(server.deploy(&site, &["--name", "hello"]), first);
    assert_ne!(server.deploy(&site, &["--name", "goodbye"]), first);
    write_site(&site, 2, 3);
    let second = server.deploy(&site, &["--name", "hello", "--alias", "www.test"]);
    assert_ne!(second, first);
    for (host, version) in
        [(first.host.as_str(), "1"), (second.host.as_str(), "2"), ("www.test", "2"), ("other.test", "1")]
    {
        assert_eq!(assert_whole(&server, host, 3).await, version, "{host}");
        assert_eq!(server.get(host, "/api/version").await.text(), format!("version {version}"));
    }

    let listed = server.run(&["deployments"]).succeeded();
    let rows: Vec<Vec<&str>> = listed.stdout.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows.first().map(Vec::as_slice), Some(&["ID", "NAME", "URL", "ALIASES", "CREATED"][..]));
    assert_eq!(rows.len(), 4, "{}", listed.stdout);
    let row = |url: &Url| rows.iter().find(|row| row[2] == url.whole).unwrap_or_else(|| panic!("{}", listed.stdout));
    assert_eq!((row(&first)[3], row(&second)[3]), ("other.test", "www.test"));
    let (first_id, second_id) = (row(&first)[0].to_owned(), row(&second)[0].to_owned());

    let back = server.run(&["alias", "www.test", &first_id]).succeeded();
    assert!(back.stdout.contains(&format!("www.test -> {first_id} (was {second_id})")), "{}", back.stdout);
    assert_eq!(assert_whole(&server, "www.test", 3).await, "1");
    // By its URL, by its host and by NAME-UID as well.
    for name in [second.whole.as_str(), &second.host, second.host.trim_end_matches(".now.test"), &second_id] {
        server.run(&["alias", "www.test", &first_id]).succeeded();
        server.run(&["alias", "www.test", name]).succeeded();
        assert_eq!(server.get("www.test", "/").await.text(), "version 2", "{name}");
    }
    server.run(&["alias", "www.test", "dpl_nothing"]).failed(&["dpl_nothing"]);
    server.run(&["alias", "not a host", &first_id]).failed(&["not a host"]);
    assert_eq!(server.get("www.test", "/").await.text(), "version 2");

    server.run(&["remove", &second_id]).failed(&["www.test"]);
    assert_eq!(assert_whole(&server, &second.host, 3).await, "2");
    server.run(&["alias", "www.test", &first_id]).succeeded();
    let removed = server.run(&["remove", &second_id]).succeeded();
    assert_eq!(removed.stdout, format!("removed {second_id}\n"));
    let gone = server.get(&second.host, "/").await;
    assert_eq!((gone.status, gone.field("x-now-error")), (404, Some("DEPLOYMENT_NOT_FOUND")));
    server.run(&["remove", &second_id]).failed(&[&second_id]);
    assert!(!place.path("data/deployments").join(&second_id).exists());
    // What is gone can come back.
    assert_eq!(server.deploy(&site, &["--name", "hello"]), second);
    assert_eq!(assert_whole(&server, &second.host, 3).await, "2");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deploying_the_same_again_empties_its_cache() {
    let place = Place::new();
    let site = place.path("site");
    let counts = "let n = 0; module.exports = (req, res) => { res.setHeader('cache-control', 's-maxage=600'); res.send('n' + ++n) }";
    write_files(&site, &[("api/n.js", counts)]);
    place.configure("");
    let server = place.start().await;
    let url = server.deploy(&site, &["--alias", "site.test"]);
    for (text, cache) in [("n1", "MISS"), ("n1", "HIT")] {
        let answer = server.get("site.test", "/api/n").await;
        assert_eq!((answer.text().as_str(), answer.cache()), (text, cache));
    }
    assert_eq!(server.deploy(&site, &[]), url);
    let answer = server.get("site.test", "/api/n").await;
    assert_eq!((answer.text().as_str(), answer.cache()), ("n2", "MISS"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_web_page_cannot_give_orders() {
    let place = Place::new();
    place.configure("");
    let server = place.start().await;
    let from = [("origin", "http://evil.test")];
    let address = place.admin;
    let order = request(address, "POST", "localhost", "/v1/purge", &from, b"{\"all\":true}").await;
    assert_eq!(order.status, 403, "{}", order.text());
    let deploy = request(address, "POST", "localhost", "/v1/deployments?name=x", &from, b"tar").await;
    assert_eq!(deploy.status, 403);
    assert!(server.deployments().await.is_empty());
    assert_eq!(request(address, "POST", "localhost", "/v1/purge", &[], b"{\"all\":true}").await.status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_url_is_purged_and_explained() {
    let place = Place::new();
    let counting = |directive: &str| {
        format!(
            "let n = 0; module.exports = (req, res) => {{ res.setHeader('cache-control', '{directive}'); res.send('n' + ++n) }}"
        )
    };
    write_files(
        &place.path("site"),
        &[
            ("a.txt", "a"),
            ("api/n.js", &counting("s-maxage=600")),
            ("api/swr.js", &counting("s-maxage=600, stale-while-revalidate")),
        ],
    );
    place.configure("deployments: [{path: \"{dir}/site\", aliases: [site.test]}]");
    let server = place.start().await;
    let check = async |path: &str, body: &str, cache: &str| {
        let answer = server.get("site.test", path).await;
        assert_eq!((answer.text().as_str(), answer.cache()), (body, cache), "{path}");
    };
    for cache in ["MISS", "HIT"] {
        check("/a.txt", "a", cache).await;
        check("/api/n", "n1", cache).await;
        check("/api/swr", "n1", cache).await;
    }
    let explained = server.run(&["explain", "http://site.test/api/n"]).succeeded().stdout;
    for part in ["site.test", "dpl_", "/api/n", "fresh", "consulted", "key"] {
        assert!(explained.contains(part), "{part} is not in:\n{explained}");
    }
    let bypass = server.run(&["explain", "-H", "authorization: x", "http://site.test/api/n", "--json"]).succeeded();
    let bypass: Value = serde_json::from_str(&bypass.stdout).expect("JSON");
    assert_eq!(
        (&bypass["cache"]["consulted"], &bypass["cache"]["rule"]),
        (&Value::from(false), &Value::from("authorization"))
    );
    check("/api/n", "n1", "HIT").await;

    let purged =
        server.run(&["purge", "--url", "http://site.test/a.txt", "--url", "http://site.test/api/n", "--delete"]);
    assert_eq!(purged.succeeded().stdout, "test-a: purged (0 ms)\n");
    check("/a.txt", "a", "MISS").await;
    check("/api/n", "n2", "MISS").await;
    check("/api/swr", "n1", "HIT").await;
    server.run(&["purge", "--url", "http://site.test/api/swr"]).succeeded();
    check("/api/swr", "n1", "STALE").await;
    eventually("it is refreshed behind", async || server.get("site.test", "/api/swr").await.text() == "n2").await;
    let nothing = server.run(&["purge", "--url", "http://site.test/api/n?never=asked"]).succeeded();
    assert_eq!(nothing.stdout, "test-a: purged (0 ms)\n");
    server.run(&["purge", "--all", "--delete"]).succeeded();
    check("/a.txt", "a", "MISS").await;
    server.run(&["purge", "--url", "nonsense"]).failed(&["nonsense"]);
    server.run(&["purge", "--url", "http://unknown.test/"]).failed(&["unknown.test"]);
}

/// product.md 2: `perigee purge (--url URL | --tag TAG | --deployment ID | --all)`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deployment_is_purged_alone() {
    let place = Place::new();
    for name in ["one", "two"] {
        write_files(&place.path(name), &[("a.txt", name)]);
    }
    place.configure(
        "deployments: [{path: \"{dir}/one\", aliases: [one.test]}, {path: \"{dir}/two\", aliases: [two.test]}]",
    );
    let server = place.start().await;
    for host in ["one.test", "two.test", "one.test", "two.test"] {
        assert_eq!(server.get(host, "/a.txt").await.status, 200);
    }
    server.run(&["purge", "--deployment", "one.test", "--delete"]).succeeded();
    assert_eq!(server.get("one.test", "/a.txt").await.cache(), "MISS");
    assert_eq!(server.get("two.test", "/a.txt").await.cache(), "HIT");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_project_with_mistakes_changes_nothing() {
    let place = Place::new();
    place.configure("functions: {bundle: 1MB}");
    let server = place.start().await;
    let (good, bad) = (place.path("good"), place.path("bad"));
    write_site(&good, 1, 2);
    server.deploy(&good, &["--alias", "www.test"]);
    let before = ids(&server.deployments().await);
    let check = async |files: &[(&str, &str)], said: &[&str]| {
        let _ = std::fs::remove_dir_all(&bad);
        write_files(&bad, files);
        let folder = bad.display().to_string();
        let told = server.run(&["deploy", &folder, "--alias", "www.test"]).failed(said);
        assert!(told.stdout.is_empty(), "{told:?}");
        assert_eq!(ids(&server.deployments().await), before, "{said:?}");
        assert_eq!(server.get("www.test", "/").await.text(), "version 1");
        let left: Vec<_> = std::fs::read_dir(place.path("data/tmp")).expect("a folder").flatten().collect();
        assert!(left.is_empty(), "{left:?}");
    };
    check(
        &[("now.json", r#"{"version": 2, "routs": [], "routes": [{"src": "("}, {"src": "/x", "status": 99}], "env": {"a b": "c"}}"#)],
        &["now.json: routs: ", "`routes`", "now.json: routes[1].status: ", "env"],
    )
    .await;
    check(&[("now.json", r#"{"version": 2, "routes": [{"src": "("}]}"#)], &["now.json: routes[0].src: "]).await;
    check(&[("now.json", "{nonsense")], &["now.json: line 1 column 2"]).await;
    check(&[("now.json", "{}"), ("vercel.json", "{}")], &["now.json", "vercel.json", "keep one"]).await;
    check(&[("api/a.js", ""), ("api/a.mjs", "")], &["api/a.js", "api/a.mjs"]).await;
    check(
        &[("now.json", r#"{"functions": {"api/none.js": {}}}"#)],
        &["functions[\"api/none.js\"]", "matches no function"],
    )
    .await;
    let large = format!("module.exports = (req, res) => res.end() // {}", "x".repeat(1_600_000));
    check(
        &[("api/large.js", &large), ("api/small.js", "module.exports = 1")],
        &["api/large.js", "1.5 MB", "1.0 MB", "functions.bundle"],
    )
    .await;
    let data = "x".repeat(1_600_000);
    check(
        &[("api/reads.js", "module.exports = require('../lib/data.json')"), ("lib/data.json", &data)],
        &["api/reads.js", "1.5 MB"],
    )
    .await;
    // Files of a site are not a function's.
    write_files(&bad, &[("api/reads.js", "module.exports = (req, res) => res.end()")]);
    server.deploy(&bad, &[]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_project_is_refused_before_it_is_sent() {
    let place = Place::new();
    place.configure("");
    let server = place.start().await;
    let empty = place.path("empty");
    std::fs::create_dir(&empty).expect("a folder");
    write_files(&place.path("linked"), &[("a.txt", "a")]);
    std::os::unix::fs::symlink("/etc/passwd", place.path("linked/leak.txt")).expect("a link");
    for (folder, said) in
        [("empty", "no files"), ("nothing", "nothing"), ("linked", "leak.txt"), ("linked/a.txt", "not a folder")]
    {
        let folder = place.path(folder).display().to_string();
        server.run(&["deploy", &folder]).failed(&[said]);
    }
    let good = place.path("linked/sub");
    write_files(&good, &[("a.txt", "a")]);
    let good = good.display().to_string();
    for words in [["--name", "Bad Name"], ["--alias", "bad host"], ["--alias", "http://x.test"]] {
        server.run(&["deploy", &good, words[0], words[1]]).failed(&[words[1]]);
    }
    assert!(server.deployments().await.is_empty());
}

/// A tar with these files.
fn tar(files: &[(&str, &str)]) -> Vec<u8> {
    let mut archive = ::tar::Builder::new(Vec::new());
    for (path, text) in files {
        let mut header = ::tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o644);
        // By hand, since the library refuses to write what a test wants to send.
        header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
        header.set_cksum();
        archive.append(&header, text.as_bytes()).expect("an entry");
    }
    archive.into_inner().expect("an archive")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_that_is_not_whole_changes_nothing() {
    let place = Place::new();
    place.configure("");
    let server = place.start().await;
    let whole = tar(&[("a.txt", &"a".repeat(5_000)), ("b.txt", "b"), ("index.html", "home")]);
    let mut link = ::tar::Builder::new(Vec::new());
    let mut header = ::tar::Header::new_gnu();
    header.set_entry_type(::tar::EntryType::Symlink);
    header.set_size(0);
    link.append_link(&mut header, "leak.txt", "/etc/passwd").expect("an entry");
    let link = link.into_inner().expect("an archive");
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&whole).expect("in memory");
    let gzip = gzip.finish().expect("in memory");
    let zstd = zstd::encode_all(whole.as_slice(), 1).expect("in memory");
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("nothing", Vec::new()),
        ("garbage", b"garbage".repeat(1_000)),
        ("zeroes", vec![0; 10_240]),
        ("a tar cut in a header", whole[..300].to_vec()),
        ("a tar cut in a file", whole[..2_000].to_vec()),
        ("a gzip cut in the middle", gzip[..gzip.len() / 2].to_vec()),
        ("a zstd cut in the middle", zstd[..zstd.len() / 2].to_vec()),
        ("a path that leads out", tar(&[("../evil.txt", "x"), ("a.txt", "a")])),
        ("a path from the root", tar(&[("/tmp/perigee-evil.txt", "x"), ("a.txt", "a")])),
        ("a link", link),
        ("a path twice over a folder", tar(&[("a", "x"), ("a/b.txt", "x")])),
    ];
    for (what, body) in cases {
        let answer = server.admin("POST", "/v1/deployments?name=site&alias=www.test", &body).await;
        assert!((400..500).contains(&answer.status), "{what}: {} {}", answer.status, answer.text());
        let told: Value = serde_json::from_slice(&answer.body).expect("JSON");
        assert!(told["error"]["message"].as_str().is_some_and(|text| text.len() > 10), "{what}: {told}");
        assert!(server.deployments().await.is_empty(), "{what}");
        assert_eq!(server.get("www.test", "/").await.status, 404, "{what}");
    }
    // A client that vanishes in the middle, with a length and with chunks.
    for framing in
        [format!("Content-Length: {}\r\n\r\n", whole.len()), "Transfer-Encoding: chunked\r\n\r\n400\r\n".to_owned()]
    {
        let mut stream = TcpStream::connect(server.admin).expect("a connection");
        let head = format!("POST /v1/deployments?name=site HTTP/1.1\r\nHost: x\r\n{framing}");
        stream.write_all(head.as_bytes()).expect("sent");
        stream.write_all(&whole[..700]).expect("sent");
        stream.shutdown(Shutdown::Both).expect("shut");
    }
    let half = [b"POST /v1/deployments?name=site HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", &whole[..700]].concat();
    assert_ne!(raw(server.admin, &half, false).await.status, 201);
    let left = || std::fs::read_dir(place.path("data/tmp")).map_or(1, |entries| entries.count());
    crate::edge::until("nothing is left of them", || left() == 0).await;
    assert!(server.deployments().await.is_empty());
    assert!(!place.path("data/evil.txt").exists() && !Path::new("/tmp/perigee-evil.txt").exists());
    for body in [whole, gzip, zstd] {
        let answer = server.admin("POST", "/v1/deployments?name=site&alias=www.test", &body).await;
        assert_eq!(answer.status, 201, "{}", answer.text());
    }
    assert_eq!(server.deployments().await.len(), 1, "packed or not, it is the same");
    assert_eq!(server.get("www.test", "/").await.text(), "home");
}

/// A tar ends with two blocks of zeroes; without them nobody knows what else was in it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_archive_that_ends_between_two_files_is_not_whole() {
    let place = Place::new();
    place.configure("");
    let server = place.start().await;
    let whole = tar(&[("a.txt", "a"), ("index.html", "home")]);
    let answer = server.admin("POST", "/v1/deployments?name=site&alias=www.test", &whole[..1_024]).await;
    assert_eq!(answer.status, 400, "{}", answer.text());
    assert!(server.deployments().await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deployments_and_aliases_outlive_the_process() {
    let place = Place::new();
    write_site(&place.path("configured"), 9, 2);
    place.configure("deployments: [{path: \"{dir}/configured\", aliases: [file.test]}]");
    let mut server = place.start().await;
    write_site(&place.path("site"), 1, 2);
    let first = server.deploy(&place.path("site"), &["--alias", "www.test"]);
    write_site(&place.path("site"), 2, 2);
    let second = server.deploy(&place.path("site"), &["--alias", "www.test"]);
    server.run(&["alias", "old.test", &first.host]).succeeded();
    // The file says otherwise, but it said so before.
    server.run(&["alias", "file.test", &first.host]).succeeded();
    let before = server.deployments().await;
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        server.signal(signal);
        server.ended().await;
        server = place.start().await;
        assert_eq!(server.deployments().await, before, "{signal}");
        for (host, version) in
            [(first.host.as_str(), "1"), (&second.host, "2"), ("www.test", "2"), ("old.test", "1"), ("file.test", "1")]
        {
            assert_eq!(assert_whole(&server, host, 2).await, version, "{host} after {signal}");
        }
        assert_eq!(server.get("www.test", "/api/version").await.text(), "version 2");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_deployed_by_many_at_once_is_one() {
    let place = Place::new();
    place.configure("");
    let server = place.start().await;
    let site = place.path("site");
    for version in 1..=3 {
        write_site(&site, version, 10);
        let folder = site.display().to_string();
        let deploying: Vec<_> = (0..6)
            .map(|_| {
                let mut command = server.command(&["deploy", &folder, "--alias", "www.test"]);
                std::thread::spawn(move || crate::support::run(&mut command))
            })
            .collect();
        let mut urls = Vec::new();
        for run in deploying {
            urls.push(Url::of(run.join().expect("no panic").succeeded().last_line()));
        }
        urls.dedup();
        assert_eq!(urls.len(), 1, "{urls:?}");
        assert_eq!(server.deployments().await.len(), version);
        assert_eq!(assert_whole(&server, "www.test", 10).await, version.to_string());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_in_the_middle_leaves_whole_deployments_only() {
    const FILES: usize = 40;
    let place = Place::new();
    place.configure("");
    let mut seen: Vec<String> = Vec::new();
    let mut killed_midway = 0;
    let mut last_alias = None;
    for version in 1..=8 {
        let mut server = place.start().await;
        let site = place.path("site");
        write_site(&site, version, FILES);
        let folder = site.display().to_string();
        let mut command = server.command(&["deploy", &folder, "--alias", "www.test"]);
        let deploying = std::thread::spawn(move || crate::support::run(&mut command));
        // Any moment is the right one: from before the upload to after the answer.
        tokio::time::sleep(Duration::from_millis(fastrand::u64(0..70))).await;
        server.kill().await;
        let told = deploying.join().expect("no panic");
        let promised = (told.status == Some(0)).then(|| Url::of(told.last_line()));
        killed_midway += usize::from(promised.is_none());

        let server = place.start().await;
        let listed = server.deployments().await;
        for id in &seen {
            assert!(ids(&listed).contains(id), "an older one stays: {id}");
        }
        for deployment in &listed {
            let host = Url::of(deployment["url"].as_str().expect("a URL")).host;
            assert_whole(&server, &host, FILES).await;
        }
        let on_disk = std::fs::read_dir(place.path("data/deployments")).expect("a folder").count();
        assert_eq!(on_disk, listed.len(), "nothing lies there that is not served");
        assert_eq!(std::fs::read_dir(place.path("data/tmp")).expect("a folder").count(), 0);
        if let Some(url) = &promised {
            // What was promised is kept.
            assert_eq!(assert_whole(&server, &url.host, FILES).await, version.to_string());
            last_alias = Some(version);
        }
        let alias = server.get("www.test", "/").await;
        if let Some(version) = last_alias {
            assert_eq!(alias.status, 200, "it had an answer before");
            let now: usize = alias.text().trim_start_matches("version ").parse().expect("a version");
            assert!(now >= version, "{now} {version}");
        }
        if alias.status == 200 {
            assert_whole(&server, "www.test", FILES).await;
        }
        seen = ids(&listed);
    }
    println!("{killed_midway} of 8 were killed midway, {} are there", seen.len());
}
