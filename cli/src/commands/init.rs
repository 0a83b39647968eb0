//! `slipway init`: a `slipway.toml` from what lies in a directory.

use crate::args::InitArgs;
use crate::config::{FLY_NAME, NATIVE_NAME, ProjectConfig};
use crate::names::{self, APP_NAME_BYTES_MAX};
use slipway_terminal::exit::{Failure, Outcome};
use slipway_terminal::printer::Printer;
use std::io::Write as _;
use std::path::Path;
use toml::{Table, Value};

/// Writes the file and says what to do next.
///
/// # Errors
/// The caller's fault: a name that is none, a file that is there already or cannot be written.
pub(crate) fn run(args: &InitArgs, printer: Printer) -> Outcome<()> {
    args.app.as_deref().map_or(Ok(()), names::check_app)?;
    let registry = args.registry.as_deref();
    registry.map_or(Ok(()), names::check_registry)?;
    let dir = std::fs::canonicalize(&args.dir).map_err(|error| {
        Failure::user_caused(format_args!("read {}", args.dir.display()), &error)
    })?;
    let path = dir.join(NATIVE_NAME);
    if path.exists() && !args.force {
        return Err(
            Failure::user(format!("{} is there already", path.display()))
                .hint("edit it, or replace it with --force"),
        );
    }
    let fly = dir.join(FLY_NAME);
    let inherited = if fly.exists() {
        ProjectConfig::load(&dir, Some(&fly))?
    } else {
        ProjectConfig::default()
    };
    let text = render(args, &dir, inherited);
    let written = if args.force {
        std::fs::write(&path, &text)
    } else {
        std::fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(&path)
            .and_then(|mut file| file.write_all(text.as_bytes()))
    };
    written
        .map_err(|error| Failure::user_caused(format_args!("write {}", path.display()), &error))?;
    printer.data(&path.display().to_string());
    if !has_dockerfile(&dir) {
        printer.note(&format!(
            "hint: there is no Dockerfile in {} yet",
            dir.display()
        ));
    } else {
        printer.note(match args.registry.is_some() {
            true => "hint: `slipway deploy` builds and pushes it",
            false => {
                "hint: say where images go: registry = \"HOST/TEAM\" at the top of slipway.toml, or `slipway deploy --image HOST/TEAM/APP:TAG`; \
                 `slipway deploy --build-only` pushes nothing"
            }
        });
    }
    Ok(())
}

fn render(args: &InitArgs, dir: &Path, inherited: ProjectConfig) -> String {
    let app = args
        .app
        .clone()
        .or(inherited.app)
        .unwrap_or_else(|| app_name(dir));
    let mut build = Table::new();
    let mut put = |key: &str, value: Option<String>| {
        if let Some(value) = value {
            build.insert(key.to_owned(), Value::String(value));
        }
    };
    let text = |path: std::path::PathBuf| path.to_string_lossy().into_owned();
    put("dockerfile", inherited.build.dockerfile.map(text));
    put("target", inherited.build.target);
    put("image", inherited.build.image);
    put("ignorefile", inherited.build.ignorefile.map(text));
    if !inherited.build.args.is_empty() {
        let args = inherited.build.args.into_iter();
        build.insert(
            "args".to_owned(),
            Value::Table(
                args.map(|(name, value)| (name, Value::String(value)))
                    .collect(),
            ),
        );
    }
    let mut table = Table::from_iter([("app".to_owned(), Value::String(app))]);
    if let Some(region) = inherited.region {
        table.insert("region".to_owned(), Value::String(region));
    }
    if let Some(registry) = &args.registry {
        table.insert("registry".to_owned(), Value::String(registry.clone()));
    }
    if !build.is_empty() {
        table.insert("build".to_owned(), Value::Table(build));
    }
    table.to_string()
}

/// The directory's name with everything that no app's name has made a dash.
fn app_name(dir: &Path) -> String {
    let raw = dir
        .file_name()
        .map(|name| name.to_string_lossy().to_lowercase())
        .unwrap_or_default();
    let mut name = String::new();
    for character in raw.chars() {
        if character.is_ascii_lowercase() || character.is_ascii_digit() {
            name.push(character);
        } else if !name.is_empty() && !name.ends_with('-') {
            name.push('-');
        }
    }
    name.truncate(APP_NAME_BYTES_MAX);
    let name = name.trim_end_matches('-');
    match name.bytes().next() {
        Some(first) if first.is_ascii_lowercase() => name.to_owned(),
        Some(_) => format!("app-{name}"),
        None => "app".to_owned(),
    }
}

fn has_dockerfile(dir: &Path) -> bool {
    ["Dockerfile", "Containerfile"]
        .iter()
        .any(|name| dir.join(name).exists())
}

#[cfg(test)]
mod tests {
    use super::*;
    use slipway_terminal::printer::Format;

    fn init(dir: &Path, force: bool) -> Outcome<()> {
        let args = InitArgs {
            dir: dir.to_owned(),
            app: None,
            registry: Some("r.example/x".to_owned()),
            force,
        };
        run(&args, Printer::new(Format::Human))
    }

    #[test]
    fn what_is_written_can_be_read() {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("My Shop_2");
        std::fs::create_dir(&dir).unwrap();
        init(&dir, false).unwrap();
        let config = ProjectConfig::load(&dir, None).unwrap();
        assert_eq!(config.app.as_deref(), Some("my-shop-2"));
        assert_eq!(config.registry.as_deref(), Some("r.example/x"));
        assert_eq!(init(&dir, false).unwrap_err().code(), 1);
    }

    #[test]
    fn names_that_no_deploy_would_take_are_refused_and_nothing_is_written() {
        let dir = tempfile::tempdir().unwrap();
        for (app, registry) in [
            (Some("Bad App!"), None),
            (Some("-x"), None),
            (None, Some("https://r.example")),
            (None, Some("r.example/Team")),
        ] {
            let args = InitArgs {
                dir: dir.path().to_owned(),
                app: app.map(str::to_owned),
                registry: registry.map(str::to_owned),
                force: false,
            };
            let refused = run(&args, Printer::new(Format::Human)).unwrap_err();
            assert_eq!(refused.code(), 1, "{app:?} {registry:?}");
            assert!(!dir.path().join(NATIVE_NAME).exists());
        }
    }

    #[test]
    fn takes_over_what_fly_toml_says() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(
            dir.path().join(FLY_NAME),
            "app='shop'\nprimary_region='fra'\n[build]\nimage='a/b:c'\nbuild-target='web'\n[build.args]\nA=1\n",
        )
        .unwrap();
        init(dir.path(), true).unwrap();
        let config = ProjectConfig::load(dir.path(), None).unwrap();
        assert!(config.path.unwrap().ends_with(NATIVE_NAME));
        assert_eq!(
            (config.app.as_deref(), config.build.image),
            (Some("shop"), None)
        );
        // It is one of Fly's, which a slipway.toml would demand.
        assert_eq!(config.region, None);
        assert_eq!(
            (
                config.build.target.as_deref(),
                config.build.args["A"].as_str()
            ),
            (Some("web"), "1")
        );
    }

    #[test]
    fn names_come_from_any_directory() {
        for (dir, name) in [
            ("/", "app"),
            ("/a b", "a-b"),
            ("/2048", "app-2048"),
            ("/--x--", "x"),
            ("/été", "t"),
        ] {
            assert_eq!(app_name(Path::new(dir)), name, "{dir}");
        }
    }
}
