//! The commands that ask: query, graph, watch.

use std::path::Path;

use anyhow::{Context, bail};
use selvedge_api::Client;
use selvedge_api::mesh::{Event, What, Who};
use serde_json::json;

use crate::cli::output::{line, utc};

/// Asks about the members of a mesh. The answer is JSON, on several lines for people.
pub(super) async fn query(
    client: &Client,
    mesh: &str,
    expression: &str,
    json: bool,
) -> anyhow::Result<()> {
    let answer = client.query_mesh(mesh, expression).await?;
    let text = match json {
        true => serde_json::to_string(&answer),
        false => serde_json::to_string_pretty(&answer),
    };
    line(&text.context("cannot write JSON")?)
}

/// Draws all meshes.
pub(super) async fn graph(
    client: &Client,
    output: Option<&Path>,
    json: bool,
) -> anyhow::Result<()> {
    let dot = client.mesh_graph().await?;
    match output {
        Some(output) => std::fs::write(output, dot)
            .with_context(|| format!("cannot write {}", output.display())),
        None if json => line(&json!({ "dot": dot }).to_string()),
        None => line(dot.trim_end()),
    }
}

/// Prints what happens until the agent ends.
pub(super) async fn watch(client: &Client, json: bool) -> anyhow::Result<()> {
    let mut watch = client.watch_meshes().await?;
    while let Some(event) = watch.next().await? {
        match json {
            true => line(&serde_json::to_string(&event).context("cannot write JSON")?)?,
            false => line(&told(&event))?,
        }
    }
    bail!("the agent has ended")
}

fn told(event: &Event) -> String {
    let mesh = event.name.as_deref().unwrap_or("-");
    format!("{}  {mesh}  {}", utc(event.at_ms), what(&event.what))
}

fn what(what: &What) -> String {
    match what {
        What::Entered => "this node is a member".to_owned(),
        What::Left => "this node has left".to_owned(),
        What::MemberJoined(node) => format!("{} joined", who(node)),
        What::MemberUpdated(node) => format!("{} says something new about itself", who(node)),
        What::MemberLeft(node) => format!("{} left", who(node)),
        What::MemberEvicted(node) => format!("{} was evicted", who(node)),
        What::MemberDown(node) => format!("{} does not answer any more", who(node)),
        What::MemberUp(node) => format!("{} is heard again", who(node)),
        What::ExitChanged { exit, alias } => {
            let by = exit.via.map(|node| who(&Who { node, alias: alias.clone() }));
            exit.fate(by.as_deref())
        }
        What::HookFailed { hook, problem } => format!("the hook {hook} failed: {problem}"),
        What::Missed { events } => format!("{events} events were missed"),
        What::Unknown => "an event that this client does not know; update it".to_owned(),
    }
}

fn who(who: &Who) -> String {
    match &who.alias {
        Some(alias) => format!("{alias} ({})", who.node.short()),
        None => who.node.short(),
    }
}

#[cfg(test)]
mod tests {
    use selvedge_api::mesh::{Exit, NoExit};
    use selvedge_model::{MeshId, NodeId};

    use super::*;

    #[test]
    fn events_are_lines() {
        let who = Who { node: NodeId([1; 32]), alias: Some("gw1".to_owned()) };
        let event = Event {
            at_ms: 0,
            mesh: Some(MeshId([1; 20])),
            name: Some("campus".to_owned()),
            what: What::MemberDown(who),
        };
        let expected = "1970-01-01 00:00:00.000  campus  gw1 (aeaqcaibae) does not answer any more";
        assert_eq!(told(&event), expected);
        let json = serde_json::to_string(&event).expect("JSON");
        assert!(json.contains("\"event\":\"member-down\",\"node\":\"aeaqcaibae"), "{json}");
        assert_eq!(serde_json::from_str::<Event>(&json).expect("an event"), event);
        let destination = "::/0".parse().expect("a prefix");
        let exit = Exit { destination, via: None, reason: Some(NoExit::Down), dropped: true };
        let what = What::ExitChanged { exit, alias: None };
        let sent = serde_json::to_value(Event { what: what.clone(), ..event }).expect("JSON");
        assert_eq!((&sent["event"], &sent["reason"]), (&json!("exit-changed"), &json!("down")));
        let event: Event = serde_json::from_value(sent).expect("an event");
        assert_eq!(event.what, what);
        let expected = "no exit to ::/0: who offers it is down; packets are dropped";
        assert!(told(&event).ends_with(expected), "{}", told(&event));
        let newer: Event =
            serde_json::from_str(r#"{"at_ms":1,"event":"sings","song":"x"}"#).expect("an event");
        assert_eq!(newer.what, What::Unknown);
    }
}
