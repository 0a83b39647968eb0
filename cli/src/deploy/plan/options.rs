//! How it is built: from flags to what BuildKit's frontend and solver take. Owns the forms in which docker and buildx write them.
//!
//! Must not know where context and image come from or go to.

use super::{Context, Source, attest};
use crate::args::DeployArgs;
use crate::config::ProjectConfig;
use crate::deploy::csv;
use crate::deploy::env::Env;
use slipway_buildkit::Annotation;
use slipway_core::platform::{self, Platform};
use slipway_terminal::exit::{Failure, Outcome};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

/// Where the frontend gets a context that the session serves as one archive.
const ARCHIVE_URL: &str = "http://buildkit-session/archive";
/// What `--network host` and `RUN --network=host` need.
const NETWORK_HOST: &str = "network.host";

/// What flags say of the build itself.
#[derive(Debug, Default)]
pub(super) struct Options {
    /// Attributes of the frontend.
    pub(super) attrs: BTreeMap<String, String>,
    /// Architecture that the builder had best have.
    pub(super) arch: Option<String>,
    pub(super) platforms: Vec<Platform>,
    /// Several platforms were named.
    pub(super) is_multiple: bool,
    /// Something is attested.
    pub(super) attests: bool,
    /// Directories of further contexts, by the name that the session serves them under.
    pub(super) contexts: BTreeMap<String, PathBuf>,
    /// What steps may ask for beyond the usual.
    pub(super) entitlements: Vec<String>,
    /// Caches to look at.
    pub(super) cache_from: Vec<String>,
    /// Caches to write.
    pub(super) cache_to: Vec<String>,
}

impl Options {
    /// # Errors
    /// The caller's fault, with a hint.
    pub(super) fn of(
        args: &DeployArgs,
        config: &ProjectConfig,
        source: &Source,
        env: Env<'_>,
        warnings: &mut Vec<String>,
    ) -> Outcome<Self> {
        let mut options = Self {
            attrs: source_attrs(source),
            entitlements: args.allow.clone(),
            cache_from: caches("--cache-from", &args.cache_from, &["registry"])?,
            cache_to: caches("--cache-to", &args.cache_to, &["inline", "registry"])?,
            ..Self::default()
        };
        options.arguments(args, config, env, warnings)?;
        options.steps(args)?;
        for spec in &args.build_context {
            options.context(spec)?;
        }
        if let Some(target) = args.target.as_ref().or(config.build.target.as_ref()) {
            options.put("target", target.clone());
        }
        if !args.platform.is_empty() {
            let platforms = platform::parse_list(&args.platform.join(","));
            let platforms = platforms.map_err(|error| {
                Failure::user(error.to_string()).hint("it looks like linux/amd64,linux/arm64")
            })?;
            options.arch = platform::builder_arch(&platforms).map(str::to_owned);
            options.is_multiple = platforms.len() > 1;
            let names: Vec<String> = platforms.iter().map(ToString::to_string).collect();
            options.put("platform", names.join(","));
            options.platforms = platforms;
        }
        for text in &args.annotation {
            text.parse::<Annotation>().map_err(|error| {
                Failure::user(error.to_string())
                    .hint("it looks like NAME=VALUE, index:NAME=VALUE or manifest[linux/arm64]:NAME=VALUE")
            })?;
        }
        let attested = attest::attrs(args)?;
        options.attests = !attested.is_empty();
        options.attrs.extend(attested);
        Ok(options)
    }

    fn put(&mut self, name: &str, value: String) {
        self.attrs.insert(name.to_owned(), value);
    }

