//! The section `[gateway.health]`: what a serving gateway checks.

use std::time::Duration;

use selvedge_host::health::{Checks, FrrChecks, Grace, Interfaces};
use selvedge_host::inventory::Names;
use serde::{Deserialize, Serialize};

use super::FabricConfig;
use super::check::{Result, interface, value, within};

/// The section `[gateway.health]`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
#[allow(missing_docs, reason = "described in `selvedge_host::health::Checks`")]
pub struct HealthFile {
    pub uplink: Option<Vec<String>>,
    pub fabric: Option<Vec<String>>,
    pub sessions: Option<Vec<Session>>,
    pub bridges: Option<bool>,
    pub routes: Option<bool>,
    pub adverts: Option<bool>,
    pub start_s: Option<u64>,
    pub damping_s: Option<u64>,
    pub carrier_grace_ms: Option<u64>,
    pub session_grace_ms: Option<u64>,
    pub bridge_grace_ms: Option<u64>,
    pub network_grace_s: Option<u64>,
}

/// A routing daemon whose sessions count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Session {
    /// bgpd, for EVPN.
    Bgp,
    /// ospfd.
    Ospf,
    /// ospf6d.
    Ospf6,
}

impl Session {
    const fn name(self) -> &'static str {
        match self {
            Self::Bgp => "bgp",
            Self::Ospf => "ospf",
            Self::Ospf6 => "ospf6",
        }
    }
}

/// Checks of nothing, for who serves nothing or touches no host.
pub(super) fn nothing(names: Names) -> Checks {
    let (uplink, fabric) = (Interfaces::Off, Interfaces::Off);
    Checks { uplink, fabric, bridges: false, names, ..Checks::default() }
}

pub(super) fn checks(file: &HealthFile, fabric: &FabricConfig, names: Names) -> Result<Checks> {
    if *fabric == FabricConfig::Dry {
        return Ok(nothing(names));
    }
    let is_frr = matches!(fabric, FabricConfig::Frr { .. });
    Ok(Checks {
        uplink: interfaces("gateway.health.uplink", file.uplink.as_deref())?,
        fabric: interfaces("gateway.health.fabric", file.fabric.as_deref())?,
        frr: sessions(file, fabric)?,
        bridges: file.bridges.unwrap_or(true),
        routes: of_frr("gateway.health.routes", file.routes, is_frr)?,
        adverts: of_frr("gateway.health.adverts", file.adverts, is_frr)?,
        names,
        start: Duration::from_secs(within("gateway.health.start_s", file.start_s, 30, (0, 3600))?),
        grace: grace(file)?,
        ..Checks::default()
    })
}

/// None named: none is checked; nothing said: the monitor finds them.
fn interfaces(key: &str, names: Option<&[String]>) -> Result<Interfaces> {
    match names {
        None => Ok(Interfaces::Auto),
        Some([]) => Ok(Interfaces::Off),
        Some(names) => {
            names.iter().try_for_each(|name| interface(key, name))?;
            Ok(Interfaces::These(names.to_vec()))
        }
    }
}

/// How long a host that was unfit again and again has to be fit until it gets networks.
pub(super) fn damping(file: &HealthFile) -> Result<Duration> {
    within("gateway.health.damping_s", file.damping_s, 20, (0, 3600)).map(Duration::from_secs)
}

fn sessions(file: &HealthFile, fabric: &FabricConfig) -> Result<Option<FrrChecks>> {
    let all = [Session::Bgp, Session::Ospf, Session::Ospf6];
    let given = file.sessions.as_deref();
    match fabric {
        FabricConfig::Frr { vty_dir, pathspace, .. } => {
            let counts = |session| given.unwrap_or(&all).contains(&session);
            let [bgp, ospf, ospf6] = all.map(counts);
            let (vty_dir, pathspace) = (vty_dir.clone(), pathspace.clone());
            let checks = FrrChecks { vty_dir, pathspace, bgp, ospf, ospf6 };
            Ok((bgp || ospf || ospf6).then_some(checks))
        }
        FabricConfig::Dry | FabricConfig::Flood { .. } => match given {
            None | Some([]) => Ok(None),
            Some(given) => {
                let names: Vec<&str> = given.iter().map(|session| session.name()).collect();
                Err(value("gateway.health.sessions", format!("{names:?}"), ONLY_WITH_FRR))
            }
        },
    }
}

