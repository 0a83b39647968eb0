//! `slipway-guest`: PID 1 inside a builder machine. It starts containerd and dockerd, tells how they do, runs builds
//! next to them, keeps the cache volume from filling up, and ends everything cleanly.
//!
//! It must not know orgs, hosts, placement, or how its machine was made: it is given three descriptors, two files of
//! settings and a cache volume (docs/ARCHITECTURE.md). In a virtual machine it first makes these for itself (`boot`).

mod api;
mod books;
mod boot;
mod builds;
mod capture;
mod complaint;
mod config;
mod descriptors;
mod disk;
mod docker;
mod emulation;
mod engine;
mod garbage;
mod guest;
mod init;
mod inventory;
mod ledger;
mod life;
mod limits;
mod loans;
mod output;
mod phase;
mod progress;
mod push;
mod running;
mod runtime;
mod share;
mod solving;
mod store;
mod watcher;

use anyhow::Context as _;
use std::process::ExitCode;
use std::time::Instant;

fn main() -> ExitCode {
    if runtime::is_called() {
        eprintln!("become runc: {}", runtime::become_runc());
        return ExitCode::FAILURE;
    }
    let started = Instant::now();
    let virtual_machine = boot::is_virtual_machine();
    // It opens no descriptor, and nothing else does before the given ones are taken.
    start_log();
    let given = if virtual_machine {
        boot::boot()
    } else {
        descriptors::take().map(boot::Given::of_sandbox)
    };
    let lived = given.and_then(|given| {
        init::prepare_cgroups();
        init::share_mounts();
        share::meminfo::install();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()
            .context("start the runtime")?;
        let lived = runtime.block_on(life::live(started, given));
        // A push may still compress a layer on a thread of its own; nobody waits for it any more.
        runtime.shutdown_background();
        lived
    });
    let code = match lived {
        Ok(life::End::Clean) => ExitCode::SUCCESS,
        Ok(life::End::Crashed) => ExitCode::FAILURE,
        Err(error) => {
            tracing::error!(error = format!("{error:#}"), "the guest cannot go on");
            ExitCode::FAILURE
        }
    };
    if virtual_machine {
        // Whether the end was a clean one is in the end record; the last process here cannot just go.
        boot::power_off();
    }
    code
}

fn start_log() {
    let filter = tracing_subscriber::EnvFilter::builder()
        .with_default_directive(tracing::level_filters::LevelFilter::INFO.into())
        .with_env_var("SLIPWAY_LOG")
        .from_env_lossy();
    tracing_subscriber::fmt()
        .compact()
        .with_ansi(false)
        .with_target(false)
        .with_env_filter(filter)
        // The console has a bound, and a line that does not fit must not end PID 1 by a panic.
        .log_internal_errors(false)
        .with_writer(std::io::stderr)
        .init();
}
