//! The HTML pages of the service for people: overview, results, quality, cost, streams, health and
//! runbooks. They use no script, and no style except the shared style sheet.
//!
//! [`view`] is what the loader publishes for them. [`frame`] is the document around each page with
//! the navigation, [`tables`] and [`plot`] draw data. [`overview`], [`results`], [`quality`],
//! [`budgets`], [`comparison`] and [`runbooks`] are the contents, and [`site`] serves them.

pub mod budgets;
pub mod comparison;
pub mod frame;
pub mod overview;
pub mod plot;
pub mod quality;
pub mod results;
pub mod runbooks;
pub mod site;
pub mod tables;
pub mod view;
