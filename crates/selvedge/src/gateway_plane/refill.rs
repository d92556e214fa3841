//! Fills a store that was reset with what an agent knew of the former one.
//!
//! First the keys, then the revision: incarnations are ordered by it, and agents refuse a store
//! that is behind what they have read. So it is lifted by idle writes until nobody refuses it; then
//! all read it anew by themselves. Where this stands is in the store itself, and whoever asks again
//! goes on from there.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use selvedge_api::Error;
use selvedge_api::gateway::Refill;
use selvedge_gateway::keys::{PREFIXES, REFILLED};
use selvedge_gateway::kv::{Op, Revision, StoreError, Txn};
use selvedge_store::Store;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::{info, warn};

/// How much further than what this agent has read the revision is lifted: others may have read more.
const MARGIN: i64 = 10_000;
/// More than this is not lifted by writing: etcd would have to keep it all.
const MOST: i64 = 2_000_000;
/// For how long one call works.
const PATIENCE: Duration = Duration::from_secs(4);
/// How many idle writes are under way.
const AT_ONCE: usize = 64;
/// How many keys one transaction changes; etcd allows 128.
const BATCH: usize = 100;

/// Works on it for a while. `read` is the revision up to which this agent knows the former store, and
/// `contents` what it held then.
pub(super) async fn work_on(
    store: Arc<dyn Store>,
    read: Revision,
    contents: Vec<Op>,
) -> Result<Refill, Error> {
    let (found, begun) = look(&*store).await?;
    // One from before the store was lost again, or restored, is behind what was read since.
    let beyond = begun.filter(|beyond| *beyond >= read);
    if beyond.is_none() {
        permit(found, read)?;
        warn!(revision = %found, former = %read, "filling the store by the operator's word");
    }
    let (keys, beyond) = match beyond {
        Some(beyond) => (0, beyond),
        None => write(&*store, contents, Revision(read.0 + MARGIN)).await?,
    };
    let revision = lift(store, beyond).await?;
    let done = revision > beyond;
    if done {
        info!(%revision, "the store is filled again");
    }
    Ok(Refill { keys, revision: revision.0, beyond: beyond.0, done })
}

fn permit(found: Revision, read: Revision) -> Result<(), Error> {
    if found >= read {
        return Err(Error::conflict(format!(
            "the store was not reset: it is at revision {found}, and this agent has read it up to {read}"
        )));
    }
    if read.0 - found.0 > MOST {
        return Err(Error::conflict(format!(
            "the former store was at revision {read}, which is too much to be written anew: restore the \
             store with `etcdutl snapshot restore --bump-revision {read} --mark-compacted`, and then \
             fill it"
        )));
    }
    Ok(())
}

/// The store's revision, and up to where a refill was to lift it.
async fn look(store: &dyn Store) -> Result<(Revision, Option<Revision>), Error> {
    let snapshot = store.read(&[REFILLED.to_owned()]).await.map_err(failed)?;
    let text = snapshot.keys.first().and_then(|kv| std::str::from_utf8(&kv.value).ok());
    Ok((snapshot.revision, text.and_then(|text| text.parse().ok()).map(Revision)))
}

/// Leaves exactly these keys, and notes up to where the revision is to be lifted. How many keys
/// there are then.
async fn write(
    store: &dyn Store,
    contents: Vec<Op>,
    beyond: Revision,
) -> Result<(usize, Revision), Error> {
    let keys = contents.len();
    let found = store.read(&PREFIXES.map(str::to_owned)).await.map_err(failed)?;
    let mut changes: BTreeMap<String, Op> =
        found.keys.into_iter().map(|kv| (kv.key.clone(), Op::Delete { key: kv.key })).collect();
    let named = |op: Op| op.key().map(str::to_owned).map(|key| (key, op));
    changes.extend(contents.into_iter().filter_map(named));
    let changes: Vec<Op> = changes.into_values().collect();
    for batch in changes.chunks(BATCH) {
        run(store, batch.to_vec()).await?;
    }
    run(store, vec![mark(beyond)]).await?;
    Ok((keys, beyond))
}

/// Writes the same again and again until the revision is beyond this, or the time is over. The
/// revision that was reached.
async fn lift(store: Arc<dyn Store>, beyond: Revision) -> Result<Revision, Error> {
    let end = Instant::now() + PATIENCE;
    let mut reached = Revision(0);
    let mut writes = JoinSet::new();
    loop {
        while writes.len() < AT_ONCE && reached <= beyond && Instant::now() < end {
            let store = Arc::clone(&store);
            writes.spawn(async move { run(&*store, vec![mark(beyond)]).await });
        }
        match writes.join_next().await {
            Some(Ok(revision)) => reached = reached.max(revision?),
            Some(Err(error)) => return Err(Error::internal(error)),
            None => return Ok(reached),
        }
    }
}

fn mark(beyond: Revision) -> Op {
    let value = beyond.to_string().into_bytes();
    Op::Put { key: REFILLED.to_owned(), value, lease: None }
}

async fn run(store: &dyn Store, then: Vec<Op>) -> Result<Revision, Error> {
    let reply = store.txn(Txn { compare: Vec::new(), then }).await;
    reply.map(|reply| reply.revision).map_err(failed)
}

fn failed(error: StoreError) -> Error {
    Error::unavailable(format!("{error}; nothing is lost, and it can be asked for again"))
}
