//! The cases: their inputs, their contenders, and what must come out.

use super::super::{Bar, Case, Contender, Run, Unit};
use super::bench::{Bench, timed};
use super::contenders::{PEERS, Way};
use super::images;
use super::proxy::DelayProxy;
use anyhow::Result;
use std::time::Duration;

const SLIPWAY: Way = Way::Slipway(&[]);

/// Time for a request and its answer to the distant registry, beyond loopback's.
const ADDED_DELAY: Duration = Duration::from_millis(20);

/// A first push: a registry without anything, and nothing remembered.
pub(super) fn first(bench: &mut Bench, run: &mut Run) -> Result<()> {
    let bytes = images::root_bytes(run.choice.quick);
    let (bytes, files) = images::root_layer(bench, "first", bytes)?;
    let ways = [
        SLIPWAY,
        Way::Slipway(&["--compression", "gzip:6"]),
        Way::Slipway(&["--compression", "zstd"]),
    ];
    let contenders = pushes(bench, "first", &ways)?;
    run.case(Case {
        name: "first",
        title: "First push, one large layer".to_owned(),
        input: format!(
            "One layer of {:.0} MB in {files} files of a Debian root, into an empty registry",
            bytes as f64 / 1e6
        ),
        unit: Unit::Seconds,
        rounds: run.choice.size(1, 3),
        contenders,
        bars: vec![
            Bar::times("slipway-push", "docker push", 10.0),
            Bar::times("slipway-push", "skopeo copy", 5.0),
        ],
        size_reference: Some("docker push"),
    })
}

/// A first push of what no codec makes smaller.
pub(super) fn incompressible(bench: &mut Bench, run: &mut Run) -> Result<()> {
    let bytes = run.choice.size(16 << 20, 2 << 30);
    images::build(bench, "incompressible", |dir| {
        images::incompressible(&dir.join("noise"), bytes, 1)?;
        images::dockerfile(dir, "FROM scratch\nCOPY noise /\n")
    })?;
    let contenders = pushes(bench, "incompressible", &[SLIPWAY])?;
    run.case(Case {
        name: "incompressible",
        title: "First push, incompressible layer".to_owned(),
        input: format!(
            "One file of {} MiB of noise, into an empty registry",
            bytes >> 20
        ),
        unit: Unit::Seconds,
        rounds: 1,
        contenders,
        bars: Vec::new(),
        size_reference: Some("docker push"),
    })
}

/// Every way pushes `image` into a registry that is emptied before each push.
fn pushes<'a>(bench: &'a Bench, image: &'static str, ours: &[Way]) -> Result<Vec<Contender<'a>>> {
    let registry = bench.registry_cell();
    let one = |way: Way| {
        let repository = format!("{image}/{}:1", way.slug());
        let target = format!("{}/{repository}", bench.registry_address());
        contender(way, move || {
            way.prepare(bench, image, &target)?;
            let (target, repository) = (target.clone(), repository.clone());
            Ok(move |_round| {
                registry.borrow_mut().start_empty()?;
                let command = way.command(bench, image, &target, None);
                timed(command, &registry.borrow(), &repository)
            })
        })
    };
    ours.iter().chain(&PEERS).map(|way| one(*way)).collect()
}

/// A push of what the registry has already, by the same who pushed it.
pub(super) fn unchanged(bench: &mut Bench, run: &mut Run) -> Result<()> {
    let bytes = images::root_bytes(run.choice.quick);
    let (bytes, _) = images::root_layer(bench, "unchanged", bytes)?;
    let bench = &*bench;
    let one = |way: Way| {
        let repository = format!("unchanged/{}:1", way.slug());
        let target = format!("{}/{repository}", bench.registry_address());
        let index = bench.scratch(&format!("unchanged-{}", way.slug()));
        contender(way, move || {
            way.prepare(bench, "unchanged", &target)?;
            let push = move || {
                let command = way.command(bench, "unchanged", &target, Some(&index));
                timed(command, &bench.registry_cell().borrow(), &repository)
            };
            push()?;
            Ok(move |_round| push())
        })
    };
    let ways = [SLIPWAY].into_iter().chain(PEERS);
    let contenders = ways.map(one).collect::<Result<_>>()?;
    run.case(Case {
        name: "unchanged",
        title: "Unchanged image".to_owned(),
        input: format!(
            "One layer of {:.0} MB that the registry has under the same name",
            bytes as f64 / 1e6
        ),
        unit: Unit::Seconds,
        rounds: run.choice.size(2, 9),
        contenders,
        bars: vec![
            Bar::times("slipway-push", "docker push", 1.0)
                .at_most(0.050)
                .requests_at_most(4),
        ],
        size_reference: None,
    })
}

