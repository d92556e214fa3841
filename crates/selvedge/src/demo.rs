//! The demo: a whole fabric on this machine, in network namespaces, with live figures.
//!
//! Hosts are namespaces ([`selvedge_netlab`]); the agents and the store are processes of their
//! own, started from this very program. Once it runs, nothing here touches a route or an address:
//! what happens is asked for through the agents' API, or done to a cable. Store and fabric are
//! this program's own, or real etcd and real FRRouting.

mod engines;
mod interrupt;
mod measure;
mod narrator;
mod preflight;
mod stage;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use selvedge_model::Vni;
use selvedge_netlab::{Lab, clock};
use serde::Serialize;

pub use engines::{Engines, Fabric, Store, WireGuard};
use interrupt::Interrupt;
use measure::Measure;
use narrator::Narrator;
use stage::{Owners, Stage};

/// How many hosts form the mesh; all are gateways in the end.
const HOSTS: usize = 3;
/// How many of them are gateways from the start.
const FIRST_GATEWAYS: usize = 2;
/// How long a step may take before the demo gives up.
const STEP_LIMIT: Duration = Duration::from_secs(60);
/// For how long nothing may move before a step counts as done.
const SETTLED: Duration = Duration::from_millis(1500);

/// What the demo shall be like.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// For how many seconds packets run through the fabric. The steps take what they take.
    pub seconds: u64,
    /// How many overlay networks there are.
    pub networks: u32,
    /// Whether to write plain lines even on a terminal.
    pub plain: bool,
    /// What to do it with.
    pub engines: Engines,
}

/// What came out. All packets are numbered and counted at both ends.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Outcome {
    /// Hosts in the mesh.
    pub mesh_nodes: usize,
    /// Packets sent from host to host through the mesh, while both were up.
    pub overlay_pings_sent: u64,
    /// Those of them that did not arrive.
    pub overlay_pings_lost: u64,
    /// Overlay networks.
    pub networks: usize,
    /// Networks that were moved as planned.
    pub moves: usize,
    /// Packets sent through networks while they were moved.
    pub move_packets_sent: u64,
    /// Those of them that did not arrive.
    pub move_packets_lost: u64,
    /// Networks that were taken over from the host that was cut off.
    pub failovers: usize,
    /// The longest time without a packet, of each of them, in milliseconds.
    pub failover_outage_ms: Vec<u64>,
    /// Packets that the other networks lost meanwhile.
    pub failover_others_lost: u64,
    /// Networks of the host that was cut off through which nothing ran again.
    pub failover_unrestored: usize,
    /// All packets that were sent through gateways.
    pub packets_sent: u64,
    /// By how much the sender was late at most, in milliseconds.
    pub sender_late_ms: u64,
    /// Seconds from the first step to the last.
    pub story_s: f64,
    /// What it was done with.
    pub engines: Engines,
}

impl Outcome {
    /// Whether everything went as the demo promises.
    ///
    /// # Errors
    /// Names each promise that was not kept.
    pub fn verdict(&self) -> anyhow::Result<()> {
        let mut broken = Vec::new();
        if self.overlay_pings_lost > 0 {
            broken.push(format!("{} packets were lost in the mesh", self.overlay_pings_lost));
        }
        if self.move_packets_lost > 0 {
            broken.push(format!("planned moves lost {} packets", self.move_packets_lost));
        }
        if self.failover_unrestored > 0 {
            broken.push(format!("{} networks were not restored", self.failover_unrestored));
        }
        if self.moves == 0 || self.failovers == 0 {
            broken.push("no network was moved, or none was taken over".to_owned());
        }
        match broken.is_empty() {
            true => Ok(()),
            false => bail!("the demo did not keep its promise: {}", broken.join("; ")),
        }
    }
}

/// Runs the demo and removes everything that it made, however it ends.
///
/// # Errors
/// If something is missing on this machine, a step does not succeed, or Ctrl-C is pressed.
pub fn run(options: &Options) -> anyhow::Result<Outcome> {
    let mut narrator = Narrator::new(options.plain);
    let interrupt = Interrupt::listen()?;
    preflight::check(options.engines)?;
    for name in Lab::sweep() {
        narrator.note(&format!("removed {name}, which an earlier demo had left behind"));
    }
    let result = Story::play(*options, &mut narrator, interrupt);
    narrator.end();
    result
}

/// The demo under way.
struct Story<'a> {
    options: Options,
    narrator: &'a mut Narrator,
    interrupt: Interrupt,
    // Before the stage, so that no stream outlives the hosts.
    measure: Measure,
    stage: Stage,
    outcome: Outcome,
}

