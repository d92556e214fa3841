//! No file panics, and a state that is read is written again the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use selvedge_mesh::State;

fuzz_target!(|data: &[u8]| {
    // Behind its checksum too, which a fuzzer would not find.
    for framed in [data.to_vec(), State::frame(data)] {
        if let Ok(state) = State::decode(&framed) {
            assert_eq!(State::decode(&state.encode()), Ok(state));
        }
    }
});
