//! Links between hosts, and segments that many hosts share.

use crate::{Error, Host};

/// One end of a link: a host, and the name of the interface there.
pub type End<'a> = (&'a Host, &'a str);

/// Joins two hosts by a virtual cable with the given MTU (bytes); both ends are up.
///
/// # Errors
/// If an interface of such a name exists on one of them.
pub fn join(a: End<'_>, b: End<'_>, mtu: u32) -> Result<(), Error> {
    let peer = b.0.namespace().name();
    a.0.ip(&format!(
        "link add {} mtu {mtu} type veth peer name {} mtu {mtu} netns {peer}\nlink set {} up\n",
        a.1, b.1, a.1
    ))?;
    b.0.ip(&format!("link set {} up\n", b.1))
}

/// An Ethernet segment: a bridge on a host that serves as the switch.
#[derive(Clone, Debug)]
pub struct Segment {
    switch: Host,
    name: String,
}

impl Segment {
    /// Makes the segment `name` (at most 7 characters) on `switch`.
    ///
    /// # Errors
    /// If the switch has an interface of that name.
    pub fn create(switch: &Host, name: &str) -> Result<Self, Error> {
        switch.ip(&format!(
            "link add {name} mtu {MTU} type bridge stp_state 0 forward_delay 0 mcast_snooping 0\n\
             link set {name} up\n"
        ))?;
        Ok(Self { switch: switch.clone(), name: name.to_owned() })
    }

    /// The host that serves as the switch.
    #[must_use]
    pub fn switch(&self) -> &Host {
        &self.switch
    }

    /// Plugs `host` in; its end of the cable is called `interface`.
    ///
    /// # Errors
    /// If the host is plugged in already, or has an interface of that name.
    pub fn plug(&self, host: &Host, interface: &str) -> Result<Port, Error> {
        let port = format!("{}-{}", self.name, host.name());
        join((host, interface), (&self.switch, &port), MTU)?;
        self.switch.ip(&format!("link set {port} master {} addrgenmode none\n", self.name))?;
        Ok(Port { switch: self.switch.clone(), name: port })
    }
}

/// The switch's end of a host's cable: where faults are made.
#[derive(Clone, Debug)]
pub struct Port {
    switch: Host,
    name: String,
}

impl Port {
    /// The host that serves as the switch.
    #[must_use]
    pub fn switch(&self) -> &Host {
        &self.switch
    }

    /// The name of the interface there.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Takes the carrier from `ports`, or gives it back, in one go. They must be of one switch.
    ///
    /// # Errors
    /// If a port does not exist any more; those before it have been set.
    pub fn set_carrier(ports: &[&Self], on: bool) -> Result<(), Error> {
        let Some(first) = ports.first() else { return Ok(()) };
        let state = if on { "up" } else { "down" };
        first.switch.ip(&lines(ports, |name| format!("link set {name} {state}\n")))
    }

    /// Makes `ports` drop everything in both directions while the carrier stays, or forward
    /// again, in one go. They must be of one switch.
    ///
    /// # Errors
    /// As [`Port::set_carrier`].
    pub fn set_forwarding(ports: &[&Self], on: bool) -> Result<(), Error> {
        let Some(first) = ports.first() else { return Ok(()) };
        // Port states of IEEE 802.1D: 3 forwards, 0 is disabled. Linux turns 4, blocking, into 3
        // at once where the spanning tree is off, as it is here.
        let state = if on { 3 } else { 0 };
        first.switch.bridge(&lines(ports, |name| format!("link set dev {name} state {state}\n")))
    }
}

/// Room for a full Ethernet frame inside a VXLAN packet.
const MTU: u32 = 1600;

fn lines(ports: &[&Port], line: impl Fn(&str) -> String) -> String {
    ports.iter().map(|port| line(&port.name)).collect()
}
