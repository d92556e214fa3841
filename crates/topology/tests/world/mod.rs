//! Some nodes and meshes, what each knows of the others at the moment, and packets that are
//! passed on exactly as their plans say.

#![allow(dead_code, reason = "each test file uses a part of it")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};

use selvedge_mesh::address::node_address;
use selvedge_mesh::{Bridged, Role};
use selvedge_model::{MeshId, NodeId, Prefix, WgKey};
use selvedge_topology::{Member, MeshPlan, Options, PeerSpec, Plan, Refusal, View, plan};

pub(crate) fn mesh(number: u8) -> MeshId {
    MeshId([number; 20])
}

pub(crate) fn node(number: u8) -> NodeId {
    NodeId([number; 32])
}

pub(crate) fn member(of: MeshId, number: u8, role: Role) -> Member {
    Member {
        node: node(number),
        key: WgKey([number; 32]),
        role,
        address: node_address(of, node(number)),
        serial: number.into(),
        ipv4: None,
        live: true,
        drained: false,
        avoids: Vec::new(),
        endpoints: vec![([192, 0, 2, number], 51_820).into()],
        networks: Vec::new(),
        bridged: Vec::new(),
        permits: Vec::new(),
    }
}

pub(crate) fn any_mesh() -> Prefix {
    "fd00::/8".parse().expect("a prefix")
}

/// What became of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It reached this node after so many relays.
    Arrived(NodeId, usize),
    /// A node dropped it, or had no route for it.
    Dropped(NodeId, Option<Refusal>),
    /// WireGuard dropped it: nobody there, or a source that the receiver does not expect.
    Lost,
    /// It came to a node for the second time.
    Circle(NodeId),
}

/// Who is in which mesh. All know of the same members; what they know about them may be old.
#[derive(Clone, Debug, Default)]
pub(crate) struct World {
    pub members: BTreeMap<MeshId, BTreeMap<NodeId, Member>>,
    pub options: BTreeMap<(MeshId, NodeId), Options>,
    /// What stands in the members' newest records.
    pub published: BTreeMap<(MeshId, NodeId), Vec<Bridged>>,
    /// What a viewer has of a member's record.
    pub seen: BTreeMap<(NodeId, MeshId, NodeId), Vec<Bridged>>,
    pub down: BTreeSet<NodeId>,
    /// Who knows of whom that it is down.
    pub known_down: BTreeSet<(NodeId, NodeId)>,
    pub plans: BTreeMap<NodeId, Plan>,
}

impl World {
    /// A bridge has a certificate that lets it announce all meshes.
    pub(crate) fn join(&mut self, of: MeshId, mut member: Member, options: Options) {
        member.permits.extend(options.bridge.then(any_mesh));
        self.options.insert((of, member.node), options);
        self.members.entry(of).or_default().insert(member.node, member);
    }

    pub(crate) fn nodes(&self) -> BTreeSet<NodeId> {
        self.members.values().flat_map(BTreeMap::keys).copied().collect()
    }

    pub(crate) fn alive(&self) -> Vec<NodeId> {
        self.nodes().into_iter().filter(|node| !self.down.contains(node)).collect()
    }

    pub(crate) fn views(&self, own: NodeId) -> Vec<View> {
        let mine = self.members.iter().filter(|(_, members)| members.contains_key(&own));
        let view = |(mesh, members): (&MeshId, &BTreeMap<NodeId, Member>)| View {
            mesh: *mesh,
            own,
            members: members.values().map(|it| self.as_seen(own, *mesh, it)).collect(),
            options: self.options[&(*mesh, own)].clone(),
        };
        mine.map(view).collect()
    }

    fn as_seen(&self, by: NodeId, mesh: MeshId, member: &Member) -> Member {
        Member {
            live: by == member.node || !self.known_down.contains(&(by, member.node)),
            bridged: self.seen.get(&(by, mesh, member.node)).cloned().unwrap_or_default(),
            ..member.clone()
        }
    }

    /// A node plans anew with what it knows, and publishes what it announces now. Whether that
    /// changed anything.
    pub(crate) fn step(&mut self, own: NodeId) -> bool {
        let made = plan(&self.views(own));
        let mut changed = false;
        for (mesh, plan) in &made.meshes {
            let before = self.published.insert((*mesh, own), plan.announce.clone());
            changed |= before.unwrap_or_default() != plan.announce;
        }
        changed |= self.plans.get(&own) != Some(&made);
        self.plans.insert(own, made);
        changed
    }

    /// The newest record of `of` in `mesh` reaches `by`.
    pub(crate) fn deliver(&mut self, by: NodeId, mesh: MeshId, of: NodeId) {
        let newest = self.published.get(&(mesh, of)).cloned().unwrap_or_default();
        self.seen.insert((by, mesh, of), newest);
    }

    pub(crate) fn fail(&mut self, node: NodeId) {
        self.down.insert(node);
    }

