//! The ways to a region: TLS and a password, a sentinel, a cluster.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use perigee::cache::purge::{Epoch, Mode as PurgeMode, Scope};
use perigee::lock::region::{Committed, Region, Sought};
use perigee::storage::regional::{Address, Mode};

use crate::node::{Node, address, ask, eventually, packed};
use crate::server::{Server, free_port};

fn openssl(dir: &Path, args: &str) {
    let run = Command::new("openssl").args(args.split(' ')).current_dir(dir).output().expect("openssl is installed");
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
}

/// All that a region does, once.
async fn works(a: &Node, b: &Node) {
    let slot = fastrand::u128(..).to_le_bytes();
    let message = b.message(&slot);
    let lease = a.win(slot).await;
    assert!(matches!(b.seek(&ask(slot)).await, Ok(Sought::Held { .. })));
    let data = vec![b'x'; 1 << 20];
    assert_eq!(a.commit(&lease, &packed(&data, &[Scope::tag("x")])).await, Ok(Committed::Stored));
    tokio::time::timeout(Duration::from_secs(5), message).await.expect("woken");
    assert!(matches!(b.seek(&ask(slot)).await, Ok(Sought::Entry(entry)) if entry == data));
    let epoch = a.purge(&[Scope::tag("x")], PurgeMode::Delete, Epoch(0)).await.expect("answered");
    let acks = a.acknowledged(epoch, Duration::from_secs(1)).await;
    assert!(acks.len() == 2 && acks.iter().all(|ack| ack.acknowledged), "{acks:?}");
    assert_eq!(b.sink.scopes().last(), Some(&Scope::tag("x")));
}

#[tokio::test]
async fn tls_and_a_password() {
    let pems = tempfile::tempdir().expect("a directory");
    let dir = pems.path();
    let curve = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    openssl(dir, &format!("req -x509 {curve} -keyout ca.key -out ca.pem -days 2 -subj /CN=ca"));
    openssl(dir, &format!("req {curve} -keyout key.pem -out csr.pem -subj /CN=store"));
    std::fs::write(dir.join("names"), "subjectAltName=IP:127.0.0.1\n").expect("written");
    openssl(dir, "x509 -req -in csr.pem -CA ca.pem -CAkey ca.key -CAcreateserial -out cert.pem -days 2 -extfile names");
    let file = |name: &str| dir.join(name).to_str().expect("utf-8").to_string();
    let mut server = Server::prepare(&[
        "--tls-cert-file",
        &file("cert.pem"),
        "--tls-key-file",
        &file("key.pem"),
        "--tls-ca-cert-file",
        &file("ca.pem"),
        "--tls-auth-clients",
        "no",
        "--user",
        "perigee",
        "on",
        ">open-sesame",
        "~*",
        "&*",
        "+@all",
        "--user",
        "default",
        "off",
    ]);
    server.resume_from_nothing();
    let right = Address {
        urls: vec![server.url().replace("redis://", "rediss://")],
        mode: Mode::Single,
        username: Some("perigee".into()),
        password: Some("open-sesame".into()),
        ca_pem: Some(std::fs::read(dir.join("ca.pem")).expect("written")),
    };
    let a = Node::start(right.clone(), "a/1", None, Arc::default());
    let b = Node::start(right.clone(), "b/1", None, Arc::default());
    a.is_connected().await;
    b.is_connected().await;
    works(&a, &b).await;

    openssl(dir, &format!("req -x509 {curve} -keyout other.key -out other.pem -days 2 -subj /CN=other"));
    for (what, wrong) in [
        ("password", Address { password: Some("x".into()), ..right.clone() }),
        ("trust", Address { ca_pem: std::fs::read(dir.join("other.pem")).ok(), ..right.clone() }),
        ("no TLS", Address { urls: vec![server.url()], ..right }),
    ] {
        let node = Node::start(wrong, "c/1", None, Arc::default());
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert!(!node.state().connected, "{what}");
    }
}

