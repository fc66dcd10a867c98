//! A post of an Alertmanager: any bytes are alerts or a reason, and never more are kept than there is room for.
#![no_main]

use analysis::health::notices::Book;
use jiff::Timestamp;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let mut book = Book::default();
    let _ = book.take(bytes, Timestamp::UNIX_EPOCH);
    let _ = book.take(bytes, Timestamp::UNIX_EPOCH);
});
