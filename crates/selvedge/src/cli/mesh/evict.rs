//! `mesh evict`: nobody is put out by a slip of the hand.

use std::io::{BufRead, IsTerminal};

use anyhow::{Context, bail};
use selvedge_api::Client;
use selvedge_api::mesh::{Evicted, Member, Mesh};

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
        confirm(&known, member)?;
    }
    print(json, &client.evict(mesh, member).await?, |gone| evicted(&known, gone))
}

fn confirm(mesh: &Mesh, member: &str) -> anyhow::Result<()> {
    progress(&warning(mesh, member));
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
fn warning(mesh: &Mesh, selector: &str) -> String {
    let meant = |member: &&Member| {
        let id = member.node.to_string();
        member.name == selector
            || member.alias.as_deref() == Some(selector)
            || id.starts_with(selector)
    };
    let head = format!(
        "{selector} will be put out of mesh {} for good: it comes back only with a new invite",
        mesh.name
    );
    let Some(member) = mesh.members.iter().find(meant) else { return head };
    let guests = mesh.members.iter().filter(|other| other.admission.by == Some(member.node));
    let guests: Vec<_> = guests.map(|guest| guest.name.as_str()).collect();
    match guests.as_slice() {
        [] => head,
        _ => format!("{head}\nwith it go those whom it admitted: {}", guests.join(", ")),
    }
}

fn evicted(mesh: &Mesh, evicted: &Evicted) -> String {
    let name = |node| {
        let member = mesh.members.iter().find(|member| member.node == node);
        member.map_or_else(|| node.short(), |member| member.name.clone())
    };
    let node = name(evicted.node);
    let others = evicted.gone.iter().filter(|gone| **gone != evicted.node);
    let others: Vec<_> = others.map(|gone| name(*gone)).collect();
    let with = match others.is_empty() {
        true => String::new(),
        false => format!(", and with it {}", others.join(", ")),
    };
    format!(
        "evicted {node} from mesh {}{with}\ninvites that are still valid admit whoever holds them",
        mesh.name
    )
}

#[cfg(test)]
mod tests {
    use selvedge_api::mesh::Admission;

    use super::*;
    use crate::mesh_plane::query::tests::mesh;

    #[test]
    fn those_who_go_with_it_are_named() {
        let mut mesh = mesh();
        let inviter = mesh.members[1].node;
        mesh.members[2].admission = Admission { by: Some(inviter), ..Admission::default() };
        let told = warning(&mesh, "gw2");
        assert!(told.ends_with("with it go those whom it admitted: calm-otter-0001"), "{told}");
        assert!(!warning(&mesh, "gw1").contains("with it go"));
        assert!(!warning(&mesh, "nobody").contains("with it go"));
        let gone = vec![inviter, mesh.members[2].node];
        let told = evicted(&mesh, &Evicted { mesh: mesh.id, node: inviter, gone });
        assert!(told.starts_with("evicted gw2 from mesh campus, and with it calm-otter-0001\n"));
    }
}
