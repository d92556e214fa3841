//! What befalls a cluster.

use std::collections::BTreeSet;
use std::time::Duration;

use rand::RngExt;
use selvedge_gateway::NodeRole;
use selvedge_model::{NodeName, Vni};

use super::Run;
use crate::gateway::cluster::FAST_DISK;
use crate::gateway::links::{Block, Links, PATHS};
use crate::gateway::world::World;

/// For how long an agent says that it will be away when it is restarted.
const ABSENCE: Duration = Duration::from_secs(10);

/// How long a slow disk takes at most, in microseconds; the last is one that no leader can have.
const SLOW_DISKS: [u64; 4] = [50_000, 300_000, 800_000, 1_500_000];

/// What may befall a cluster, each on one host unless it says otherwise.
#[derive(Clone, Copy, Debug)]
enum Blow {
    Life(Life),
    Cable(Cable),
    Halt(Halt),
    Storage(Storage),
    Word(Word),
    Fitness(Fitness),
}

/// What becomes of an agent.
#[derive(Clone, Copy, Debug)]
enum Life {
    /// The agent dies.
    Crash,
    /// It starts again, if it does not run.
    Start,
    /// The host loses its power.
    PowerOff,
    /// The agent says that it will be away, dies and is started again.
    Restart,
}

/// What becomes of paths.
#[derive(Clone, Copy, Debug)]
enum Cable {
    /// The host loses carriers.
    Unplug,
    /// Its carriers are back.
    Plug,
    /// Nothing gets from it to another one, or to all of them.
    OneWay,
    /// The hosts fall into two parts, that of this one and the other.
    Part,
    /// Paths lose and delay, to and from this host or everywhere.
    Rough,
    /// All paths are as new.
    Mend,
}

/// What keeps agents from running.
#[derive(Clone, Copy, Debug)]
enum Halt {
    /// The agent gets no processor for a while.
    Stall,
    /// All agents get none.
    StallAll,
    /// The agent is stopped.
    Freeze,
    /// It goes on.
    Thaw,
    /// The host is stopped.
    Pause,
    /// It goes on.
    Unpause,
}

/// What becomes of the store.
#[derive(Clone, Copy, Debug)]
enum Storage {
    /// The store's leader dies.
    LeaderDown,
    /// A member of the store dies.
    MemberDown,
    /// A member of the store is stopped.
    MemberStops,
    /// All members of the store die.
    StoreDown,
    /// All members of the store are back.
    StoreBack,
    /// The host alone loses the store.
    Unlink,
    /// It reaches the store again.
    Link,
    /// The host loses some members of the store, often the leader alone.
    Forsake,
    /// The store's members no longer reach each other.
    Quarrel,
    /// They fall into two parts.
    Split,
    /// One of them no longer reaches another, or both no longer each other.
    Grudge,
    /// The disk of a member gets slow, or those of all.
    SlowDisk,
    /// All are fast again.
    FastDisk,
    /// A backup of the store is made.
    Backup,
    /// The store is lost, and restored from the backup, beyond the last revision.
    Restore,
}

/// What an operator says.
#[derive(Clone, Copy, Debug)]
enum Word {
    /// An operator drains the host.
    Drain,
    /// Or lifts that again.
    Undrain,
    /// The agent is told to leave.
    Leave,
    /// An operator has the host's networks taken over.
    TakeOver,
    /// An operator strikes the host from the roster.
    Remove,
}

/// What is said of a host.
#[derive(Clone, Copy, Debug)]
enum Fitness {
    /// The host cannot do its job.
    Unfit,
    /// It can serve half of the networks.
    Half,
    /// It can do its job again.
    Fit,
    /// Somebody writes a verdict against the host.
    Convict,
}

