//! The commands that take their time: drain, takeover, refill, restart, watch.

use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use selvedge_api::agent::RestartRequest;
use selvedge_api::gateway::{Drain, Refill, Takeover, What};
use selvedge_api::{Client, ClientError};
use selvedge_model::NodeName;
use serde::Serialize;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use crate::cli::output::{line, spinner};

/// How often a drain or a restart is looked at while somebody waits for its end.
const LOOK: Duration = Duration::from_millis(250);
/// How often the agent is asked whether it is back.
const SOON: Duration = Duration::from_millis(50);
/// How long something is waited for to come of a takeover, and, once it has, for more.
const TAKEOVER_LIMIT: Duration = Duration::from_secs(3);
const QUIET: Duration = Duration::from_millis(300);

/// Waits until the gateway serves nothing any more.
pub(super) async fn drained(
    client: &Client,
    mut drain: Drain,
    limit: Duration,
) -> anyhow::Result<Drain> {
    let end = Instant::now() + limit;
    let bar = spinner();
    while drain.serving > 0 {
        bar.set_message(format!("{}: {} networks left", drain.name, drain.serving));
        if Instant::now() >= end {
            bar.finish_and_clear();
            bail!(
                "{} still serves {} networks after {} s; it stays drained (see `selvedge \
                 gateway status`; `selvedge gateway undrain` takes it back)",
                drain.name,
                drain.serving,
                limit.as_secs()
            );
        }
        sleep(LOOK).await;
        let status = client.gateway().await?;
        // Whoever is not listed any more serves nothing.
        let row = status.nodes.into_iter().find(|node| node.name == drain.name);
        drain.serving = row.map_or(0, |row| row.serving);
    }
    bar.finish_and_clear();
    Ok(drain)
}

/// What a forced takeover has brought about.
#[derive(Debug, Serialize)]
pub(super) struct TakenOver {
    #[serde(flatten)]
    began: Takeover,
    /// Whether anything has come of it yet.
    #[serde(skip)]
    under_way: bool,
    /// How many networks this gateway takes over without the store's word.
    prepared: usize,
    /// How many networks this gateway has by the store's word.
    gained: usize,
    /// Whether the verdict stands in the store.
    verdict: bool,
}

/// Why a takeover has to be forced.
pub(super) fn explain_takeover(name: &NodeName) -> anyhow::Error {
    anyhow::anyhow!(
        "nothing was done: a takeover of {name} has to be forced\n\
         Gateways take over by themselves when one is lost, unless too few voters or store members \
         are left to be sure that it is (`selvedge gateway status` says so). With --force, this \
         gateway and the voters that it hears take the networks of {name} over without asking the \
         store. Do that only if you know that {name} does not serve any more: that it is powered \
         off, or cut off from the fabric and from upstream. If it does serve, its networks have \
         two gateways until it hears of this.\n\
         If {name} answers, use `selvedge gateway drain {name}` instead. If you are sure:\n\
         \x20 selvedge gateway takeover --force {name}"
    )
}

/// What is behind a refill.
pub(super) fn explain_refill() -> anyhow::Error {
    anyhow!(
        "nothing was done: a refill has to be forced\n\
         It removes what the store says of gateways and networks, and writes what this gateway knew\n\
         of the former one: who takes part, and who owned which network. Then it lifts the store's\n\
         revision until all agents accept it; they go on with what they serve. Choose a gateway that\n\
         has run since before the store was lost, and do it at one alone:\n\
         \x20 selvedge gateway refill --force"
    )
}

/// Asks until it is done.
pub(super) async fn refill(client: &Client) -> anyhow::Result<Refill> {
    let bar = spinner();
    bar.set_message("the store is being filled");
    let mut keys = 0;
    loop {
        let refill = client.refill().await.inspect_err(|_| bar.finish_and_clear())?;
        keys += refill.keys;
        if refill.done {
            bar.finish_and_clear();
            return Ok(Refill { keys, ..refill });
        }
        bar.set_message(format!(
            "the store is at revision {} of {}",
            refill.revision, refill.beyond
        ));
    }
}

pub(super) fn refilled(refill: &Refill) -> String {
    let Refill { keys, revision, .. } = refill;
    format!(
        "{keys} keys were written, and the store is at revision {revision}; the agents accept it by \
         themselves"
    )
}

/// Takes over, and watches what follows until the verdict stands or nothing more is to come.
pub(super) async fn take_over(client: &Client, name: NodeName) -> anyhow::Result<TakenOver> {
    let mut watch = client.watch().await?;
    let began = client.take_over(name.clone()).await?;
    let mut done = TakenOver { began, under_way: false, prepared: 0, gained: 0, verdict: false };
    let end = Instant::now() + TAKEOVER_LIMIT;
    loop {
        let quiet = Instant::now() + QUIET;
        let until = if done.under_way { end.min(quiet) } else { end };
        match timeout_at(until, watch.next()).await {
            Ok(Ok(Some(event))) => done.note(event.what),
            Ok(Ok(None)) => {
                bail!("the agent ended while {name} was being taken over; look at its log")
            }
            Ok(Err(error)) => return Err(error.into()),
            Err(_) => return Ok(done),
        }
    }
}

impl TakenOver {
    fn note(&mut self, what: What) {
        let lost = |name: &NodeName| *name == self.began.name;
        if let What::Prepared { name, networks } = &what
            && lost(name)
        {
            (self.prepared, self.under_way) = (*networks, true);
        } else if let What::Verdict { name, .. } = &what
            && lost(name)
        {
            (self.verdict, self.under_way) = (true, true);
        } else if let What::Gained { from: Some(name), .. } = &what
            && lost(name)
        {
            self.gained += 1;
            self.under_way = true;
        }
    }