/// A large base that the registry has, and a small new layer on top.
pub(super) fn changed_top(bench: &mut Bench, run: &mut Run) -> Result<()> {
    let base_bytes: u64 = run.choice.size(32 << 20, 1_000_000_000);
    let rounds = run.choice.rounds.unwrap_or(run.choice.size(2, 7)).max(1);
    images::build(bench, "base", |dir| {
        images::incompressible(&dir.join("half"), base_bytes / 2, 2)?;
        images::text(&dir.join("text"), usize::try_from(base_bytes / 2)?, 3)?;
        images::dockerfile(dir, "FROM scratch\nCOPY half text /\n")
    })?;
    // The image of each round is one that nobody has pushed before.
    for round in 0..=rounds {
        images::build(bench, &format!("top-{round}"), |dir| {
            images::incompressible(&dir.join("top"), 1_000_000, 100 + round as u64)?;
            images::dockerfile(dir, "FROM base\nCOPY top /\n")
        })?;
    }
    let bench = &*bench;
    let one = |way: Way| {
        let index = bench.scratch(&format!("changed-{}", way.slug()));
        contender(way, move || {
            let push = move |round: usize| {
                let image = format!("top-{round}");
                let repository = format!("changed/{}:{round}", way.slug());
                let target = format!("{}/{repository}", bench.registry_address());
                way.prepare(bench, &image, &target)?;
                let command = way.command(bench, &image, &target, Some(&index));
                timed(command, &bench.registry_cell().borrow(), &repository)
            };
            push(rounds)?;
            Ok(push)
        })
    };
    let ways = [SLIPWAY].into_iter().chain(PEERS);
    let contenders = ways.map(one).collect::<Result<_>>()?;
    run.case(Case {
        name: "changed-top",
        title: "One changed layer on a large base".to_owned(),
        input: format!(
            "A new layer of 1 MB on {:.0} MB that the repository has",
            base_bytes as f64 / 1e6
        ),
        unit: Unit::Seconds,
        rounds,
        contenders,
        bars: vec![Bar::times("slipway-push", "docker push", 2.0).at_most(0.150)],
        size_reference: None,
    })
}

/// Many small layers to a registry that is not near.
pub(super) fn small_layers(bench: &mut Bench, run: &mut Run) -> Result<()> {
    let layers = run.choice.size(8, 40);
    images::build(bench, "layers", |dir| {
        let mut text = "FROM scratch\n".to_owned();
        for n in 0..layers {
            images::text(&dir.join(format!("f{n}")), 200_000, n)?;
            text.push_str(&format!("COPY f{n} /\n"));
        }
        images::dockerfile(dir, &text)
    })?;
    let bench = &*bench;
    let proxy = DelayProxy::start(&bench.registry_address(), ADDED_DELAY / 2)?;
    let address = proxy.address().to_owned();
    let one = |way: Way| {
        let repository = format!("layers/{}:1", way.slug());
        let target = format!("{address}/{repository}");
        contender(way, move || {
            way.prepare(bench, "layers", &target)?;
            Ok(move |_round| {
                let registry = bench.registry_cell();
                registry.borrow_mut().start_empty()?;
                let command = way.command(bench, "layers", &target, None);
                timed(command, &registry.borrow(), &repository)
            })
        })
    };
    let ways = [SLIPWAY].into_iter().chain(PEERS);
    let contenders = ways.map(one).collect::<Result<_>>()?;
    run.case(Case {
        name: "small-layers",
        title: "Many small layers, distant registry".to_owned(),
        input: format!(
            "{layers} layers of 200 kB of text, into an empty registry that answers {} ms later than loopback (delaying proxy)",
            ADDED_DELAY.as_millis()
        ),
        unit: Unit::Seconds,
        rounds: run.choice.size(1, 5),
        contenders,
        bars: vec![Bar::times("slipway-push", "docker push", 3.0)],
        size_reference: Some("docker push"),
    })
}

/// A contender that is made ready now, or named as absent.
fn contender<'a, R>(way: Way, ready: impl FnOnce() -> Result<R>) -> Result<Contender<'a>>
where
    R: FnMut(usize) -> Result<super::super::Sample> + 'a,
{
    if let Some(why) = way.missing() {
        return Ok(Contender::absent(&way.name(), why));
    }
    match ready() {
        Ok(run) if way.is_ours() => Ok(Contender::ours(&way.name(), run)),
        Ok(run) => Ok(Contender::peer(&way.name(), run)),
        Err(error) if way.is_ours() => Err(error),
        Err(error) => Ok(Contender::absent(&way.name(), format!("{error:#}"))),
    }
}
