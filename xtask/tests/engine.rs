//! Against real engines.
