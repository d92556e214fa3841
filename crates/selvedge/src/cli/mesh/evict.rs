//! `mesh evict`: nobody is put out by a slip of the hand.

use std::io::{BufRead, IsTerminal};

use anyhow::{Context, bail};
use selvedge_api::Client;
use selvedge_api::mesh::{Evicted, Mesh};

use crate::cli::output::{print, progress};

/// Says who goes, asks unless `yes`, and does it.
pub(super) async fn run(
    client: &Client,
    json: bool,
    mesh: &str,
    member: &str,
    yes: bool,
) -> anyhow::Result<()> {
    let known = client.mesh(mesh).await?;
    if !yes {
        // The agent knows whom the name means, and whether this node may.
        confirm(&known, &client.eviction(mesh, member).await?)?;
    }
    print(json, &client.evict(mesh, member).await?, |gone| evicted(&known, gone))
}

fn confirm(mesh: &Mesh, who: &Evicted) -> anyhow::Result<()> {
    progress(&warning(mesh, who));
    if !std::io::stdin().is_terminal() {
        bail!("nothing was done: say --yes to evict without being asked");
    }
    progress("type yes to go on:");
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer).context("cannot read the answer")?;
    if answer.trim() != "yes" {
        bail!("nothing was done");
    }
    Ok(())
}

/// What will happen.
fn warning(mesh: &Mesh, who: &Evicted) -> String {
    let (node, others) = named(mesh, who);
    let head = format!(
        "{node} will be put out of mesh {} for good: it comes back only with a new invite",
        mesh.name
    );
    match others.is_empty() {
        true => head,
        false => format!("{head}\nwith it go those whom it admitted: {}", others.join(", ")),
    }
}

fn evicted(mesh: &Mesh, gone: &Evicted) -> String {
    let (node, others) = named(mesh, gone);
    let with = match others.is_empty() {
        true => String::new(),
        false => format!(", and with it {}", others.join(", ")),
    };
    format!(
        "evicted {node} from mesh {}{with}\ninvites that are still valid admit whoever holds them",
        mesh.name
    )
}

/// What the node is called, and those who go with it.
fn named(mesh: &Mesh, evicted: &Evicted) -> (String, Vec<String>) {
    let name = |node| {
        let member = mesh.members.iter().find(|member| member.node == node);
        member.map_or_else(|| node.short(), |member| member.name.clone())
    };
    let others = evicted.gone.iter().filter(|gone| **gone != evicted.node);
    (name(evicted.node), others.map(|gone| name(*gone)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mesh_plane::query::tests::mesh;

    #[test]
    fn those_who_go_with_it_are_named() {
        let mesh = mesh();
        let [_, inviter, guest] = [0, 1, 2].map(|rank| mesh.members[rank].node);
        let who = |gone: &[_]| Evicted { mesh: mesh.id, node: inviter, gone: gone.to_vec() };
        let told = warning(&mesh, &who(&[inviter, guest]));
        assert!(told.starts_with("gw2 will be put out of mesh campus for good"), "{told}");
        assert!(told.ends_with("with it go those whom it admitted: calm-otter-0001"), "{told}");
        assert!(!warning(&mesh, &who(&[inviter])).contains("with it go"));
        let told = evicted(&mesh, &who(&[inviter, guest]));
        assert!(told.starts_with("evicted gw2 from mesh campus, and with it calm-otter-0001\n"));
    }
}
