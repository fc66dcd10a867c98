//! Webhook requests of Alertmanager: any bytes are alerts or an error, and the number of stored
//! alerts is limited.
#![no_main]

use analysis::health::alertmanager::AlertLog;
use jiff::Timestamp;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let mut log = AlertLog::default();
    let _ = log.receive(bytes, Timestamp::UNIX_EPOCH);
    let _ = log.receive(bytes, Timestamp::UNIX_EPOCH);
});
