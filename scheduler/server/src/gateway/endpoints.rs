//! Which of Docker's endpoints belong to a builder's purpose: one table, and the normalisation before it.
//!
//! The builder is the tenant's own isolated machine. So nothing here tries to keep a tenant from root inside it:
//! privileged containers, host mounts and host namespaces are the builder's own, and the machine's wall is what counts. What
//! is refused is what a builder is not for: to begin or join a swarm, and to add plugins, which would be daemons
//! of unknown origin next to dockerd. What only looks at those, uses them or removes them is dockerd's to answer: it says in its
//! own words that there are none, and clients that tidy up after themselves depend on its codes.
//!
//! Unknown families are refused, unknown endpoints of a known family are not: Docker adds endpoints to `/containers`
//! with nearly every release and clients use them at once, while a new family is a new purpose, which somebody should look at.
//!
//! What is forwarded is the normalised path, byte for byte what was looked up here. So dockerd cannot understand a path
//! differently from this table.
//!
//! Pure. Must not know: HTTP bodies, sockets, who asks.

use crate::bounds::PATH_BYTES_MAX;
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use std::fmt;

/// What is done with a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// dockerd answers it.
    Allow(Endpoint),
    /// `POST /images/{name}/push`: the guest pushes, from next to the layers.
    ServedByGuestPush {
        /// `{name}`: an image without its tag.
        image: String,
    },
    /// It is not for a builder.
    Refuse(Refusal),
}

/// An endpoint that dockerd serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// The path to forward, encoded.
    pub path: String,
    /// Which registry credentials of the request dockerd needs for it.
    pub credentials: RegistryHeaders,
    /// Whether builds may come by it.
    pub builds: Builds,
}

/// Whether builds may come by an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Builds {
    /// None.
    None,
    /// One: the request asks for it.
    One,
    /// Any number, in a stream of BuildKit's.
    Stream,
}

/// Headers with registry credentials that an endpoint needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RegistryHeaders {
    /// None: they are taken out.
    None,
    /// `X-Registry-Auth`: it pulls, or looks at a registry.
    Auth,
    /// `X-Registry-Config`: it builds, from any number of registries.
    Config,
}

/// Why a request is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// The path has two readings.
    Ambiguous(&'static str),
    /// The path is too long.
    TooLong,
    /// Known, and not a builder's business.
    NotForBuilders(&'static str),
    /// Not known: the path, or the method.
    Unknown,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ambiguous(why) => write!(f, "the path is ambiguous: {why}"),
            Self::TooLong => write!(f, "the path is longer than {PATH_BYTES_MAX} bytes"),
            Self::NotForBuilders(what) => write!(f, "a builder has no {what}"),
            Self::Unknown => f.write_str("page not found: not an endpoint that a builder has"),
        }
    }
}

/// What a family of endpoints is to a builder.
enum Family {
    /// All of it.
    Whole,
    /// The one path of that name, nothing below.
    Alone,
    /// These methods and paths below it, in which `*` is any number of segments. The others would make what a builder does not have.
    These(&'static [(&'static str, &'static str)], &'static str),
    /// None of it.
    Refused(&'static str),
}

/// First segment of the path (after the version) and what becomes of it.
const FAMILIES: &[(&str, Family)] = &[
    // Building, and what builds are made of.
    ("build", Family::Whole),   // also /build/prune, /build/cancel
    ("session", Family::Alone), // BuildKit's session, hijacked
    ("grpc", Family::Alone),    // BuildKit itself, hijacked
    ("images", Family::Whole),
    ("commit", Family::Alone),
    ("distribution", Family::Whole), // asks a registry what a name means
    ("auth", Family::Alone),         // checks a registry login
    // Running what was built: tests, compose.
    ("containers", Family::Whole),
    ("exec", Family::Whole),
    ("networks", Family::Whole),
    ("volumes", Family::Whole),
    // The daemon about itself.
    ("_ping", Family::Alone),
    ("version", Family::Alone),
    ("info", Family::Alone),
    ("events", Family::Alone),
    ("system", Family::Whole), // disk usage
    // A swarm, and what lives in one. dockerd answers that it is in none.
    (
        "swarm",
        Family::These(
            &[
                ("GET", ""),
                ("GET", "unlockkey"),
                ("POST", "leave"),
                ("POST", "unlock"),
                ("POST", "update"),
            ],
            "swarm",
        ),
    ),
    ("nodes", Family::Whole),
    ("services", Family::Whole),
    ("tasks", Family::Whole),
    ("secrets", Family::Whole), // those of a swarm; a build's go with its session
    ("configs", Family::Whole),
    // Daemons of unknown origin beside dockerd.
    (
        "plugins",
        Family::These(
            &[
                ("GET", ""),
                ("GET", "*/json"),
                ("POST", "*/disable"),
                ("DELETE", "*"),
            ],
            "plugins",
        ),
    ),
    // The daemon's own profiler.
    ("debug", Family::Refused("debug endpoints")),
    ("metrics", Family::Refused("metrics endpoint")),
];

const METHODS: &[&str] = &["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS"];

/// Looks a request up. `path` is as it came, without query, percent-encoded.
pub fn decide(method: &str, path: &str) -> Decision {
    match look_up(method, path) {
        Ok(decision) => decision,
        Err(refusal) => Decision::Refuse(refusal),
    }
}

fn look_up(method: &str, path: &str) -> Result<Decision, Refusal> {
    if !METHODS.contains(&method) {
        return Err(Refusal::Unknown);
    }
    let path = NormalPath::parse(path)?;
    let segments: Vec<&str> = path.segments().collect();
    let (family, rest) = segments.split_first().ok_or(Refusal::Unknown)?;
    match FAMILIES
        .iter()
        .find(|(name, _)| name == family)
        .map(|(_, family)| family)
    {
        Some(Family::Refused(what)) => return Err(Refusal::NotForBuilders(what)),
        Some(Family::These(these, what)) => {
            if !these
                .iter()
                .any(|(verb, below)| *verb == method && is_below(rest, below))
            {
                return Err(Refusal::NotForBuilders(what));
            }
        }
        Some(Family::Alone) if !rest.is_empty() => return Err(Refusal::Unknown),
        Some(Family::Whole | Family::Alone) => {}
        None => return Err(Refusal::Unknown),
    }
    if let ("POST", "images", [image @ .., "push"]) = (method, *family, rest)
        && !image.is_empty()
    {
        return Ok(Decision::ServedByGuestPush {
            image: image.join("/"),
        });
    }
    let credentials = match (*family, rest) {
        ("images", ["create"]) | ("distribution", _) => RegistryHeaders::Auth,
        ("build", []) => RegistryHeaders::Config,
        _ => RegistryHeaders::None,
    };
    let builds = match (method, *family, rest) {
        ("POST", "build", []) => Builds::One,
        ("POST", "grpc", []) => Builds::Stream,
        _ => Builds::None,
    };
    Ok(Decision::Allow(Endpoint {
        path: path.encoded(),
        credentials,
        builds,
    }))
}

/// Are these segments what the pattern says? `*`, at its beginning only, is one segment or more: names have slashes.
fn is_below(segments: &[&str], pattern: &str) -> bool {
    let Some(end) = pattern.strip_prefix('*') else {
        return segments.join("/") == pattern;
    };
    let end: Vec<&str> = end.split('/').filter(|part| !part.is_empty()).collect();
    segments.len() > end.len() && segments.ends_with(&end)
}

/// A path with one reading: decoded once, no empty or dot segments, its version apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NormalPath {
    version: Option<String>,
    /// Decoded segments, joined with `/`.
    rest: String,
}