const ONLY_WITH_FRR: &str = "there is something to check only with gateway.fabric = \"frr\"";

fn of_frr(key: &str, given: Option<bool>, is_frr: bool) -> Result<bool> {
    match given {
        Some(true) if !is_frr => Err(value(key, true, ONLY_WITH_FRR)),
        given => Ok(given.unwrap_or(is_frr)),
    }
}

fn grace(file: &HealthFile) -> Result<Grace> {
    let default = Grace::default();
    let ms = |key: &str, given: Option<u64>, default: Duration| {
        let default = u64::try_from(default.as_millis()).unwrap_or(u64::MAX);
        let key = format!("gateway.health.{key}_grace_ms");
        within(&key, given, default, (0, 600_000)).map(Duration::from_millis)
    };
    let network = default.network.as_secs();
    let key = "gateway.health.network_grace_s";
    // What the applier has to put right it looks for every ten seconds.
    let network = within(key, file.network_grace_s, network, (10, 3600))?;
    Ok(Grace {
        carrier: ms("carrier", file.carrier_grace_ms, default.carrier)?,
        session: ms("session", file.session_grace_ms, default.session)?,
        bridge: ms("bridge", file.bridge_grace_ms, default.bridge)?,
        network: Duration::from_secs(network),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frr() -> FabricConfig {
        FabricConfig::Frr { vty_dir: "/run/x".into(), pathspace: None, asn: None }
    }

    fn flood() -> FabricConfig {
        FabricConfig::Flood { uplink: "up0".to_owned(), endpoints: Some(vec![]) }
    }

    fn load(text: &str, fabric: &FabricConfig) -> Result<Checks> {
        checks(&toml::from_str(text).expect("a section"), fabric, Names::default())
    }

    #[test]
    fn what_can_be_checked_is_checked() {
        let with_frr = load("", &frr()).expect("complete");
        let sessions = FrrChecks { vty_dir: "/run/x".into(), ..FrrChecks::all() };
        let expected =
            Checks { frr: Some(sessions), routes: true, adverts: true, ..Checks::default() };
        assert_eq!(with_frr, expected);
        assert_eq!(load("", &flood()).expect("complete"), Checks::default());
        let nothing = load("bridges = true", &FabricConfig::Dry).expect("complete");
        assert_eq!((nothing.uplink, nothing.bridges), (Interfaces::Off, false));
    }

    #[test]
    fn checks_can_be_chosen() {
        let text = "uplink = ['up0']\nfabric = []\nsessions = ['bgp']\nroutes = false\n\
                    start_s = 5\nsession_grace_ms = 20\nnetwork_grace_s = 60";
        let checks = load(text, &frr()).expect("complete");
        assert_eq!(checks.uplink, Interfaces::These(vec!["up0".to_owned()]));
        assert_eq!((checks.fabric, checks.routes, checks.adverts), (Interfaces::Off, false, true));
        let sessions = checks.frr.map(|frr| (frr.bgp, frr.ospf, frr.ospf6));
        assert_eq!(sessions, Some((true, false, false)));
        let (session, network) = (Duration::from_millis(20), Duration::from_secs(60));
        assert_eq!(checks.grace, Grace { session, network, ..Grace::default() });
        assert_eq!(load("sessions = []", &frr()).expect("complete").frr, None);
    }

    #[test]
    fn what_cannot_be_checked_is_refused() {
        let cases = [
            ("routes = true", "gateway.health.routes = true: there is something to check only"),
            ("sessions = ['bgp']", "gateway.health.sessions = [\"bgp\"]: there is something"),
            ("uplink = ['a/b']", "gateway.health.uplink = \"a/b\": expected the name of an"),
            ("network_grace_s = 9", "gateway.health.network_grace_s = 9: expected 10 to 3600"),
            ("bridge_grace_ms = 600001", "gateway.health.bridge_grace_ms = 600001: expected 0 to"),
        ];
        for (text, expected) in cases {
            let error = load(text, &flood()).expect_err("refused").to_string();
            assert!(error.starts_with(expected), "{error}");
        }
    }
}
