//! Whose endpoint leads nowhere: WireGuard sends there again and again, and nothing comes back.

use std::collections::BTreeMap;
use std::time::Duration;

use selvedge_host::wireguard::PeerStatus;
use selvedge_model::WgKey;

/// So often in a row nothing may have come back. WireGuard repeats its handshake every 5 s.
const LOOKS: u8 = 3;

/// A session that is younger is no silence: keepalives alone, and packets in one direction, bring
/// nothing back that would be counted. One that is used is renewed after 120 s, in three attempts.
const RENEWED: Duration = Duration::from_secs(135);

/// What was seen of each peer at the last look.
#[derive(Debug, Default)]
pub(super) struct Silence {
    seen: BTreeMap<WgKey, Seen>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    rx: u64,
    tx: u64,
    /// How often in a row something was sent and nothing was received.
    looks: u8,
}

impl Silence {
    /// Takes note of what a device knows of its peers, every few seconds. Says to whose endpoints
    /// was sent in vain for long enough to try another; they are then given as much time again.
    pub(super) fn note(&mut self, peers: &[PeerStatus]) -> Vec<WgKey> {
        let mut silent = Vec::new();
        let mut seen = BTreeMap::new();
        for peer in peers.iter().filter(|peer| peer.endpoint.is_some()) {
            let before = self.seen.get(&peer.key).copied().unwrap_or_default();
            let renewed = peer.last_handshake.is_some_and(|age| age < RENEWED);
            let mut looks = match (peer.tx > before.tx, renewed || peer.rx != before.rx) {
                (_, true) => 0,
                (true, false) => before.looks + 1,
                (false, false) => before.looks,
            };
            if looks >= LOOKS {
                silent.push(peer.key);
                looks = 0;
            }
            seen.insert(peer.key, Seen { rx: peer.rx, tx: peer.tx, looks });
        }
        self.seen = seen;
        silent
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEER: WgKey = WgKey([1; 32]);

    fn peer(tx: u64, rx: u64) -> Vec<PeerStatus> {
        let endpoint = "192.0.2.1:7".parse().ok();
        vec![PeerStatus { key: PEER, endpoint, last_handshake: None, rx, tx }]
    }

    #[test]
    fn who_never_answers_is_tried_elsewhere_again_and_again() {
        let mut silence = Silence::default();
        let found: Vec<bool> =
            (1..=7).map(|look| !silence.note(&peer(148 * look, 0)).is_empty()).collect();
        assert_eq!(found, [false, false, true, false, false, true, false]);
    }

    #[test]
    fn who_is_sent_keepalives_alone_is_not_silent() {
        let mut silence = Silence::default();
        for look in 1..20 {
            let mut peers = peer(32 * look, 500);
            peers[0].last_handshake = Some(Duration::from_secs(5 * look));
            assert_eq!(silence.note(&peers), []);
        }
        let mut stale = peer(1000, 500);
        stale[0].last_handshake = Some(RENEWED);
        let found: Vec<bool> = (1..=3)
            .map(|look| {
                stale[0].tx += look;
                !silence.note(&stale).is_empty()
            })
            .collect();
        assert_eq!(found, [false, false, true]);
    }

    #[test]
    fn who_answers_or_is_not_asked_is_not_silent() {
        let mut silence = Silence::default();
        for look in 1..20 {
            assert_eq!(silence.note(&peer(148 * look, 92 * look)), []);
        }
        for _ in 0..20 {
            assert_eq!(silence.note(&peer(5000, 2000)), [], "nothing is sent");
        }
        // One answer between is enough.
        for look in 0..20 {
            assert_eq!(silence.note(&peer(6000 + look, 3000 + look / 2)), []);
        }
    }
}
