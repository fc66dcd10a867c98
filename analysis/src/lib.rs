//! The unprivileged service: turns runs into results.
