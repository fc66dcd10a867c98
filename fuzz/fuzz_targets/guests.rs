//! What guests and their host exchange: the file of tokens, QEMU's command line, and the answer of
//! the host. A token that is not in the file belongs to no guest.
#![no_main]

use probe_user::{
    endpoints::guests::{guest_cid, guest_of, parse_tokens},
    parsers::host_answer,
};

libfuzzer_sys::fuzz_target!(|input: (&str, &[u8], &[u8], u32)| {
    let (tokens, presented, bytes, cid) = input;
    if let Ok(tokens) = parse_tokens(tokens) {
        assert!(guest_of(&tokens, presented).is_none_or(|name| tokens.iter().any(|token| token.name == name)));
    }
    let _ = guest_cid(bytes);
    assert_eq!(guest_cid(format!("qemu\0-device\0vhost-vsock-pci,guest-cid={cid}\0").as_bytes()), Some(cid));
    if let Some(answer) = host_answer(bytes) {
        assert!(!answer.epoch.is_empty() && answer.tick_seconds > 0.0);
    }
});
