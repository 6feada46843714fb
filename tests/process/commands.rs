//! `check`, `serve` and the admin interface: what is refused, and how it is said.

use std::net::TcpListener;

use crate::edge::{request, write_files};
use crate::support::{Place, perigee, run};

fn check(place: &Place) -> crate::support::Run {
    run(perigee().arg("check").arg("-c").arg(place.file()))
}

#[test]
fn a_good_file_has_no_mistakes() {
    let place = Place::new();
    place.configure("");
    let told = check(&place).succeeded();
    assert!(told.stderr.is_empty(), "{told:?}");
    assert!(!place.path("data").exists(), "looking changes nothing");
}

#[test]
fn every_mistake_of_a_file_is_told_at_once() {
    let place = Place::new();
    let file = place.file();
    std::fs::write(
        &file,
        "regoin: sfo1\n\
         threads: many\n\
         listen: {http: [\"localhost:8080\"]}\n\
         cache: {memory: 10 gigs}\n\
         functions: {idle: 0s, instances: -1}\n\
         deployments:\n\
         \x20 - path: a\n    upstream: http://127.0.0.1:3000\n\
         \x20 - path: b\n    aliases: [x.test, HOST.test]\n\
         \x20 - upstream: ftp://127.0.0.1\n    name: c\n    aliases: [x.test]\n",
    )
    .expect("a file");
    let place_of = |line: usize| format!("{}:{line}:", file.display());
    let expected = [
        place_of(1),
        place_of(2),
        "did you mean `region`?".to_owned(),
        " region: ".to_owned(),
        " threads: found \"many\"".to_owned(),
        " listen.http[0]: found \"localhost:8080\"".to_owned(),
        " cache.memory: found \"10 gigs\"".to_owned(),
        " functions.idle: ".to_owned(),
        " functions.instances: ".to_owned(),
        " deployments[0].upstream: ".to_owned(),
        "HOST.test".to_owned(),
        " deployments[2].upstream: found \"ftp://127.0.0.1\"".to_owned(),
        "x.test".to_owned(),
    ];
    let expected: Vec<&str> = expected.iter().map(String::as_str).collect();
    let checked = check(&place).failed(&expected);
    assert!(checked.stdout.is_empty(), "{checked:?}");
    place.serve_in_vain().failed(&expected);
    assert!(!place.path("data").exists());
}

#[test]
fn files_that_are_no_configuration_are_refused() {
    let place = Place::new();
    check(&place).failed(&["perigee.yaml"]);
    for (text, said) in [
        ("", "region"),
        ("region: [", "perigee.yaml:"),
        ("- region", "perigee.yaml"),
        ("region: sfo1\nregion: iad1\n", "region"),
        ("region: sfo1\n\u{0}", "perigee.yaml"),
    ] {
        std::fs::write(place.file(), text).expect("a file");
        check(&place).failed(&[said]);
    }
    let told = run(perigee().arg("check"));
    assert_eq!(told.status, Some(2), "{told:?}");
}

