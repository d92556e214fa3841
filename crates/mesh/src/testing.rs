//! What several files' tests need.

use selvedge_model::WgKey;

use crate::admission::{Certificate, Genesis, Role};
use crate::identity::Identity;
use crate::profile::Profile;
use crate::record::{Life, Record};
use crate::roster::Roster;
use crate::signed::Signed;
use crate::time::UnixTime;

pub(crate) const WALL: UnixTime = UnixTime(1000);

pub(crate) fn identity(number: u32) -> Identity {
    let mut secret = [3; 32];
    secret[..4].copy_from_slice(&number.to_be_bytes());
    Identity::from_secret(&secret)
}

/// A roster of a founder and others; every tenth certificate has expired.
pub(crate) fn roster(count: u32) -> Roster {
    let founder = identity(0);
    let genesis = Genesis { founder: founder.node_id(), salt: [1; 16], name: "m".into() };
    let mut roster = Roster::new(genesis.clone());
    for number in 0..count {
        let identity = identity(number);
        let certificate = Certificate {
            mesh: genesis.mesh(),
            subject: identity.node_id(),
            wg: WgKey([0; 32]),
            role: Role::Peer,
            prefixes: vec![],
            may_invite: false,
            not_after: if number % 10 == 9 { 999 } else { 2000 },
            serial: 0,
            issuer: founder.node_id(),
            sponsor: None,
            pardons: 0,
            guests: None,
        };
        let record = Record {
            mesh: genesis.mesh(),
            node: identity.node_id(),
            seq: 1,
            certificate: Signed::sign(certificate, &founder).expect("signs").raw().clone(),
            profile: Profile::default(),
            life: Life::default(),
        };
        let raw = Signed::sign(record, &identity).expect("signs").raw().clone();
        let (node, entry) = roster.verify_record(raw).expect("holds");
        roster.map.merge_entry(node, entry);
    }
    roster
}
