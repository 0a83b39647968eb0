//! What a build wants of BuildKit beyond one image for this machine's processor: platforms, what is attested, annotations. Refused in
//! words where this builder cannot.
//!
//! Pure. It must not know how anything is solved.

use super::outcome;
use crate::store::ImageStore;
use slipway_buildkit::{Annotation, CacheEntry};
use slipway_core::build::{BuildOutcome, BuildSpec, BuiltPlatform, Fault};
use slipway_core::compression::Compression;
use slipway_core::platform::{self, Platform};
use std::collections::BTreeMap;

/// How the frontend's attributes for what is attested begin.
const ATTEST: &str = "attest:";
const SBOM: &str = "attest:sbom";
/// Highest level of BuildKit's gzip.
const GZIP_LEVEL_MAX: i32 = 9;

const STORE_HINT: &str = "the farm's operator sets image_store = \"containerd\" for its hosts; \
     then `slipway builders reset-cache` begins such a cache";
const LOAD_HINT: &str = "push it and `docker pull` it; or the farm's operator sets image_store = \"containerd\" for its hosts, \
     then `slipway builders reset-cache` begins such a cache";
const CACHE_HINT: &str = "`--cache-to type=inline` works here; or the farm's operator sets image_store = \"containerd\" for its hosts, \
     then `slipway builders reset-cache` begins such a cache";
const SCANNER_HINT: &str =
    "name one: --sbom=generator=IMAGE; or the farm's operator sets sbom_scanner for its hosts";

/// What is asked of BuildKit.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Wishes {
    /// Platforms that were named.
    pub(super) platforms: Vec<Platform>,
    pub(super) frontend_attrs: BTreeMap<String, String>,
    pub(super) exporter_attrs: BTreeMap<String, String>,
    /// Something is attested of the image.
    pub(super) attests: bool,
}

impl Wishes {
    /// What `spec` asks of a builder with this store and this scanner.
    pub(super) fn of(
        spec: &BuildSpec,
        store: ImageStore,
        scanner: Option<&str>,
    ) -> Result<Wishes, BuildOutcome> {
        let user = |message: &str, hint| outcome::failed(Fault::User, message, hint);
        let mut attrs = spec.frontend_attrs.clone();
        let platforms = match attrs.get("platform") {
            Some(text) => {
                platform::parse_list(text).map_err(|error| user(&error.to_string(), None))?
            }
            None => Vec::new(),
        };
        let attests = attrs.keys().any(|name| name.starts_with(ATTEST));
        if let Some(sbom) = attrs.get_mut(SBOM)
            && !sbom.split(',').any(|part| part.starts_with("generator="))
        {
            let scanner = scanner.ok_or_else(|| {
                user(
                    "there is no scanner for --sbom on this farm",
                    Some(SCANNER_HINT),
                )
            })?;
            let comma = if sbom.is_empty() { "" } else { "," };
            *sbom = format!("{sbom}{comma}generator={scanner}");
        }
        let annotations = spec
            .annotations
            .iter()
            .map(|text| text.parse::<Annotation>());
        let annotations = annotations.collect::<Result<Vec<_>, _>>();
        let annotations = annotations.map_err(|error| user(&error.to_string(), None))?;
        unkept(&annotations, &platforms, attests)?;
        // Of an image without an index BuildKit drops those that name its platform, which is the only one.
        let annotations: Vec<Annotation> = match platforms.len() < 2 && !attests {
            true => annotations
                .into_iter()
                .map(Annotation::without_platform)
                .collect(),
            false => annotations,
        };
        let what = match (platforms.len() > 1, attests, annotations.is_empty()) {
            (true, ..) => Some("images of several platforms"),
            (_, true, _) => Some("attestations"),
            (_, _, false) => Some("annotations"),
            (false, false, true) => None,
        };
        if spec.load && what.is_some() {
            return Err(user(
                "what `docker load` reads is one image for one platform, without attestations and annotations",
                Some("push the image, or leave --load out"),
            ));
        }
        if let (true, ImageStore::Classic) = (spec.load, store) {
            return Err(user(
                "this builder sends no image for --load: its cache keeps images in dockerd's own store",
                Some(LOAD_HINT),
            ));
        }
        if let (Some(kind), ImageStore::Classic) = (exported_cache(spec)?, store) {
            let message = format!(
                "this builder writes no cache of type {kind}: its cache keeps images in dockerd's own store"
            );
            return Err(user(&message, Some(CACHE_HINT)));
        }
        if let (Some(what), ImageStore::Classic) = (what, store) {
            let message = format!(
                "this builder makes no {what}: its cache keeps images in dockerd's own store"
            );
            return Err(user(&message, Some(STORE_HINT)));
        }
        let mut exporter_attrs: BTreeMap<String, String> = annotations
            .iter()
            .flat_map(Annotation::exporter_attrs)
            .collect();
        if what.is_some() {
            exporter_attrs.insert("oci-mediatypes".to_owned(), "true".to_owned());
        }
        if attests {
            // Statements name manifests by their digests, so nothing may be compressed after them.
            exporter_attrs.extend(packing(spec.compression));
        }
        Ok(Wishes {
            platforms,
            frontend_attrs: attrs,
            exporter_attrs,
            attests,
        })
    }
}

