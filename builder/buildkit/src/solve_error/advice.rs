//! Instructions that cannot be carried out: the words that tell them, and what to do. Pure.

use super::tidy::tidy;

/// Longest instruction shown in a message, in characters.
const INSTRUCTION_CHARS_MAX: usize = 200;
const SAME_PATH: &str = "a file or a link has the path of a directory, or the other way round: remove one of them before the copy, or leave it out with .dockerignore";
const NO_USER: &str = "the user or group must be in /etc/passwd or /etc/group of the image before this step: add it, or use its number";
const ADDRESS: &str = "check the address; what needs a login can be fetched by a RUN with a secret";
const REPOSITORY: &str = "check the repository's address and the name after #; a private one needs `--secret id=GIT_AUTH_TOKEN` or an SSH key";
const ENTITLEMENT: &str =
    "builders do not give this to a step: take the flag out of the instruction";
/// dockerd's own image store knows `inline` alone.
const CACHE_KIND: &str = "an engine that keeps images in dockerd's own store writes type=inline alone, and reads type=registry; one with containerd's image store takes both";

/// Words of an error, and what to do about it.
const TABLE: [(&str, &str); 30] = [
    ("cannot copy to non-directory", SAME_PATH),
    ("cannot copy over non-directory", SAME_PATH),
    (": not a directory", SAME_PATH),
    (": is a directory", SAME_PATH),
    (": file exists", SAME_PATH),
    (
        ": too many levels of symbolic links",
        "a symbolic link leads to itself: remove it, or leave it out with .dockerignore",
    ),
    (
        ": file name too long",
        "a name in a path has at most 255 bytes",
    ),
    (
        "max depth exceeded",
        "an image has at most 128 layers: join RUN, COPY and ADD instructions",
    ),
    ("unable to find user", NO_USER),
    ("unable to find group", NO_USER),
    ("invalid user index", NO_USER),
    ("no matching entries in passwd file", NO_USER),
    (
        "no SSH key",
        "the step mounts an SSH agent, and none was forwarded: pass yours with --ssh default",
    ),
    (
        "digest mismatch",
        "what the address gives now is not what --checksum says: look at the file, then change one of them",
    ),
    ("invalid response status 4", ADDRESS),
    ("could not read Username", REPOSITORY),
    ("Authentication failed", REPOSITORY),
    ("couldn't find remote ref", REPOSITORY),
    ("does not contain ref", REPOSITORY),
    ("unexpected git", REPOSITORY),
    ("fatal: repository", REPOSITORY),
    ("remote: Repository not found", REPOSITORY),
    ("Permission denied (publickey", REPOSITORY),
    ("Host key verification failed", REPOSITORY),
    ("network.host is not allowed", ENTITLEMENT),
    ("security.insecure is not allowed", ENTITLEMENT),
    ("unknown cache exporter", CACHE_KIND),
    ("unknown cache importer", CACHE_KIND),
    (
        "lint violation found",
        "`# check=error=true` makes warnings errors: mend what they say, or take that line out",
    ),
    (
        "line greater than max allowed size",
        "a line of a Dockerfile has at most 65535 bytes: put the data into a file and COPY it",
    ),
];

/// What to do, where the words are known as the user's own mistake. `plain` has nothing in quotes.
pub(super) fn of(plain: &str) -> Option<&'static str> {
    if is_busy(plain) {
        return None;
    }
    TABLE
        .iter()
        .find_map(|(words, hint)| plain.contains(words).then_some(*hint))
}

/// A server that says "later".
fn is_busy(plain: &str) -> bool {
    ["invalid response status 408", "invalid response status 429"]
        .iter()
        .any(|status| plain.contains(status))
}

/// It is the fetch of an `ADD` that failed, by nobody's mistake that is known.
pub(super) fn is_of_a_source(plain: &str) -> bool {
    is_busy(plain)
        || plain.contains("invalid response status 5")
        || plain.contains("git error: ")
        || plain.starts_with("failed to load cache key: Get \"\"")
}

/// The message in words that need no knowledge of BuildKit, after the name of the step where the message does not tell what
/// it is about.
pub(super) fn reworded(message: &str, name: Option<&str>) -> String {
    let message = message
        .strip_prefix("failed to load cache key: ")
        .unwrap_or(message);
    if message.contains("max depth exceeded") {
        return "the image has too many layers".to_owned();
    }
    let told = message.replace(
        "invalid response status ",
        "the server answered with status ",
    );
    match name {
        // A name is `[2/5] ADD ...`.
        Some(name) if told != message || message.starts_with("digest mismatch") => {
            let instruction = name.split_once("] ").map_or(name, |(_, rest)| rest);
            let shown: String = instruction.chars().take(INSTRUCTION_CHARS_MAX).collect();
            tidy(&format!("{shown}: {told}")).into_owned()
        }
        Some(_) | None => told,
    }
}