/// Each as often as it stands here.
const BLOWS: [Blow; 51] = [
    Blow::Life(Life::Crash),
    Blow::Life(Life::Start),
    Blow::Life(Life::Start),
    Blow::Life(Life::Start),
    Blow::Life(Life::PowerOff),
    Blow::Life(Life::Restart),
    Blow::Cable(Cable::Unplug),
    Blow::Cable(Cable::Plug),
    Blow::Cable(Cable::Plug),
    Blow::Cable(Cable::OneWay),
    Blow::Cable(Cable::Part),
    Blow::Cable(Cable::Rough),
    Blow::Cable(Cable::Mend),
    Blow::Cable(Cable::Mend),
    Blow::Cable(Cable::Mend),
    Blow::Halt(Halt::Stall),
    Blow::Halt(Halt::Stall),
    Blow::Halt(Halt::Stall),
    Blow::Halt(Halt::StallAll),
    Blow::Halt(Halt::Freeze),
    Blow::Halt(Halt::Thaw),
    Blow::Halt(Halt::Thaw),
    Blow::Halt(Halt::Pause),
    Blow::Halt(Halt::Unpause),
    Blow::Halt(Halt::Unpause),
    Blow::Storage(Storage::LeaderDown),
    Blow::Storage(Storage::MemberDown),
    Blow::Storage(Storage::MemberStops),
    Blow::Storage(Storage::StoreDown),
    Blow::Storage(Storage::StoreBack),
    Blow::Storage(Storage::StoreBack),
    Blow::Storage(Storage::StoreBack),
    Blow::Storage(Storage::Unlink),
    Blow::Storage(Storage::Link),
    Blow::Storage(Storage::Forsake),
    Blow::Storage(Storage::Forsake),
    Blow::Storage(Storage::Quarrel),
    Blow::Storage(Storage::Split),
    Blow::Storage(Storage::Grudge),
    Blow::Storage(Storage::SlowDisk),
    Blow::Storage(Storage::SlowDisk),
    Blow::Storage(Storage::FastDisk),
    Blow::Storage(Storage::Backup),
    Blow::Storage(Storage::Restore),
    Blow::Word(Word::Drain),
    Blow::Word(Word::Undrain),
    Blow::Word(Word::Leave),
    Blow::Word(Word::TakeOver),
    Blow::Word(Word::Remove),
    Blow::Fitness(Fitness::Unfit),
    Blow::Fitness(Fitness::Half),
];

impl Run {
    /// Something befalls the cluster.
    pub(super) fn strike(&mut self) {
        self.reap();
        let mut blow = BLOWS[self.rng.random_range(0..BLOWS.len())];
        if self.rng.random_bool(0.04) {
            let fit = self.rng.random_bool(0.5);
            blow = Blow::Fitness(if fit { Fitness::Fit } else { Fitness::Convict });
        }
        let host = self.rng.random_range(0..self.world.hosts.len());
        self.tell(format!("{blow:?} {}", self.world.hosts[host].name));
        match blow {
            Blow::Life(blow) => self.run_or_not(blow, host),
            Blow::Cable(blow) => self.touch_links(blow, host),
            Blow::Halt(blow) => self.halt(blow, host),
            Blow::Storage(blow) => self.touch_store(blow, host),
            Blow::Word(word) => self.operate(word, host),
            Blow::Fitness(fitness) => self.judge(fitness, host),
        }
    }

    /// Agents that have left end.
    fn reap(&mut self) {
        for host in 0..self.world.hosts.len() {
            if self.world.hosts[host].left && self.world.hosts[host].agent.is_some() {
                self.tell(format!("{} has left", self.world.hosts[host].name));
                self.world.crash(host);
            }
        }
    }

    fn run_or_not(&mut self, blow: Life, host: usize) {
        let runs = self.world.hosts[host].agent.is_some();
        match blow {
            Life::Crash => self.world.crash(host),
            Life::PowerOff => self.world.power_off(host),
            Life::Restart => self.restart(host),
            Life::Start if !runs => self.world.start(host),
            Life::Start => {}
        }
    }

    fn restart(&mut self, host: usize) {
        if !self.world.hosts[host].runs(self.world.now) {
            return;
        }
        self.world.with_agent(host, |agent, now| agent.announce_absence(ABSENCE, now));
        let patience = self.world.now + Duration::from_millis(500);
        self.world.run_until(patience, |world| {
            world.hosts[host].agent.as_ref().is_none_or(|agent| agent.is_away_known())
        });
        self.world.crash(host);
        let away = Duration::from_millis(self.rng.random_range(50..3000));
        self.world.run_for(away);
        self.world.start(host);
    }

