//! What the kernel tells of a WireGuard device, in messages that follow each other.
#![no_main]

use libfuzzer_sys::fuzz_target;
use selvedge_host::wireguard::Told;

fuzz_target!(|messages: Vec<Vec<u8>>| {
    let mut told = Told::default();
    let well_formed = messages.iter().all(|message| told.add(message).is_ok());
    if well_formed {
        let mut again = told.clone();
        messages.iter().for_each(|message| again.add(message).expect("it was before"));
        assert_eq!(again, told, "what is told twice is the same");
    }
});