#[test]
fn an_admin_address_for_others_wants_a_token() {
    let place = Place::new();
    for address in ["0.0.0.0:9180", "[::]:9180", "192.0.2.1:9180"] {
        let text = format!("region: sfo1\ndata: {}\nlisten: {{admin: \"{address}\"}}\n", place.path("data").display());
        std::fs::write(place.file(), &text).expect("a file");
        check(&place).failed(&["listen.admin", "token"]);
        place.serve_in_vain().failed(&["listen.admin", "token"]);
        let token = place.path("token");
        std::fs::write(&token, "s3cret\n").expect("a file");
        std::fs::write(place.file(), format!("{text}admin: {{token: {{file: {}}}}}\n", token.display()))
            .expect("a file");
        check(&place).succeeded();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_a_token_only_its_holder_is_heard() {
    let place = Place::new();
    std::fs::write(place.path("token"), "s3cret\n").expect("a file");
    place.configure("admin: {token: {file: \"{dir}/token\"}}");
    let server = place.start().await;
    for (method, path) in [
        ("GET", "/"),
        ("GET", "/metrics"),
        ("GET", "/v1/deployments"),
        ("POST", "/v1/deployments?name=x"),
        ("DELETE", "/v1/deployments/x"),
        ("PUT", "/v1/aliases/x.test"),
        ("POST", "/v1/purge"),
        ("GET", "/v1/explain?url=http://x.test/"),
        ("GET", "/nothing"),
    ] {
        for given in ["", "Bearer", "Bearer ", "Bearer s3cre", "Bearer s3cret2", "Basic s3cret", "s3cret"] {
            let fields = [("authorization", given)];
            let fields = if given.is_empty() { &fields[..0] } else { &fields[..] };
            let answer = request(server.admin, method, "admin.test", path, fields, b"").await;
            assert_eq!(
                (answer.status, answer.field("www-authenticate")),
                (401, Some("Bearer")),
                "{method} {path} {given:?}"
            );
            assert!(!answer.text().contains("s3cret"), "{}", answer.text());
        }
    }
    let heard =
        request(server.admin, "GET", "admin.test", "/metrics", &[("authorization", "Bearer s3cret")], b"").await;
    assert_eq!(heard.status, 200);
    for path in ["/healthz", "/readyz"] {
        assert_eq!(server.admin("GET", path, b"").await.status, 200, "who watches needs no token: {path}");
    }
    server.run(&["deployments"]).failed(&["token"]);
    run(server.command(&["deployments"]).env("PERIGEE_TOKEN", "wrong")).failed(&["token"]);
    run(server.command(&["deployments"]).env("PERIGEE_TOKEN", "s3cret")).succeeded();
    let file = place.path("token").display().to_string();
    server.run(&["deployments", "--token-file", &file]).succeeded();
    assert!(!server.stderr().contains("s3cret"), "{}", server.stderr());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_readiness_and_metrics_are_told() {
    let place = Place::new();
    write_files(&place.path("site"), &[("a.txt", "a")]);
    place.configure("deployments: [{path: \"{dir}/site\", aliases: [site.test]}]");
    let server = place.start().await;
    for cache in ["MISS", "HIT"] {
        assert_eq!(server.get("site.test", "/a.txt").await.cache(), cache);
    }
    assert_eq!(server.admin("GET", "/healthz", b"").await.text(), "ok\n");
    assert!(server.admin("GET", "/readyz", b"").await.text().contains("1 deployments"));
    let metrics = server.admin("GET", "/metrics", b"").await;
    assert!(metrics.field("content-type").is_some_and(|value| value.starts_with("application/openmetrics-text")));
    let text = metrics.text();
    for line in [
        "perigee_http_requests_total{cache=\"HIT\"} 1",
        "perigee_http_requests_total{cache=\"MISS\"} 1",
        "perigee_deployments 1",
        "perigee_cache_entries{tier=\"memory\"} 1",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} is not in:\n{text}");
    }
    assert!(text.ends_with("# EOF\n"), "{text}");
    for (method, path, status) in [
        ("GET", "/nothing", 404),
        ("POST", "/v1/explain", 405),
        ("DELETE", "/v1/deployments", 405),
        ("POST", "/v1/purge", 400),
    ] {
        let answer = server.admin(method, path, b"").await;
        assert_eq!(answer.status, status, "{method} {path}");
        let told: serde_json::Value = serde_json::from_slice(&answer.body).expect("JSON");
        assert!(told["error"]["code"].is_string() && told["error"]["message"].is_string(), "{told}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_port_that_is_taken_is_named() {
    let place = Place::new();
    place.configure("");
    for address in [place.http, place.admin] {
        let taken = TcpListener::bind(address).expect("it is free");
        place.serve_in_vain().failed(&[&format!("cannot listen on {address}"), "in use"]);
        drop(taken);
    }
    let place = Place::new();
    place.configure("");
    let server = place.start().await;
    place.serve_in_vain().failed(&["cannot listen on", "in use"]);
    assert_eq!(server.admin("GET", "/healthz", b"").await.status, 200, "the first one is well");
}

#[test]
fn without_a_node_the_commands_say_so() {
    let place = Place::new();
    let admin = place.admin.to_string();
    for words in [
        &["deployments"][..],
        &["purge", "--all"],
        &["explain", "http://x.test/"],
        &["remove", "x"],
        &["alias", "a.test", "x"],
    ] {
        let told = run(perigee().args(words).args(["--admin", &admin])).failed(&["no node answers", &admin]);
        assert!(told.stdout.is_empty(), "{told:?}");
    }
}

#[test]
fn a_deployment_of_the_file_that_cannot_be_made_stops_the_start() {
    let place = Place::new();
    write_files(&place.path("bad"), &[("now.json", r#"{"version": 1, "routs": []}"#), ("a.txt", "a")]);
    place.configure("deployments: [{path: \"{dir}/bad\", name: bad}, {path: \"{dir}/nothing\", name: nothing}]");
    place.serve_in_vain().failed(&[
        "\"bad\"",
        "now.json: version:",
        "now.json: routs:",
        "\"nothing\"",
        "perigee.yaml:7",
    ]);
}
