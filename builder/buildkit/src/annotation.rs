//! Annotations of an image as people write them for buildx, and as BuildKit's exporters take them.
//!
//! Pure.

use std::str::FromStr;

/// What can be annotated, in buildx's words.
const TARGETS: [&str; 4] = [
    "manifest",
    "index",
    "manifest-descriptor",
    "index-descriptor",
];

/// One annotation: `[TARGET,...][[PLATFORM]]:NAME=VALUE`, with `manifest` where no target is named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Annotation {
    targets: Vec<String>,
    platform: Option<String>,
    name: String,
    value: String,
}

/// The text is no annotation.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("bad annotation '{text}': {why}")]
pub struct BadAnnotation {
    text: String,
    why: &'static str,
}

impl Annotation {
    /// Attributes of the exporter, by name, with their values.
    pub fn exporter_attrs(&self) -> impl Iterator<Item = (String, String)> {
        self.targets.iter().map(|target| {
            let target = match target.as_str() {
                "manifest" => String::new(),
                other => format!("-{other}"),
            };
            let platform = self.platform.as_ref();
            let platform = platform.map_or_else(String::new, |it| format!("[{it}]"));
            let name = format!("annotation{target}{platform}.{}", self.name);
            (name, self.value.clone())
        })
    }

    /// It is kept in an index, which an image of one platform has none of unless something is attested: it belongs to the index, or to
    /// the line of a manifest in it.
    pub fn needs_index(&self) -> bool {
        self.targets
            .iter()
            .any(|target| target == "index" || target == "manifest-descriptor")
    }

    /// It belongs to the descriptor of an index. Only an image layout on a disk has one; a registry keeps none.
    pub fn needs_layout(&self) -> bool {
        self.targets
            .iter()
            .any(|target| target == "index-descriptor")
    }

    /// The same for whichever platform is built.
    #[must_use]
    pub fn without_platform(self) -> Self {
        Self {
            platform: None,
            ..self
        }
    }

    /// The one platform whose manifest it is for, if it names one.
    pub fn platform(&self) -> Option<&str> {
        self.platform.as_deref()
    }
}

impl FromStr for Annotation {
    type Err = BadAnnotation;

    fn from_str(text: &str) -> Result<Self, BadAnnotation> {
        let bad = |why| BadAnnotation {
            text: text.chars().take(200).collect(),
            why,
        };
        let (key, value) = text.split_once('=').ok_or_else(|| bad("it has no ="))?;
        // Names of annotations have dots and slashes, and no colons of their own.
        let (place, name) = key.split_once(':').unwrap_or(("manifest", key));
        let (targets, platform) = match place.split_once('[') {
            Some((targets, rest)) => {
                let platform = rest
                    .strip_suffix(']')
                    .ok_or_else(|| bad("a ] is missing"))?;
                (targets, Some(platform.to_owned()))
            }
            None => (place, None),
        };
        let targets = match targets {
            "" => "manifest",
            named => named,
        };
        let targets: Vec<String> = targets.split(',').map(str::to_owned).collect();
        if !targets
            .iter()
            .all(|target| TARGETS.contains(&target.as_str()))
        {
            return Err(bad(
                "what stands before the : is not manifest, index, manifest-descriptor or index-descriptor",
            ));
        }
        let is_word = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic());
        if !is_word(name) || !platform.as_deref().is_none_or(is_word) {
            return Err(bad("its name is empty or has spaces"));
        }
        if platform.is_some() && targets.iter().any(|target| target.starts_with("index")) {
            return Err(bad("an index is not of one platform"));
        }
        Ok(Self {
            targets,
            platform,
            name: name.to_owned(),
            value: value.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn annotations_are_read_as_buildx_reads_them() {
        for (text, want) in [
            ("a.b/c=d e", Some("annotation.a.b/c=d e")),
            ("manifest:a=", Some("annotation.a=")),
            ("index:a=b=c", Some("annotation-index.a=b=c")),
            (
                "manifest[linux/arm64]:a=b",
                Some("annotation[linux/arm64].a=b"),
            ),
            ("[linux/arm64]:a=b", Some("annotation[linux/arm64].a=b")),
            (
                "index,manifest-descriptor:a=b",
                Some("annotation-index.a=b annotation-manifest-descriptor.a=b"),
            ),
            ("a", None),
            ("=b", None),
            ("layer:a=b", None),
            ("manifest[x:a=b", None),
            ("index[linux/arm64]:a=b", None),
            ("a b=c", None),
        ] {
            let read = text.parse::<Annotation>().ok();
            let read = read.map(|annotation| {
                let attrs = annotation.exporter_attrs();
                let attrs: Vec<String> = attrs
                    .map(|(name, value)| format!("{name}={value}"))
                    .collect();
                attrs.join(" ")
            });
            assert_eq!(read.as_deref(), want, "{text}");
        }
    }
}
