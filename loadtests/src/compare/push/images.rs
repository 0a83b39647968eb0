//! The inputs: images made from what `make setup` has made, and from numbers. Nothing is shipped.

use super::bench::Bench;
use anyhow::{Context, Result, ensure};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

/// About the bytes of the root file system's layer in a full run.
const ROOT_BYTES: u64 = 377_000_000;

/// Builds `name` from a directory that `fill` fills (a Dockerfile included).
pub(super) fn build(
    bench: &Bench,
    name: &str,
    fill: impl FnOnce(&Path) -> Result<()>,
) -> Result<()> {
    let inside = format!("/contexts/{name}");
    let dir = bench.engine.root().path().join(&inside[1..]);
    std::fs::create_dir_all(&dir)?;
    fill(&dir)?;
    bench.engine.docker_ok(&[
        "buildx",
        "build",
        "-q",
        "--network=none",
        "-t",
        name,
        &inside,
    ])?;
    std::fs::remove_dir_all(&dir)?;
    Ok(())
}

/// A Dockerfile.
pub(in crate::compare) fn dockerfile(dir: &Path, text: &str) -> Result<()> {
    std::fs::write(dir.join("Dockerfile"), text).context("write Dockerfile")
}

/// One layer: files of the builder image, a real Debian root, up to `bytes` of them; gives bytes and number of files.
pub(super) fn root_layer(bench: &Bench, name: &str, bytes: u64) -> Result<(u64, usize)> {
    let mut made = (0, 0);
    build(bench, name, |dir| {
        made = root_tar(&bench.engine.root().image(), &dir.join("root.tar"), bytes)?;
        dockerfile(dir, "FROM scratch\nADD root.tar /\n")
    })?;
    Ok(made)
}

/// A tar of the first regular files, directories and links of a root in the order of their names, up to `bytes` of content.
/// Devices stay out; so does one giant: a file larger than a fifth of it all.
pub(in crate::compare) fn root_tar(root: &Path, tar: &Path, bytes: u64) -> Result<(u64, usize)> {
    let mut names = Vec::new();
    list(root, Path::new("."), &mut names)?;
    names.sort();
    let (mut total, mut count, mut list) = (0, 0, Vec::new());
    for (name, size) in names {
        if total + size > bytes || size > bytes / 5 {
            continue;
        }
        total += size;
        count += 1;
        list.extend_from_slice(name.as_os_str().as_encoded_bytes());
        list.push(0);
    }
    let list_file = tar.with_extension("list");
    std::fs::write(&list_file, list)?;
    let mut command = Command::new("tar");
    command.arg("--directory").arg(root).args([
        "--create",
        "--format=gnu",
        "--null",
        "--no-recursion",
        "--verbatim-files-from",
    ]);
    command.arg("--files-from").arg(&list_file);
    let output = command.arg("--file").arg(tar).output()?;
    ensure!(output.status.success(), "{}", crate::testbed::show(&output));
    std::fs::remove_file(&list_file)?;
    Ok((std::fs::metadata(tar)?.len(), count))
}

fn list(root: &Path, dir: &Path, names: &mut Vec<(PathBuf, u64)>) -> Result<()> {
    for entry in std::fs::read_dir(root.join(dir))? {
        let entry = entry?;
        let (name, kind) = (dir.join(entry.file_name()), entry.file_type()?);
        if kind.is_dir() {
            names.push((name.clone(), 0));
            list(root, &name, names)?;
        } else if kind.is_file() || kind.is_symlink() {
            names.push((name, entry.metadata()?.len()));
        }
    }
    Ok(())
}

/// The usual size of the root file system's layer, or a small one.
pub(in crate::compare) fn root_bytes(quick: bool) -> u64 {
    if quick { ROOT_BYTES / 20 } else { ROOT_BYTES }
}

/// A file that no codec makes smaller, always the same for one `seed`.
pub(super) fn incompressible(path: &Path, bytes: u64, seed: u64) -> Result<()> {
    let mut file = BufWriter::with_capacity(1 << 20, File::create(path)?);
    // splitmix64: statistically random, and fast.
    let mut state = seed;
    let mut left = bytes;
    while left > 0 {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = state;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^= word >> 31;
        let part = usize::try_from(left.min(8))?;
        file.write_all(&word.to_le_bytes()[..part])?;
        left -= part as u64;
    }
    file.into_inner().context("write a file")?;
    Ok(())
}

/// Lines of text, different for each `seed`, that compress as sources do.
pub(super) fn text(path: &Path, bytes: usize, seed: u64) -> Result<()> {
    let mut text = String::with_capacity(bytes + 80);
    let mut n = seed;
    while text.len() < bytes {
        n = n.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        text.push_str(&format!("let value_{} = table[{}];\n", n >> 40, n >> 56));
    }
    text.truncate(bytes);
    std::fs::write(path, text)?;
    Ok(())
}
