//! What both programs share as exporters.
//!
//! [`family`] defines a metric once: name, type, labels, help; pages and documentation come from that definition.
//! [`label`] bounds what comes from outside,
//! [`page`] renders families to bytes, [`server`] hands the bytes out, [`landing`] is the page for people, [`process`]
//! measures ourselves, [`docs`] makes the tables of the documentation, [`program`] holds the habits of the command line, [`progress`] reads what ffmpeg
//! says of itself.

mod connections;
pub mod docs;
pub mod family;
pub mod label;
pub mod landing;
pub mod listen;
pub mod page;
pub mod process;
pub mod program;
pub mod progress;
pub mod server;
pub mod units;