    fn arguments(
        &mut self,
        args: &DeployArgs,
        config: &ProjectConfig,
        env: Env<'_>,
        warnings: &mut Vec<String>,
    ) -> Outcome<()> {
        for (name, value) in &config.build.args {
            self.put(&format!("build-arg:{name}"), value.clone());
        }
        for spec in &args.build_arg {
            let (name, value) = match spec.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (spec.as_str(), env(spec)),
            };
            check_name("build argument", spec, name)?;
            match value {
                Some(value) => self.put(&format!("build-arg:{name}"), value),
                None => warnings.push(format!(
                    "build argument {name} is not set in the environment and was left out"
                )),
            }
        }
        for spec in &args.label {
            let (name, value) = spec.split_once('=').unwrap_or((spec, ""));
            check_name("label", spec, name)?;
            self.put(&format!("label:{name}"), value.to_owned());
        }
        Ok(())
    }

    /// What holds for each step.
    fn steps(&mut self, args: &DeployArgs) -> Outcome<()> {
        if args.no_cache {
            self.put("no-cache", String::new());
        } else if !args.no_cache_filter.is_empty() {
            self.put("no-cache", args.no_cache_filter.join(","));
        }
        if args.pull {
            self.put("image-resolve-mode", "pull".to_owned());
        }
        if !args.add_host.is_empty() {
            let hosts = args.add_host.iter().map(|spec| host(spec));
            let hosts: Vec<String> = hosts.collect::<Outcome<_>>()?;
            self.put("add-hosts", hosts.join(","));
        }
        if let Some(mode @ ("host" | "none")) = args.network.as_deref() {
            self.put("force-network-mode", mode.to_owned());
            if mode == "host" && !self.entitlements.iter().any(|it| it == NETWORK_HOST) {
                self.entitlements.push(NETWORK_HOST.to_owned());
            }
        }
        if let Some(size) = &args.shm_size {
            let bytes = bytes(size).ok_or_else(|| {
                Failure::user(format!("--shm-size '{size}' is not a size"))
                    .hint("it looks like 64m or 1g")
            })?;
            self.put("shm-size", bytes.to_string());
        }
        if !args.ulimit.is_empty() {
            let limits = args.ulimit.iter().map(|spec| ulimit(spec));
            let limits: Vec<String> = limits.collect::<Outcome<_>>()?;
            self.put("ulimit", limits.join(","));
        }
        Ok(())
    }

    fn context(&mut self, spec: &str) -> Outcome<()> {
        let bad = |why: &str| {
            Failure::user(format!("bad --build-context '{spec}': {why}"))
                .hint("it looks like NAME=DIR, NAME=docker-image://IMAGE or NAME=https://URL")
        };
        let (name, from) = spec.split_once('=').ok_or_else(|| bad("it has no ="))?;
        if name.is_empty() || from.is_empty() {
            return Err(bad("a part of it is empty"));
        }
        let value = if from.starts_with("oci-layout://") {
            return Err(bad("an OCI layout is not sent"));
        } else if from.contains("://") || from.starts_with("git@") || from.starts_with("target:") {
            from.to_owned()
        } else {
            let dir = std::fs::canonicalize(Path::new(from)).map_err(|error| {
                Failure::user_caused(format_args!("--build-context {name}: read {from}"), &error)
                    .hint("name a directory, docker-image://IMAGE or a URL")
            })?;
            if !dir.is_dir() {
                return Err(bad("it is not a directory"));
            }
            let served = format!("context-{name}");
            self.contexts.insert(served.clone(), dir);
            format!("local:{served}")
        };
        self.put(&format!("context:{name}"), value);
        Ok(())
    }
}

fn source_attrs(source: &Source) -> BTreeMap<String, String> {
    let mut attrs = BTreeMap::from([("filename".to_owned(), source.dockerfile_name.clone())]);
    let elsewhere = match &source.context {
        Context::Dir(_) => None,
        Context::Url(url) => Some(url.clone()),
        Context::Archive(_) => Some(ARCHIVE_URL.to_owned()),
    };
    if let Some(url) = elsewhere {
        attrs.insert("context".to_owned(), url);
        if source.dockerfile_dir.is_some() {
            attrs.insert("dockerfilekey".to_owned(), "dockerfile".to_owned());
        }
    }
    attrs
}

fn check_name(what: &str, spec: &str, name: &str) -> Outcome<()> {
    if name.is_empty() || name.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return Err(Failure::user(format!("'{spec}' is not a {what}"))
            .hint(format!("a {what} looks like NAME=VALUE")));
    }
    Ok(())
}

/// `HOST:IP` or `HOST=IP`, as the frontend takes it.
fn host(spec: &str) -> Outcome<String> {
    let (name, address) = spec
        .split_once('=')
        .or_else(|| spec.split_once(':'))
        .unwrap_or((spec, ""));
    let bare = address
        .strip_prefix('[')
        .and_then(|it| it.strip_suffix(']'));
    let address = bare.unwrap_or(address);
    if name.is_empty() || name.contains(',') || address.parse::<IpAddr>().is_err() {
        return Err(
            Failure::user(format!("bad --add-host '{spec}': no name with an address"))
                .hint("it looks like HOST:10.0.0.1; a builder has no host-gateway"),
        );
    }
    Ok(format!("{name}={address}"))
}