impl<'a> Story<'a> {
    fn play(
        options: Options,
        narrator: &'a mut Narrator,
        interrupt: Interrupt,
    ) -> anyhow::Result<Outcome> {
        let began = Instant::now();
        narrator.step(&format!(
            "Building {HOSTS} hosts, an access point with stations in {} overlay networks, and \
             an upstream router, as network namespaces; with {}",
            options.networks,
            options.engines.words()
        ));
        let stage = Stage::build(HOSTS, options.networks, options.engines)?;
        let outcome =
            Outcome { networks: stage.networks(), engines: options.engines, ..Outcome::default() };
        let measure = Measure::default();
        let mut story = Self { options, narrator, interrupt, measure, stage, outcome };
        let result = story.acts();
        if result.is_err() {
            // Ctrl-C reaches the agents too; their end is then no failure of theirs.
            std::thread::sleep(Duration::from_millis(100));
            story.interrupt.check()?;
            story.narrator.note(&story.stage.logs());
        }
        result?;
        story.outcome.story_s = began.elapsed().as_secs_f64();
        Ok(story.outcome)
    }

    fn acts(&mut self) -> anyhow::Result<()> {
        self.form_the_mesh().context("forming the mesh")?;
        self.place_the_networks().context("placing the networks")?;
        let began = Instant::now();
        self.run_for(self.pause())?;
        self.add_a_gateway().context("adding a gateway")?;
        self.run_for(self.pause())?;
        self.drain_a_gateway().context("draining a gateway")?;
        self.run_for(self.pause())?;
        self.cut_a_gateway_off().context("cutting a gateway off")?;
        let total = Duration::from_secs(self.options.seconds);
        self.run_for(total.saturating_sub(began.elapsed()))?;
        self.count()
    }

    fn form_the_mesh(&mut self) -> anyhow::Result<()> {
        self.narrator.step(match self.options.engines.store {
            Store::Embedded => "Starting the store and an agent on each host",
            Store::Etcd => "Starting an agent on each host; etcd runs there already",
        });
        self.stage.start_store()?;
        for index in 0..HOSTS {
            self.stage.start_agent(index, index < FIRST_GATEWAYS)?;
        }
        self.wait("the agents answer", |story| story.stage.agents_answer())?;
        self.narrator.step("gw1 creates a mesh; gw2 and gw3 join it with an invite");
        self.stage.form_mesh()?;
        self.wait("all members know all", |story| story.stage.mesh_is_complete())?;
        self.outcome.mesh_nodes = self.stage.mesh_members()?;
        for line in self.stage.mesh_lines()? {
            self.narrator.note(&line);
        }
        let pairs = [(0, 1), (0, 2), (1, 2)];
        let specs = self.stage.overlay_streams(&pairs)?;
        measure::until_all_flow(&specs, STEP_LIMIT, &self.interrupt)
            .context("packets through the mesh")?;
        self.measure.start_overlay((0, 1), &self.stage.overlay_streams(&[(0, 1)])?)?;
        self.narrator.note("numbered packets run through the mesh, encrypted");
        Ok(())
    }

    fn place_the_networks(&mut self) -> anyhow::Result<()> {
        self.narrator.step("gw1 and gw2 are gateways: they share the networks");
        self.wait("all networks are served", |story| story.stage.is_quiet())?;
        let owners = self.stage.owners()?;
        self.narrator.note(&owners.to_string());
        measure::until_all_flow(&self.stage.network_streams(), STEP_LIMIT, &self.interrupt)
            .context("packets through the gateways")?;
        self.measure.start_networks(&self.stage.network_streams())?;
        self.narrator.note("numbered packets run both ways between every network and upstream");
        Ok(())
    }

    fn add_a_gateway(&mut self) -> anyhow::Result<()> {
        self.narrator.step("gw3 becomes a gateway too: a share of the networks moves to it");
        let (before, began) = (self.stage.owners()?, clock::now());
        self.stage.restart_as_gateway(2)?;
        self.settle("gw3 serves its share", |owners| owners.of("gw3") > 0)?;
        self.account_moves(&before, began)?;
        let specs = self.stage.overlay_streams(&[(0, 2), (1, 2)])?;
        measure::until_all_flow(&specs, STEP_LIMIT, &self.interrupt)
            .context("packets through the mesh after the restart of gw3's agent")?;
        for pair in [(0, 2), (1, 2)] {
            self.measure.start_overlay(pair, &self.stage.overlay_streams(&[pair])?)?;
        }
        Ok(())
    }

    fn drain_a_gateway(&mut self) -> anyhow::Result<()> {
        self.narrator.step("gw1 is drained, as before maintenance: its networks move away");
        let (before, began) = (self.stage.owners()?, clock::now());
        self.stage.drain(0)?;
        self.settle("gw1 serves nothing", |owners| owners.of("gw1") == 0)?;
        self.account_moves(&before, began)?;
        self.narrator.step("gw1 is back: its networks return");
        let (before, began) = (self.stage.owners()?, clock::now());
        self.stage.undrain(0)?;
        self.settle("gw1 serves its share", |owners| owners.of("gw1") > 0)?;
        self.account_moves(&before, began)
    }

