//! Rates of networks, as settings and the kernel give them. Pure.

use serde::Deserialize;
use std::fmt;
use std::str::FromStr;

/// Bits in a second. Parses `500Mbit`, `1Gbit`, `100kbit`, `64000`; prints as `tc` reads it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "String")]
pub struct BitRate(pub u64);

/// A text is not a rate.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "'{text}' is not a rate of a network (examples: 500Mbit, 1Gbit; at least {}, at most {})",
    BitRate::MIN,
    BitRate::MAX
)]
pub struct InvalidRate {
    text: String,
}

impl BitRate {
    /// Below it not even names resolve in time.
    pub const MIN: Self = Self(100_000);
    /// More than any network has, so that sums of rates stay numbers.
    pub const MAX: Self = Self(10_000_000_000_000);

    /// `n` million bits in a second.
    pub const fn mbit(n: u64) -> Self {
        Self(n * 1_000_000)
    }

    /// How many bytes come at this rate within so many milliseconds.
    pub(crate) const fn bytes_in_ms(self, ms: u64) -> u64 {
        self.0 / 8 * ms / 1000
    }
}

impl FromStr for BitRate {
    type Err = InvalidRate;
    fn from_str(text: &str) -> Result<Self, InvalidRate> {
        let bad = || InvalidRate {
            text: text.chars().take(64).collect(),
        };
        let trimmed = text.trim();
        let digits = trimmed.bytes().take_while(u8::is_ascii_digit).count();
        let number: u64 = trimmed[..digits].parse().map_err(|_| bad())?;
        let unit: u64 = match trimmed[digits..].trim().to_ascii_lowercase().as_str() {
            "" | "bit" => 1,
            "kbit" => 1_000,
            "mbit" => 1_000_000,
            "gbit" => 1_000_000_000,
            _ => return Err(bad()),
        };
        let rate = number.checked_mul(unit).map(Self).ok_or_else(bad)?;
        if (Self::MIN..=Self::MAX).contains(&rate) {
            Ok(rate)
        } else {
            Err(bad())
        }
    }
}

impl TryFrom<String> for BitRate {
    type Error = InvalidRate;
    fn try_from(text: String) -> Result<Self, InvalidRate> {
        text.parse()
    }
}

impl fmt::Display for BitRate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            bits if bits % 1_000_000_000 == 0 => write!(f, "{}gbit", bits / 1_000_000_000),
            bits if bits % 1_000_000 == 0 => write!(f, "{}mbit", bits / 1_000_000),
            bits => write!(f, "{bits}bit"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_parse_and_print() {
        for (text, bits, printed) in [
            ("1Gbit", 1_000_000_000, "1gbit"),
            ("500 Mbit", 500_000_000, "500mbit"),
            ("100kbit", 100_000, "100000bit"),
            ("2500mbit", 2_500_000_000, "2500mbit"),
        ] {
            let rate: BitRate = text.parse().unwrap();
            assert_eq!((rate, rate.to_string().as_str()), (BitRate(bits), printed));
        }
        // A B for bytes is somebody's mistake by a factor of eight.
        for bad in [
            "",
            "Gbit",
            "0",
            "1MB",
            "1MiB",
            "-1Gbit",
            "1.5Gbit",
            "99999Gbit",
            "64kbit",
        ] {
            assert!(bad.parse::<BitRate>().is_err(), "{bad}");
        }
        assert_eq!(BitRate::mbit(8).bytes_in_ms(50), 50_000);
    }
}