/// A number with a unit of docker's.
fn bytes(text: &str) -> Option<u64> {
    let text = text.to_ascii_lowercase();
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match &text[digits.len()..] {
        "" | "b" => 1,
        "k" | "kb" | "kib" => 1 << 10,
        "m" | "mb" | "mib" => 1 << 20,
        "g" | "gb" | "gib" => 1 << 30,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(unit)
}

/// `NAME=SOFT[:HARD]`, as the frontend takes it.
fn ulimit(spec: &str) -> Outcome<String> {
    let bad = || {
        Failure::user(format!("bad --ulimit '{spec}'"))
            .hint("it looks like nofile=1024 or nofile=1024:4096")
    };
    let (name, values) = spec.split_once('=').ok_or_else(bad)?;
    let (soft, hard) = values.split_once(':').unwrap_or((values, values));
    let is_number = |text: &str| text.parse::<i64>().is_ok();
    let fits = !name.is_empty() && name.bytes().all(|b| b.is_ascii_lowercase());
    if !fits || !is_number(soft) || !is_number(hard) {
        return Err(bad());
    }
    Ok(format!("{name}={soft}:{hard}"))
}

/// `--cache-from` and `--cache-to` in one form.
fn caches(flag: &str, specs: &[String], kinds: &[&str]) -> Outcome<Vec<String>> {
    specs.iter().map(|spec| cache(flag, spec, kinds)).collect()
}

fn cache(flag: &str, spec: &str, kinds: &[&str]) -> Outcome<String> {
    let bad = |why: String| {
        Failure::user(format!("bad {flag} '{spec}': {why}"))
            .hint("it looks like type=registry,ref=registry.example/app:cache")
    };
    let fields = csv::fields(spec)?;
    if let [reference] = &fields[..]
        && !reference.contains('=')
    {
        return Ok(format!("type=registry,ref={reference}"));
    }
    let kind = fields.iter().find_map(|field| field.strip_prefix("type="));
    match kind {
        None => return Err(bad("it has no type".to_owned())),
        Some(kind) if !kinds.contains(&kind) => {
            let message = format!(
                "type {kind} is not supported here, only {}",
                kinds.join(" and ")
            );
            return Err(bad(message));
        }
        Some(_) => {}
    }
    let is_pair = |field: &String| field.contains('=') && !field.contains(',');
    if !fields.iter().all(is_pair) {
        return Err(bad("a part of it is not KEY=VALUE".to_owned()));
    }
    Ok(fields.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_of_docker_are_read_as_docker_reads_them() {
        for (text, want) in [
            ("64m", Some(64 << 20)),
            ("1GB", Some(1 << 30)),
            ("12", Some(12)),
            ("m", None),
            ("1x", None),
            ("99999999999g", None),
        ] {
            assert_eq!(bytes(text), want, "{text}");
        }
        for (spec, want) in [
            ("a:10.0.0.1", Some("a=10.0.0.1")),
            ("a=::1", Some("a=::1")),
            ("a:[::1]", Some("a=::1")),
            ("a:host-gateway", None),
            ("a", None),
            (":10.0.0.1", None),
        ] {
            assert_eq!(host(spec).ok().as_deref(), want, "{spec}");
        }
        for (spec, want) in [
            ("nofile=10", Some("nofile=10:10")),
            ("nofile=10:20", Some("nofile=10:20")),
            ("memlock=-1:-1", Some("memlock=-1:-1")),
            ("nofile", None),
            ("nofile=x", None),
        ] {
            assert_eq!(ulimit(spec).ok().as_deref(), want, "{spec}");
        }
        for (spec, want) in [
            ("r.example/c", Some("type=registry,ref=r.example/c")),
            ("type=inline", Some("type=inline")),
            (
                "type=registry,ref=c,mode=max",
                Some("type=registry,ref=c,mode=max"),
            ),
            ("type=gha", None),
            ("ref=c", None),
            ("type=registry,c", None),
        ] {
            let found = cache("--cache-to", spec, &["inline", "registry"]);
            assert_eq!(found.ok().as_deref(), want, "{spec}");
        }
    }
}