#[tokio::test]
async fn a_cluster() {
    let bus = free_port().to_string();
    let server = Server::start(&["--cluster-enabled", "yes", "--cluster-port", &bus]);
    let _: () = server.command(&["CLUSTER", "ADDSLOTSRANGE", "0", "16383"]);
    let address = Address { mode: Mode::Cluster, ..address(&server) };
    let a = Node::start(address.clone(), "a/1", None, Arc::default());
    let b = Node::start(address, "b/1", None, Arc::default());
    a.is_connected().await;
    b.is_connected().await;
    works(&a, &b).await;
}

#[tokio::test]
async fn a_cluster_in_which_the_region_moves() {
    let (bus_one, bus_two) = (free_port().to_string(), free_port().to_string());
    let one = Server::start(&["--cluster-enabled", "yes", "--cluster-port", &bus_one]);
    let two = Server::start(&["--cluster-enabled", "yes", "--cluster-port", &bus_two]);
    let slot: u16 = one.command(&["CLUSTER", "KEYSLOT", "{test}"]);
    let _: () = one.command(&["CLUSTER", "ADDSLOTSRANGE", "0", "16383"]);
    let _: () = one.command(&["CLUSTER", "MEET", "127.0.0.1", &two.port.to_string(), &bus_two]);
    let id: String = two.command(&["CLUSTER", "MYID"]);
    eventually("met", || one.command::<String>(&["CLUSTER", "NODES"]).contains(&id)).await;
    let known = || two.command::<String>(&["CLUSTER", "INFO"]).contains("cluster_state:ok");
    eventually("agreed", known).await;
    // Asked of the node that does not have it.
    let there = Address { mode: Mode::Cluster, ..address(&two) };
    let a = Node::start(there.clone(), "a/1", None, Arc::default());
    let b = Node::start(there, "b/1", None, Arc::default());
    a.is_connected().await;
    b.is_connected().await;
    works(&a, &b).await;
    let _: () = one.command(&["FLUSHALL"]);
    for node in [&two, &one] {
        let _: () = node.command(&["CLUSTER", "SETSLOT", &slot.to_string(), "NODE", &id]);
    }
    eventually("moved", || two.command::<i64>(&["EXISTS", "perigee:{test}:log"]) == 1).await;
    a.is_connected().await;
    b.is_connected().await;
    eventually("noticed", || a.sink.losses() >= 1 && b.sink.losses() >= 1).await;
    works(&a, &b).await;
}

#[tokio::test]
#[ignore = "slow: a sentinel looks for replicas every ten seconds"]
async fn a_sentinel_names_the_master_also_after_a_failover() {
    let mut master = Server::start(&["--repl-diskless-sync-delay", "0"]);
    let replica =
        Server::start(&["--repl-diskless-sync-delay", "0", "--replicaof", &format!("127.0.0.1 {}", master.port)]);
    let sentinel = Server::sentinel(master.port);
    let by_sentinel = Address { mode: Mode::Sentinel { master: "main".into() }, ..address(&sentinel) };
    let a = Node::start(by_sentinel.clone(), "a/1", None, Arc::default());
    let b = Node::start(by_sentinel, "b/1", None, Arc::default());
    a.is_connected().await;
    b.is_connected().await;
    works(&a, &b).await;
    eventually("replicated", || replica.command::<i64>(&["XLEN", "perigee:{test}:purges"]) == 1).await;
    let replicas = || sentinel.command::<String>(&["INFO", "sentinel"]).contains("slaves=1");
    // A sentinel looks for replicas every ten seconds.
    let began = std::time::Instant::now();
    while !replicas() {
        assert!(began.elapsed() < Duration::from_secs(15));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    master.kill();
    a.is_lost().await;
    a.purge(&[Scope::tag("in between")], PurgeMode::Delete, Epoch(0)).await.expect_err("nobody is there");
    let until = std::time::Instant::now() + Duration::from_secs(20);
    while !(a.state().connected && b.state().connected) {
        assert!(std::time::Instant::now() < until, "no failover");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    eventually("arrived", || b.sink.scopes().last() == Some(&Scope::tag("in between"))).await;
    assert_eq!((a.sink.losses(), b.sink.losses()), (0, 0), "it was replicated");
    works(&a, &b).await;
}
