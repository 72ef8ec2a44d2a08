//! Times in a histogram, and histograms as text: the base64 of HdrHistogram's compressed V2 form, as interval logs have it.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hdrhistogram::serialization::{Deserializer, Serializer as _, V2DeflateSerializer};
use hdrhistogram::{Counter, Histogram};
use serde::{Deserialize, Serialize};

/// The longest time that is told from longer ones, nanoseconds: a minute.
const LONGEST_NS: u64 = 60_000_000_000;

/// Times, nanoseconds, in an HDR histogram of three significant digits.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Times(Histogram<u64>);

impl Default for Times {
    fn default() -> Self {
        let bounds = Histogram::new_with_bounds(1, LONGEST_NS, 3);
        Self(bounds.expect("these bounds are legal"))
    }
}

impl Times {
    /// Adds one.
    pub fn record(&mut self, ns: u64) {
        self.0.saturating_record(ns);
    }

    /// All of them.
    pub const fn histogram(&self) -> &Histogram<u64> {
        &self.0
    }

    /// Adds those of another.
    pub fn merge(&mut self, other: &Self) {
        self.0.add(&other.0).expect("equal bounds");
    }
}

impl From<Times> for String {
    fn from(times: Times) -> Self {
        to_text(&times.0)
    }
}

impl TryFrom<String> for Times {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let read = from_text::<u64>(&text).ok_or("that is no histogram")?;
        let mut times = Self::default();
        times
            .0
            .add(read)
            .map_err(|_| "a histogram with other bounds")?;
        Ok(times)
    }
}

/// The text of a histogram.
pub fn to_text<T: Counter>(histogram: &Histogram<T>) -> String {
    let mut bytes = Vec::new();
    V2DeflateSerializer::new()
        .serialize(histogram, &mut bytes)
        .expect("memory takes everything");
    STANDARD.encode(bytes)
}

/// The histogram of a text.
pub fn from_text<T: Counter>(text: &str) -> Option<Histogram<T>> {
    let bytes = STANDARD.decode(text).ok()?;
    Deserializer::new().deserialize(&mut bytes.as_slice()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_beyond_the_longest_counts_as_the_longest() {
        let mut times = Times::default();
        times.record(u64::MAX);
        times.record(0);
        assert_eq!(times.histogram().len(), 2);
        assert!(times.histogram().max() >= LONGEST_NS);
    }

    #[test]
    fn text_says_all() {
        let mut times = Times::default();
        (1..1000).for_each(|n| times.record(n * n * n));
        let text = serde_json::to_string(&times).unwrap();
        let read: Times = serde_json::from_str(&text).unwrap();
        assert_eq!(read.histogram(), times.histogram());
        assert!(serde_json::from_str::<Times>("\"AAAA\"").is_err());
        assert!(serde_json::from_str::<Times>("\"%\"").is_err());
    }
}
