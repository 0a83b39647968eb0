//! docs/schema.graphql is the schema. `SLIPWAY_UPDATE=1` writes it anew.

use std::path::Path;

#[test]
fn the_committed_schema_is_the_one_that_is_served() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/schema.graphql");
    let served = slipway_scheduler::sdl();
    if std::env::var_os("SLIPWAY_UPDATE").is_some() {
        std::fs::write(&path, &served).expect("docs can be written");
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        committed == served,
        "{} is out of date; run `SLIPWAY_UPDATE=1 cargo test -p slipway-scheduler --test schema`",
        path.display()
    );
}
