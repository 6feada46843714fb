//! SIGHUP: takes on a new configuration, all of it or nothing. Requests in flight keep the one that they began with.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::signal::unix::Signal;

use crate::conf::Conf;
use crate::proxy::Edge;

/// Reloads as often as it is told to.
pub async fn on_signal(edge: Arc<Edge>, path: PathBuf, mut hangup: Signal) {
    while hangup.recv().await.is_some() {
        let (at, from) = (edge.clone(), path.clone());
        let result = match tokio::task::spawn_blocking(move || reload(&at, &from)).await {
            Ok(result) => result,
            Err(error) => Err(error.to_string()),
        };
        let word = match result {
            Ok(()) => "ok",
            Err(error) => {
                log::error!("SIGHUP: nothing was changed, as {} cannot be taken on:\n{error}", path.display());
                "refused"
            }
        };
        edge.metrics.reloads.get_or_create(&vec![("result", word)]).inc();
    }
}

/// Reads the file again and publishes what it says. On any mistake nothing changes.
pub fn reload(edge: &Edge, path: &Path) -> Result<(), String> {
    let mut conf = Conf::load(path).map_err(|mistakes| mistakes.to_string())?;
    let old = edge.registry.world().conf.clone();
    let fixed = old.needs_restart(&conf);
    if !fixed.is_empty() {
        log::warn!("SIGHUP: {} changed; that takes a restart, until then the old value holds", fixed.join(", "));
        keep(&old, &mut conf);
    }
    let conf = Arc::new(conf);
    edge.registry.reload(conf.clone(), edge.clock.now()).map_err(|error| error.to_string())?;
    edge.functions.reconfigure(&conf.functions);
    log::info!("SIGHUP: {} taken on", path.display());
    Ok(())
}

/// What cannot change while running stays as it was.
fn keep(old: &Conf, new: &mut Conf) {
    new.region.clone_from(&old.region);
    new.node.clone_from(&old.node);
    new.threads = old.threads;
    new.listen.clone_from(&old.listen);
    new.data.clone_from(&old.data);
    new.domain.clone_from(&old.domain);
    new.cache = old.cache.clone();
    new.grace = old.grace;
}