    fn touch_links(&mut self, blow: Cable, host: usize) {
        let paths = match self.rng.random_range(0..3) {
            0 => 0..PATHS,
            1 => 0..1,
            _ => 1..PATHS,
        };
        let others = self.world.hosts.len();
        let other = Some(self.rng.random_range(0..others)).filter(|_| self.rng.random_bool(0.5));
        let part: BTreeSet<usize> = (0..others).filter(|_| self.rng.random_bool(0.5)).collect();
        let (loss, slow) = (self.rng.random_range(0..100), self.rng.random_range(0..200_000));
        let everywhere = self.rng.random_bool(0.3);
        self.world.with_links(|links| match blow {
            Cable::Unplug => paths.for_each(|path| links.set_carrier(host, path, false)),
            Cable::Plug => (0..PATHS).for_each(|path| links.set_carrier(host, path, true)),
            Cable::OneWay => links.for_each(|from, to, path, way| {
                let hit = from == host && other.is_none_or(|other| to == other);
                way.cut |= hit && paths.contains(&path);
            }),
            Cable::Part => links.for_each(|from, to, _, way| {
                way.cut |= part.contains(&from) != part.contains(&to);
            }),
            Cable::Rough => links.for_each(|from, to, path, way| {
                if (everywhere || from == host || to == host) && paths.contains(&path) {
                    (way.loss, way.slow) = (loss, slow);
                }
            }),
            Cable::Mend => links.mend(),
        });
    }

    fn halt(&mut self, blow: Halt, host: usize) {
        let longest = if self.rng.random_bool(0.7) { 400 } else { 4000 };
        let time = Duration::from_millis(self.rng.random_range(20..longest));
        match blow {
            Halt::Stall => self.world.stall(host, time),
            Halt::StallAll => {
                (0..self.world.hosts.len()).for_each(|host| self.world.stall(host, time));
            }
            Halt::Freeze => self.world.set_frozen(host, true),
            Halt::Thaw => self.world.set_frozen(host, false),
            Halt::Pause => self.world.set_paused(host, true),
            Halt::Unpause => self.world.set_paused(host, false),
        }
    }

    fn touch_store(&mut self, blow: Storage, host: usize) {
        let member = self.rng.random_range(0..self.world.cluster.members.len());
        let leader = self.world.cluster.acting_leader().unwrap_or(member);
        let world = &mut self.world;
        match blow {
            Storage::LeaderDown => world.with_cluster(|cluster| cluster.members[leader].up = false),
            Storage::MemberDown => world.with_cluster(|cluster| cluster.members[member].up = false),
            Storage::MemberStops => {
                world.with_cluster(|cluster| cluster.members[member].frozen = true);
            }
            Storage::StoreDown => world.with_cluster(|cluster| {
                cluster.members.iter_mut().for_each(|member| member.up = false);
            }),
            Storage::StoreBack => bring_store_back(world),
            Storage::Unlink => world.set_linked(host, false),
            Storage::Link => world.set_linked(host, true),
            Storage::Forsake => self.forsake(host, leader),
            Storage::Quarrel => block_peers(world, |_, _| true),
            Storage::Split => {
                let part = self.some_of_the_store();
                block_peers(&mut self.world, |a, b| part.contains(&a) != part.contains(&b));
            }
            Storage::Grudge => {
                let other = self.rng.random_range(0..self.world.cluster.members.len());
                let mutual = self.rng.random_bool(0.5);
                block_peers(&mut self.world, |a, b| {
                    (a, b) == (member, other) || (mutual && (b, a) == (member, other))
                });
            }
            Storage::SlowDisk => self.slow_down(member),
            Storage::Backup => self.backup = Some(world.store.clone()),
            Storage::Restore => self.restore(),
            Storage::FastDisk => world.with_cluster(|cluster| {
                cluster.members.iter_mut().for_each(|member| member.disk = FAST_DISK);
            }),
        }
    }

    fn restore(&mut self) {
        let Some(mut store) = self.backup.clone() else { return };
        store.bump_beyond(self.world.store.revision());
        self.world.replace_store(store);
    }

    /// Members of the store, at random.
    fn some_of_the_store(&mut self) -> BTreeSet<usize> {
        let all = 0..self.world.cluster.members.len();
        all.filter(|_| self.rng.random_bool(0.5)).collect()
    }

