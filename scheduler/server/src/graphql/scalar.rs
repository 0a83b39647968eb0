//! Scalars that GraphQL does not have by itself.

use async_graphql::{InputValueError, InputValueResult, Scalar, ScalarType, Value};
use slipway_core::time::Timestamp;
use std::time::{Duration, UNIX_EPOCH};

/// A whole number from 0 to 2^63-1, as a JSON number: sizes in bytes and times in milliseconds, which GraphQL's own 32
/// bits do not hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Long(pub(super) u64);

/// A whole number from 0 to 2^63-1, as a JSON number.
#[Scalar]
impl ScalarType for Long {
    fn parse(value: Value) -> InputValueResult<Self> {
        let number = match &value {
            Value::Number(number) => number.as_u64(),
            Value::Null
            | Value::String(_)
            | Value::Boolean(_)
            | Value::Binary(_)
            | Value::Enum(_)
            | Value::List(_)
            | Value::Object(_) => None,
        };
        match number.filter(|number| i64::try_from(*number).is_ok()) {
            Some(number) => Ok(Self(number)),
            None => Err(InputValueError::expected_type(value)),
        }
    }

    fn to_value(&self) -> Value {
        Value::Number(self.0.into())
    }
}

/// A point in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct DateTime(pub(super) Timestamp);

/// A point in time, as RFC 3339 has it, in UTC.
#[Scalar]
impl ScalarType for DateTime {
    fn parse(value: Value) -> InputValueResult<Self> {
        let Value::String(text) = &value else {
            return Err(InputValueError::expected_type(value));
        };
        let time = humantime::parse_rfc3339(text).ok();
        let since = time.and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        match since.and_then(|since| u64::try_from(since.as_millis()).ok()) {
            Some(millis) => Ok(Self(Timestamp(millis))),
            None => Err(InputValueError::custom(
                "not a time like 2026-01-31T12:00:00Z",
            )),
        }
    }

    fn to_value(&self) -> Value {
        // The last moment that has four digits of year; whatever is after it is "never".
        const LAST: u64 = 253_402_300_799_999;
        let at = UNIX_EPOCH + Duration::from_millis(self.0.0.min(LAST));
        Value::String(humantime::format_rfc3339_millis(at).to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn longs_are_numbers_that_every_database_holds() {
        let number = |n: u64| Value::Number(n.into());
        for n in [0, 1 << 40, u64::MAX >> 1] {
            assert_eq!(Long::parse(number(n)).ok(), Some(Long(n)));
        }
        for bad in [
            number(u64::MAX),
            Value::Number((-1).into()),
            Value::String("1".into()),
        ] {
            assert!(Long::parse(bad).is_err());
        }
    }

    #[test]
    fn times_go_round() {
        let time = DateTime(Timestamp(1_800_000_000_123));
        assert_eq!(
            time.to_value(),
            Value::String("2027-01-15T08:00:00.123Z".into())
        );
        assert_eq!(DateTime::parse(time.to_value()).ok(), Some(time));
        assert!(DateTime::parse(Value::String("yesterday".into())).is_err());
        assert!(matches!(
            DateTime(Timestamp(u64::MAX)).to_value(),
            Value::String(_)
        ));
    }
}
