//! The values that a parameter takes.

use std::fmt;

/// A range that does not depend on the model; a model may narrow it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Range {
    /// Texts and names, which say themselves what was expected.
    Free,
    /// Any number but infinity.
    Finite,
    /// Whole numbers, both ends included; `u64::MAX` is no limit.
    Whole { from: u64, to: u64, multiple_of: u64 },
    /// Numbers, both ends included.
    Closed { from: f64, to: f64 },
    /// Numbers above the first one, up to the second one.
    Above { above: f64, to: f64 },
    /// Two whole numbers of at most seven digits, which f32 holds exactly.
    Pair { separator: char, from: u64, example: &'static str },
}

impl Range {
    pub const fn whole(from: u64, to: u64) -> Self {
        Range::Whole { from, to, multiple_of: 1 }
    }

    /// From a number on.
    pub const fn from(from: u64) -> Self {
        Range::whole(from, u64::MAX)
    }

    /// Whether a number lies within.
    pub fn contains(self, number: f64) -> bool {
        match self {
            Range::Free | Range::Pair { .. } => true,
            Range::Finite => number.is_finite(),
            Range::Whole { from, to, multiple_of } => {
                (from as f64..=to as f64).contains(&number) && number % multiple_of as f64 == 0.0
            }
            Range::Closed { from, to } => (from..=to).contains(&number),
            Range::Above { above, to } => number > above && number <= to,
        }
    }

    /// The first and the last number of a range that has them.
    pub fn ends(self) -> (Option<f64>, Option<f64>) {
        match self {
            Range::Whole { from, to, .. } => (Some(from as f64), (to != u64::MAX).then_some(to as f64)),
            Range::Closed { from, to } => (Some(from), Some(to)),
            Range::Above { to, .. } => (None, Some(to)),
            Range::Free | Range::Finite | Range::Pair { .. } => (None, None),
        }
    }
}

/// The range in words, as they stand behind `expected`.
impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match *self {
            Range::Free => f.write_str("a value"),
            Range::Finite => f.write_str("a finite number"),
            Range::Whole { from, to: u64::MAX, multiple_of: 1 } => write!(f, "at least {from}"),
            Range::Whole { from, to, multiple_of: 1 } => write!(f, "{from} to {to}"),
            Range::Whole { multiple_of, .. } => write!(f, "a multiple of {multiple_of}"),
            Range::Closed { from, to } => write!(f, "a number from {from} to {to}"),
            Range::Above { above, to } => write!(f, "a number above {above}, up to {to}"),
            Range::Pair { from, example, .. } => {
                write!(f, "two whole numbers from {from} on, as in {example}")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_hold_what_they_say() {
        let unit = Range::Closed { from: 0.0, to: 1.0 };
        let above = Range::Above { above: 0.0, to: 1.0 };
        for (range, inside, outside, words) in [
            (Range::Finite, [-1.0, 1e30], [f64::NAN, f64::INFINITY], "a finite number"),
            (Range::from(1), [1.0, 1e9], [0.0, -1.0], "at least 1"),
            (Range::whole(1, 100), [1.0, 100.0], [0.0, 101.0], "1 to 100"),
            (unit, [0.0, 1.0], [-0.1, f64::NAN], "a number from 0 to 1"),
            (above, [1e-9, 1.0], [0.0, 1.01], "a number above 0, up to 1"),
            (Range::Whole { from: 8, to: 16, multiple_of: 8 }, [8.0, 16.0], [0.0, 12.0], "a multiple of 8"),
        ] {
            assert!(inside.iter().all(|&number| range.contains(number)), "{range:?}");
            assert!(!outside.iter().any(|&number| range.contains(number)), "{range:?}");
            assert_eq!(range.to_string(), words);
        }
        assert_eq!(above.ends(), (None, Some(1.0)));
        assert_eq!(Range::from(1).ends(), (Some(1.0), None));
    }
}
