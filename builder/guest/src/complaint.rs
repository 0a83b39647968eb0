//! Whether dockerd's last words say that its data is damaged, rather than that it lacks time, room, memory or a network.
//!
//! Pure. A wrong "yes" costs a cache that may be good, a wrong "no" only that somebody has to ask for an empty one: so only
//! words that cannot be about anything else count.
//!
//! It must not know what is done about damage.

use crate::disk::DATA_ROOT;

/// What dockerd says when it gives its start up, and what the runtime says of a program that broke off.
const LAST_WORDS: [&str; 4] = [
    "failed to start daemon",
    "panic:",
    "fatal error:",
    "unexpected fault address",
];
/// Of these databases dockerd is the only writer, so that nothing but damage explains them.
const BROKEN_DATABASE: [&str; 7] = [
    "bbolt",
    "invalid database",
    "file size too small",
    "checksum error",
    "version mismatch",
    "invalid page type",
    "invalid freelist page",
];
/// What a file system or a directory tree says when something is not what was written.
const BROKEN_TREE: [&str; 5] = [
    "structure needs cleaning",
    "input/output error",
    "not a directory",
    "is a directory",
    "bad message",
];

/// Whether the lines, the last ones that dockerd wrote before it ended by itself while it started, speak of damaged data.
pub(crate) fn of_damage<'a>(mut lines: impl Iterator<Item = &'a str> + Clone) -> bool {
    let gave_up = |line: &str| LAST_WORDS.iter().any(|words| line.contains(words));
    if !lines.clone().any(gave_up) {
        return false;
    }
    lines.any(|line| {
        let line = line.to_ascii_lowercase();
        let says = |words: &[&str]| words.iter().any(|word| line.contains(word));
        // A panic's own words name no path, but its stack names the database.
        let of_data = line.contains(DATA_ROOT) && gave_up(&line);
        (of_data && (says(&BROKEN_TREE) || says(&BROKEN_DATABASE)))
            || (line.contains("bbolt") && !line.contains("level="))
    })
}

/// Whether the lines, of a containerd that keeps the images, say that a part of it does not work over damaged data. It goes on without the
/// part, and dockerd, which needs it, gives its start up for a reason that names no damage.
pub(crate) fn of_damaged_images<'a>(mut lines: impl Iterator<Item = &'a str>) -> bool {
    lines.any(|line| {
        let line = line.to_ascii_lowercase();
        let says = |words: &[&str]| words.iter().any(|word| line.contains(word));
        line.contains("failed to load plugin io.containerd.")
            && (says(&BROKEN_DATABASE) || (line.contains(DATA_ROOT) && says(&BROKEN_TREE)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damaged_images_are_told_from_a_part_that_is_missing() {
        for (line, damage) in [
            (
                "level=warning msg=\"failed to load plugin io.containerd.grpc.v1.images\" error=\"invalid database\"",
                true,
            ),
            (
                "level=warning msg=\"failed to load plugin io.containerd.transfer.v1.local\" error=\"mkdir /var/lib/docker/containerd/io.containerd.metadata.v1.bolt: not a directory\"",
                true,
            ),
            (
                "level=warning msg=\"failed to load plugin io.containerd.grpc.v1.tasks\" error=\"no runtimes available to create task service\"",
                false,
            ),
            (
                "level=warning msg=\"failed to load plugin io.containerd.metadata.v1.bolt\" error=\"no space left on device\"",
                false,
            ),
            ("level=error msg=\"invalid database\"", false),
        ] {
            assert_eq!(of_damaged_images([line].into_iter()), damage, "{line}");
        }
    }

    fn check(text: &str, damage: bool) {
        assert_eq!(of_damage(text.lines()), damage, "{text}");
    }

    #[test]
    fn damage_is_told_from_everything_else() {
        for damaged in [
            "failed to start daemon: mkdir /var/lib/docker/network: not a directory",
            "failed to start daemon: Error initializing network controller: error obtaining controller instance: mkdir /var/lib/docker/network/files: not a directory",
            "failed to start daemon: error while opening volume store metadata database (/var/lib/docker/volumes/metadata.db): invalid database",
            "failed to start daemon: error initializing graphdriver: readdirent /var/lib/docker/overlay2: structure needs cleaning",
            "failed to start daemon: open /var/lib/docker/image/overlay2/repositories.json: input/output error",
            "panic: page 7 already freed\n\ngoroutine 1 [running]:\ngo.etcd.io/bbolt.(*freelist).free(0xc0)",
            "unexpected fault address 0x7f0000\nfatal error: fault\ngo.etcd.io/bbolt.(*DB).page(0xc0)",
        ] {
            check(damaged, true);
        }
        for not in [
            "",
            "time=x level=info msg=\"Starting up\"",
            "failed to start daemon: Error initializing network controller: error creating default \"bridge\" network: no available network",
            "failed to start daemon: open /var/lib/docker/engine-id: no space left on device",
            "failed to start daemon: mkdir /var/lib/docker/tmp: read-only file system",
            "failed to start daemon: open /var/lib/docker/buildkit/cache.db: timeout",
            "failed to start daemon: error initializing graphdriver: driver not supported: overlay2",
            "failed to dial \"/run/containerd/containerd.sock\": context deadline exceeded",
            "panic: runtime error: invalid memory address or nil pointer dereference\ngoroutine 1 [running]:\nmain.main()",
            "fatal error: runtime: out of memory",
            // Told of while it works, and not why it ended.
            "level=error msg=\"stat /var/lib/docker/overlay2/x: structure needs cleaning\"",
        ] {
            check(not, false);
        }
    }
}
