//! Live streams: progress reports of ffmpeg (port 9506) and statistics of nginx-rtmp (port 9728).
//!
//! [`receive`] reads the reports, [`table`] keeps the totals of each stream, [`names`] resolves the
//! stream names of reports without one, [`job_log`] writes a line per ended job, [`page`] and
//! [`nginx`] define the metrics, [`nginx_workers`] adds up the pages of nginx's workers, and
//! [`updater`] has the threads that keep both pages up to date.

pub mod job_log;
pub mod names;
pub mod nginx;
pub mod nginx_workers;
pub mod page;
pub mod receive;
pub mod table;
pub mod updater;
