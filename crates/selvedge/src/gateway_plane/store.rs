//! The store that the configuration asks for.

use std::sync::Arc;

use anyhow::Context;
use selvedge_gateway::Memory;
use selvedge_gateway::kv::Revision;
use selvedge_store::Store;
use selvedge_store::embedded::EmbeddedStore;
use selvedge_store::etcd::{self, EtcdStore};

use crate::config::{EtcdConfig, StoreConfig};

/// Opens the store. That it does not answer yet is no error.
pub(super) async fn open(config: &StoreConfig) -> anyhow::Result<Arc<dyn Store>> {
    match config {
        StoreConfig::Embedded(address) => Ok(Arc::new(EmbeddedStore::new(address.clone()))),
        StoreConfig::Etcd(config) => {
            let store = EtcdStore::new(etcd_config(config)).await;
            Ok(Arc::new(store.context("cannot use the configured etcd")?))
        }
    }
}

/// The engine's name, for people.
pub(super) const fn engine(config: &StoreConfig) -> &'static str {
    match config {
        StoreConfig::Embedded(_) => "embedded",
        StoreConfig::Etcd(_) => "etcd",
    }
}

/// The least revision that the store may have: what the run before has read. The embedded store
/// begins anew with each run of its own.
pub(super) fn floor(config: &StoreConfig, memory: Option<&Memory>) -> Revision {
    match (config, memory) {
        (StoreConfig::Etcd(_), Some(memory)) => memory.revision,
        (StoreConfig::Etcd(_), None) | (StoreConfig::Embedded(_), _) => Revision(0),
    }
}

fn etcd_config(config: &EtcdConfig) -> etcd::EtcdConfig {
    let tls = config.tls.as_ref().map(|tls| etcd::EtcdTls {
        ca: tls.ca.clone(),
        identity: tls.identity.as_ref().map(|(cert, key)| (cert.clone(), key.0.as_bytes().into())),
    });
    let auth = config.auth.as_ref().map(|(user, password)| (user.clone(), password.0.to_string()));
    etcd::EtcdConfig { tls, auth, ..etcd::EtcdConfig::new(config.endpoints.iter().cloned()) }
}
