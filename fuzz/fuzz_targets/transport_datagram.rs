//! Sealed datagrams as they come from anybody: whatever is taken apart is put together the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use selvedge_transport::frame::{Frame, MAX_FRAME};

fuzz_target!(|bytes: &[u8]| {
    if let Ok(frame) = Frame::parse(bytes) {
        assert!(bytes.len() <= MAX_FRAME);
        assert_eq!(frame.encode(), bytes);
    }
});
