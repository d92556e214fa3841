//! The section `[gateway.ra]`, and `ra` of single networks: router advertisements.

use std::collections::BTreeMap;
use std::net::Ipv6Addr;
use std::time::Duration;

use selvedge_host::packet::RaConfig;
use selvedge_model::{Prefix, Vni};
use serde::{Deserialize, Serialize};

use super::check::{Result, value};

/// The section `[gateway.ra]`, or `ra` of a network, which overrides it key by key.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
#[allow(missing_docs, reason = "described in `selvedge_host::packet::RaConfig`")]
pub struct RaFile {
    pub send: Option<bool>,
    pub link_local: Option<Ipv6Addr>,
    pub min_interval_s: Option<u32>,
    pub max_interval_s: Option<u32>,
    pub lifetime_s: Option<u32>,
    pub prefixes: Option<Vec<Prefix>>,
    pub autonomous: Option<bool>,
    pub valid_s: Option<u32>,
    pub preferred_s: Option<u32>,
    pub managed: Option<bool>,
    pub other: Option<bool>,
    pub mtu: Option<u32>,
    pub rdnss: Option<Vec<Ipv6Addr>>,
    pub rdnss_lifetime_s: Option<u32>,
}

/// What is advertised in which network.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RaSettings {
    /// In networks that have nothing of their own.
    pub default: RaConfig,
    /// In networks that have.
    pub by_network: BTreeMap<Vni, RaConfig>,
}

impl RaSettings {
    /// What is advertised in a network.
    #[must_use]
    pub fn of(&self, vni: Vni) -> &RaConfig {
        self.by_network.get(&vni).unwrap_or(&self.default)
    }
}

pub(super) fn settings<'a>(
    default: &RaFile,
    networks: impl IntoIterator<Item = (Vni, &'a RaFile)>,
) -> Result<RaSettings> {
    let checked = |key: &str, file: &RaFile, base: &RaConfig| {
        let config = file.over(base);
        match config.check() {
            Ok(()) => Ok(config),
            Err(error) => Err(value(key, file.inline(), error)),
        }
    };
    let default = checked("gateway.ra", default, &RaConfig::default())?;
    let own = |(vni, file): (Vni, &RaFile)| {
        let key = format!("gateway.network (vni = {vni}) ra");
        Ok((vni, checked(&key, file, &default)?))
    };
    let by_network = networks.into_iter().map(own).collect::<Result<_>>()?;
    Ok(RaSettings { default, by_network })
}

impl RaFile {
    /// What is said here, and else what `base` says.
    fn over(&self, base: &RaConfig) -> RaConfig {
        let time = |given: Option<u32>, base: Duration| {
            given.map_or(base, |seconds| Duration::from_secs(seconds.into()))
        };
        let max_interval = time(self.max_interval_s, base.max_interval);
        let min_interval = match self.max_interval_s {
            Some(_) => least_interval(max_interval),
            None => base.min_interval,
        };
        RaConfig {
            send: self.send.unwrap_or(base.send),
            link_local: self.link_local.unwrap_or(base.link_local),
            min_interval: time(self.min_interval_s, min_interval),
            max_interval,
            lifetime: time(self.lifetime_s, base.lifetime),
            prefixes: self.prefixes.clone().or_else(|| base.prefixes.clone()),
            autonomous: self.autonomous.unwrap_or(base.autonomous),
            valid: time(self.valid_s, base.valid),
            preferred: time(self.preferred_s, base.preferred),
            managed: self.managed.unwrap_or(base.managed),
            other: self.other.unwrap_or(base.other),
            mtu: self.mtu.or(base.mtu),
            rdnss: self.rdnss.clone().unwrap_or_else(|| base.rdnss.clone()),
            rdnss_lifetime: time(self.rdnss_lifetime_s, base.rdnss_lifetime),
        }
    }

    fn inline(&self) -> String {
        let text = toml::to_string(self).unwrap_or_default();
        format!("{{ {} }}", text.trim_end().replace('\n', ", "))
    }
}

/// A third of the greatest interval where there is room for it (RFC 4861, section 6.2.1).
fn least_interval(greatest: Duration) -> Duration {
    (greatest / 3).max(Duration::from_secs(3)).min(greatest * 3 / 4)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> RaFile {
        toml::from_str(text).expect("a section")
    }

    fn vni(number: u32) -> Vni {
        number.try_into().expect("a VNI")
    }

    #[test]
    fn a_network_overrides_key_by_key() {
        let default = parse("lifetime_s = 900\nrdnss = ['2001:db8::53']\nmanaged = true");
        let own = parse("rdnss = []\nprefixes = ['2001:db8:7::/64']");
        let off = parse("send = false");
        let settings = settings(&default, [(vni(7), &own), (vni(8), &off)]).expect("in bounds");
        let lifetime = Duration::from_secs(900);
        let rdnss = vec!["2001:db8::53".parse().expect("an address")];
        let expected = RaConfig { lifetime, rdnss, managed: true, ..RaConfig::default() };
        assert_eq!(*settings.of(vni(1)), expected);
        let prefixes = Some(vec!["2001:db8:7::/64".parse().expect("a prefix")]);
        let seven = RaConfig { rdnss: vec![], prefixes, ..expected.clone() };
        assert_eq!(*settings.of(vni(7)), seven);
        assert_eq!(*settings.of(vni(8)), RaConfig { send: false, ..expected });
    }

    #[test]
    fn the_least_interval_follows_the_greatest() {
        for (greatest, least) in [(4, 3), (9, 3), (30, 10), (1800, 600)] {
            let file = parse(&format!("max_interval_s = {greatest}"));
            let config = settings(&file, []).expect("in bounds").default;
            assert_eq!(config.min_interval, Duration::from_secs(least));
        }
    }

    #[test]
    fn what_is_out_of_bounds_is_refused() {
        let refused = |default: &RaFile, own: &RaFile| {
            settings(default, [(vni(7), own)]).expect_err("refused").to_string()
        };
        let (empty, short) = (RaFile::default(), parse("lifetime_s = 5\nmtu = 1400"));
        let expected = "gateway.ra = { lifetime_s = 5, mtu = 1400 }: lifetime is 5 s: ";
        let error = refused(&short, &empty);
        assert!(error.starts_with(expected), "{error}");
        let error = refused(&empty, &parse("link_local = '2001:db8::1'"));
        let expected = "gateway.network (vni = 7) ra = { link_local = \"2001:db8::1\" }: ";
        assert!(error.starts_with(expected), "{error}");
    }
}
