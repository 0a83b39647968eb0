//! Lends tokens to pushes whose credential stays here. A builder's root reads what its guest holds: so that is a token for one repository and
//! some minutes, and the credential itself only where the registry gives no tokens, or cannot be reached from here.
//!
//! A tenant names the registries, and each registry its token server: only addresses that the operator opens, or public ones, are
//! connected to. Must not know: how a push is done, how a builder is woken.

mod pulls;

pub(crate) use pulls::PullLoan;

use crate::bounds::{LOAN_ANSWER_WAIT_MAX, LOAN_EVERY, LOAN_FAILURES_MAX, LOAN_RETRY, LOANS_MAX};
use crate::credentials::{Credentials, registry_of};
use crate::guest_client::{GuestClient, GuestError};
use crate::problem::Problem;
use crate::rate::Bucket;
use crate::settings::RegistrySettings;
use http::StatusCode;
use ipnet::IpNet;
use slipway_core::guest_api::{Loan, LoanAnswer, LoanTurn, LoanWish};
use slipway_core::id::OrgId;
use slipway_registry_push::{Credential, Exchange, Lent, PushError, PushOptions, Reach, Target};
use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::time::Instant;

/// Why registries cannot be asked as the settings say.
#[derive(Debug, thiserror::Error)]
pub enum LendingError {
    /// A file of certificates.
    #[error("read {path:?}, which registries.ca_files names")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It can be read, and is no PEM of certificates that can be trusted.
    #[error(
        "{path:?}, which registries.ca_files names, has no certificates that can be used (hint: PEM is meant, whole)"
    )]
    Certificates {
        /// Which.
        path: PathBuf,
        /// Why; nothing if none is in it.
        #[source]
        source: Option<reqwest::Error>,
    },
    /// No registry.
    #[error("registries.insecure: {0:?} is no host, no host and port and no network")]
    Insecure(String),
    /// An address or network.
    #[error("registries.allow: {0:?} is no address and no network")]
    Network(String),
}

/// Lends; clones are the same.
#[derive(Debug, Clone)]
pub struct Lending {
    credentials: Credentials,
    options: Arc<PushOptions>,
    pulls: Arc<pulls::Pulls>,
}

/// What is lent under one id.
#[derive(Debug, Clone)]
pub(crate) struct Terms {
    /// By which the guest knows it.
    pub(crate) id: String,
    /// Whose credentials.
    pub(crate) org: OrgId,
    /// What may be pushed.
    pub(crate) images: Vec<String>,
}

impl Lending {
    pub(crate) fn new(
        credentials: Credentials,
        settings: &RegistrySettings,
    ) -> Result<Self, LendingError> {
        let allowed = settings.allow.iter().map(|text| network(text));
        let allowed: Vec<IpNet> = allowed.collect::<Result<_, _>>()?;
        if let Some(none) = settings.insecure.iter().find(|it| !is_registry(it)) {
            return Err(LendingError::Insecure(none.clone()));
        }
        let options = PushOptions {
            insecure: settings.insecure.clone(),
            extra_roots_pem: settings
                .ca_files
                .iter()
                .map(|path| read_roots(path))
                .collect::<Result<_, _>>()?,
            reach: Some(Reach::new(move |address| {
                let address = address.to_canonical();
                is_public(address) || allowed.iter().any(|net| net.contains(&address))
            })),
            ..PushOptions::default()
        };
        Ok(Self {
            credentials,
            options: Arc::new(options),
            pulls: Arc::default(),
        })
    }

    /// Those of the images' registries that the org has a credential for.
    pub(crate) async fn registries(
        &self,
        org: &OrgId,
        images: impl Iterator<Item = &str>,
    ) -> Result<Vec<String>, Problem> {
        let mut names: Vec<String> = images.map(registry_named).collect();
        names.sort_unstable();
        names.dedup();
        let mut found = Vec::new();
        for name in names {
            if self.credentials.has(org, &name).await? {
                found.push(name);
            }
        }
        Ok(found)
    }

