//! Who asks, and what that one may see. Every resolver goes through here before it touches a tenant's data.

use super::Services;
use super::error::Problem;
use slipway_core::id::{AppId, OrgId};
use slipway_store::{App, Org, StoreError, Token, TokenRole, What};

/// The token of a request.
#[derive(Debug, Clone)]
pub struct Caller {
    /// What the credential stands for.
    pub token: Token,
}

type Result<T> = std::result::Result<T, Problem>;

impl Caller {
    /// Refuses a token of a lesser role.
    pub(super) fn require(&self, role: TokenRole) -> Result<()> {
        if self.token.role >= role {
            return Ok(());
        }
        let needs = match role {
            TokenRole::Read => "read",
            TokenRole::Deploy => "deploy",
            TokenRole::Admin => "admin",
        };
        Err(Problem::forbidden(format!("this needs a token of role {needs}"))
            .hint("make one with `slipway tokens create`, or ask your org's administrator"))
    }

    /// Refuses all but the installation's own administrator.
    pub(super) fn require_installation(&self) -> Result<()> {
        if self.token.org.is_none() && self.token.app.is_none() {
            return self.require(TokenRole::Admin);
        }
        Err(Problem::forbidden("this needs the installation's own token"))
    }

    /// Refuses a token of one app: it may do nothing org-wide.
    pub(super) fn require_org_wide(&self) -> Result<()> {
        match self.token.app {
            None => Ok(()),
            Some(_) => Err(Problem::forbidden("this token is good for one app only")),
        }
    }

    /// The org that is meant: the one named (by slug or id) if this caller may see it, else the caller's own.
    pub(super) async fn org(&self, services: &Services, named: Option<&str>) -> Result<Org> {
        match (&self.token.org, named) {
            (Some(own), None) => Ok(services.store.org(own).await?),
            (own, Some(named)) => {
                let found = match named.parse::<OrgId>() {
                    Ok(id) => services.store.org(&id).await,
                    Err(_) => services.store.org_by_slug(named).await,
                };
                match found {
                    Ok(org) if own.as_ref().is_none_or(|own| *own == org.id) => Ok(org),
                    // Whether a neighbour of that name exists is none of the caller's business.
                    Ok(_) | Err(StoreError::NotFound(_)) => Err(unknown_org(named)),
                    Err(error) => Err(error.into()),
                }
            }
            (None, None) => {
                Err(Problem::bad_input("which org?").hint("name it; `slipway orgs list` shows them"))
            }
        }
    }

    /// All orgs this caller may see.
    pub(super) async fn orgs(&self, services: &Services) -> Result<Vec<Org>> {
        match &self.token.org {
            Some(own) => Ok(vec![services.store.org(own).await?]),
            None => Ok(services.store.all_orgs().await?),
        }
    }

    /// An app by its name, if this caller may use it.
    pub(super) async fn app(&self, services: &Services, org: &OrgId, name: &str) -> Result<App> {
        let app = match services.store.app_by_name(org, name).await {
            Err(StoreError::NotFound(What::App)) => Err(unknown_app(name)),
            found => Ok(found?),
        }?;
        if self.may_use(&app.id) { Ok(app) } else { Err(unknown_app(name)) }
    }

    /// Whether this caller may use that app of its org.
    pub(super) fn may_use(&self, app: &AppId) -> bool {
        self.token.app.as_ref().is_none_or(|own| own == app)
    }
}

fn unknown_org(named: &str) -> Problem {
    let named: String = named.chars().take(64).collect();
    Problem::user("ORG_NOT_FOUND", format!("there is no org '{named}', or it is not yours"))
        .hint("`slipway orgs list` shows the orgs your token is good for")
}

fn unknown_app(name: &str) -> Problem {
    let name: String = name.chars().take(64).collect();
    Problem::user("APP_NOT_FOUND", format!("there is no app '{name}', or your token is not good for it"))
        .hint(format!("slipway apps create {name}"))
}
