//! Measures the codecs that could compress layers: one file, in members of their own, with one thread and with two.
//!
//! `cargo run --release -p slipway-registry-push --example codecs -- root.tar`; docs/benchmarks/codecs.md has what came out.

#![expect(clippy::unwrap_used, reason = "a failed step ends the measurement")]

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

const KIB: usize = 1024;
const RUNS: usize = 2;

/// Compresses a member into the buffer.
type Compress = Box<dyn FnMut(&[u8], &mut Vec<u8>)>;

struct Case {
    name: String,
    member: usize,
    make: Box<dyn Fn() -> Compress + Sync>,
}

fn main() {
    let path = std::env::args().nth(1).expect("usage: codecs FILE");
    let data = std::fs::read(path).unwrap();
    println!("{:.1} MB", megabytes(data.len()));
    println!("| codec | member KiB | threads | s | MB/s | MB |\n|---|---|---|---|---|---|");
    for case in cases() {
        for threads in [1, 2] {
            let (took, size) = best(&case, &data, threads);
            println!(
                "| {} | {} | {threads} | {:.2} | {:.0} | {:.1} |",
                case.name,
                case.member / KIB,
                took.as_secs_f64(),
                megabytes(data.len()) / took.as_secs_f64(),
                megabytes(size)
            );
        }
    }
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for member in [256 * KIB, 512 * KIB, 1024 * KIB] {
        cases.push(isal(1, member));
        cases.push(zstd(1, member));
    }
    cases.extend([isal(0, 512 * KIB), isal(3, 512 * KIB)]);
    cases.extend([1, 2, 4, 6].map(libdeflate));
    cases.extend([1, 2, 6].map(zlib_rs));
    cases.extend([-1, 2, 3, 6].map(|level| zstd(level, 512 * KIB)));
    cases
}

/// The shortest of some runs, and the compressed size.
fn best(case: &Case, data: &[u8], threads: usize) -> (Duration, usize) {
    let runs = (0..RUNS).map(|_| run(case, data, threads));
    runs.min().unwrap()
}

fn run(case: &Case, data: &[u8], threads: usize) -> (Duration, usize) {
    let members: Vec<&[u8]> = data.chunks(case.member).collect();
    let (next, size) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let began = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let (mut compress, mut output) = ((case.make)(), Vec::new());
                while let Some(member) = members.get(next.fetch_add(1, Ordering::Relaxed)) {
                    compress(member, &mut output);
                    size.fetch_add(output.len(), Ordering::Relaxed);
                }
            });
        }
    });
    (began.elapsed(), size.into_inner())
}

fn isal(level: isize, member: usize) -> Case {
    let make = move || -> Compress {
        let level = isal::CompressionLevel::try_from(level).unwrap();
        Box::new(move |input, output| {
            output.resize(input.len() + input.len() / 8 + 4096, 0);
            let length = isal::compress_into(input, output, level, isal::Codec::Gzip).unwrap();
            output.truncate(length);
        })
    };
    Case {
        name: format!("ISA-L {level}"),
        member,
        make: Box::new(make),
    }
}

fn libdeflate(level: i32) -> Case {
    let make = move || -> Compress {
        let level = libdeflater::CompressionLvl::new(level).unwrap();
        let mut compressor = libdeflater::Compressor::new(level);
        Box::new(move |input, output| {
            output.resize(compressor.gzip_compress_bound(input.len()), 0);
            let length = compressor.gzip_compress(input, output).unwrap();
            output.truncate(length);
        })
    };
    Case {
        name: format!("libdeflate {level}"),
        member: 512 * KIB,
        make: Box::new(make),
    }
}

fn zlib_rs(level: i32) -> Case {
    let make = move || -> Compress {
        Box::new(move |input, output| {
            output.resize(input.len() + input.len() / 8 + 4096, 0);
            let config = zlib_rs::DeflateConfig::new(level);
            let length = zlib_rs::compress_slice(output, input, config).0.len();
            output.truncate(length);
        })
    };
    Case {
        name: format!("zlib-rs {level}"),
        member: 512 * KIB,
        make: Box::new(make),
    }
}

fn zstd(level: i32, member: usize) -> Case {
    let make = move || -> Compress {
        let mut compressor = zstd::bulk::Compressor::new(level).unwrap();
        compressor.include_checksum(true).unwrap();
        Box::new(move |input, output| {
            output.resize(zstd::zstd_safe::compress_bound(input.len()), 0);
            let length = compressor
                .compress_to_buffer(input, output.as_mut_slice())
                .unwrap();
            output.truncate(length);
        })
    };
    Case {
        name: format!("zstd {level}"),
        member,
        make: Box::new(make),
    }
}

#[expect(clippy::cast_precision_loss, reason = "for people to read")]
fn megabytes(bytes: usize) -> f64 {
    bytes as f64 / 1e6
}