    /// Lends for as long as the guest may want something. `connect` gives a way to it, or `None` when there will be none.
    pub(crate) async fn serve<F>(&self, terms: Terms, connect: impl Fn() -> F)
    where
        F: Future<Output = Option<Result<GuestClient, String>>>,
    {
        let mut desk = Desk {
            lending: self,
            targets: terms
                .images
                .iter()
                .filter_map(|it| Target::parse(it).ok())
                .collect(),
            terms: &terms,
            exchanges: HashMap::new(),
            pace: Bucket::full(),
        };
        let (mut guest, mut answer, mut failures) = (None, None, 0);
        while failures < LOAN_FAILURES_MAX {
            let mut to_ask = match guest.take() {
                Some(known) => known,
                None => match connect().await {
                    Some(Ok(new)) => new,
                    Some(Err(why)) => {
                        tracing::debug!(loan = terms.id, why, "the builder is not reached");
                        failures += 1;
                        tokio::time::sleep(LOAN_RETRY).await;
                        continue;
                    }
                    None => return,
                },
            };
            // An answer that did not arrive is made anew: the guest tells its wish again.
            let turn = LoanTurn {
                answer: answer.take(),
            };
            let asked = Instant::now();
            match to_ask.loan(&terms.id, &turn).await {
                Ok(wish) => {
                    failures = 0;
                    match wish {
                        Some(wish) => answer = Some(desk.answer(wish).await),
                        // A guest waits for a wish before it says that there is none; one that does not is waited for here.
                        None => tokio::time::sleep_until(asked + LOAN_RETRY).await,
                    }
                    guest = Some(to_ask);
                }
                Err(GuestError::Refused {
                    status: StatusCode::NOT_FOUND,
                    ..
                }) => return,
                Err(error) => {
                    tracing::debug!(loan = terms.id, %error, "the builder is not heard");
                    failures += 1;
                    tokio::time::sleep(LOAN_RETRY).await;
                }
            }
        }
    }
}

/// Where one guest's wishes are answered.
struct Desk<'a> {
    lending: &'a Lending,
    terms: &'a Terms,
    targets: Vec<Target>,
    exchanges: HashMap<(String, String), Exchange>,
    pace: Bucket,
}

impl Desk<'_> {
    async fn answer(&mut self, wish: LoanWish) -> LoanAnswer {
        while !self.pace.take(Instant::now(), LOANS_MAX, LOAN_EVERY) {
            tokio::time::sleep(LOAN_EVERY).await;
        }
        let number = wish.number;
        let loan = tokio::time::timeout(LOAN_ANSWER_WAIT_MAX, self.loan(&wish)).await;
        let loan = loan.unwrap_or_else(|_elapsed| Loan::Failed {
            message: "the registry's token server does not answer".to_owned(),
        });
        tracing::debug!(loan = self.terms.id, registry = wish.registry, repository = wish.repository, lent = ?loan, "asked for a token");
        LoanAnswer { number, loan }
    }

    async fn loan(&mut self, wish: &LoanWish) -> Loan {
        let failed = |message: &str| Loan::Failed {
            message: message.to_owned(),
        };
        let Some(target) = self.target_of(wish) else {
            return failed("it is asked for another push");
        };
        let org = &self.terms.org;
        let credential = match self.lending.credentials.get(org, target.registry()).await {
            Ok(Some(credential)) => credential,
            Ok(None) => return Loan::Nothing,
            Err(_logged) => return failed("the credential cannot be read"),
        };
        // Not by how the guest writes them.
        let key = (target.registry().to_owned(), target.repository().to_owned());
        let lent = async {
            let exchange = match self.exchanges.entry(key) {
                std::collections::hash_map::Entry::Occupied(known) => known.into_mut(),
                std::collections::hash_map::Entry::Vacant(place) => {
                    let login = Credential {
                        username: credential.username.clone(),
                        password: credential.password.clone(),
                    };
                    place.insert(Exchange::new(&target, login, &self.lending.options)?)
                }
            };
            exchange.lend(wish.mount_from.as_deref()).await
        };
        match lent.await {
            Ok(Lent::Nothing) => Loan::Nothing,
            Ok(Lent::Token(token, lifetime)) => Loan::Token {
                token,
                lifetime_ms: u64::try_from(lifetime.as_millis()).unwrap_or(u64::MAX),
            },
            Ok(Lent::Credential(_)) => Loan::Credential(credential),
            Err(PushError::Unauthorized { said, .. }) => Loan::Refused {
                message: said.as_str().to_owned(),
            },
            Err(error) => failed(&error.to_string()),
        }
    }

    /// What is pushed, if the wish is for that. Whatever is in the way of a scope's grammar is no repository.
    fn target_of(&self, wish: &LoanWish) -> Option<Target> {
        let is_meant = |it: &&Target| {
            it.registry().eq_ignore_ascii_case(&wish.registry) && it.repository() == wish.repository
        };
        let target = self.targets.iter().find(is_meant)?;
        let is_repository = |from: &String| {
            Target::parse(&format!("{}/{from}:latest", target.registry()))
                .is_ok_and(|it| it.repository() == from)
        };
        let may_mount = wish.mount_from.as_ref().is_none_or(is_repository);
        may_mount.then(|| target.clone())
    }
}

