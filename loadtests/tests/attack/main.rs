//! What a hostile tenant tries against a running farm, from its own place: its tokens, and root of its own builder. Each file
//! is one theme. An attack that once worked stays here as a test.
//!
//! Attacks are bounded in time and size, and reach nothing but the farm that the test made.

mod hostile_builder;
mod privileged;
mod quotas;
mod tenants;
