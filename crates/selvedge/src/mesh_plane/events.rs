//! What happens in the meshes, for those who watch.

use selvedge_api::mesh::{Event, What, Who};
use selvedge_mesh::{Event as CoreEvent, Mesh};
use selvedge_model::{MeshId, NodeId};

use crate::stream::{self, Told, unix_ms};

/// Where events of all meshes come from. Cheap to clone.
pub(super) type Stream = stream::Stream<Event>;

/// Somebody who watches the meshes.
pub type Subscriber = stream::Subscriber<Event>;

impl Told for Event {
    fn missed(events: u64) -> Self {
        Self { at_ms: unix_ms(), mesh: None, name: None, what: What::Missed { events } }
    }
}

/// Something that happened in a mesh just now.
pub(super) fn event(mesh: MeshId, name: &str, what: What) -> Event {
    Event { at_ms: unix_ms(), mesh: Some(mesh), name: Some(name.to_owned()), what }
}

/// An event of a mesh's core as those who watch are told of it; `None` for what concerns the
/// agent alone.
pub(super) fn what(core: &Mesh, event: &CoreEvent) -> Option<What> {
    let who = |node: &NodeId| Who {
        node: *node,
        alias: core.member(*node).map(|m| m.profile.alias).filter(|alias| !alias.is_empty()),
    };
    match event {
        CoreEvent::MemberJoined(node) => Some(What::MemberJoined(who(node))),
        CoreEvent::MemberUpdated(node) => Some(What::MemberUpdated(who(node))),
        CoreEvent::MemberLeft(node) => Some(What::MemberLeft(who(node))),
        CoreEvent::Evicted { node, .. } => Some(What::MemberEvicted(who(node))),
        CoreEvent::MemberDown(node) => Some(What::MemberDown(who(node))),
        CoreEvent::MemberUp(node) => Some(What::MemberUp(who(node))),
        CoreEvent::Called(_)
        | CoreEvent::Passing(_)
        | CoreEvent::Rejected { .. }
        | CoreEvent::StateChanged => None,
    }
}
