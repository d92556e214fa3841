//! No text panics, and a token that is read is written again the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use selvedge_mesh::{Invite, Signed};

fuzz_target!(|text: &str| {
    if let Ok(invite) = Signed::<Invite>::from_token(text) {
        assert_eq!(Signed::<Invite>::from_token(&invite.to_token()), Ok(invite));
    }
});
