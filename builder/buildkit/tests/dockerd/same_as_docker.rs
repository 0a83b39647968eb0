//! The same directory, built here and by Docker's own CLI, gives the same layers.

use crate::common::{Build, Dockerd, dockerd, write_files};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

/// Builds with both; gives the layers that each made.
async fn both(dockerd: &Dockerd, context: &Path) -> (Vec<String>, Vec<String>) {
    let ours = Build::new(dockerd, context).attr("no-cache", "");
    let name = ours.image.clone();
    ours.run(dockerd).await.image();
    let theirs = dockerd.image_name();
    dockerd.docker(&[
        "build",
        "-q",
        "--no-cache",
        "--network=none",
        "-t",
        &theirs,
        context.to_str().unwrap(),
    ]);
    (dockerd.layers(&name), dockerd.layers(&theirs))
}

fn odd_tree(root: &Path) {
    write_files(
        root,
        &[
            ("plain", "plain"),
            ("dir/sub/deep", "deep"),
            ("dir.d/between", "sorts between dir and dir/"),
            ("name with space/ü ö 漢", "unicode"),
            ("modes/setuid", "s"),
            ("modes/none", "n"),
            ("big", &"0123456789abcdef".repeat(300_000)),
            ("empty-file", ""),
            ("skip/all/of/it", "x"),
            ("skip/but/this", "y"),
            ("a.log", "log"),
            ("dir/sub/b.log", "log"),
            ("dir/keep.log", "log"),
            (".hidden/x", "h"),
            ("new\nline", "n"),
            ("-dash", "d"),
        ],
    );
    let at = |path: &str| root.join(path);
    let mode = |path: &str, mode| {
        std::fs::set_permissions(at(path), PermissionsExt::from_mode(mode)).unwrap()
    };
    std::fs::create_dir_all(at("empty/inner")).unwrap();
    mode("modes/setuid", 0o6751);
    mode("modes/none", 0o000);
    mode("empty", 0o1777);
    mode("empty/inner", 0o2700);
    symlink("plain", at("link")).unwrap();
    symlink("../../outside", at("dir/outside")).unwrap();
    symlink("/etc/absent", at("absolute")).unwrap();
    symlink("dir", at("to-dir")).unwrap();
    std::fs::hard_link(at("plain"), at("dir/hard")).unwrap();
    std::fs::hard_link(at("plain"), at("zz-hard")).unwrap();
    std::fs::hard_link(at("link"), at("link-too")).unwrap();
    nix::unistd::mkfifo(&at("pipe"), nix::sys::stat::Mode::S_IRUSR).unwrap();
    std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
    rustix::fs::setxattr(
        at("plain"),
        "user.test",
        b"value",
        rustix::fs::XattrFlags::empty(),
    )
    .unwrap();
    std::os::unix::fs::chown(at("dir/sub/deep"), Some(1234), Some(5678)).unwrap();
    let old =
        std::time::SystemTime::UNIX_EPOCH + std::time::Duration::new(1_000_000_000, 123_456_789);
    std::fs::File::options()
        .write(true)
        .open(at("plain"))
        .unwrap()
        .set_modified(old)
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_odd_tree() {
    let Some(dockerd) = dockerd() else { return };
    let context = dockerd.work_dir("odd");
    odd_tree(&context);
    write_files(&context, &[("Dockerfile", "FROM scratch\nCOPY . /\n")]);
    let (ours, theirs) = both(&dockerd, &context).await;
    assert_eq!(ours, theirs);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ignore_file_with_exceptions() {
    let Some(dockerd) = dockerd() else { return };
    let ignore_files = [
        "skip\n!skip/but\n**/*.log\n!dir/keep.log\n",
        "*\n!dir\ndir/sub\n",
        "**\n!**/*.log\n",
        "# c\n/dir\nname with space\n!dir/hard\nplain\n",
        "**/d*p\n[a-m]*\n!big\n",
        "../x\n./link\n*.{log,txt}\n\\d*\n?ocket\n",
    ];
    for ignore in ignore_files {
        let context = dockerd.work_dir("ignore");
        odd_tree(&context);
        write_files(
            &context,
            &[
                ("Dockerfile", "FROM scratch\nCOPY . /\n"),
                (".dockerignore", ignore),
            ],
        );
        let (ours, theirs) = both(&dockerd, &context).await;
        assert_eq!(ours, theirs, "{ignore}");
        let everything = Build::new(&dockerd, &context);
        assert!(!ours.is_empty(), "{:?}", everything.context);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_ignore_file() {
    let Some(dockerd) = dockerd() else { return };
    let context = dockerd.work_dir("large-ignore");
    odd_tree(&context);
    let ignore: String = (0..5_000)
        .map(|n| format!("some/long/directory/name/*/{n}.ö\n"))
        .collect();
    let ignore = ignore + "dir\n!dir/sub\n";
    write_files(
        &context,
        &[
            ("Dockerfile", "FROM scratch\nCOPY . /\n"),
            (".dockerignore", &ignore),
        ],
    );
    let (ours, theirs) = both(&dockerd, &context).await;
    assert_eq!(ours, theirs);
}

/// What is in the layers of an image, for people.
fn contents(dockerd: &Dockerd, image: &str) -> String {
    let dir = dockerd.work_dir("saved");
    let saved = dir.join("image.tar");
    dockerd.docker(&["save", "-o", saved.to_str().unwrap(), image]);
    let script = "cd \"$1\"; tar -xf image.tar; shift; for digest; do \
        tar -tvv --full-time --numeric-owner -f \"blobs/sha256/${digest#sha256:}\"; done";
    let mut list = Command::new("sh");
    list.args(["-c", script, "list"])
        .arg(&dir)
        .args(dockerd.layers(image));
    String::from_utf8_lossy(&list.output().unwrap().stdout).into_owned()
}

/// A number that depends on the seed alone, below `bound`.
fn next(seed: &mut u64, bound: usize) -> usize {
    *seed = seed
        .wrapping_mul(6_364_136_223_846_793_005)
        .wrapping_add(1_442_695_040_888_963_407);
    usize::try_from(*seed >> 33).unwrap() % bound
}

fn random_ignore_file(seed: &mut u64) -> String {
    const PARTS: [&str; 28] = [
        "*", "**", "?", "/", "/", "/", "dir", "sub", "deep", "skip", "but", "this", ".log", "a",
        "b", "[a-m]", "[^d]", "\\*", ".", "..", "name", "plain", "empty", "{a,b}", "|", "**/",
        "/**", " ",
    ];
    let mut file = String::new();
    for _ in 0..=next(seed, 5) {
        if next(seed, 3) == 0 {
            file.push('!');
        }
        for _ in 0..=next(seed, 4) {
            file.push_str(PARTS[next(seed, PARTS.len())]);
        }
        file.push('\n');
    }
    file
}

/// `SLIPWAY_TEST_SEED` chooses other files; a failure shows the file.
#[tokio::test(flavor = "multi_thread")]
async fn random_ignore_files() {
    let Some(dockerd) = dockerd() else { return };
    let mut seed = std::env::var("SLIPWAY_TEST_SEED").map_or(1, |seed| seed.parse().unwrap());
    for _ in 0..10 {
        // A fresh one each time: the builder's copy of a directory that it updates gets new times.
        let context = dockerd.work_dir("random");
        odd_tree(&context);
        let ignore = random_ignore_file(&mut seed);
        let dockerfile = "FROM scratch\nCOPY . /\n";
        write_files(
            &context,
            &[("Dockerfile", dockerfile), (".dockerignore", &ignore)],
        );
        let ours = Build::new(&dockerd, &context).attr("no-cache", "");
        let name = ours.image.clone();
        let ours = ours.run(&dockerd).await.result;
        let theirs = dockerd.image_name();
        let path = context.to_str().unwrap();
        let theirs_made = dockerd.try_docker(&["build", "-q", "--no-cache", "-t", &theirs, path]);
        assert_eq!(
            ours.is_ok(),
            theirs_made.status.success(),
            "{ignore}{ours:?}{theirs_made:?}"
        );
        if ours.is_ok() {
            let same = dockerd.layers(&name) == dockerd.layers(&theirs);
            let listed = |image: &str| contents(&dockerd, image);
            assert!(same, "{ignore}\n{}\n{}", listed(&name), listed(&theirs));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn copies_of_parts_through_links() {
    let Some(dockerd) = dockerd() else { return };
    let context = dockerd.work_dir("parts");
    odd_tree(&context);
    for copies in [
        "COPY to-dir/sub link /\n",
        "COPY di*.d/ em*/in* /\n",
        "COPY --link *.log plain zz-hard /\n",
        "COPY [\"name with space/\", \"/\"]\nADD dir/hard /\n",
        "COPY --chown=7:8 --chmod=640 dir /\n",
    ] {
        write_files(
            &context,
            &[("Dockerfile", &format!("FROM scratch\n{copies}"))],
        );
        let (ours, theirs) = both(&dockerd, &context).await;
        assert_eq!(ours, theirs, "{copies}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_is_not_text() {
    let Some(dockerd) = dockerd() else { return };
    let context = dockerd.work_dir("bytes");
    write_files(&context, &[("Dockerfile", "FROM scratch\nCOPY . /\n")]);
    std::fs::write(context.join(std::ffi::OsStr::from_bytes(b"b\xff\xfe")), "x").unwrap();
    let (ours, theirs) = both(&dockerd, &context).await;
    assert_eq!(ours, theirs);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_changed_is_sent_again() {
    let Some(dockerd) = dockerd() else { return };
    let context = dockerd.work_dir("again");
    odd_tree(&context);
    let dockerfile = "FROM scratch\nCOPY . /\n";
    write_files(&context, &[("Dockerfile", dockerfile)]);
    // The Dockerfile itself is asked for every time.
    let always = (1, dockerfile.len() as u64);
    let first = Build::new(&dockerd, &context).run(&dockerd).await;
    first.image();
    assert!(first.stats.bytes > 4_000_000, "{:?}", first.stats);

    let again = Build::new(&dockerd, &context).run(&dockerd).await;
    assert_eq!(again.image().image_id, first.image().image_id);
    assert_eq!(
        (again.stats.files, again.stats.bytes),
        always,
        "{:?}",
        again.stats
    );
    assert_eq!(again.stats.entries, first.stats.entries);

    write_files(&context, &[("dir/sub/deep", "changed")]);
    std::fs::remove_file(context.join("a.log")).unwrap();
    let changed = Build::new(&dockerd, &context).run(&dockerd).await;
    assert_ne!(changed.image().image_id, first.image().image_id);
    let sent = (changed.stats.files, changed.stats.bytes);
    assert_eq!(sent, (always.0 + 1, always.1 + 7), "{:?}", changed.stats);
}
