//! Whatever arrives from whomever, a mesh does not panic, and takes over nothing that its owner
//! did not sign: a founder that is alone stays alone.
#![no_main]

use libfuzzer_sys::fuzz_target;
use selvedge_mesh::wire::Envelope;
use selvedge_mesh::{Config, Identity, Mesh, Profile, State, UnixTime};
use selvedge_model::{NodeId, Time, WgKey};

const WALL: UnixTime = UnixTime(1_795_000_000);

fuzz_target!(|data: &[u8]| {
    if let Ok(envelope) = Envelope::decode(data) {
        assert_eq!(Envelope::decode(&envelope.encode()), Ok(envelope));
    }
    let identity = Identity::from_secret(&[1; 32]);
    let state = State::found(&identity, "fuzz", [2; 16], WgKey([3; 32]), Profile::default())
        .expect("in bounds");
    let mesh = state.mesh();
    let mut mesh_core =
        Mesh::new(identity, state, Config::default(), 1, Time::ZERO, WALL).expect("its own state");
    mesh_core.handle_message(NodeId([4; 32]), data, Time::ZERO, WALL);
    // The same again, behind a header that lets it through.
    let framed = [&[0x84, 0x02, 0x54][..], mesh.as_bytes(), data].concat();
    mesh_core.handle_message(NodeId([4; 32]), &framed, Time::ZERO, WALL);
    assert_eq!(mesh_core.members().count(), 1);
    assert_eq!(mesh_core.evictions().count(), 0);
});
