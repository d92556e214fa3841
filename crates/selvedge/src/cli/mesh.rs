use std::io::Read;
use std::time::{Duration, SystemTime};

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use selvedge_api::Client;
use selvedge_api::mesh::{
    CreateRequest, Invite, InviteRequest, JoinRequest, Member, Mesh, Role, Summary,
};

use super::ClientArgs;
use super::output::{bytes, duration, or_dash, print, seconds, spinner, table};

#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  selvedge mesh create campus            on the first host
  selvedge mesh invite --uses 5          there too; prints a token
  selvedge mesh join svm1...             on each other host
  selvedge mesh show")]
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
    },
    /// Join a mesh with a token that a member made
    Join {
        /// The token; - reads it from standard input, where no other user sees it
        token: String,
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
}

#[derive(Args, Debug)]
struct About {
    /// What this node calls itself in the mesh [default: the agent's name]
    #[arg(long)]
    alias: Option<String>,
    /// A word on this node
    #[arg(long)]
    description: Option<String>,
}

pub(super) async fn run(args: MeshArgs) -> anyhow::Result<()> {
    let client = args.client.client()?;
    let json = args.client.json;
    match args.command {
        MeshCommand::Create { name, about: About { alias, description } } => {
            let request = CreateRequest { name, alias, description };
            print(json, &client.create_mesh(&request).await?, created)
        }
        MeshCommand::Invite { mesh, uses, expires, role } => {
            let mesh = choose(&client, mesh).await?;
            let request = InviteRequest { uses, expires_s: expires.as_secs(), role };
            print(json, &client.invite(&mesh, &request).await?, invited)
        }
        MeshCommand::Join { token, about } => join(&client, json, token, about).await,
        MeshCommand::Leave { mesh } => {
            let left = client.leave_mesh(&mesh).await?;
            print(json, &left, |left| format!("left mesh {} ({})", left.name, left.id))
        }
        MeshCommand::List => print(json, &client.meshes().await?, |meshes| list(meshes)),
        MeshCommand::Show { mesh } => {
            let mesh = choose(&client, mesh).await?;
            print(json, &client.mesh(&mesh).await?, show)
        }
    }
}

async fn join(client: &Client, json: bool, token: String, about: About) -> anyhow::Result<()> {
    let token = match token.as_str() {
        "-" => {
            let mut text = String::new();
            std::io::stdin()
                .take(64 * 1024)
                .read_to_string(&mut text)
                .context("cannot read the token from standard input")?;
            text.trim().to_owned()
        }
        _ => token,
    };
    let About { alias, description } = about;
    let bar = spinner().with_message("joining");
    let joined = client.join_mesh(&JoinRequest { token, alias, description }).await;
    bar.finish_and_clear();
    print(json, &joined?, |mesh| {
        let others = mesh.members.len().saturating_sub(1);
        format!("joined mesh {} ({}) with {others} others\n{}", mesh.name, mesh.id, own(mesh))
    })
}

/// The mesh that is meant if none is named: the only one.
async fn choose(client: &Client, mesh: Option<String>) -> anyhow::Result<String> {
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

fn list(meshes: &[Summary]) -> String {
    let rows = meshes.iter().map(|mesh| {
        vec![
            mesh.name.clone(),
            mesh.id.to_string(),
            mesh.interface.clone(),
            mesh.address.to_string(),
            mesh.members.to_string(),
        ]
    });
    table(&["NAME", "ID", "INTERFACE", "ADDRESS", "MEMBERS"], rows)
}

fn show(mesh: &Mesh) -> String {
    let Mesh { name, id, interface, prefix, listen_port, .. } = mesh;
    let head = format!("mesh {name} ({id})\ninterface {interface}, port {listen_port}, {prefix}\n");
    let header = ["NODE", "ALIAS", "ROLE", "STATE", "ADDRESS", "ENDPOINT", "HANDSHAKE", "RX", "TX"];
    format!("{head}\n{}", table(&header, mesh.members.iter().map(member)))
}

fn member(member: &Member) -> Vec<String> {
    let state = if member.own { "self" } else { member.state.as_str() };
    let endpoint = member.endpoint.or_else(|| member.endpoints.first().copied());
    vec![
        member.node.short(),
        or_dash(member.alias.as_deref()),
        member.role.to_string(),
        state.to_owned(),
        member.address.to_string(),
        or_dash(endpoint),
        or_dash(member.handshake_age_s.map(seconds)),
        bytes(member.rx_bytes),
        bytes(member.tx_bytes),
    ]
}

#[cfg(test)]
mod tests {
    use selvedge_api::mesh::MemberState;
    use selvedge_model::{MeshId, NodeId, WgKey};

    use super::*;

    fn mesh() -> Mesh {
        let me = Member {
            node: NodeId([1; 32]),
            own: true,
            alias: Some("gw1".to_owned()),
            description: None,
            role: Role::Peer,
            address: "fd00::1".parse().expect("valid"),
            wg_key: WgKey([2; 32]),
            endpoints: vec!["192.0.2.1:51820".parse().expect("valid")],
            endpoint: None,
            state: MemberState::Alive,
            allowed_ips: vec![],
            keepalive_s: None,
            handshake_age_s: None,
            rx_bytes: 0,
            tx_bytes: 0,
        };
        let other = Member {
            node: NodeId([7; 32]),
            own: false,
            alias: None,
            address: "fd00::2".parse().expect("valid"),
            endpoint: Some("192.0.2.2:51820".parse().expect("valid")),
            state: MemberState::Unknown,
            handshake_age_s: Some(75),
            rx_bytes: 1_572_864,
            tx_bytes: 100,
            ..me.clone()
        };
        Mesh {
            id: MeshId([9; 20]),
            name: "campus".to_owned(),
            node: me.node,
            interface: "sv-campus".to_owned(),
            address: me.address,
            prefix: "fd00::/64".parse().expect("valid"),
            listen_port: 51820,
            members: vec![me, other],
        }
    }

    #[test]
    fn a_mesh_is_shown_with_its_members() {
        let expected = "\
mesh campus (beeqscijbeeqscijbeeqscijbeeqscij)
interface sv-campus, port 51820, fd00::/64

NODE        ALIAS  ROLE  STATE    ADDRESS  ENDPOINT         HANDSHAKE  RX       TX
aeaqcaibae  gw1    peer  self     fd00::1  192.0.2.1:51820  -          0 B      0 B
a4dqobyha4  -      peer  unknown  fd00::2  192.0.2.2:51820  1m15s      1.5 MiB  100 B";
        assert_eq!(show(&mesh()), expected);
    }

    #[test]
    fn meshes_are_listed_in_a_table() {
        let Mesh { id, name, interface, address, .. } = mesh();
        let expected = "\
NAME    ID                                INTERFACE  ADDRESS  MEMBERS
campus  beeqscijbeeqscijbeeqscijbeeqscij  sv-campus  fd00::1  2";
        let summary = Summary { id, name, interface, address, members: 2 };
        assert_eq!(list(&[summary]), expected);
        assert_eq!(list(&[]), "NAME  ID  INTERFACE  ADDRESS  MEMBERS");
    }
}
