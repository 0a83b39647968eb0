//! `--provenance`, `--sbom`, `--attest`: what is attested of an image, as BuildKit's frontend takes it.
//!
//! Must not know what becomes of it.

use crate::args::DeployArgs;
use crate::deploy::csv;
use slipway_terminal::exit::{Failure, Outcome};
use std::collections::BTreeMap;

/// What can be attested.
const KINDS: [&str; 2] = ["provenance", "sbom"];

/// Attributes of the frontend, by name.
///
/// # Errors
/// The caller's fault, with a hint.
pub(super) fn attrs(args: &DeployArgs) -> Outcome<BTreeMap<String, String>> {
    let mut attrs = BTreeMap::new();
    let mut specs: Vec<(&str, String)> = Vec::new();
    for (kind, said) in [("provenance", &args.provenance), ("sbom", &args.sbom)] {
        let flag = if kind == "sbom" {
            "--sbom"
        } else {
            "--provenance"
        };
        let spec = match (kind, said.as_deref()) {
            (_, None) => continue,
            (_, Some("false")) => "disabled=true".to_owned(),
            ("sbom", Some("true")) => String::new(),
            (_, Some("true")) => "mode=min".to_owned(),
            (_, Some(mode @ ("min" | "max"))) => format!("mode={mode}"),
            (_, Some(other)) => other.to_owned(),
        };
        specs.push((flag, format!("type={kind},{spec}")));
    }
    specs.extend(args.attest.iter().map(|spec| ("--attest", spec.clone())));
    for (flag, spec) in specs {
        let (kind, value) = attestation(flag, &spec)?;
        let Some(value) = value else { continue };
        if attrs.insert(format!("attest:{kind}"), value).is_some() {
            return Err(Failure::user(format!("{kind} is asked for twice"))
                .hint("say it once, by its own flag or by --attest"));
        }
    }
    Ok(attrs)
}

/// Kind and attributes of one; nothing where it is turned off.
fn attestation(flag: &str, spec: &str) -> Outcome<(String, Option<String>)> {
    let bad = |why: &str| {
        Failure::user(format!("bad {flag}: {why}")).hint(
            "they look like --provenance=max, --sbom=generator=IMAGE, --attest type=provenance,mode=max",
        )
    };
    let (mut kind, mut attrs, mut is_off) = (None, Vec::new(), false);
    for field in csv::fields(spec)?
        .into_iter()
        .filter(|field| !field.is_empty())
    {
        match field.split_once('=') {
            Some(("type", value)) => kind = Some(value.to_owned()),
            Some(("disabled", value)) => is_off = value != "false",
            Some(("mode", value)) if !["min", "max"].contains(&value) => {
                return Err(bad(&format!("mode is min or max, not '{value}'")));
            }
            Some((name, _)) if !name.is_empty() => attrs.push(field),
            Some(_) | None => return Err(bad(&format!("'{field}' is not NAME=VALUE"))),
        }
    }
    let kind = kind.ok_or_else(|| bad("it has no type"))?;
    if !KINDS.contains(&kind.as_str()) {
        return Err(bad(&format!(
            "type {kind} is not made here, only provenance and sbom"
        )));
    }
    let quoted = attrs.iter().map(|field| match field.contains([',', '"']) {
        true => format!("\"{}\"", field.replace('"', "\"\"")),
        false => field.clone(),
    });
    let value = quoted.collect::<Vec<_>>().join(",");
    Ok((kind, (!is_off).then_some(value)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attestations_are_read_as_buildx_reads_them() {
        for (spec, want) in [
            (
                "type=provenance,mode=max",
                Some(("provenance", Some("mode=max"))),
            ),
            ("type=provenance,disabled=true", Some(("provenance", None))),
            ("type=sbom,", Some(("sbom", Some("")))),
            (
                "type=sbom,\"generator=a,b\"",
                Some(("sbom", Some("\"generator=a,b\""))),
            ),
            ("type=provenance,mode=medium", None),
            ("type=vex", None),
            ("mode=max", None),
            ("type=sbom,x", None),
        ] {
            let read = attestation("--attest", spec).ok();
            let want = want.map(|(kind, value)| (kind.to_owned(), value.map(str::to_owned)));
            assert_eq!(read, want, "{spec}");
        }
    }
}