/// What a segment may not hold as it is: everything but RFC 3986's unreserved and the delimiters that Docker's names
/// have.
const ENCODED: &AsciiSet = &CONTROLS
    .add(b' ')
    .add(b'"')
    .add(b'#')
    .add(b'%')
    .add(b'<')
    .add(b'>')
    .add(b'?')
    .add(b'[')
    .add(b']')
    .add(b'^')
    .add(b'`')
    .add(b'{')
    .add(b'|')
    .add(b'}');

impl NormalPath {
    /// Normalises a path. Encoded slashes separate, as they do for dockerd, which looks at the decoded path.
    ///
    /// # Errors
    /// [`Refusal::Ambiguous`] if a second normaliser or a log reader might read it otherwise.
    pub fn parse(path: &str) -> Result<Self, Refusal> {
        if path.len() > PATH_BYTES_MAX {
            return Err(Refusal::TooLong);
        }
        if !path.starts_with('/') {
            return Err(Refusal::Ambiguous("it does not begin with a slash"));
        }
        let decoded = decode(path)?;
        let mut segments = Vec::new();
        for segment in decoded.split('/') {
            match segment {
                "" | "." => {}
                ".." => return Err(Refusal::Ambiguous("it goes up")),
                _ => segments.push(segment),
            }
        }
        let version = match segments.first() {
            Some(first) if is_version(first) => Some(segments.remove(0).to_owned()),
            Some(_) | None => None,
        };
        if version.is_some() && segments.first().is_some_and(|next| is_version(next)) {
            return Err(Refusal::Ambiguous("it has two versions"));
        }
        Ok(Self {
            version,
            rest: segments.join("/"),
        })
    }

    /// Decoded segments, without the version.
    pub fn segments(&self) -> impl Iterator<Item = &str> {
        self.rest.split('/').filter(|segment| !segment.is_empty())
    }

    /// As it is forwarded.
    pub fn encoded(&self) -> String {
        let rest = utf8_percent_encode(&self.rest, ENCODED);
        match &self.version {
            Some(version) => format!("/{version}/{rest}"),
            None => format!("/{rest}"),
        }
    }
}

/// Decodes once, and refuses what others in the way might read in another manner. A percent sign is a character like any other: what
/// is forwarded has it encoded, and dockerd decodes once too.
fn decode(path: &str) -> Result<String, Refusal> {
    let mut decoded = Vec::with_capacity(path.len());
    let mut bytes = path.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            decoded.push(byte);
            continue;
        }
        let digits = (bytes.next().and_then(hex), bytes.next().and_then(hex));
        let (Some(high), Some(low)) = digits else {
            return Err(Refusal::Ambiguous(
                "a percent sign is not followed by two digits",
            ));
        };
        decoded.push(high << 4 | low);
    }
    let text = String::from_utf8(decoded).map_err(|_| Refusal::Ambiguous("it is not UTF-8"))?;
    if text.chars().any(char::is_control) {
        return Err(Refusal::Ambiguous("it has control characters"));
    }
    match text.chars().find(|c| matches!(c, '\\' | ';')) {
        Some('\\') => Err(Refusal::Ambiguous("it has a backslash")),
        Some(_) => Err(Refusal::Ambiguous("it has a semicolon")),
        None => Ok(text),
    }
}

fn hex(byte: u8) -> Option<u8> {
    char::from(byte)
        .to_digit(16)
        .and_then(|digit| u8::try_from(digit).ok())
}

/// `v1.43`: what dockerd's own router takes for a version.
fn is_version(segment: &str) -> bool {
    segment.strip_prefix('v').is_some_and(|rest| {
        !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_digit() || b == b'.')
    })
}

#[cfg(test)]
#[path = "endpoints_tests.rs"]
mod tests;
