//! Tar archives of one file, written as they are sent.

use std::io::{self, Write};

/// A ustar header (POSIX.1-1988) of a regular file.
pub(super) fn header(name: &str, size: u64) -> [u8; 512] {
    let mut header = [0u8; 512];
    header[..name.len()].copy_from_slice(name.as_bytes());
    header[100..108].copy_from_slice(b"0000644\0");
    header[108..116].copy_from_slice(b"0000000\0");
    header[116..124].copy_from_slice(b"0000000\0");
    let size = format!("{size:011o}\0");
    header[124..136].copy_from_slice(size.as_bytes());
    header[136..148].copy_from_slice(b"00000000000\0");
    header[148..156].fill(b' ');
    header[156] = b'0';
    header[257..265].copy_from_slice(b"ustar\x0000");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    let sum = format!("{sum:06o}\0 ");
    header[148..156].copy_from_slice(sum.as_bytes());
    header
}

/// `bytes` of a file that does not compress to nothing. A multiple of 512, or the archive is damaged.
pub(super) fn noise(out: &mut dyn Write, bytes: u64) -> io::Result<()> {
    let block: Vec<u8> = (0..1u32 << 20)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    let mut left = bytes;
    while left > 0 {
        let part = left.min(block.len() as u64);
        out.write_all(&block[..usize::try_from(part).unwrap_or(block.len())])?;
        left -= part;
    }
    Ok(())
}
