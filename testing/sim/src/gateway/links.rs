//! The network between hosts: every two sites are joined by paths that may be cut, lose, delay,
//! repeat and reorder what is sent, each direction by itself.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use rand::RngExt;
use rand_chacha::ChaCha8Rng;

/// The paths between two sites: the fabric and the uplink.
pub const PATHS: usize = 2;
/// The port of probes.
const PORT: u16 = 7947;
/// What loses more than this, in per cent, carries no connections any more.
const TCP_LIMIT: u8 = 40;
/// What loses no more than this, in per cent, is as good as new for repeated probes.
const CLEAN_LIMIT: u8 = 5;

/// One direction of one path between two sites.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Way {
    /// Nothing gets through.
    pub cut: bool,
    /// How much is lost, in per cent.
    pub loss: u8,
    /// How much longer it takes at most, in microseconds.
    pub slow: u32,
}

/// What is blocked of the store's traffic, though the paths are sound.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Block {
    /// What the member at one site has to say to the one at another.
    Peers(usize, usize),
    /// What a host asks of the member at a site.
    Client(usize, usize),
}

/// The datagrams that come of one: none, it, or it and a copy, each after its delay.
pub type Arrivals = [Option<Duration>; 2];

/// All paths between all sites.
#[derive(Clone, Debug)]
pub struct Links {
    sites: usize,
    ways: Vec<Way>,
    carriers: Vec<[bool; PATHS]>,
    blocked: BTreeSet<Block>,
}

impl Links {
    /// Sites that are joined by sound paths.
    #[must_use]
    pub fn new(sites: usize) -> Self {
        Self {
            sites,
            ways: vec![Way::default(); sites * sites * PATHS],
            carriers: vec![[true; PATHS]; sites],
            blocked: BTreeSet::new(),
        }
    }

    /// Adds a site with sound paths.
    pub fn add_site(&mut self) {
        let old = self.clone();
        *self = Self::new(old.sites + 1);
        for from in 0..old.sites {
            self.carriers[from] = old.carriers[from];
            for to in 0..old.sites {
                for path in 0..PATHS {
                    *self.way_mut(from, to, path) = old.way(from, to, path);
                }
            }
        }
        self.blocked = old.blocked;
    }

    /// Puts everything right.
    pub fn mend(&mut self) {
        *self = Self::new(self.sites);
    }

    /// One direction of one path.
    #[must_use]
    pub fn way(&self, from: usize, to: usize, path: usize) -> Way {
        self.ways[(from * self.sites + to) * PATHS + path]
    }

    /// The same, to be changed.
    pub fn way_mut(&mut self, from: usize, to: usize, path: usize) -> &mut Way {
        &mut self.ways[(from * self.sites + to) * PATHS + path]
    }

    /// Takes a site's carrier on a path, or gives it back.
    pub fn set_carrier(&mut self, site: usize, path: usize, carrier: bool) {
        self.carriers[site][path] = carrier;
    }

    /// Whether a site has its carrier on every path.
    #[must_use]
    pub fn has_carriers(&self, site: usize) -> bool {
        self.carriers[site].iter().all(|carrier| *carrier)
    }

    /// Blocks some of the store's traffic, until everything is mended.
    pub fn block(&mut self, block: Block) {
        self.blocked.insert(block);
    }

    /// Changes every direction of every path between two different sites.
    pub fn for_each(&mut self, mut change: impl FnMut(usize, usize, usize, &mut Way)) {
        for from in 0..self.sites {
            for to in (0..self.sites).filter(|to| *to != from) {
                for path in 0..PATHS {
                    change(from, to, path, self.way_mut(from, to, path));
                }
            }
        }
    }

    /// Whether anything at all can get from one site to another on this path.
    #[must_use]
    pub fn is_open(&self, from: usize, to: usize, path: usize) -> bool {
        let carried = self.carriers[from][path] && self.carriers[to][path];
        carried && !self.way(from, to, path).cut
    }

    /// Whether a question may get through on some path and its answer back.
    #[must_use]
    pub fn may_answer(&self, a: usize, b: usize) -> bool {
        (0..PATHS).any(|path| self.is_open(a, b, path) && self.is_open(b, a, path))
    }

    /// Whether questions and answers get through on some path without delay worth mentioning.
    #[must_use]
    pub fn is_clean(&self, a: usize, b: usize) -> bool {
        let good = |from, to, path| {
            let way = self.way(from, to, path);
            self.is_open(from, to, path) && way.loss <= CLEAN_LIMIT && way.slow == 0
        };
        (0..PATHS).any(|path| good(a, b, path) && good(b, a, path))
    }

