//! What every store must do, run against real SQLite files, a file of tests for each kind of row. A store on another
//! database joins by a constructor in `common`.

mod builds;
mod common;
mod credentials;
mod fences;
mod machines;
mod meta;
mod moves;
mod orgs;
mod quotas;
mod snapshots;
mod tenants;
mod tokens;
mod volumes;
