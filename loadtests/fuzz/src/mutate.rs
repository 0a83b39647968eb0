//! Changes an input at random, by a seed: the same seed gives the same inputs on every machine.
//!
//! Must not know: what the bytes mean.

/// What parsers tend to trip over: ends of ranges, separators, escapes, multi-byte characters.
const TOKENS: &[&[u8]] = &[
    b"\0",
    b"\n",
    b"\r\n\r\n",
    b"\xff",
    b"\x80",
    b"\xc3",
    "\u{feff}".as_bytes(),
    "\u{130}".as_bytes(),
    "\u{1f980}".as_bytes(),
    b"..",
    b"../",
    b"//",
    b"%2F",
    b"%00",
    b"\\",
    b"\"",
    b"[",
    b"]",
    b"{",
    b"}",
    b"*",
    b"**",
    b"!",
    b"-1",
    b"0",
    b"9223372036854775807",
    b"18446744073709551615",
    b"18446744073709551616",
    b"1e999",
    b"null",
    b"\xff\xff\xff\xff",
    b"\x7f\xff\xff\xff\xff\xff\xff\xff",
];
/// Inputs do not grow beyond this.
const BYTES_MAX: usize = 16 << 10;

/// A small generator of numbers (xorshift64*, Vigna 2016). Not for secrets.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// From a seed.
    pub fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    /// A number below `bound`; 0 if there is none.
    pub fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let wide = u128::from(self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)) * bound as u128;
        usize::try_from(wide >> 64).unwrap_or(0)
    }

    fn byte(&mut self) -> u8 {
        u8::try_from(self.below(256)).unwrap_or(0)
    }
}

/// One of `inputs`, changed a few times.
pub fn mutated(inputs: &[&[u8]], random: &mut Random) -> Vec<u8> {
    let pick = |random: &mut Random| match inputs {
        [] => &b""[..],
        some => some[random.below(some.len())],
    };
    let mut bytes = pick(random).to_vec();
    for _ in 0..=random.below(5) {
        let other = pick(random);
        change(&mut bytes, other, random);
        bytes.truncate(BYTES_MAX);
    }
    bytes
}

fn change(bytes: &mut Vec<u8>, other: &[u8], random: &mut Random) {
    let at = random.below(bytes.len() + 1);
    let end = (at + 1 + random.below(32)).min(bytes.len());
    match random.below(9) {
        0 => flip(bytes, at, 1 << random.below(8)),
        1 => {
            let mask = random.byte();
            flip(bytes, at, mask);
        }
        2 => drop(bytes.drain(at.min(end)..end)),
        3 => bytes.insert(at, random.byte()),
        4 => {
            let token = TOKENS[random.below(TOKENS.len())];
            bytes.splice(at..at, token.iter().copied());
        }
        5 => {
            let token = TOKENS[random.below(TOKENS.len())];
            bytes.splice(at.min(end)..end, token.iter().copied());
        }
        6 => {
            let again = bytes[at.min(end)..end].repeat(1 + random.below(4));
            bytes.splice(at..at, again);
        }
        7 => {
            let from = random.below(other.len() + 1);
            bytes.splice(at..at, other[from..].iter().copied().take(256));
        }
        _ => bytes.truncate(at),
    }
}

fn flip(bytes: &mut [u8], at: usize, mask: u8) {
    if let Some(byte) = bytes.get_mut(at) {
        *byte ^= mask;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_inputs_and_another_one_gives_others() {
        let inputs: [&[u8]; 2] = [b"one input", b"another"];
        let made = |seed| {
            let mut random = Random::new(seed);
            (0..200)
                .map(|_| mutated(&inputs, &mut random))
                .collect::<Vec<_>>()
        };
        assert_eq!(made(1), made(1));
        assert_ne!(made(1), made(2));
        assert!(made(3).iter().all(|bytes| bytes.len() <= BYTES_MAX));
    }
}
