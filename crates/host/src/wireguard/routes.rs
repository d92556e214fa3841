//! Routes into the interface of a device, in tables of their own that all devices share. They are
//! looked into after the main one, whose default route aside, so that whatever others have routed
//! stays as it is; and never for what the agents themselves send, so that nothing that carries
//! packets of a mesh is carried by one.

use std::collections::BTreeSet;

use selvedge_model::Prefix;

use super::Device;
use crate::netlink::{Detour, Error, Route, RouteFilter};

/// The owner of our routes (`RTPROT_*`), as `ip route` shows it.
pub const PROTOCOL: u8 = 84;
/// The preference of the routes of the interface with the number zero.
const METRIC: u32 = 5020;

/// The tables, and the rules that lead there. What sends for the agents bears the mark.
pub const DETOUR: Detour = Detour { mark: 0x5e1, table: 5021, exits: 5022, priority: 32760 };

impl Device {
    /// Makes these the routes into the interface, besides those to the networks of its addresses.
    /// They are in the tables of [`DETOUR`], and count once its rules are there. Says whether
    /// anything was changed.
    ///
    /// # Errors
    /// If the kernel cannot be asked, or refuses. What it did not refuse is done.
    pub async fn set_routes(&self, prefixes: &BTreeSet<Prefix>) -> Result<bool, Error> {
        let mut found = BTreeSet::new();
        for table in [DETOUR.table, DETOUR.exits] {
            let filter = RouteFilter { protocol: Some(PROTOCOL), table: Some(table) };
            let routes = self.netlink.routes(filter).await?;
            found.extend(routes.into_iter().filter(|route| route.oif == Some(self.index)));
        }
        let wanted: BTreeSet<Route> = prefixes.iter().map(|prefix| self.route(*prefix)).collect();
        let gone: Vec<Route> = found.difference(&wanted).copied().collect();
        let new: Vec<Route> = wanted.difference(&found).copied().collect();
        let added = self.netlink.add_routes(&new).await;
        self.netlink.del_routes(&gone).await.and(added)?;
        Ok(!gone.is_empty() || !new.is_empty())
    }

    /// Several devices may have a route of one length for a while, and of length zero for ever.
    fn route(&self, dst: Prefix) -> Route {
        let metric = METRIC + self.index;
        let dst = dst.network();
        let table = if dst.len() == 0 { DETOUR.exits } else { DETOUR.table };
        Route { table, metric, ..Route::on_link(dst, self.index, PROTOCOL) }
    }
}
