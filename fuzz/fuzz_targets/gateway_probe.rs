//! No datagram panics, none opens that was not sealed, and a message that is read is written again
//! the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use selvedge_gateway::wire::{self, PairKey};

fuzz_target!(|data: &[u8]| {
    let key = PairKey::derive(&[1; 32], &[2; 32], &[3; 32]);
    assert!(wire::open(data, |_| Some(&key)).is_err());
    // Behind a right seal too, which a fuzzer would not find.
    if let Ok(message) = wire::decode(data) {
        let from = "gw1".parse().expect("a name");
        let datagram = wire::seal(&message, &from, &key).expect("no longer than what was read");
        assert_eq!(wire::open(&datagram, |_| Some(&key)), Ok((from, message)));
    }
});
