mod ask;
mod evict;
mod page;

use std::io::Read;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use selvedge_api::Client;
use selvedge_api::mesh::{CreateRequest, Invite, InviteRequest, JoinRequest, Mesh, Role};

use selvedge_model::Prefix;

use super::ClientArgs;
use super::findings;
use super::output::{duration, print, seconds, spinner};
use page::{list, names, show, tunnels};

#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  selvedge mesh create campus            on the first host
  selvedge mesh invite --uses 5          there too; prints a token
  selvedge mesh join svm1...             on each other host
  selvedge mesh show
  selvedge mesh evict lab beta           it comes back with a new invite only
  selvedge mesh query \"[?type=='client'].{name: name, via: via}\"
  selvedge mesh graph | dot -Tsvg > meshes.svg
  selvedge mesh watch                    what happens, as it happens
  selvedge mesh doctor                   what is wrong, and what to do")]
pub(super) struct MeshArgs {
    #[command(flatten)]
    client: ClientArgs,
    #[command(subcommand)]
    command: MeshCommand,
}

#[derive(Debug, Subcommand)]
enum MeshCommand {
    /// Found a mesh; this node is its first member
    Create {
        /// What people call the mesh
        name: String,
        #[command(flatten)]
        about: About,
    },
    /// Print a token with which others join
    Invite {
        /// Name or id of the mesh; not needed if there is only one
        mesh: Option<String>,
        /// How many nodes may join with the token
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
        uses: u32,
        /// How long the token is valid, such as 30m, 24h, 7d
        #[arg(long, value_name = "TIME", default_value = "24h", value_parser = duration)]
        expires: Duration,
        /// What those who join will be
        #[arg(long, default_value_t)]
        role: Role,
        /// Prefixes that those who join may announce: networks behind them, other meshes
        #[arg(long, value_name = "PREFIX", num_args = 1.., value_delimiter = ',')]
        allow: Vec<Prefix>,
        /// Those who join may invite others, and evict those again; on the founder only
        #[arg(long)]
        may_invite: bool,
        /// How many each of those may admit [default: 256]
        #[arg(long, value_name = "NUMBER", requires = "may_invite")]
        guests: Option<u32>,
    },
    /// Put a member out for good, and with it those whom it admitted
    Evict {
        /// Name or id of the mesh
        mesh: String,
        /// The member: its name, its id, or the unique beginning of its id
        member: String,
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
    },
    /// Join a mesh with a token that a member made
    Join {
        /// The token; - reads it from standard input, where no other user sees it
        token: String,
        /// What this node is to be [default: what the token says]
        #[arg(long)]
        role: Option<Role>,
        #[command(flatten)]
        about: About,
    },
    /// Leave a mesh and remove its interface
    Leave {
        /// Name or id of the mesh
        mesh: String,
    },
    /// List the meshes of this node
    List,
    /// Show a mesh and its members
    Show {
        /// Name or id of the mesh; not needed if there is only one
        mesh: Option<String>,
    },
    /// Ask about the members of a mesh in JMESPath (docs/mesh-query.md); prints JSON
    Query {
        /// The expression, such as "[?state=='down'].name"
        expression: String,
        /// Name or id of the mesh; not needed if there is only one
        #[arg(long)]
        mesh: Option<String>,
    },
    /// Draw all meshes: a graph in the language of Graphviz
    Graph {
        /// Write it into this file
        #[arg(long, short, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// Show what happens in all meshes, as it happens
    Watch,
    /// Look at this node's meshes, and say what is wrong and what to do, the gravest first
    ///
    /// Whether the members' agents are heard and WireGuard reaches them, with the largest packets
    /// too; clocks, forwarding, firewall, names. Changes nothing.
    Doctor {
        /// Name or id of a mesh [default: all]
        mesh: Option<String>,
    },
    /// Show where names of members are answered, and how this host comes to ask there
    Names,
    /// Show the overlay networks that this host carries over a mesh
    Tunnels,
}

#[derive(Args, Debug)]
struct About {
    /// What this node calls itself in the mesh [default: the agent's name]
    #[arg(long)]
    alias: Option<String>,
    /// A word on this node
    #[arg(long)]
    description: Option<String>,
    /// UDP port of WireGuard [default: what is configured, or one that is free]
    #[arg(long)]
    port: Option<u16>,
}

pub(super) async fn run(args: MeshArgs) -> anyhow::Result<()> {
    let client = args.client.client()?;
    let json = args.client.json;
    match args.command {
        MeshCommand::Create { name, about: About { alias, description, port } } => {
            let request = CreateRequest { name, alias, description, port };
            print(json, &client.create_mesh(&request).await?, created)
        }
        MeshCommand::Invite { mesh, uses, expires, role, allow, may_invite, guests } => {
            let mesh = choose(&client, mesh).await?;
            let expires_s = expires.as_secs();
            let request = InviteRequest { uses, expires_s, role, allow, may_invite, guests };
            print(json, &client.invite(&mesh, &request).await?, invited)
        }
        MeshCommand::Join { token, role, about: About { alias, description, port } } => {
            join(&client, json, JoinRequest { token, alias, description, role, port }).await
        }
        MeshCommand::Leave { mesh } => {
            let left = client.leave_mesh(&mesh).await?;
            print(json, &left, |left| format!("left mesh {} ({})", left.name, left.id))
        }
        MeshCommand::Evict { mesh, member, yes } => {
            evict::run(&client, json, &mesh, &member, yes).await
        }
        MeshCommand::List => print(json, &client.meshes().await?, |meshes| list(meshes)),
        MeshCommand::Show { mesh } => {
            let mesh = choose(&client, mesh).await?;
            print(json, &client.mesh(&mesh).await?, show)
        }
        MeshCommand::Query { expression, mesh } => {
            let mesh = choose(&client, mesh).await?;
            ask::query(&client, &mesh, &expression, json).await
        }
        MeshCommand::Graph { output } => ask::graph(&client, output.as_deref(), json).await,
        MeshCommand::Watch => ask::watch(&client, json).await,
        MeshCommand::Doctor { mesh } => {
            let findings = client.doctor(mesh.as_deref()).await?;
            print(json, &findings, |findings| findings::in_order(findings))?;
            findings::verdict(&findings)
        }
        MeshCommand::Names => print(json, &client.dns().await?, names),
        MeshCommand::Tunnels => print(json, &client.tunnels().await?, tunnels),
    }
}

async fn join(client: &Client, json: bool, request: JoinRequest) -> anyhow::Result<()> {
    let token = match request.token.as_str() {
        "-" => {
            let mut text = String::new();
            std::io::stdin()
                .take(64 * 1024)
                .read_to_string(&mut text)
                .context("cannot read the token from standard input")?;
            text.trim().to_owned()
        }
        given => given.to_owned(),
    };
    let bar = spinner().with_message("joining");
    let joined = client.join_mesh(&JoinRequest { token, ..request }).await;
    bar.finish_and_clear();
    print(json, &joined?, |mesh| {
        let others = mesh.members.len().saturating_sub(1);
        format!("joined mesh {} ({}) with {others} others\n{}", mesh.name, mesh.id, own(mesh))
    })
}

/// The mesh that is meant if none is named: the only one.
pub(super) async fn choose(client: &Client, mesh: Option<String>) -> anyhow::Result<String> {
    if let Some(mesh) = mesh {
        return Ok(mesh);
    }
    let meshes = client.meshes().await?;
    match meshes.as_slice() {
        [] => bail!("this node is in no mesh; create or join one first"),
        [only] => Ok(only.id.to_string()),
        several => {
            let names: Vec<_> = several.iter().map(|mesh| mesh.name.as_str()).collect();
            bail!("this node is in several meshes; name one of {}", names.join(", "))
        }
    }
}

fn created(mesh: &Mesh) -> String {
    format!("created mesh {} ({})\n{}", mesh.name, mesh.id, own(mesh))
}

fn own(mesh: &Mesh) -> String {
    format!("this node is {} on interface {}", mesh.address, mesh.interface)
}

/// The token alone on standard output, so that it can be piped; the rest is for people.
fn invited(invite: &Invite) -> String {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let left = seconds(invite.expires.saturating_sub(now.as_secs()));
    let uses = invite.uses;
    super::output::progress(&format!("valid for {left} and {uses} uses; who has it may join:"));
    invite.token.clone()
}
