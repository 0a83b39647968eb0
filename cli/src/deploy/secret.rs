//! `--secret id=NAME,src=FILE` and `--secret id=NAME,env=VARIABLE`: parsed, read, and kept out of every message.

use super::csv;
use super::env::Env;
use crate::limits::SECRET_BYTES_MAX;
use slipway_terminal::exit::{Failure, Outcome};
use std::fmt;
use std::io::Read;
use std::path::Path;

/// A secret, read. `Debug` never prints its value.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Secret {
    /// As `RUN --mount=type=secret,id=` names it.
    pub(crate) id: String,
    /// The bytes.
    pub(crate) value: Vec<u8>,
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Secret")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

/// Parses and reads all of them.
///
/// # Errors
/// The caller's fault: not a specification, twice the same id, or nothing to read.
pub(super) fn read_all(specs: &[String], pairs: &[String], env: Env<'_>) -> Outcome<Vec<Secret>> {
    let mut secrets: Vec<Secret> = Vec::with_capacity(specs.len() + pairs.len());
    let read = specs.iter().map(|spec| read_one(spec, env));
    for secret in read.chain(pairs.iter().map(|pair| of_pair(pair))) {
        let secret = secret?;
        if secrets.iter().any(|other| other.id == secret.id) {
            return Err(Failure::user(format!(
                "secret '{}' is given twice",
                secret.id
            )));
        }
        secrets.push(secret);
    }
    Ok(secrets)
}

/// `NAME=VALUE`, as flyctl takes it.
fn of_pair(pair: &str) -> Outcome<Secret> {
    let (id, value) = pair.split_once('=').unwrap_or_default();
    if id.is_empty() {
        return Err(Failure::user("bad --build-secret: it is not NAME=VALUE")
            .hint("or keep it off the command line: --secret id=NAME,env=VARIABLE"));
    }
    Ok(Secret {
        id: id.to_owned(),
        value: value.as_bytes().to_vec(),
    })
}

fn read_one(spec: &str, env: Env<'_>) -> Outcome<Secret> {
    let bad = |why: String| {
        Failure::user(format!("bad --secret: {why}"))
            .hint("a secret looks like id=NAME,src=FILE or id=NAME,env=VARIABLE")
    };
    let (mut id, mut source, mut variable, mut kind) = (None, None, None, None);
    for part in csv::fields(spec)? {
        // The value is not shown: who gets the form wrong may have put the secret itself here.
        let (key, value) = part
            .split_once('=')
            .ok_or_else(|| bad("a part of it is not KEY=VALUE".to_owned()))?;
        match key.trim() {
            "id" => id = Some(value.to_owned()),
            "src" | "source" => source = Some(value.to_owned()),
            "env" => variable = Some(value.to_owned()),
            "type" => kind = Some(value.to_owned()),
            other => return Err(bad(format!("unknown key '{other}'"))),
        }
    }
    let id = id
        .filter(|id| !id.is_empty())
        .ok_or_else(|| bad("it has no id".to_owned()))?;
    let value = match (source, variable, kind.as_deref()) {
        (Some(name), None, Some("env")) | (None, Some(name), None | Some("env")) => {
            from_env(&id, &name, env)?
        }
        (Some(path), None, None | Some("file")) => from_file(&id, Path::new(&path))?,
        (None, None, None | Some("env")) => from_env(&id, &id, env)?,
        (None, None, Some("file")) => from_file(&id, Path::new(&id))?,
        (Some(_), Some(_), _) => return Err(bad("it has both src and env".to_owned())),
        (_, _, Some(other)) => return Err(bad(format!("type '{other}' does not fit"))),
    };
    Ok(Secret { id, value })
}

fn from_env(id: &str, name: &str, env: Env<'_>) -> Outcome<Vec<u8>> {
    env(name).map(String::into_bytes).ok_or_else(|| {
        Failure::user(format!(
            "secret '{id}': {name} is not set in the environment"
        ))
        .hint("set it, or read the secret from a file: id=NAME,src=FILE")
    })
}

fn from_file(id: &str, path: &Path) -> Outcome<Vec<u8>> {
    let fail = |error: std::io::Error| {
        Failure::user_caused(
            format_args!("secret '{id}': read {}", path.display()),
            &error,
        )
    };
    let file = std::fs::File::open(path).map_err(fail)?;
    let mut value = Vec::new();
    file.take(SECRET_BYTES_MAX + 1)
        .read_to_end(&mut value)
        .map_err(fail)?;
    if value.len() as u64 > SECRET_BYTES_MAX {
        return Err(Failure::user(format!(
            "secret '{id}' is larger than {SECRET_BYTES_MAX} bytes"
        )));
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(name: &str) -> Option<String> {
        (name == "SET").then(|| "hunter2".to_owned())
    }

    #[test]
    fn reads_files_and_variables() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        std::fs::write(&path, b"from file\n").unwrap();
        for (spec, value) in [
            (format!("id=x,src={}", path.display()), "from file\n"),
            (
                format!("type=file,id=x,source={}", path.display()),
                "from file\n",
            ),
            ("id=x,env=SET".to_owned(), "hunter2"),
            ("id=x,type=env,src=SET".to_owned(), "hunter2"),
            ("id=SET".to_owned(), "hunter2"),
            ("\"id=x\",\"env=SET\"".to_owned(), "hunter2"),
        ] {
            let secret = read_one(&spec, &env).unwrap();
            assert_eq!(secret.value, value.as_bytes(), "{spec}");
            assert!(!format!("{secret:?}").contains(value));
        }
    }

    #[test]
    fn mistakes_are_told_without_the_secret() {
        for spec in [
            "hunter2",
            "id=x,hunter2",
            "src=/etc/hostname",
            "id=,src=/x",
            "id=x,env=UNSET",
            "id=x,src=/does/not/exist",
            "id=x,src=a,env=b",
            "id=x,type=vault",
            "id=x,mode=0400,src=/etc/hostname",
        ] {
            let failure = read_one(spec, &env).unwrap_err();
            assert_eq!(failure.code(), 1, "{spec}");
            assert!(!failure.to_string().contains("hunter2"), "{failure}");
        }
        let twice = ["id=SET".to_owned(), "id=SET".to_owned()];
        assert!(read_all(&twice, &[], &env).is_err());
        assert!(read_all(&[], &["hunter2".to_owned()], &env).is_err());
        let pair = read_all(&[], &["a=b=c".to_owned()], &env).unwrap();
        assert_eq!(
            (pair[0].id.as_str(), &pair[0].value[..]),
            ("a", &b"b=c"[..])
        );
    }
}