/// Refuses annotations that nothing of the pushed image would hold.
fn unkept(
    annotations: &[Annotation],
    platforms: &[Platform],
    attests: bool,
) -> Result<(), BuildOutcome> {
    let user = |message: &str, hint| Err(outcome::failed(Fault::User, message, Some(hint)));
    if annotations.iter().any(Annotation::needs_layout) {
        return user(
            "a registry keeps no annotation of an index-descriptor",
            "annotate the index: index:NAME=VALUE",
        );
    }
    if annotations.iter().any(Annotation::needs_index) && platforms.len() < 2 && !attests {
        return user(
            "the image has no index to annotate: it is for one platform, and nothing is attested of it",
            "annotate the manifest (manifest:NAME=VALUE), or ask for several platforms or for --provenance",
        );
    }
    let mut built: Vec<String> = platforms.iter().map(ToString::to_string).collect();
    if built.is_empty() {
        built.push(format!("linux/{}", platform::own_arch()));
    }
    // BuildKit takes linux/arm64 and linux/arm64/v8 for one.
    let is_within = |a: &str, b: &str| a == b || a.starts_with(&format!("{b}/"));
    for named in annotations.iter().filter_map(Annotation::platform) {
        let same = |it: &String| is_within(it, named) || is_within(named, it);
        if !built.iter().any(same) {
            let message = format!("--annotation names {named}, which this build does not make");
            return user(
                &message,
                "leave the [PLATFORM] out, or name a platform of --platform",
            );
        }
    }
    Ok(())
}

impl Wishes {
    /// One manifest comes of it, whose layers are compressed on their way.
    pub(super) fn is_plain(&self) -> bool {
        self.platforms.len() < 2 && !self.attests
    }

    /// What is told of platforms once they are built.
    pub(super) fn built(&self) -> Box<[BuiltPlatform]> {
        let told = |platform: &Platform| BuiltPlatform {
            platform: platform.to_string(),
            emulated: !platform.is_native_to(platform::own_arch()),
        };
        self.platforms.iter().map(told).collect()
    }
}

/// Of the caches to write the first kind that is more than a part of the image.
fn exported_cache(spec: &BuildSpec) -> Result<Option<String>, BuildOutcome> {
    for entry in &spec.cache_to {
        let entry = entry
            .parse::<CacheEntry>()
            .map_err(|error| outcome::failed(Fault::User, &error.to_string(), None))?;
        if entry.kind != "inline" {
            return Ok(Some(entry.kind));
        }
    }
    Ok(None)
}

