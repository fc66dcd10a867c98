//! Live streams: progress reports of ffmpeg (port 9506), statistics of media servers (port 9728).
//!
//! [`receive`] reads the reports, [`table`] keeps the totals of each stream, [`names`] resolves the
//! stream names of reports without one, [`job_log`] writes a line per ended job, [`headroom`]
//! forecasts how many more streams the host carries, [`page`] and [`nginx`] define the metrics,
//! [`nginx_workers`] adds up the pages of nginx's workers, [`ingest`] has the streams of all media
//! servers and their energy, and [`updater`] and [`media_page`] have the threads that keep the
//! pages of the two ports up to date.

pub mod headroom;
pub mod ingest;
pub mod job_log;
pub mod media_page;
pub mod names;
pub mod nginx;
pub mod nginx_workers;
pub mod page;
pub mod receive;
pub mod table;
pub mod updater;
