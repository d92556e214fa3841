//! Faults of gateways.

use std::fmt;
use std::str::FromStr;

use nix::sys::signal::Signal;

use super::Campus;
use super::build::rebuild_overlays;
use crate::link::Port;
use crate::{Error, Process};

/// What befalls a gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// Its links lose carrier.
    Cut,
    /// Its links drop everything while the carrier stays.
    Silent,
    /// As [`Fault::Cut`], and all its processes are killed. When it comes back, its kernel has its
    /// networks as at the boot.
    Power,
    /// The agent alone is killed, and started again later; kernel and routing go on.
    Kill,
    /// The agent alone is stopped for a while.
    Freeze,
    /// All processes are stopped and the links silent for a while, then all is back at once.
    Pause,
    /// The uplink alone loses carrier.
    Uplink,
    /// The link to the fabric alone loses carrier.
    Fabric,
}

impl Fault {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Cut,
        Self::Silent,
        Self::Power,
        Self::Kill,
        Self::Freeze,
        Self::Pause,
        Self::Uplink,
        Self::Fabric,
    ];

    /// The word for it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Cut => "cut",
            Self::Silent => "silent",
            Self::Power => "power",
            Self::Kill => "kill",
            Self::Freeze => "freeze",
            Self::Pause => "pause",
            Self::Uplink => "uplink",
            Self::Fabric => "fabric",
        }
    }
}

/// That a text is the name of no fault.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no fault: expected cut, silent, power, kill, freeze, pause, uplink or fabric")]
pub struct UnknownFault(String);

impl FromStr for Fault {
    type Err = UnknownFault;

    fn from_str(text: &str) -> Result<Self, UnknownFault> {
        let named = Self::ALL.into_iter().find(|fault| fault.name() == text);
        named.ok_or_else(|| UnknownFault(text.to_owned()))
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl Campus {
    /// Lets `fault` befall the gateway `name`, whose agent is `agent`.
    ///
    /// # Errors
    /// If there is no such gateway, or the system refuses; part of the fault may have happened.
    pub fn strike(&self, name: &str, fault: Fault, agent: &mut Process) -> Result<(), Error> {
        let gateway = self.gateway(name)?;
        match fault {
            Fault::Cut => gateway.unplug(),
            Fault::Silent => Port::set_forwarding(&gateway.ports(), false),
            Fault::Power => {
                gateway.unplug()?;
                gateway.host.signal_all(Signal::SIGKILL);
                Ok(())
            }
            Fault::Kill => agent.signal(Signal::SIGKILL),
            Fault::Freeze => agent.signal(Signal::SIGSTOP),
            Fault::Pause => {
                Port::set_forwarding(&gateway.ports(), false)?;
                gateway.host.signal_all(Signal::SIGSTOP);
                Ok(())
            }
            Fault::Uplink => Port::set_carrier(&[&gateway.uplink], false),
            Fault::Fabric => Port::set_carrier(&[&gateway.fabric], false),
        }
    }

    /// Ends the fault: what was killed is started again, the agent included.
    ///
    /// # Errors
    /// As [`Campus::strike`].
    pub fn heal(&mut self, name: &str, fault: Fault, agent: &mut Process) -> Result<(), Error> {
        let gateway = self.gateway(name)?;
        match fault {
            Fault::Cut => gateway.plug_in(),
            Fault::Silent => Port::set_forwarding(&gateway.ports(), true),
            Fault::Power => self.power_on(name, agent),
            Fault::Kill => agent.restart(),
            Fault::Freeze => agent.signal(Signal::SIGCONT),
            Fault::Pause => {
                gateway.host.signal_all(Signal::SIGCONT);
                Port::set_forwarding(&gateway.ports(), true)
            }
            Fault::Uplink => Port::set_carrier(&[&gateway.uplink], true),
            Fault::Fabric => Port::set_carrier(&[&gateway.fabric], true),
        }
    }

    fn power_on(&mut self, name: &str, agent: &mut Process) -> Result<(), Error> {
        let gateway = self.gateway(name)?;
        rebuild_overlays(gateway, self.plan)?;
        gateway.plug_in()?;
        if let Some(etcd) = &mut self.etcd {
            etcd.restart_members_on(name)?;
        }
        if let Some(frr) = &mut self.gateway_mut(name)?.frr {
            frr.restart()?;
        }
        agent.restart()
    }
}

impl super::Gateway {
    /// Interfaces go down one after the other, each within milliseconds, in which the gateway
    /// could still say by one that it has lost another; so all are silenced before.
    fn unplug(&self) -> Result<(), Error> {
        Port::set_forwarding(&self.ports(), false)?;
        Port::set_carrier(&self.ports(), false)
    }

    /// A port that gets its carrier back forwards again.
    fn plug_in(&self) -> Result<(), Error> {
        Port::set_carrier(&self.ports(), true)
    }

    fn ports(&self) -> [&Port; 3] {
        [&self.fabric, &self.uplink, &self.management]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_known_by_name() {
        for fault in Fault::ALL {
            assert_eq!(fault.to_string().parse(), Ok(fault));
        }
        assert_eq!("kut".parse::<Fault>(), Err(UnknownFault("kut".to_owned())));
    }
}