    /// The connections of a host to some members of the store are cut; its probes get through.
    fn forsake(&mut self, host: usize, leader: usize) {
        let alone = self.rng.random_bool(0.5);
        let lost = if alone { BTreeSet::from([leader]) } else { self.some_of_the_store() };
        let members = &self.world.cluster.members;
        let sites: Vec<usize> = lost.iter().map(|member| members[*member].site).collect();
        self.world.with_links(|links| {
            sites.iter().for_each(|site| links.block(Block::Client(host, *site)));
        });
    }

    fn slow_down(&mut self, member: usize) {
        let all = self.rng.random_bool(0.3);
        let disk = SLOW_DISKS[self.rng.random_range(0..SLOW_DISKS.len())];
        self.world.with_cluster(|cluster| {
            let members = cluster.members.iter_mut().enumerate();
            let slow = members.filter(|(number, _)| all || *number == member);
            slow.for_each(|(_, member)| member.disk = disk);
        });
    }

    fn operate(&mut self, word: Word, host: usize) {
        let name = self.world.hosts[host].name.clone();
        let mut by = self.rng.random_range(0..self.world.hosts.len());
        if let Word::Leave = word {
            by = host;
            self.world.hosts[host].leaving = self.world.hosts[host].agent.is_some();
        }
        // An agent that knows nothing yet refuses; so it does if the word makes no sense.
        let mut forced = false;
        self.world.with_agent(by, |agent, now| match word {
            Word::Drain => drop(agent.set_drained(&name, true, now)),
            Word::Undrain => drop(agent.set_drained(&name, false, now)),
            Word::TakeOver => forced = agent.take_over(&name, now).is_ok(),
            Word::Remove => drop(agent.remove(&name, now)),
            Word::Leave => agent.leave(now),
        });
        // An operator's word counts, even if nothing is wrong with the host, and spreads.
        self.world.hosts[host].excused |= forced;
        self.world.hosts.iter_mut().for_each(|host| host.forced |= forced);
    }

    fn judge(&mut self, fitness: Fitness, host: usize) {
        let name = self.world.hosts[host].name.clone();
        let gateway = self.world.hosts[host].part.role == NodeRole::Gateway;
        let half: BTreeSet<Vni> =
            self.world.vnis().filter(|vni| gateway && vni.get() % 2 == 0).collect();
        match fitness {
            Fitness::Fit => self.relieve(host),
            Fitness::Convict => convict(&mut self.world, &name),
            Fitness::Unfit => {
                self.world.hosts[host].excused = true;
                let problem = vec!["the uplink has no carrier".to_owned()];
                self.world.with_agent(host, |agent, now| agent.handle_problems(problem, now));
            }
            Fitness::Half => {
                self.world.hosts[host].excused = true;
                self.world.with_agent(host, |agent, now| agent.handle_networks(half, now));
            }
        }
    }

    /// Lifts the draining of a host, by the word of the first agent that knows it.
    pub(super) fn undrain(&mut self, host: usize) {
        let name = self.world.hosts[host].name.clone();
        for by in 0..self.world.hosts.len() {
            let mut done = false;
            self.world.with_agent(by, |agent, now| {
                done = agent.set_drained(&name, false, now).is_ok();
            });
            if done {
                return;
            }
        }
    }
}

fn bring_store_back(world: &mut World) {
    world.store_up = true;
    let powered: Vec<bool> = world.hosts.iter().map(|host| host.powered).collect();
    world.with_cluster(|cluster| {
        for member in &mut cluster.members {
            member.up = powered.get(member.site).copied().unwrap_or(true);
            member.frozen = false;
        }
    });
}

/// Between these members of the store, by their numbers, no messages get through any more.
fn block_peers(world: &mut World, hit: impl Fn(usize, usize) -> bool) {
    let sites: Vec<usize> = world.cluster.members.iter().map(|member| member.site).collect();
    world.with_links(|links: &mut Links| {
        for (a, from) in sites.iter().enumerate() {
            for (b, to) in sites.iter().enumerate().filter(|(b, _)| hit(a, *b)) {
                if a != b {
                    links.block(Block::Peers(*from, *to));
                }
            }
        }
    });
}

fn convict(world: &mut World, name: &NodeName) {
    let live = world.checker.cache.live.get(name).map(|live| live.incarnation);
    if let Some(incarnation) = live {
        world.meddle(&selvedge_gateway::keys::verdict(name, incarnation), Some("{}"));
    }
}
