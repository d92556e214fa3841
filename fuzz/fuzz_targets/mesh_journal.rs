//! A log of a mesh core that is cut or damaged replays to something, or says what is wrong with it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use selvedge_mesh::{Config, Identity, Mesh, Profile, State, UnixTime, journal};
use selvedge_model::{Time, WgKey};

fuzz_target!(|data: &[u8]| {
    let _ = journal::replay(data);
    // The same again, behind a beginning that is right.
    let identity = Identity::from_secret(&[1; 32]);
    let state = State::found(&identity, "fuzz", [2; 16], WgKey([3; 32]), Profile::default())
        .expect("in bounds");
    let wall = UnixTime(1_795_000_000);
    let mut mesh = Mesh::recorded(identity, state, Config::default(), 1, Time::ZERO, wall)
        .expect("its own state");
    let log = mesh.poll_journal().expect("it says how it began");
    let _ = journal::replay(&[&log, data].concat());
});