    pub(super) fn text(&self) -> String {
        let Takeover { name, owned, heard } = &self.began;
        let names: Vec<&str> = heard.iter().map(NodeName::as_str).collect();
        let heard = if names.is_empty() { "nobody".to_owned() } else { names.join(", ") };
        let mut text = format!(
            "{name} owned {owned} networks by what this gateway last read in the store\n\
             the takeover binds this gateway and whom it hears: {heard}\n"
        );
        text += &match (self.gained, self.prepared) {
            (0, 0) => "this gateway takes none of them over; the others may".to_owned(),
            (0, networks) => format!("this gateway serves {networks} of them now"),
            (networks, _) => format!("this gateway has {networks} of them now"),
        };
        text + if self.verdict {
            "\nthe verdict stands in the store"
        } else {
            "\nthe store has not confirmed it yet; it will be written as soon as the store answers"
        }
    }
}

/// How a restart went.
#[derive(Debug, Serialize)]
pub(super) struct Restarted {
    program: String,
    /// The version that runs now.
    version: String,
    pid: u32,
    /// Seconds until the agent answered again, and its gateway plane was registered.
    seconds: f64,
    /// Whether it is registered; `None` if it has no gateway plane.
    registered: Option<bool>,
    /// How many networks it serves.
    serving: usize,
}

/// Has the agent start again, and waits until it is back.
pub(super) async fn restart(client: &Client, away: Duration) -> anyhow::Result<Restarted> {
    let for_ms = Some(u64::try_from(away.as_millis()).unwrap_or(u64::MAX));
    let began = Instant::now();
    let asked = client.restart(&RestartRequest { for_ms }).await?;
    let bar = spinner();
    bar.set_message("the agent starts again");
    let back = timeout(away, back(client, asked.started_ms)).await;
    bar.finish_and_clear();
    let late = || {
        format!(
            "the agent is not back after {} s, and the other gateways take its networks over now; \
             look at its log",
            away.as_secs()
        )
    };
    let back = back.with_context(late)??;
    let seconds = began.elapsed().as_secs_f64();
    Ok(Restarted { program: asked.program, seconds, ..back })
}

/// Waits for another run than the one that started at `before`. That it does not answer for a
/// while is the nature of it.
async fn back(client: &Client, before: u64) -> anyhow::Result<Restarted> {
    let client = client.clone().with_timeout(Duration::from_secs(1));
    loop {
        match client.info().await {
            Ok(info) if info.started_ms != before => {
                let (registered, serving) = match info.planes.gateway {
                    true => place(&client).await,
                    false => (None, 0),
                };
                if registered != Some(false) {
                    return Ok(Restarted {
                        program: String::new(),
                        version: info.version,
                        pid: info.pid,
                        seconds: 0.0,
                        registered,
                        serving,
                    });
                }
            }
            Ok(_)
            | Err(
                ClientError::NotRunning { .. }
                | ClientError::Timeout { .. }
                | ClientError::Broken { .. }
                | ClientError::Api(_),
            ) => {}
            Err(error @ ClientError::Denied { .. }) => return Err(error.into()),
        }
        sleep(SOON).await;
    }
}

/// Whether the gateway is registered, and how many networks it serves.
async fn place(client: &Client) -> (Option<bool>, usize) {
    let Ok(status) = client.gateway().await else { return (Some(false), 0) };
    let own = status.nodes.iter().find(|node| node.name == status.name);
    // A gateway without a store has served on, and is as good as back.
    let back = status.registered || !status.store.connected && own.is_some();
    (Some(back), own.map_or(0, |own| own.serving))
}

impl Restarted {
    pub(super) fn text(&self) -> String {
        let Self { program, version, pid, seconds, serving, .. } = self;
        let mut text = format!("{program} runs again after {seconds:.2} s, version {version}");
        text += &format!(", process {pid}");
        match self.registered {
            Some(_) => text + &format!("; registered, serving {serving} networks"),
            None => text,
        }
    }
}

/// Prints what happens, until the agent ends or nobody reads any more.
pub(super) async fn watch(client: &Client, json: bool) -> anyhow::Result<()> {
    let mut watch = client.watch().await?;
    while let Some(event) = watch.next().await? {
        match json {
            true => line(&serde_json::to_string(&event).context("cannot write JSON")?)?,
            false => line(&event.to_string())?,
        }
    }
    bail!("the agent has ended")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken_over(gained: usize, prepared: usize, verdict: bool) -> String {
        let heard = vec!["gw3".parse().expect("a name")];
        let began = Takeover { name: "gw2".parse().expect("a name"), owned: 33, heard };
        TakenOver { began, under_way: true, prepared, gained, verdict }.text()
    }

    #[test]
    fn a_takeover_says_what_the_store_knows_of_it() {
        assert_eq!(
            taken_over(0, 17, false),
            "gw2 owned 33 networks by what this gateway last read in the store\n\
             the takeover binds this gateway and whom it hears: gw3\n\
             this gateway serves 17 of them now\n\
             the store has not confirmed it yet; it will be written as soon as the store answers"
        );
        assert!(
            taken_over(17, 17, true)
                .ends_with("this gateway has 17 of them now\nthe verdict stands in the store")
        );
        assert!(taken_over(0, 0, true).contains("takes none of them over"));
    }

    #[test]
    fn who_does_not_force_it_learns_what_it_means() {
        let text = explain_takeover(&"gw2".parse().expect("a name")).to_string();
        assert!(text.starts_with("nothing was done"), "{text}");
        assert!(text.ends_with("\n  selvedge gateway takeover --force gw2"), "{text}");
    }
}
