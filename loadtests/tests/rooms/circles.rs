//! No two rooms of a crate import each other, however long the way round: whoever reads one knows that what it imports can be
//! understood without it. A re-export is a face and no import: who uses the name imports what it names.

use crate::CRATES;
use crate::house::{House, Module};
use anyhow::{Result, ensure};
use slipway_loadtests::testbed::checkout_dir;
use std::collections::{BTreeMap, BTreeSet};

#[test]
fn no_rooms_import_each_other() -> Result<()> {
    let mut circles = Vec::new();
    for folder in CRATES {
        let root = checkout_dir().join(folder).join("src");
        let house = House::read(&root)?;
        ensure!(!house.files.is_empty(), "{folder} has no files");
        for circle in house.levels().values().flat_map(circles_of) {
            let rooms: Vec<String> = circle.iter().map(|room| room.join("::")).collect();
            let circle = format!("{folder}: {}", rooms.join(", "));
            circles.push(circle);
        }
    }
    ensure!(
        circles.is_empty(),
        "circles of imports:\n{}",
        circles.join("\n")
    );
    Ok(())
}

/// Groups of files of which each reaches each, of two or more.
fn circles_of(imports: &BTreeMap<Module, BTreeSet<Module>>) -> Vec<Vec<Module>> {
    let reached = |from: &Module| {
        let mut seen = BTreeSet::new();
        let mut next = vec![from.clone()];
        while let Some(at) = next.pop() {
            for other in imports.get(&at).into_iter().flatten() {
                if seen.insert(other.clone()) {
                    next.push(other.clone());
                }
            }
        }
        seen
    };
    let reach: BTreeMap<&Module, BTreeSet<Module>> = imports
        .keys()
        .map(|module| (module, reached(module)))
        .collect();
    let mut done = BTreeSet::new();
    let mut circles = Vec::new();
    for (module, others) in &reach {
        if done.contains(*module) || !others.contains(*module) {
            continue;
        }
        let circle: Vec<Module> = others
            .iter()
            .filter(|other| reach.get(other).is_some_and(|back| back.contains(*module)))
            .cloned()
            .collect();
        done.extend(circle.iter().cloned());
        circles.push(circle);
    }
    circles
}

/// A house of three files: a face is no import, a way round is found.
#[test]
fn a_circle_is_found_and_a_face_is_none() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text);
    write("lib.rs", "mod a; mod b; mod c; pub use a::A;")?;
    write("a.rs", "use crate::b::B; pub struct A(B);")?;
    write("b.rs", "pub struct B; fn f() { super::c::g() }")?;
    write("c.rs", "pub fn g() {}")?;
    let found = || -> Result<Vec<Vec<Module>>> {
        Ok(House::read(dir.path())?
            .levels()
            .values()
            .flat_map(circles_of)
            .collect())
    };
    ensure!(found()?.is_empty());
    write("c.rs", "use crate::A; pub fn g() -> A { f() }")?;
    let circles = found()?;
    ensure!(circles.len() == 1 && circles[0].len() == 3, "{circles:?}");
    Ok(())
}
