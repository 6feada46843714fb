//! The nodes of a region, each a process of the program, with one real Redis and one origin.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::edge::{Answer, Reading, eventually};
use crate::load::{self, HOST};
use crate::process::{Place, Server};
use crate::redis_server;

pub struct Region {
    pub redis: redis_server::Server,
    pub nodes: Vec<Server>,
    /// Kept: the folders of the nodes.
    pub places: Vec<Place>,
}

impl Region {
    /// Nodes with memory, a disk of their own, and the region.
    pub async fn of(count: usize, origin: SocketAddr) -> Region {
        let redis = redis_server::Server::start(&[]);
        let url = redis.url();
        Region::by_way_of(count, origin, redis, &url).await
    }

    /// `url`: how the nodes reach the Redis.
    pub async fn by_way_of(count: usize, origin: SocketAddr, redis: redis_server::Server, url: &str) -> Region {
        let mut region = Region { redis, nodes: Vec::new(), places: Vec::new() };
        for _ in 0..count {
            let mut place = Place::new();
            place.log = "info,access=off";
            place.configure(&load::shop(origin, &format!("node: {{size: 256MB}}, regional: {{redis: \"{url}\"}}")));
            region.nodes.push(place.start().await);
            region.places.push(place);
        }
        region.is_whole().await;
        region
    }

    pub async fn is_whole(&self) {
        for node in &self.nodes {
            eventually("the node is connected", async || gauge(node, "perigee_region_up").await == Some(1.0)).await;
        }
    }

    /// Asks until all nodes have it in memory.
    pub async fn warm(&self, path: &str) {
        for node in &self.nodes {
            eventually("it is cached", async || node.get(HOST, path).await.cache() == "HIT").await;
        }
    }

    /// So many requests at each node at once; connected before, so that it is the answers that are timed.
    pub async fn burst(&self, each: usize, path: &str) -> Vec<Answer> {
        let mut connected = Vec::new();
        for node in &self.nodes {
            for _ in 0..each {
                connected.push(Reading::connect(node.http).await);
            }
        }
        let asked = connected.into_iter().map(|mut connection| {
            let path = path.to_owned();
            tokio::spawn(async move {
                let began = Instant::now();
                let mut answer = connection.get(HOST, &path).await;
                answer.took = began.elapsed();
                answer
            })
        });
        let tasks: Vec<_> = asked.collect();
        let mut answers = Vec::new();
        for task in tasks {
            answers.push(task.await.expect("no panic"));
        }
        answers
    }
}

/// A value of `/metrics`, named with its labels.
pub async fn gauge(server: &Server, name: &str) -> Option<f64> {
    let metrics = server.admin("GET", "/metrics", b"").await.text();
    metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
}

/// How long something goes on that is done to nodes under load.
pub fn fault_time() -> Duration {
    let seconds = std::env::var("SLOW_SECONDS").ok().and_then(|seconds| seconds.parse().ok());
    Duration::from_secs(seconds.unwrap_or(20))
}