/// The registry of an image, as the guest names it.
fn registry_named(image: &str) -> String {
    Target::parse(image).map_or_else(
        |_| registry_of(image).to_owned(),
        |target| target.registry().to_owned(),
    )
}

/// A file of certificates, which are looked at now: at a push it would be too late.
fn read_roots(path: &Path) -> Result<Vec<u8>, LendingError> {
    let pem = std::fs::read(path).map_err(|source| LendingError::File {
        path: path.to_owned(),
        source,
    })?;
    let refused = |source| LendingError::Certificates {
        path: path.to_owned(),
        source,
    };
    let roots = reqwest::Certificate::from_pem_bundle(&pem);
    let roots = roots.map_err(|error| refused(Some(error)))?;
    if roots.is_empty() {
        return Err(refused(None));
    }
    // reqwest takes the process's TLS provider.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = reqwest::Client::builder().tls_certs_only(roots).build();
    client.map_err(|error| refused(Some(error)))?;
    Ok(pem)
}

/// Whether it is what an insecure registry may be called: a host, a host and port, or a network.
fn is_registry(text: &str) -> bool {
    let name = text.trim_end_matches('/');
    let name = name
        .strip_prefix("http://")
        .or_else(|| name.strip_prefix("https://"))
        .unwrap_or(name);
    if name.contains('/') {
        return name.parse::<IpNet>().is_ok();
    }
    let is_host = !name.is_empty()
        && !name
            .chars()
            .any(|c| c == '@' || c.is_whitespace() || c.is_control());
    let authority = name.parse::<http::uri::Authority>();
    is_host
        && (name.parse::<IpAddr>().is_ok()
            || authority.is_ok_and(|it| !it.host().is_empty() && !name.ends_with(':')))
}

fn network(text: &str) -> Result<IpNet, LendingError> {
    let address = |text: &str| text.parse::<IpAddr>().ok().map(IpNet::from);
    let network = text.parse().ok().or_else(|| address(text));
    network.ok_or_else(|| LendingError::Network(text.to_owned()))
}

/// An address that anybody on the internet may have. Others are the operator's own, or this computer's.
fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(it) => is_public_v4(it),
        IpAddr::V6(it) => is_public_v6(it),
    }
}

fn is_public_v4(it: Ipv4Addr) -> bool {
    let [a, b, c, _] = it.octets();
    // Carrier-grade NAT, protocol assignments, benchmarks; Azure's host.
    let is_special = matches!(
        (a, b, c),
        (0 | 240.., ..) | (100, 64..=127, _) | (192, 0, 0) | (198, 18..=19, _)
    );
    !(is_special
        || it.is_private()
        || it.is_loopback()
        || it.is_link_local()
        || it.is_multicast()
        || it == Ipv4Addr::new(168, 63, 129, 16))
}

