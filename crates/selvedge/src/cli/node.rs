use std::collections::BTreeMap;

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use selvedge_api::mesh::{EditRequest, Member, Mesh, Role};

use super::ClientArgs;
use super::mesh::choose;
use super::output::{or_dash, print, table, yes};

#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  selvedge node set --alias gw1 --description \"rack 4\"
  selvedge node set --alias web --shared true     several hosts under one name
  selvedge node show")]
pub(super) struct NodeArgs {
    #[command(flatten)]
    client: ClientArgs,
    /// Name or id of the mesh; not needed if there is only one
    #[arg(long, global = true)]
    mesh: Option<String>,
    #[command(subcommand)]
    command: NodeCommand,
}

#[derive(Debug, Subcommand)]
enum NodeCommand {
    /// Say what this node is called in a mesh, and what it is
    Set {
        /// What this node calls itself; an empty text takes the name away
        #[arg(long)]
        alias: Option<String>,
        /// Share the alias with other nodes on purpose: the name means all of them
        #[arg(long, value_name = "true|false")]
        shared: Option<bool>,
        /// A word on this node; an empty text takes it away
        #[arg(long)]
        description: Option<String>,
        /// What it is to be: peer or client
        #[arg(long)]
        role: Option<Role>,
        /// Have its clients leave it, because it is about to go
        #[arg(long, value_name = "true|false")]
        drained: Option<bool>,
    },
    /// Show what this node says of itself
    Show,
}

#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  selvedge service set web 443                 found as _web._tcp.MESH.DOMAIN, too
  selvedge service set dns 53/udp
  selvedge service set db \"5432/tcp role=primary\"
  selvedge service delete web")]
pub(super) struct ServiceArgs {
    #[command(flatten)]
    client: ClientArgs,
    /// Name or id of the mesh; not needed if there is only one
    #[arg(long, global = true)]
    mesh: Option<String>,
    #[command(subcommand)]
    command: ServiceCommand,
}

#[derive(Debug, Subcommand)]
enum ServiceCommand {
    /// Offer a service to the mesh, or the same with another value
    Set {
        /// Its name
        key: String,
        /// What others are to know: a port, PORT/tcp, PORT/udp, or any text
        value: String,
    },
    /// Offer a service no more
    Delete {
        /// Its name
        key: String,
    },
}

pub(super) async fn run(args: NodeArgs) -> anyhow::Result<()> {
    let client = args.client.client()?;
    let mesh = choose(&client, args.mesh).await?;
    let shown = match args.command {
        NodeCommand::Show => client.mesh(&mesh).await?,
        NodeCommand::Set { alias, shared, description, role, drained } => {
            let services = BTreeMap::new();
            let request = EditRequest { alias, shared, description, role, drained, services };
            if request == EditRequest::default() {
                bail!("nothing to set: give --alias, --shared, --description, --role or --drained")
            }
            client.edit_node(&mesh, &request).await?
        }
    };
    print(args.client.json, own(&shown)?, |member| show(&shown, member))
}

pub(super) async fn run_service(args: ServiceArgs) -> anyhow::Result<()> {
    let client = args.client.client()?;
    let mesh = choose(&client, args.mesh).await?;
    let change = match args.command {
        ServiceCommand::Set { key, value } => (key, Some(value)),
        ServiceCommand::Delete { key } => {
            let known = client.mesh(&mesh).await?;
            if !own(&known)?.services.contains_key(&key) {
                bail!("this node offers no service {key:?} in {}", known.name);
            }
            (key, None)
        }
    };
    let request = EditRequest { services: BTreeMap::from([change]), ..EditRequest::default() };
    let shown = client.edit_node(&mesh, &request).await?;
    print(args.client.json, own(&shown)?, |member| show(&shown, member))
}

fn own(mesh: &Mesh) -> anyhow::Result<&Member> {
    let own = mesh.members.iter().find(|member| member.own);
    own.context("the agent does not know itself; look at its log")
}

fn show(mesh: &Mesh, member: &Member) -> String {
    let row = |(key, value): (&str, String)| vec![key.to_owned(), value];
    let facts = [
        ("mesh", mesh.name.clone()),
        ("node", member.node.to_string()),
        ("name", member.name.clone()),
        ("alias", or_dash(member.alias.as_deref())),
        ("shared name", or_dash(member.group.as_deref())),
        ("description", or_dash(member.description.as_deref())),
        ("role", member.role.to_string()),
        ("drained", yes(member.drained)),
        ("address", member.address.to_string()),
        ("ipv4", or_dash(member.ipv4)),
    ];
    let services = member.services.iter().map(|(key, value)| vec![key.clone(), value.clone()]);
    let facts = table(&["", ""], facts.into_iter().map(row));
    match member.services.is_empty() {
        true => facts,
        false => format!("{facts}\n\n{}", table(&["SERVICE", "VALUE"], services)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mesh_plane::query::tests::{member, mesh};

    #[test]
    fn a_node_is_shown_with_what_it_has_said() {
        let address = Some([100, 64, 0, 7].into());
        let node = Member { drained: true, ipv4: address, ..member(1, "gw1") };
        let shown = show(&mesh(), &node);
        let says = |key, value| {
            let line = shown.lines().find(|line| line.starts_with(key));
            assert!(line.is_some_and(|line| line.ends_with(value)), "{key} {value}:\n{shown}");
        };
        says("drained", "  yes");
        says("ipv4", "  100.64.0.7");
        assert!(show(&mesh(), &member(1, "gw1")).contains("drained      no"));
    }
}
