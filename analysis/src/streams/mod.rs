//! Streams: what encoders say of themselves while they run, and what servers say of them.
//!
//! [`receive`] takes ffmpeg's reports from the network, [`book`] keeps what each stream delivered, [`names`] finds out
//! whose reports come without a name, [`page`] makes port 9506, [`record`] keeps a line of each job that ended, and [`nginx`] makes port 9728.

pub mod book;
pub mod names;
pub mod nginx;
pub mod page;
pub mod receive;
pub mod record;
pub mod watch;
