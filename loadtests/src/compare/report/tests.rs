use super::*;
use crate::compare::case::{Bar, Sample, Unit};
use crate::compare::machine::Machine;
use crate::compare::outcome::{Standing, judge};

fn outcome(case: &str, title: &str) -> Outcome {
    let mut ours = Standing::new("ours", true, None);
    let mut peer = Standing::new("a|peer", false, None);
    for value in [1.0, 1.5, 1.2] {
        ours.add(Sample {
            value,
            size: Some(2_000_000),
            requests: None,
        });
        peer.add(Sample {
            value: value * 3.0,
            size: Some(1_000_000),
            requests: None,
        });
    }
    let absent = Standing::new("other", false, Some("not installed".to_owned()));
    let contenders = vec![ours, peer, absent];
    let bar = Bar::times("ours", "a|peer", 2.0);
    Outcome {
        case: case.to_owned(),
        title: title.to_owned(),
        input: "one layer".to_owned(),
        unit: Unit::Seconds,
        is_quick: true,
        day: "2026-01-31".to_owned(),
        machine: Machine::describe([("peer".to_owned(), "1.2".to_owned())].into()),
        verdicts: vec![judge(&bar, Unit::Seconds, &contenders, Some("a|peer"))],
        contenders,
    }
}

#[test]
fn a_table_has_every_contender_and_what_must_be() {
    let text = table(&outcome("first", "First push"));
    let line = |word: &str| text.lines().find(|line| line.contains(word)).unwrap();
    let words: Vec<&str> = line("  ours ").split_whitespace().collect();
    assert_eq!(
        words,
        [
            "ours", "3", "1.00", "s", "1.20", "s", "1.50", "s", "2.0", "MB", "-"
        ]
    );
    assert!(line("  a|peer ").trim_end().ends_with("3.0x"), "{text}");
    assert!(line("other").contains("absent: not installed"));
    assert!(
        line("must be").contains("3.0x: holds (100% larger"),
        "{text}"
    );
}

#[test]
fn a_page_keeps_what_a_person_wrote_and_results_of_other_cases() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "s", "About", vec![outcome("first", "First")]).unwrap();
    let page = dir.path().join("s.md");
    let text = std::fs::read_to_string(&page).unwrap();
    assert!(text.starts_with("# About\n"), "{text}");
    assert!(text.contains("| a\\|peer | 3 |"), "{text}");
    std::fs::write(&page, format!("Before.\n{text}After.\n")).unwrap();
    let new = vec![outcome("second", "Second"), outcome("first", "Anew")];
    write(dir.path(), "s", "About", new).unwrap();
    let text = std::fs::read_to_string(&page).unwrap();
    assert!(text.starts_with("Before.\n# About\n") && text.ends_with("After.\n"));
    assert!(text.contains("## Anew") && text.contains("## Second"));
    assert!(!text.contains("## First"), "{text}");
    let svg = std::fs::read_to_string(dir.path().join("s.svg")).unwrap();
    assert!(svg.contains("<svg") && svg.contains("Anew") && svg.contains("1.20 s"));
}
