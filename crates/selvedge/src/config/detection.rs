//! The sections of failure detection: `role`, `isolated` and `[gateway.probe]`.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use selvedge_gateway::{Isolated, Timing};
use serde::{Deserialize, Serialize};

use super::check::{Result, value, within};

/// The UDP port of the probes unless the configuration says otherwise: the one after those of the
/// mesh plane and of the embedded store.
const PORT: u16 = 7656;
/// How many intervals fit into `suspect`: fewer lost probes suspect nobody.
const PROBES: u32 = 3;

/// The section `[gateway.probe]`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
#[allow(missing_docs, reason = "described in `ProbeConfig` and `selvedge_gateway::Timing`")]
pub struct ProbeFile {
    pub listen: Option<SocketAddr>,
    pub addresses: Option<Vec<IpAddr>>,
    pub interval_ms: Option<u64>,
    pub suspect_ms: Option<u64>,
    pub fence_ms: Option<u64>,
    pub patience_ms: Option<u64>,
    pub refute_ms: Option<u64>,
}

/// What a gateway does that is cut off from a majority and from the store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Isolation {
    /// It is silent if others may have taken over, and serves on if nobody can.
    #[default]
    Auto,
    /// It is silent.
    Stop,
    /// It serves what it has, and no more.
    Serve,
}

/// Where probes are sent and received.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProbeConfig {
    /// The UDP address on which probes are received, and from whose port they are sent.
    pub listen: SocketAddr,
    /// Where other voters shall probe this host, one address for each path; none: it does not
    /// vote, and its loss is known only when its lease ends. `None`: those that the host has.
    pub addresses: Option<Vec<IpAddr>>,
}

impl From<Isolation> for Isolated {
    fn from(isolation: Isolation) -> Self {
        match isolation {
            Isolation::Auto => Self::Auto,
            Isolation::Stop => Self::Stop,
            Isolation::Serve => Self::Serve,
        }
    }
}

/// `dry`: whether the host is not to be touched. Such agents may be many on one host, where one
/// port is not enough; they probe only if they are told where.
pub(super) fn probe(file: &ProbeFile, dry: bool) -> Result<ProbeConfig> {
    let listen = file.listen.unwrap_or((Ipv6Addr::UNSPECIFIED, PORT).into());
    if listen.port() == 0 {
        return Err(value("gateway.probe.listen", listen, "others need to know the port"));
    }
    for ip in file.addresses.iter().flatten() {
        address(*ip, listen.ip())?;
    }
    let addresses = file.addresses.clone().or_else(|| dry.then(Vec::new));
    Ok(ProbeConfig { listen, addresses })
}

/// An address must be one that others can reach, and that is listened on.
fn address(ip: IpAddr, listen: IpAddr) -> Result<()> {
    let wrong = |reason: String| Err(value("gateway.probe.addresses", ip, reason));
    if ip.is_unspecified() || ip.is_multicast() || ip.to_canonical() != ip {
        return wrong("nobody can reach a gateway there".to_owned());
    }
    // A link-local address means nothing without an interface of the one who sends.
    if matches!(ip, IpAddr::V6(v6) if v6.is_unicast_link_local()) {
        return wrong("others cannot tell the link of a link-local address".to_owned());
    }
    let is_heard = match listen.is_unspecified() {
        true => ip.is_ipv4() || listen.is_ipv6(),
        false => ip == listen,
    };
    if is_heard { Ok(()) } else { wrong(format!("gateway.probe.listen = {listen} is elsewhere")) }
}