    /// Whether a host's requests get to the store's member at a site, and the answers back.
    #[must_use]
    pub fn carries_store(&self, host: usize, site: usize) -> bool {
        self.carries_connections(host, site) && !self.blocked.contains(&Block::Client(host, site))
    }

    /// Whether the messages of the store's member at one site get to the one at another.
    #[must_use]
    pub fn carries_peers(&self, from: usize, to: usize) -> bool {
        self.carries_connections(from, to) && !self.blocked.contains(&Block::Peers(from, to))
    }

    fn carries_connections(&self, a: usize, b: usize) -> bool {
        let good = |from, to, path| {
            self.is_open(from, to, path) && self.way(from, to, path).loss <= TCP_LIMIT
        };
        a == b || (0..PATHS).any(|path| good(a, b, path) && good(b, a, path))
    }

    /// What becomes of a datagram.
    pub fn send(&self, from: usize, to: usize, path: usize, rng: &mut ChaCha8Rng) -> Arrivals {
        if !self.is_open(from, to, path) {
            return [None, None];
        }
        let way = self.way(from, to, path);
        if way.loss > 0 && rng.random_range(0..100) < way.loss {
            return [None, None];
        }
        // One draw decides on what is rare: a burst, a copy.
        let luck: u32 = rng.random_range(0..1000);
        let longest = if luck < 5 { 20_000 } else { 1_000 };
        let mut delay =
            |way: Way| Duration::from_micros(rng.random_range(100..longest + u64::from(way.slow)));
        let first = Some(delay(way));
        [first, (luck >= 995).then(|| delay(way))]
    }
}

/// The address of a site on a path.
#[must_use]
pub fn address(site: usize, path: usize) -> SocketAddr {
    let [_, _, high, low] = u32::try_from(site).unwrap_or(u32::MAX).to_be_bytes();
    let path = u8::try_from(path).unwrap_or(u8::MAX);
    SocketAddr::from((Ipv4Addr::new(10, path, high, low), PORT))
}

/// The site and the path of an address; `None` for one that is nobody's.
#[must_use]
pub fn place(addr: SocketAddr) -> Option<(usize, usize)> {
    let SocketAddr::V4(addr) = addr else { return None };
    let [ten, path, high, low] = addr.ip().octets();
    let known = ten == 10 && usize::from(path) < PATHS && addr.port() == PORT;
    known.then(|| (usize::from(high) * 256 + usize::from(low), usize::from(path)))
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    #[test]
    fn addresses_name_places() {
        for (site, path) in [(0, 0), (7, 1), (300, 1)] {
            assert_eq!(place(address(site, path)), Some((site, path)));
        }
        assert_eq!(place(SocketAddr::from(([10, 0, 0, 1], 1))), None);
        assert_eq!(place(SocketAddr::from(([10, 9, 0, 1], PORT))), None);
    }

    #[test]
    fn a_cut_is_one_direction_of_one_path() {
        let mut links = Links::new(2);
        links.way_mut(0, 1, 0).cut = true;
        assert!(!links.is_open(0, 1, 0) && links.is_open(1, 0, 0));
        assert!(links.may_answer(0, 1), "on the other path");
        links.way_mut(1, 0, 1).cut = true;
        assert!(!links.may_answer(0, 1) && !links.carries_store(0, 1));
        links.mend();
        links.block(Block::Client(0, 1));
        assert!(links.may_answer(0, 1) && !links.carries_store(0, 1));
        assert!(links.carries_store(1, 0) && links.carries_peers(0, 1));
        links.block(Block::Peers(1, 0));
        assert!(links.carries_peers(0, 1) && !links.carries_peers(1, 0));
    }

    #[test]
    fn loss_and_copies_are_as_frequent_as_they_should() {
        let mut links = Links::new(2);
        links.way_mut(0, 1, 1).loss = 30;
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let sent: Vec<Arrivals> = (0..10_000).map(|_| links.send(0, 1, 1, &mut rng)).collect();
        let arrived = sent.iter().filter(|arrivals| arrivals[0].is_some()).count();
        let copied = sent.iter().filter(|arrivals| arrivals[1].is_some()).count();
        assert!((6800..7200).contains(&arrived), "{arrived}");
        assert!((10..100).contains(&copied), "{copied}");
        links.set_carrier(1, 1, false);
        assert_eq!(links.send(0, 1, 1, &mut rng), [None, None]);
    }

    #[test]
    fn a_new_site_changes_nothing_between_the_old_ones() {
        let mut links = Links::new(2);
        links.way_mut(1, 0, 1).loss = 7;
        links.set_carrier(0, 0, false);
        links.add_site();
        assert_eq!(links.way(1, 0, 1).loss, 7);
        assert!(!links.has_carriers(0) && links.is_clean(1, 2));
    }
}
