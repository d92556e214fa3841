use std::collections::{BTreeMap, BTreeSet};

use async_trait::async_trait;
use selvedge_gateway::desired::{Duty, Upstream};
use selvedge_model::Vni;

use super::{Driver, Error, Failures};
use crate::inventory::Problem;

/// A driver that touches no host: it remembers what it was told, and reports that as observed.
#[derive(Clone, Debug, Default)]
pub struct Dry {
    duties: BTreeMap<Vni, Duty>,
    announced: BTreeMap<Vni, u64>,
    silent: bool,
}

impl Dry {
    /// A host that can serve these networks and does nothing for them.
    #[must_use]
    pub fn new(vnis: &BTreeSet<Vni>) -> Self {
        let duties = vnis.iter().map(|vni| (*vni, Duty::NONE)).collect();
        Self { duties, ..Self::default() }
    }

    /// How often the network was announced.
    #[must_use]
    pub fn announced(&self, vni: Vni) -> u64 {
        self.announced.get(&vni).copied().unwrap_or_default()
    }

    /// Whether all networks are silenced.
    #[must_use]
    pub const fn is_silent(&self) -> bool {
        self.silent
    }

    fn change(&mut self, vnis: &[Vni], change: impl Fn(&mut Duty)) -> Failures {
        let mut failures = Failures::new();
        for vni in vnis {
            match self.duties.get_mut(vni) {
                Some(duty) => change(duty),
                None => drop(failures.insert(*vni, Problem::Unknown(*vni).into())),
            }
        }
        failures
    }
}

#[async_trait]
impl Driver for Dry {
    async fn fabric(&mut self, vnis: &[Vni], on: bool) -> Failures {
        self.change(vnis, |duty| duty.fabric = on)
    }

    async fn upstream(&mut self, vnis: &[Vni], to: Upstream) -> Failures {
        self.change(vnis, |duty| duty.upstream = to)
    }

    async fn answering(&mut self, vnis: &[Vni], on: bool) -> Failures {
        self.change(vnis, |duty| duty.answering = on)
    }

    async fn announce(&mut self, vnis: &[Vni]) -> Failures {
        let failures = self.change(vnis, |_| {});
        for vni in vnis.iter().filter(|vni| !failures.contains_key(vni)) {
            *self.announced.entry(*vni).or_default() += 1;
        }
        failures
    }

    async fn observe(&mut self) -> Result<BTreeMap<Vni, Duty>, Error> {
        Ok(self.duties.clone())
    }

    async fn silence(&mut self, on: bool) -> Result<(), Error> {
        self.silent = on;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn it_observes_what_it_was_told() {
        let vni = |number: u32| Vni::try_from(number).expect("a VNI");
        let mut dry = Dry::new(&[vni(1), vni(2)].into());
        assert!(dry.fabric(&[vni(1)], true).await.is_empty());
        assert!(dry.upstream(&[vni(1)], Upstream::Halves).await.is_empty());
        assert!(dry.answering(&[vni(1)], true).await.is_empty());
        assert_eq!(
            dry.announce(&[vni(1), vni(3)]).await.keys().copied().collect::<Vec<_>>(),
            [vni(3)]
        );
        dry.silence(true).await.expect("silent");
        let observed = dry.observe().await.expect("observed");
        assert_eq!(observed, [(vni(1), Duty::TAKEOVER), (vni(2), Duty::NONE)].into());
        assert_eq!((dry.announced(vni(1)), dry.announced(vni(2))), (1, 0));
        assert!(dry.is_silent());
    }
}
