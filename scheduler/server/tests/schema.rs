//! docs/schema.graphql is what the server serves. `make schema` writes it anew.

use std::path::Path;

#[test]
fn the_committed_schema_is_the_one_that_is_served() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/schema.graphql");
    let served = slipway_scheduler::graphql::sdl();
    if std::env::var_os("SLIPWAY_WRITE_SCHEMA").is_some() {
        std::fs::write(&path, &served).unwrap();
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        committed == served,
        "docs/schema.graphql is not what is served; run `make schema`"
    );
}
