//! The binary `slipway`: the client, everything that users of a farm type.
//!
//! Owns arguments and what each command does. Must not know SQL, Docker's insides, nor the daemons: those are `slipwayd`.

mod api;
mod args;
mod backoff;
mod caller;
mod commands;
mod config;
mod contexts;
mod deploy;
mod docker_context;
mod docker_logins;
mod interrupt;
mod last_hint;
mod limits;
mod moments;
mod names;
mod settings;
mod system;
mod token;

use args::{Cli, Command};
use caller::Caller;
use slipway_terminal::args::parse;
use slipway_terminal::exit::{EXIT_OK, Failure, Outcome};
use slipway_terminal::printer::{Format, Printer, lost_data};
use std::process::ExitCode;

fn main() -> ExitCode {
    let cli: Cli = match parse() {
        Ok(cli) => cli,
        Err(code) => {
            let first = std::env::args().nth(1);
            if first.is_some_and(|word| word == "serve" || word == "host") {
                eprintln!("hint: the daemons are another program: slipwayd");
            }
            return code;
        }
    };
    let format = if cli.global.json {
        Format::Json
    } else {
        Format::Human
    };
    let printer = Printer::new(format).quiet(cli.global.quiet);
    match run(cli, printer) {
        Ok(()) => match lost_data() {
            Some(failure) => {
                printer.note("the command itself succeeded");
                printer.failure(&failure);
                failure.exit_code()
            }
            None => ExitCode::from(EXIT_OK),
        },
        Err(failure) => {
            let failure = last_hint::with_last_hint(failure);
            printer.failure(&failure);
            failure.exit_code()
        }
    }
}

/// Commands that need no server run as they are; the others on a small runtime of their own.
fn run(cli: Cli, printer: Printer) -> Outcome<()> {
    let caller = Caller::new(&cli.global);
    match cli.command {
        Command::Completions { shell } => commands::completions::run(shell, printer),
        Command::Version => {
            printer.data(concat!("slipway ", env!("CARGO_PKG_VERSION")));
            Ok(())
        }
        Command::Docs => {
            printer.data(commands::docs::page().trim_end());
            Ok(())
        }
        Command::Init(args) => commands::init::run(&args, printer),
        Command::Logout => commands::login::logout(&caller, printer),
        Command::Context(verb) => commands::context::run(verb, &caller, printer),
        talking @ (Command::Deploy(_)
        | Command::Login(_)
        | Command::Status
        | Command::Whoami
        | Command::Orgs(_)
        | Command::Tokens(_)
        | Command::Apps(_)
        | Command::Builders(_)
        | Command::Builds(_)
        | Command::Volumes(_)
        | Command::Registry(_)
        | Command::DockerContext(_)
        | Command::Buildx(_)) => tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .map_err(|error| Failure::system_caused("start the runtime", &error))?
            .block_on(Box::pin(async {
                slipway_terminal::log::start_if_asked(cli.global.verbose)?;
                talk(talking, &caller, printer).await
            })),
    }
}

async fn talk(command: Command, caller: &Caller, printer: Printer) -> Outcome<()> {
    match command {
        Command::Deploy(args) => deploy::run(&args, caller, printer).await,
        Command::Login(args) => commands::login::login(&args, caller, printer).await,
        Command::Status => commands::status::run(caller, printer).await,
        Command::Whoami => commands::whoami::run(caller, printer).await,
        Command::Orgs(verb) => commands::orgs::run(verb, caller, printer).await,
        Command::Tokens(verb) => commands::tokens::run(verb, caller, printer).await,
        Command::Apps(verb) => commands::apps::run(verb, caller, printer).await,
        Command::Builders(verb) => commands::builders::run(verb, caller, printer).await,
        Command::Builds(verb) => commands::builds::run(verb, caller, printer).await,
        Command::Volumes(verb) => commands::volumes::run(verb, caller, printer).await,
        Command::Registry(verb) => commands::registry::run(verb, caller, printer).await,
        Command::DockerContext(verb) => commands::docker_context::run(verb, caller, printer).await,
        Command::Buildx(args) => commands::buildx::run(&args, caller, printer).await,
        // Those that do not talk were run before.
        Command::Init(_)
        | Command::Logout
        | Command::Context(_)
        | Command::Completions { .. }
        | Command::Version
        | Command::Docs => Ok(()),
    }
}
