//! What several rounds gave: the median, and the least and the most beside it.

use std::fmt;

/// A figure of several rounds.
#[derive(Clone, Copy, Debug)]
pub struct Spread {
    /// The least.
    pub least: f64,
    /// The middle one.
    pub median: f64,
    /// The most.
    pub most: f64,
}

impl Spread {
    /// Of at least one round; of none it is not a number.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let at = |n: usize| values.get(n).copied().unwrap_or(f64::NAN);
        Self {
            least: at(0),
            median: at(values.len() / 2),
            most: at(values.len().saturating_sub(1)),
        }
    }

    /// The two ends.
    #[must_use]
    pub fn ends(&self) -> String {
        format!("({}..{})", number(self.least), number(self.most))
    }
}

impl fmt::Display for Spread {
    /// `median (least..most)`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", number(self.median), self.ends())
    }
}

/// A value with the digits that mean something: two behind the point of small ones, none of large ones, and commas.
#[must_use]
pub fn number(value: f64) -> String {
    if value.abs() < 100.0 {
        return format!("{value:.2}");
    }
    let digits = format!("{:.0}", value.abs());
    let mut out = String::from(if value < 0.0 { "-" } else { "" });
    for (at, digit) in digits.char_indices() {
        if at > 0 && (digits.len() - at) % 3 == 0 {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_is_the_middle_whatever_the_order() {
        let spread = Spread::of([9.0, 1.5, 1234.0]);
        assert_eq!(spread.to_string(), "9.00 (1.50..1,234)");
        assert!(Spread::of([]).median.is_nan());
    }

    #[test]
    fn large_values_have_commas() {
        let shown = [99.994, 100.0, 999.6, 1_234_567.0].map(number);
        assert_eq!(shown, ["99.99", "100", "1,000", "1,234,567"]);
    }
}
