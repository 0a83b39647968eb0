//! Which host of the records a daemon is. Its name in the settings may change; the id of its pool does not.
//!
//! Must not know: what is on a host.

use super::host::HostSettings;
use crate::host_client::HostClient;
use crate::limits::HOST_FIRST_WORD_WAIT;
use futures_util::future::join_all;
use slipway_store::{Host, Store, StoreError};
use tokio::time::timeout;

/// The hosts of the records that the one of these settings was before, given what it says of its pool: those whose names are not in the
/// settings any longer, with that pool or, if they never said, that socket.
fn formers<'a>(
    settings: &HostSettings,
    pool: &str,
    known: &'a [Host],
    named: impl Fn(&str) -> bool,
) -> Vec<&'a Host> {
    let same = |row: &&Host| match &row.pool {
        Some(id) => id == pool,
        None => row.socket == settings.socket,
    };
    known
        .iter()
        .filter(|row| !named(&row.name))
        .filter(same)
        .collect()
}

/// Has hosts that were renamed in the settings keep what they had under their old names. One that does not answer now is refused
/// by the store when it says which pool it has.
pub(super) async fn recognise(
    store: &dyn Store,
    settings: &[HostSettings],
) -> Result<(), StoreError> {
    let named = |name: &str| settings.iter().any(|host| host.name == name);
    let known = store.hosts().await?;
    let mut known: Vec<Host> = known.into_iter().map(|used| used.host).collect();
    if known.iter().all(|row| named(&row.name)) {
        return Ok(());
    }
    let asked = settings.iter().map(async |host| {
        let client = HostClient::new(&host.socket);
        let info = timeout(HOST_FIRST_WORD_WAIT, client.info()).await;
        (
            host,
            info.ok().and_then(Result::ok).and_then(|info| info.pool),
        )
    });
    for (host, pool) in join_all(asked).await {
        let Some(pool) = pool else { continue };
        let formers: Vec<Host> = formers(host, &pool, &known, named)
            .into_iter()
            .cloned()
            .collect();
        for former in formers {
            store.rename_host(&former.id, &host.name).await?;
            tracing::warn!(
                host = host.name,
                before = former.name,
                pool,
                "host was renamed in the settings; it keeps its volumes and builders"
            );
            known.retain(|row| row.id != former.id);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use slipway_core::id::HostId;
    use slipway_core::units::ByteSize;

    fn row(name: &str, socket: &str, pool: Option<&str>) -> Host {
        Host {
            id: HostId::from_entropy([1; 10]),
            name: name.into(),
            region: "r".into(),
            arch: "amd64".into(),
            socket: socket.into(),
            pool: pool.map(str::to_owned),
            pool_capacity: ByteSize(0),
            memory: ByteSize(0),
            cpu_millis: 0,
        }
    }

    #[test]
    fn a_host_is_known_by_its_pool_and_by_its_socket_only_if_it_never_said() {
        let settings = HostSettings {
            name: "new".into(),
            region: "r".into(),
            socket: "/s".into(),
        };
        let before = |known: &[Host]| -> Vec<String> {
            let named = |name: &str| ["new", "other"].contains(&name);
            let found = formers(&settings, "x", known, named);
            found.into_iter().map(|row| row.name.clone()).collect()
        };
        assert_eq!(before(&[row("old", "/elsewhere", Some("x"))]), ["old"]);
        assert_eq!(before(&[row("old", "/s", None)]), ["old"]);
        // Another pool behind the same socket is another host.
        assert!(before(&[row("old", "/s", Some("y"))]).is_empty());
        assert!(before(&[row("old", "/elsewhere", None)]).is_empty());
        // A name that is in the settings is a host of its own: the store refuses the second.
        assert!(before(&[row("other", "/s", Some("x")), row("new", "/s", None)]).is_empty());
        let both = [row("old", "/s", None), row("older", "/t", Some("x"))];
        assert_eq!(before(&both), ["old", "older"]);
    }
}