/// BuildKit's words for a compression.
fn packing(compression: Option<Compression>) -> Vec<(String, String)> {
    let (kind, level) = match compression {
        None => ("gzip", None),
        Some(Compression::Gzip(level)) => ("gzip", Some(i32::from(level).min(GZIP_LEVEL_MAX))),
        Some(Compression::Zstd(level)) => ("zstd", Some(i32::from(level))),
    };
    let mut attrs = vec![
        ("compression".to_owned(), kind.to_owned()),
        ("force-compression".to_owned(), "true".to_owned()),
    ];
    attrs.extend(level.map(|level| ("compression-level".to_owned(), level.to_string())));
    attrs
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(attrs: &[(&str, &str)], annotations: &[&str]) -> BuildSpec {
        BuildSpec {
            frontend_attrs: attrs
                .iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect(),
            annotations: annotations.iter().map(|text| (*text).to_owned()).collect(),
            ..BuildSpec::default()
        }
    }

    #[test]
    fn a_build_of_the_usual_kind_asks_for_nothing_more() {
        for store in [ImageStore::Classic, ImageStore::Containerd] {
            for attrs in [&[][..], &[("platform", "linux/arm64")]] {
                let wishes = Wishes::of(&spec(attrs, &[]), store, None).expect("taken");
                assert!(wishes.exporter_attrs.is_empty() && !wishes.attests);
                assert_eq!(wishes.platforms.len(), attrs.len());
            }
        }
    }

    #[test]
    fn what_dockerds_own_store_cannot_keep_is_refused_by_name() {
        let both = [("platform", "linux/amd64,linux/arm64")];
        for (attrs, annotations, what) in [
            (&both[..], &[][..], "images of several platforms"),
            (&[("attest:provenance", "")], &[], "attestations"),
            (&[], &["a=b"], "annotations"),
        ] {
            let spec = spec(attrs, annotations);
            let refused = Wishes::of(&spec, ImageStore::Classic, None).expect_err("refused");
            let BuildOutcome::Failed {
                fault,
                message,
                hint,
                ..
            } = refused
            else {
                panic!("{refused:?}");
            };
            assert!(message.contains(what) && hint.is_some(), "{message}");
            assert_eq!(fault, Fault::User);
            let taken = Wishes::of(&spec, ImageStore::Containerd, None).expect("taken");
            assert_eq!(taken.exporter_attrs["oci-mediatypes"], "true");
            let compressed = taken.exporter_attrs.contains_key("compression");
            assert_eq!(compressed, what == "attestations");
        }
    }

    #[test]
    fn a_cache_that_dockerds_own_store_cannot_write_is_refused_with_one_that_it_can() {
        let of = |cache: &str, store| {
            let spec = BuildSpec {
                cache_to: vec![cache.to_owned()],
                ..BuildSpec::default()
            };
            match Wishes::of(&spec, store, None) {
                Ok(_) => None,
                Err(BuildOutcome::Failed {
                    fault,
                    message,
                    hint,
                    ..
                }) => {
                    assert_eq!(fault, Fault::User);
                    Some((message, hint.unwrap_or_default()))
                }
                Err(other) => panic!("{other:?}"),
            }
        };
        let registry = "type=registry,ref=registry.test/cache:1";
        let (message, hint) = of(registry, ImageStore::Classic).expect("refused");
        assert!(message.contains("type registry"), "{message}");
        assert!(hint.contains("type=inline"), "{hint}");
        assert_eq!(of("type=inline", ImageStore::Classic), None);
        assert_eq!(of(registry, ImageStore::Containerd), None);
    }

    #[test]
    fn an_image_to_load_is_one_image_of_a_builder_that_can_send_it() {
        let of = |attrs: &[(&str, &str)], annotations: &[&str], store| {
            let spec = BuildSpec {
                load: true,
                ..spec(attrs, annotations)
            };
            match Wishes::of(&spec, store, None) {
                Ok(_) => String::new(),
                Err(BuildOutcome::Failed { message, hint, .. }) => {
                    assert!(hint.is_some(), "{message}");
                    message
                }
                Err(other) => panic!("{other:?}"),
            }
        };
        let arm = [("platform", "linux/arm64")];
        assert_eq!(of(&arm, &[], ImageStore::Containerd), "");
        let classic = of(&arm, &[], ImageStore::Classic);
        assert!(classic.contains("--load"), "{classic}");
        let both = [("platform", "linux/amd64,linux/arm64")];
        for (attrs, annotations) in [
            (&both[..], &[][..]),
            (&[("attest:provenance", "")], &[]),
            (&[], &["a=b"]),
        ] {
            let said = of(attrs, annotations, ImageStore::Containerd);
            assert!(said.contains("one image"), "{said}");
        }
    }

    #[test]
    fn a_scanner_is_named_by_the_caller_or_by_the_farm() {
        let of = |value: &str, scanner| {
            let spec = spec(&[(SBOM, value)], &[]);
            let wishes = Wishes::of(&spec, ImageStore::Containerd, scanner).ok()?;
            Some(wishes.frontend_attrs[SBOM].clone())
        };
        assert_eq!(of("", None), None);
        assert_eq!(of("", Some("s")), Some("generator=s".to_owned()));
        assert_eq!(of("a=b", Some("s")), Some("a=b,generator=s".to_owned()));
        assert_eq!(of("generator=x", None), Some("generator=x".to_owned()));
    }

    #[test]
    fn an_annotation_that_names_the_only_platform_is_kept() {
        let own = format!("manifest[linux/{}]:a=b", platform::own_arch());
        let arm = [("platform", "linux/arm64")];
        let both = [("platform", "linux/amd64,linux/arm64")];
        for (attrs, text, attr) in [
            (&[][..], own.as_str(), "annotation.a"),
            (&arm, "manifest[linux/arm64]:a=b", "annotation.a"),
            (
                &both,
                "manifest[linux/arm64]:a=b",
                "annotation[linux/arm64].a",
            ),
        ] {
            let wishes = Wishes::of(&spec(attrs, &[text]), ImageStore::Containerd, None);
            let attrs = wishes.expect("taken").exporter_attrs;
            assert_eq!(attrs.get(attr).map(String::as_str), Some("b"), "{attrs:?}");
        }
    }

    #[test]
    fn an_annotation_that_nothing_pushed_would_hold_is_refused_by_name() {
        let both = [("platform", "linux/amd64,linux/arm64")];
        let own = format!("manifest[linux/{}]:a=b", platform::own_arch());
        for (attrs, annotation, refused) in [
            (&[][..], "manifest-descriptor:a=b", Some("no index")),
            (&both, "manifest-descriptor:a=b", None),
            (&both, "manifest-descriptor[linux/arm64]:a=b", None),
            (&both, "index-descriptor:a=b", Some("index-descriptor")),
            (&both, "manifest[linux/s390x]:a=b", Some("linux/s390x")),
            (&both, "manifest[linux/arm64/v8]:a=b", None),
            (&[], own.as_str(), None),
            (&[], "manifest[linux/s390x]:a=b", Some("linux/s390x")),
        ] {
            let spec = spec(attrs, &[annotation]);
            let said = match Wishes::of(&spec, ImageStore::Containerd, None) {
                Ok(_) => None,
                Err(BuildOutcome::Failed {
                    fault: Fault::User,
                    message,
                    hint: Some(_),
                    ..
                }) => Some(message),
                Err(other) => panic!("{annotation}: {other:?}"),
            };
            match refused {
                None => assert_eq!(said, None, "{annotation}"),
                Some(word) => {
                    let said = said.unwrap_or_default();
                    assert!(said.contains(word), "{annotation}: {said}");
                }
            }
        }
    }

    #[test]
    fn an_image_without_index_has_none_to_annotate() {
        let both = [("platform", "linux/amd64,linux/arm64")];
        for (attrs, fits) in [
            (&both[..], true),
            (&[("attest:provenance", "mode=max")], true),
            (&[], false),
        ] {
            let spec = spec(attrs, &["index:a=b"]);
            let wishes = Wishes::of(&spec, ImageStore::Containerd, None);
            assert_eq!(wishes.is_ok(), fits, "{attrs:?}");
        }
    }
}
