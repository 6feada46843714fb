//! The seed "Caching" and product.md 5, sentence by sentence.

use crate::support::{Node, Origin, Reply};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_cold_requests_cost_one_call() {
    let origin = Origin::start().await;
    origin.on("/a", Reply::cached("hello", "s-maxage=60").after(100));
    let node = Node::before(&origin).await;
    let answers = node.burst(200, "shop.test", "/a").await;
    assert_eq!(origin.calls("/a"), 1);
    assert!(answers.iter().all(|answer| answer.status == 200 && answer.complete && answer.text() == "hello"));
    assert!(answers.iter().all(|answer| matches!(answer.cache(), "MISS" | "HIT")));
    assert_eq!(node.get("shop.test", "/a").await.cache(), "HIT");
}
