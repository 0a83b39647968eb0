//! The ways from a solved build to a pushed image.

/// Somebody's command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// `slipway deploy` to a warm builder of a farm on this machine.
    Slipway,
    /// The same with `--compression zstd`.
    SlipwayZstd,
    /// `buildx build --push`, dockerd with containerd's image store.
    BuildxGzip,
    /// The same with zstd and nothing that a push does not need, pushed by BuildKit itself.
    BuildxZstd,
    /// `buildx build --push`, dockerd with its own image store: exports, then pushes as `docker push` does.
    BuildxClassic,
}

pub(super) const PEERS: [Way; 3] = [Way::BuildxGzip, Way::BuildxZstd, Way::BuildxClassic];

impl Way {
    /// As the results name it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Way::Slipway => "slipway deploy",
            Way::SlipwayZstd => "slipway deploy --compression zstd",
            Way::BuildxGzip => "buildx --push (containerd store)",
            Way::BuildxZstd => "buildx zstd -1, no unpack, no store",
            Way::BuildxClassic => "buildx --push (docker's store)",
        }
    }

    /// Part of a repository's name.
    pub(super) fn slug(self) -> &'static str {
        match self {
            Way::Slipway => "slipway",
            Way::SlipwayZstd => "slipway-zstd",
            Way::BuildxGzip => "gzip",
            Way::BuildxZstd => "zstd",
            Way::BuildxClassic => "classic",
        }
    }

    pub(super) fn is_ours(self) -> bool {
        matches!(self, Way::Slipway | Way::SlipwayZstd)
    }

    /// Arguments of `buildx build` that push to `image`.
    pub(super) fn output(self, image: &str) -> Vec<String> {
        match self {
            Way::Slipway | Way::SlipwayZstd => Vec::new(),
            Way::BuildxGzip | Way::BuildxClassic => {
                ["--push", "--tag", image].map(str::to_owned).to_vec()
            }
            Way::BuildxZstd => vec![
                "--output".to_owned(),
                format!(
                    "type=image,name={image},push=true,compression=zstd,compression-level=1,unpack=false,store=false"
                ),
            ],
        }
    }
}