fn is_public_v6(it: Ipv6Addr) -> bool {
    let [first, second, ..] = it.segments();
    // Global unicast, without what carries an IPv4 address inside (6to4, Teredo) or stays in a site.
    (0x2000..=0x3fff).contains(&first) && first != 0x2002 && (first, second) != (0x2001, 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine_stream::MachineStream;
    use crate::seal::Sealer;
    use hyper::service::service_fn;
    use slipway_store::SqliteStore;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[test]
    fn only_what_anybody_may_have_is_public() {
        for (address, public) in [
            ("8.8.8.8", true),
            ("172.32.0.1", true),
            ("2606:4700::1", true),
            ("10.1.2.3", false),
            ("172.31.255.255", false),
            ("192.168.0.1", false),
            ("127.0.0.1", false),
            ("169.254.169.254", false),
            ("100.100.100.200", false),
            ("168.63.129.16", false),
            ("0.0.0.0", false),
            ("224.0.0.1", false),
            ("255.255.255.255", false),
            ("::1", false),
            ("fe80::1", false),
            ("fd00:ec2::254", false),
            ("64:ff9b::a9fe:a9fe", false),
            ("2002:7f00:1::", false),
            ("::ffff:10.0.0.1", false),
        ] {
            let address: IpAddr = address.parse().unwrap();
            assert_eq!(is_public(address.to_canonical()), public, "{address}");
        }
    }

    /// A guest is a tenant's own: that it answers at once costs no more than a look each second.
    #[tokio::test]
    async fn a_guest_that_never_waits_is_asked_no_faster_for_it() {
        const TURNS: u32 = 3;
        let dir = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(&dir.path().join("store.db"))
            .await
            .unwrap();
        let sealer = Sealer::open(dir.path()).unwrap();
        let credentials = Credentials::new(Arc::new(store), sealer);
        let lending = Lending::new(credentials, &RegistrySettings::default()).unwrap();
        let turns = Arc::new(AtomicU32::new(0));
        let connect = || async {
            let (ours, theirs) = tokio::net::UnixStream::pair().unwrap();
            let turns = Arc::clone(&turns);
            tokio::spawn(async move {
                let answer = service_fn(|_| {
                    let status = match turns.fetch_add(1, Ordering::Relaxed) < TURNS {
                        true => StatusCode::NO_CONTENT,
                        false => StatusCode::NOT_FOUND,
                    };
                    let mut answer = http::Response::new(crate::http::empty());
                    *answer.status_mut() = status;
                    std::future::ready(Ok::<_, std::convert::Infallible>(answer))
                });
                let io = hyper_util::rt::TokioIo::new(theirs);
                let server = hyper::server::conn::http1::Builder::new();
                let _ = server.serve_connection(io, answer).await;
            });
            let stream = MachineStream::new(ours.into_std().unwrap().into()).unwrap();
            Some(Ok(GuestClient::new(stream).await.unwrap()))
        };
        let terms = Terms {
            id: "loan".to_owned(),
            org: OrgId::from_entropy([1; 10]),
            images: Vec::new(),
        };
        let began = Instant::now();
        lending.serve(terms, connect).await;
        assert_eq!(turns.load(Ordering::Relaxed), TURNS + 1);
        assert!(began.elapsed() >= LOAN_RETRY * TURNS);
    }

    #[test]
    fn a_list_of_insecure_registries_has_hosts_and_networks_alone() {
        for good in [
            "reg.test",
            "reg.test:5000",
            "http://reg.test:5000/",
            "10.0.0.0/8",
            "fd00::/8",
            "10.1.2.3",
            "fd00::1",
            "[fd00::1]:5000",
        ] {
            assert!(is_registry(good), "{good:?}");
        }
        for bad in [
            "10.0.0.0/99",
            "10.0.0/8",
            "reg.test/app",
            "  ",
            "",
            "http://",
            "/",
            ":5000",
            " reg.test",
            "me:secret@reg.test",
        ] {
            assert!(!is_registry(bad), "{bad:?}");
        }
    }

    #[test]
    fn a_file_of_certificates_has_whole_ones() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ca.pem");
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec!["ca.test".to_owned()]).unwrap();
        let whole = params.self_signed(&key).unwrap().pem();
        let half = &whole[..whole.len() / 2];
        let nonsense = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        for bad in ["", "ca\n", &key.serialize_pem(), half, nonsense] {
            std::fs::write(&path, bad).unwrap();
            let refused = read_roots(&path).unwrap_err().to_string();
            assert!(refused.contains("ca.pem"), "{refused}");
        }
        let both = [whole.as_str(), half].concat();
        std::fs::write(&path, both).unwrap();
        read_roots(&path).unwrap_err();
        std::fs::write(&path, &whole).unwrap();
        assert_eq!(read_roots(&path).unwrap(), whole.as_bytes());
    }

    #[test]
    fn networks_are_addresses_too() {
        assert!(network("10.0.0.0/8").is_ok());
        assert!(network("10.1.2.3").is_ok_and(|net| net.prefix_len() == 32));
        assert!(network("registry.example").is_err());
    }
}
