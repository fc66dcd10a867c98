//! Searches as pure decisions: [`energy`] says which encode is measured next and when the least
//! energy is known, [`report`] is what it found. The runner measures.

pub mod energy;
pub mod report;
