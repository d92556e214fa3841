//! What this node says of itself, one thing at a time.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use selvedge_model::{NodeId, Prefix};

use super::{Mesh, MeshError};
use crate::journal::Input;
use crate::overlay::View;
use crate::profile::{Bridged, NamedEndpoint, Profile};
use crate::state::WriteError;

impl Mesh {
    /// What this node says about itself.
    #[must_use]
    pub fn profile(&self) -> Profile {
        self.own().profile
    }

    /// Says something else about this node. Says whether that was a change.
    ///
    /// # Errors
    /// If it is out of bounds, or the node has left.
    pub fn set_profile(&mut self, profile: Profile) -> Result<bool, MeshError> {
        self.note_input(&Input::Profile(&profile));
        self.publish_profile(|own| *own = profile)
    }

    fn publish_profile(&mut self, edit: impl FnOnce(&mut Profile)) -> Result<bool, MeshError> {
        let mut profile = self.profile();
        edit(&mut profile);
        if self.is_out() {
            return Err(WriteError::NotAMember(self.node()).into());
        }
        if self.profile() == profile {
            return Ok(false);
        }
        self.publish(super::Own { profile, ..self.own() }, self.now)?;
        Ok(true)
    }

    /// Changes a part of what this node says about itself. Says whether that was a change; several
    /// changes at once are one record.
    ///
    /// # Errors
    /// As [`Mesh::set_profile`].
    pub fn edit_profile(&mut self, edit: impl FnOnce(&mut Profile)) -> Result<bool, MeshError> {
        let mut profile = self.profile();
        edit(&mut profile);
        self.set_profile(profile)
    }

    /// Gives this node another name; an empty one takes it away.
    ///
    /// # Errors
    /// As [`Mesh::set_profile`].
    pub fn set_alias(&mut self, alias: String) -> Result<bool, MeshError> {
        self.edit_profile(|profile| profile.alias = alias)
    }

    /// Gives this node another description; an empty one takes it away.
    ///
    /// # Errors
    /// As [`Mesh::set_profile`].
    pub fn set_description(&mut self, description: String) -> Result<bool, MeshError> {
        self.edit_profile(|profile| profile.description = description)
    }

    /// Offers just these services.
    ///
    /// # Errors
    /// As [`Mesh::set_profile`].
    pub fn set_services(&mut self, services: BTreeMap<String, String>) -> Result<bool, MeshError> {
        self.edit_profile(|profile| profile.services = services)
    }

    /// Offers a service, or the same with another value.
    ///
    /// # Errors
    /// As [`Mesh::set_profile`].
    pub fn set_service(&mut self, key: String, value: String) -> Result<bool, MeshError> {
        self.edit_profile(|profile| drop(profile.services.insert(key, value)))
    }

    /// Offers a service no more. Says whether it was offered.
    ///
    /// # Errors
    /// As [`Mesh::set_profile`].
    pub fn remove_service(&mut self, key: &str) -> Result<bool, MeshError> {
        self.edit_profile(|profile| drop(profile.services.remove(key)))
    }

    /// Announces that just these prefixes are behind this node. Others heed only what its
    /// certificate allows: see [`crate::Member::may_announce`].
    ///
    /// # Errors
    /// As [`Mesh::set_profile`].
    pub fn set_routes(&mut self, routes: Vec<Prefix>) -> Result<bool, MeshError> {
        self.edit_profile(|profile| profile.routes = routes)
    }

    /// Announces just these routes through other meshes.
    ///
    /// # Errors
    /// As [`Mesh::set_profile`].
    pub fn set_bridged(&mut self, bridged: Vec<Bridged>) -> Result<bool, MeshError> {
        self.edit_profile(|profile| profile.bridged = bridged)
    }

    /// Says by what names this node is reached.
    ///
    /// # Errors
    /// As [`Mesh::set_profile`].
    pub fn set_names(&mut self, names: Vec<NamedEndpoint>) -> Result<bool, MeshError> {
        self.edit_profile(|profile| profile.names = names)
    }

    /// Claims an IPv4 address inside the mesh, or none.
    ///
    /// # Errors
    /// As [`Mesh::set_profile`].
    pub fn set_overlay_ipv4(&mut self, address: Option<Ipv4Addr>) -> Result<bool, MeshError> {
        self.edit_profile(|profile| profile.overlay_ipv4 = address)
    }

    /// Makes this node a client by its own choice, or leaves that to its certificate.
    ///
    /// # Errors
    /// As [`Mesh::set_profile`].
    pub fn set_client(&mut self, client: bool) -> Result<bool, MeshError> {
        self.edit_profile(|profile| profile.client = client)
    }

    /// Asks clients to leave this peer, or lets them come back.
    ///
    /// # Errors
    /// As [`Mesh::set_profile`].
    pub fn set_drained(&mut self, drained: bool) -> Result<bool, MeshError> {
        self.edit_profile(|profile| profile.drained = drained)
    }

    /// The peer that a client is attached to, as far as this node knows who lives; `None` for a
    /// peer, for a stranger, and if there are no peers. Drained peers serve only if there are no
    /// others, and so do those that the client does not reach: see [`crate::attach::fittest`].
    #[must_use]
    pub fn attachment(&self, client: NodeId) -> Option<NodeId> {
        let view = View {
            roster: &self.state.roster,
            lives: &self.lives,
            own: self.node(),
            wall: self.wall,
            wards: self.wards.attached(),
        };
        view.attachment(client, &view.serving())
    }

    /// The clients that are attached to this node, ascending, as of its last probe.
    pub fn wards(&self) -> impl Iterator<Item = NodeId> {
        self.wards.attached().iter().copied()
    }

    /// Lets all know which peers this client does not reach though others do, so that they find
    /// it where it is.
    pub(super) fn tell_whom_it_avoids(&mut self) {
        if !self.state.roster.is_client(self.node(), self.wall) {
            return;
        }
        let avoids: Vec<NodeId> = self.lives.own_eyes().take(Profile::MAX_AVOIDS).collect();
        // Fails when all sequence numbers are used up; then nothing can be said any more.
        drop(self.publish_profile(|profile| profile.avoids = avoids));
    }
}