pub(super) fn timing(file: &ProbeFile, lease: Duration) -> Result<Timing> {
    let ms = |key: &str, given: Option<u64>, default: Duration, range: (Duration, Duration)| {
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let key = format!("gateway.probe.{key}_ms");
        within(&key, given, millis(default), (millis(range.0), millis(range.1)))
            .map(Duration::from_millis)
    };
    let default = Timing::default();
    let least = Duration::from_millis(10);
    let (second, most) = (Duration::from_secs(1), Duration::from_secs(10));
    let probe = ms("interval", file.interval_ms, default.probe, (least, second))?;
    let suspect = ms("suspect", file.suspect_ms, default.suspect, (probe * PROBES, most))?;
    // Whoever is suspected wrongly shall hear so before it is silent; and an isolated owner is
    // silent before its lease ends and another begins without any vote.
    let fence = ms("fence", file.fence_ms, default.fence, (suspect * 2, lease))?;
    let patience = ms("patience", file.patience_ms, default.patience, (least, most))?;
    let refute = ms("refute", file.refute_ms, default.refute, (probe, most))?;
    Ok(Timing { probe, suspect, fence, patience, refute, lease })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> ProbeFile {
        toml::from_str(text).expect("a section")
    }

    fn refused(text: &str) -> String {
        let file = parse(text);
        let lease = Duration::from_secs(3);
        let checked = probe(&file, false).and_then(|_| timing(&file, lease));
        checked.expect_err("refused").to_string()
    }

    #[test]
    fn nothing_need_be_said() {
        let file = ProbeFile::default();
        let config = probe(&file, false).expect("complete");
        assert_eq!((config.listen.to_string().as_str(), config.addresses), ("[::]:7656", None));
        let lease = Duration::from_secs(5);
        assert_eq!(timing(&file, lease).ok(), Some(Timing { lease, ..Timing::default() }));
    }

    #[test]
    fn what_is_said_counts() {
        let file = parse(
            "listen = '0.0.0.0:9'\naddresses = ['192.0.2.1']\ninterval_ms = 100\n\
             suspect_ms = 400\nfence_ms = 2000\npatience_ms = 300\nrefute_ms = 500",
        );
        let config = probe(&file, false).expect("complete");
        assert_eq!(config.addresses, Some(vec![IpAddr::from([192, 0, 2, 1])]));
        let ms = Duration::from_millis;
        let expected = Timing {
            probe: ms(100),
            suspect: ms(400),
            fence: ms(2000),
            patience: ms(300),
            refute: ms(500),
            lease: ms(3000),
        };
        assert_eq!(timing(&file, ms(3000)).ok(), Some(expected));
        // Nowhere is a place too, and the one of those that touch nothing.
        let nowhere = Some(Some(vec![]));
        let addresses = |text, dry| probe(&parse(text), dry).map(|probe| probe.addresses).ok();
        assert_eq!(addresses("addresses = []", false), nowhere);
        assert_eq!((addresses("", true), addresses("", false)), (nowhere, Some(None)));
    }

    #[test]
    fn what_cannot_be_is_refused_with_key_and_bound() {
        let cases = [
            ("interval_ms = 5", "gateway.probe.interval_ms = 5: expected 10 to 1000"),
            ("suspect_ms = 149", "gateway.probe.suspect_ms = 149: expected 150 to 10000"),
            ("interval_ms = 100", "gateway.probe.suspect_ms = 200: expected 300 to 10000"),
            ("fence_ms = 399", "gateway.probe.fence_ms = 399: expected 400 to 3000"),
            ("fence_ms = 3001", "gateway.probe.fence_ms = 3001: expected 400 to 3000"),
            ("patience_ms = 0", "gateway.probe.patience_ms = 0: expected 10 to 10000"),
            ("refute_ms = 49", "gateway.probe.refute_ms = 49: expected 50 to 10000"),
            ("listen = '[::]:0'", "gateway.probe.listen = [::]:0: others need to know the port"),
            (
                "addresses = ['::']",
                "gateway.probe.addresses = ::: nobody can reach a gateway there",
            ),
            (
                "addresses = ['fe80::1']",
                "gateway.probe.addresses = fe80::1: others cannot tell the link of a link-local \
                 address",
            ),
            (
                "listen = '0.0.0.0:1'\naddresses = ['2001:db8::1']",
                "gateway.probe.addresses = 2001:db8::1: gateway.probe.listen = 0.0.0.0 is \
                 elsewhere",
            ),
            (
                "listen = '192.0.2.1:1'\naddresses = ['192.0.2.2']",
                "gateway.probe.addresses = 192.0.2.2: gateway.probe.listen = 192.0.2.1 is \
                 elsewhere",
            ),
        ];
        for (text, expected) in cases {
            assert_eq!(refused(text), expected, "{text}");
        }
    }
}
