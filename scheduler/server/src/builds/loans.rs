//! What is lent to a build's pushes: for which builds, and for which images.
//!
//! Must not know: how a token is made, how a build is followed.

use super::Inner;
use crate::farm::{BuilderKey, FarmError};
use crate::lending::Terms;
use slipway_core::build::BuildSource;
use slipway_store::Build;
use std::convert::Infallible;

impl Inner {
    /// Lends for a build's pushes, and then waits for ever.
    pub(super) async fn lend(&self, build: &Build, key: &BuilderKey) -> Infallible {
        if let Some((lending, terms)) = self.lending.as_ref().zip(terms(build)) {
            let connect = || async {
                match self.farm.guest_if_running(key).await {
                    Ok(guest) => Some(Ok(guest)),
                    // Then the build is over, as its follower finds out.
                    Err(FarmError::NotRunning) => None,
                    Err(error) => Some(Err(error.to_string())),
                }
            };
            lending.serve(terms, connect).await;
        }
        std::future::pending().await
    }
}

/// What is lent for a build, if anything is. What a build of a Docker client's pushes is known from its guest alone: a tenant's word, for
/// which nothing is lent.
fn terms(build: &Build) -> Option<Terms> {
    match build.source {
        BuildSource::Deploy if build.spec.push => {
            let images = std::iter::once(&build.spec.image).chain(&build.spec.tags);
            Some(Terms {
                id: build.id.to_string(),
                org: build.org.clone(),
                images: images.cloned().collect(),
            })
        }
        BuildSource::Deploy | BuildSource::Docker | BuildSource::Buildkit => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use slipway_core::build::BuildSpec;
    use slipway_core::id::{AppId, BuildId, MachineId, OrgId};
    use slipway_core::time::Timestamp;
    use slipway_store::BuildState;

    fn build(source: BuildSource, push: bool) -> Build {
        Build {
            id: BuildId::from_entropy([1; 10]),
            org: OrgId::from_entropy([2; 10]),
            app: AppId::from_entropy([3; 10]),
            machine: MachineId::from_entropy([4; 10]),
            state: BuildState::Running,
            spec: BuildSpec {
                image: "r.example/any/repo:1".into(),
                tags: vec!["r.example/any/repo:2".into()],
                push,
                ..BuildSpec::default()
            },
            source,
            asked_by: None,
            outcome: None,
            created_at: Timestamp(0),
            ended_at: None,
            last_seq: 0,
            event_bytes: 0,
        }
    }

    #[test]
    fn nothing_is_lent_on_a_guests_word() {
        let images = |source, push| terms(&build(source, push)).map(|terms| terms.images);
        let deployed = images(BuildSource::Deploy, true).expect("lent");
        assert_eq!(deployed, ["r.example/any/repo:1", "r.example/any/repo:2"]);
        for (source, push) in [
            (BuildSource::Docker, true),
            (BuildSource::Buildkit, true),
            (BuildSource::Deploy, false),
        ] {
            assert_eq!(images(source, push), None, "{source:?}");
        }
    }
}
