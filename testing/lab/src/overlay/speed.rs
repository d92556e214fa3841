//! `mesh-speed`: how much a mesh carries between two hosts, beside gotatun alone and wireguard-go
//! in the same run.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use clap::Args;
use selvedge_netlab::clock::now;
use selvedge_netlab::tcp::{Connection, Pace};
use serde::Serialize;

use super::bare::{Engine, Tunnel};
use super::{MESH, Overlay, OverlayOptions};
use crate::Outcome;
use crate::progress::say;

/// Options of the scenario.
#[derive(Clone, Debug, Args)]
pub(crate) struct Options {
    #[command(flatten)]
    overlay: OverlayOptions,
    /// For how long each is measured at a time
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// How often each is measured; they take turns
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// The bound on what the mesh carries, as a part of what gotatun alone does
    #[arg(long, value_name = "PART", default_value_t = 0.95)]
    min_ratio: f64,
}

/// What was measured, in Mbit/s of one TCP connection: the middle of all runs.
#[derive(Debug, Serialize)]
pub(crate) struct Figures {
    runs: usize,
    /// Without any tunnel.
    underlay_mbit_s: f64,
    mesh_mbit_s: f64,
    gotatun_mbit_s: f64,
    /// Null where it is not installed.
    wireguard_go_mbit_s: Option<f64>,
    /// The middle of what the mesh carried in each run, as a part of what gotatun did just before.
    ratio: f64,
}

/// Runs the scenario.
pub(crate) fn run(options: &Options) -> anyhow::Result<Outcome<Figures>> {
    let overlay = Overlay::formed(&options.overlay, 2)?;
    let scene = Scene::set(&overlay)?;
    let mut rates: [Vec<f64>; 4] = Default::default();
    for run in 1..=options.runs {
        for (index, (name, addresses)) in scene.ways.iter().enumerate() {
            let rate = scene.rate(*addresses, Duration::from_secs(options.seconds))?;
            say!("{run}: {name}: {rate:.0} Mbit/s");
            rates[index].push(rate);
        }
    }
    let ratios: Vec<f64> =
        rates[MESH_WAY].iter().zip(&rates[BARE_WAY]).map(|(m, g)| m / g).collect();
    let ratio = (median(&ratios).unwrap_or_default() * 1000.0).round() / 1000.0;
    let [underlay, bare, mesh, go] = rates.map(|rates| median(&rates));
    let figures = Figures {
        runs: options.runs,
        underlay_mbit_s: underlay.unwrap_or_default(),
        mesh_mbit_s: mesh.unwrap_or_default(),
        gotatun_mbit_s: bare.unwrap_or_default(),
        wireguard_go_mbit_s: go,
        ratio,
    };
    let mut broken = Vec::new();
    if figures.ratio < options.min_ratio {
        broken.push(format!("the mesh carries {ratio} of gotatun alone < {}", options.min_ratio));
    }
    Ok(Outcome { figures, broken })
}

/// The places of two of the ways.
const BARE_WAY: usize = 1;
const MESH_WAY: usize = 2;
const PORT: u16 = 5001;
/// A connection needs a moment to find its pace.
const WARM_UP: Duration = Duration::from_secs(1);

/// Two hosts, and the ways between them: each a name and the addresses at its ends.
struct Scene<'a> {
    overlay: &'a Overlay,
    ways: Vec<(&'static str, [IpAddr; 2])>,
    _tunnels: Vec<Tunnel>,
}

impl<'a> Scene<'a> {
    fn set(overlay: &'a Overlay) -> anyhow::Result<Self> {
        let names = ["m1", "m2"];
        let [a, b] = [overlay.member(names[0])?, overlay.member(names[1])?];
        let hosts = [(&a.host, a.underlay.into()), (&b.host, b.underlay.into())];
        let address = |name| overlay.address(name, MESH).map(IpAddr::from);
        let gotatun = Engine::Gotatun.connect(hosts)?;
        let mut ways = vec![
            ("no tunnel", hosts.map(|(_, address)| address)),
            ("gotatun alone", gotatun.ends.map(IpAddr::from)),
            ("mesh", [address(names[0])?, address(names[1])?]),
        ];
        let mut tunnels = vec![gotatun];
        if Engine::WireguardGo.is_installed() {
            let tunnel = Engine::WireguardGo.connect(hosts)?;
            ways.push(("wireguard-go", tunnel.ends.map(IpAddr::from)));
            tunnels.push(tunnel);
        } else {
            say!(
                "wireguard-go is not installed, so it is not measured: apt-get install wireguard-go"
            );
        }
        Ok(Self { overlay, ways, _tunnels: tunnels })
    }

    /// How much one connection carries, in Mbit/s.
    fn rate(&self, [from, to]: [IpAddr; 2], time: Duration) -> anyhow::Result<f64> {
        let (a, b) = (&self.overlay.member("m1")?.host, &self.overlay.member("m2")?.host);
        let stream = Connection::open((a, from), (b, SocketAddr::new(to, PORT)), Pace::Full)?;
        std::thread::sleep(WARM_UP);
        let began = now();
        std::thread::sleep(time);
        let ended = now();
        let bits = stream.bytes_between(began, ended) as f64 * 8.0;
        Ok((bits / (ended - began).as_secs_f64() / 1e6).round())
    }
}

/// The middle one, or the mean of the two in the middle.
fn median(figures: &[f64]) -> Option<f64> {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    let upper = *sorted.get(sorted.len() / 2)?;
    let lower = sorted[(sorted.len() - 1) / 2];
    Some((lower + upper) / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_is_between_the_two_in_the_middle() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0]), Some(2.5));
        assert_eq!(median(&[]), None);
    }
}