    fn cut_a_gateway_off(&mut self) -> anyhow::Result<()> {
        let victims = self.stage.owners()?.networks("gw2");
        self.narrator.step(&format!(
            "All cables of gw2 are pulled: its {} networks are taken over",
            victims.len()
        ));
        self.measure.end_overlay(1);
        let began = clock::now();
        self.stage.cut(1)?;
        self.settle("the others serve everything", |owners| owners.of("gw2") == 0)?;
        let failover = self.measure.failover(&victims, began, clock::now());
        self.outcome.failovers = victims.len();
        self.outcome.failover_unrestored = failover.unrestored;
        self.outcome.failover_others_lost = failover.others_lost;
        self.outcome.failover_outage_ms = failover.outage_ms;
        let slowest = self.outcome.failover_outage_ms.iter().max().copied().unwrap_or_default();
        self.narrator.note(&format!(
            "all back; the longest outage was {slowest} ms; the other networks lost {} packets",
            failover.others_lost
        ));
        Ok(())
    }

    /// Waits until every network is served and has stayed where it is for a while.
    fn settle(&mut self, what: &str, reached: impl Fn(&Owners) -> bool) -> anyhow::Result<()> {
        let mut last: Option<(Owners, Instant)> = None;
        self.wait(what, |story| {
            let owners = story.stage.owners()?;
            let since = match &last {
                Some((same, since)) if *same == owners => *since,
                Some(_) | None => Instant::now(),
            };
            let quiet = since.elapsed() >= SETTLED;
            let done = quiet && reached(&owners) && story.stage.is_quiet()?;
            last = Some((owners, since));
            Ok(done)
        })
    }

    fn account_moves(
        &mut self,
        before: &Owners,
        began: selvedge_model::Time,
    ) -> anyhow::Result<()> {
        let after = self.stage.owners()?;
        let moved: BTreeSet<Vni> = before.changed(&after);
        let (sent, lost) = self.measure.packets(&moved, began, clock::now());
        self.outcome.moves += moved.len();
        self.outcome.move_packets_sent += sent;
        self.outcome.move_packets_lost += lost;
        self.narrator.note(&after.to_string());
        self.narrator
            .note(&format!("{} networks moved: {lost} of {sent} packets lost", moved.len()));
        Ok(())
    }

    fn count(&mut self) -> anyhow::Result<()> {
        self.narrator.step("Counting");
        let total = self.measure.finish();
        self.outcome.overlay_pings_sent = total.overlay_sent;
        self.outcome.overlay_pings_lost = total.overlay_lost;
        self.outcome.packets_sent = total.network_sent;
        self.outcome.sender_late_ms = total.sender_late_ms;
        self.narrator.note(&format!(
            "mesh: {} of {} packets lost; gateways: {} moves with {} of {} packets lost, {} \
             failovers",
            total.overlay_lost,
            total.overlay_sent,
            self.outcome.moves,
            self.outcome.move_packets_lost,
            self.outcome.move_packets_sent,
            self.outcome.failovers
        ));
        Ok(())
    }

    /// Between the steps, packets run for a tenth of the time: enough to see that all is quiet.
    fn pause(&self) -> Duration {
        Duration::from_secs(self.options.seconds) / 10
    }

    fn run_for(&mut self, time: Duration) -> anyhow::Result<()> {
        let end = Instant::now() + time;
        while Instant::now() < end {
            self.tick()?;
        }
        Ok(())
    }

    fn wait(
        &mut self,
        what: &str,
        mut reached: impl FnMut(&mut Self) -> anyhow::Result<bool>,
    ) -> anyhow::Result<()> {
        let end = Instant::now() + STEP_LIMIT;
        loop {
            // While agents start and elections run, an answer may well be an error.
            let seen = match reached(self) {
                Ok(true) => return Ok(()),
                Ok(false) => "not yet".to_owned(),
                Err(error) => format!("{error:#}"),
            };
            if Instant::now() >= end {
                bail!("waited {} s until {what}: {seen}", STEP_LIMIT.as_secs());
            }
            self.stage.all_run()?;
            self.tick()?;
        }
    }

    fn tick(&mut self) -> anyhow::Result<()> {
        self.interrupt.check()?;
        self.narrator.live(|| self.measure.live());
        std::thread::sleep(Duration::from_millis(100));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_verdict_names_every_broken_promise() {
        let good = Outcome { moves: 3, failovers: 2, ..Outcome::default() };
        good.verdict().expect("kept");
        let bad = Outcome { move_packets_lost: 1, failover_unrestored: 2, ..good };
        assert_eq!(
            bad.verdict().expect_err("broken").to_string(),
            "the demo did not keep its promise: planned moves lost 1 packets; 2 networks were \
             not restored"
        );
        assert!(Outcome::default().verdict().is_err(), "nothing happened");
    }

    #[test]
    fn the_last_line_has_the_promised_fields() {
        let json = serde_json::to_value(Outcome::default()).expect("serialises");
        for field in [
            "mesh_nodes",
            "overlay_pings_sent",
            "overlay_pings_lost",
            "networks",
            "moves",
            "move_packets_sent",
            "move_packets_lost",
            "failovers",
            "failover_outage_ms",
            "engines",
        ] {
            assert!(json.get(field).is_some(), "{field}");
        }
    }
}