    pub(crate) fn learn_down(&mut self, by: NodeId, of: NodeId) {
        self.known_down.insert((by, of));
    }

    /// Everybody learns everything and plans, again and again until nothing changes; how often.
    pub(crate) fn settle(&mut self) -> usize {
        let alive = self.alive();
        let pairs: Vec<_> =
            alive.iter().flat_map(|by| self.down.iter().map(|of| (*by, *of))).collect();
        self.known_down.extend(pairs);
        for round in 1..64 {
            for by in &alive {
                let meshes: Vec<(MeshId, NodeId)> = self
                    .members
                    .iter()
                    .flat_map(|(mesh, members)| members.keys().map(|node| (*mesh, *node)))
                    .filter(|(_, node)| !self.down.contains(node))
                    .collect();
                for (mesh, of) in meshes {
                    self.deliver(*by, mesh, of);
                }
            }
            let changes = alive.iter().filter(|node| self.step(**node)).count();
            if changes == 0 {
                return round;
            }
        }
        panic!("it never settles");
    }

    /// A packet from the host of `from` to an address.
    pub(crate) fn send(&self, from: NodeId, dst: Ipv6Addr) -> Fate {
        let (mut at, mut source, mut relays) = (from, None, 0);
        let mut visited = BTreeSet::new();
        loop {
            if !visited.insert(at) {
                return Fate::Circle(at);
            }
            let Some((mesh, plan)) = self.interface(at, dst.into()) else {
                return Fate::Dropped(at, None);
            };
            let src = *source.get_or_insert(plan.relays.own);
            if dst == plan.relays.own {
                return Fate::Arrived(at, relays);
            }
            match plan.relays.send(src.into(), dst.into()) {
                Err(refusal) => return Fate::Dropped(at, Some(refusal)),
                Ok(None) => {
                    return match self.carry(mesh, at, src, dst) {
                        Ok(there) => Fate::Arrived(there, relays),
                        Err(fate) => fate,
                    };
                }
                Ok(Some(hop)) => {
                    let there = match self.carry(mesh, at, plan.relays.own, hop.via) {
                        Ok(there) => there,
                        Err(fate) => return fate,
                    };
                    let receiver = &self.plans[&there].meshes[&mesh].relays;
                    let (from, distance) = (plan.relays.own, hop.distance);
                    if let Err(refusal) =
                        receiver.take_relayed(from, distance, src.into(), dst.into())
                    {
                        return Fate::Dropped(there, Some(refusal));
                    }
                    relays += 1;
                    if receiver.own == dst {
                        return Fate::Arrived(there, relays);
                    }
                    at = there;
                }
            }
        }
    }

    /// The interface that the routing table of `at` names.
    fn interface(&self, at: NodeId, dst: IpAddr) -> Option<(MeshId, &MeshPlan)> {
        let routes = self.plans.get(&at)?.meshes.iter().flat_map(|(mesh, plan)| {
            let all = plan.routes.iter().chain(&plan.defaults).chain([&plan.relays.overlay]);
            all.map(move |prefix| (*prefix, (*mesh, plan)))
        });
        let holding = routes.filter(|(prefix, _)| prefix.contains(dst));
        holding.max_by_key(|(prefix, _)| prefix.len()).map(|(_, interface)| interface)
    }

    /// A plain packet, by WireGuard from member to member.
    pub(crate) fn carry(
        &self,
        mesh: MeshId,
        from: NodeId,
        src: Ipv6Addr,
        dst: Ipv6Addr,
    ) -> Result<NodeId, Fate> {
        let (mut at, mut visited) = (from, BTreeSet::from([from]));
        loop {
            let wanted = |prefix: &Prefix| prefix.contains(dst.into());
            let Some(next) = self.partner(mesh, at, wanted) else { return Err(Fate::Lost) };
            if self.down.contains(&next) || !self.plans.contains_key(&next) {
                return Err(Fate::Lost);
            }
            // What comes from a peer must come from where an answer would go to.
            let expected = self.partner(mesh, next, |prefix| prefix.contains(src.into()));
            if expected != Some(at) {
                return Err(Fate::Lost);
            }
            if self.plans[&next].meshes[&mesh].relays.own == dst {
                return Ok(next);
            }
            if !visited.insert(next) {
                return Err(Fate::Circle(next));
            }
            at = next;
        }
    }

    fn partner(&self, mesh: MeshId, at: NodeId, holds: impl Fn(&Prefix) -> bool) -> Option<NodeId> {
        let peers = &self.plans.get(&at)?.meshes.get(&mesh)?.peers;
        let best =
            |spec: &PeerSpec| spec.allowed.iter().filter(|it| holds(it)).map(Prefix::len).max();
        let holding = peers.iter().filter_map(|(key, spec)| Some((best(spec)?, key)));
        holding.max().map(|(_, key)| NodeId(key.0))
    }
}
