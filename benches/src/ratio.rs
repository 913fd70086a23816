//! How much faster one thing is than another, and how certain that is.

/// How the mean of some values relates to that of others, with what is certain of it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Ratio {
    /// The best guess.
    pub(crate) guess: f64,
    /// Lower end of the 95 % interval.
    pub(crate) low: f64,
    /// Upper end of it.
    pub(crate) high: f64,
}

impl Ratio {
    /// `new / old`, from the logarithms of the values by Welch's method (means with unequal variances). `None` when there are fewer than two of
    /// either, or one is not positive.
    pub(crate) fn of(new: &[f64], old: &[f64]) -> Option<Self> {
        let (new, old) = (Logs::of(new)?, Logs::of(old)?);
        let (a, b) = (new.variance / new.count, old.variance / old.count);
        let difference = new.mean - old.mean;
        let half = if a + b > 0.0 {
            let freedom = (a + b).powi(2) / (a.powi(2) / (new.count - 1.0) + b.powi(2) / (old.count - 1.0));
            student(freedom) * (a + b).sqrt()
        } else {
            0.0
        };
        Some(Ratio { guess: difference.exp(), low: (difference - half).exp(), high: (difference + half).exp() })
    }

    /// The same for values that were measured in pairs, one right after the other: what disturbs both of a pair does not count. `None` when there are fewer
    /// than two pairs, or a value has no partner, or one is not positive.
    pub(crate) fn of_pairs(new: &[f64], old: &[f64]) -> Option<Self> {
        if new.len() != old.len() {
            return None;
        }
        let quotients: Vec<f64> =
            new.iter().zip(old).filter(|(_, old)| **old > 0.0).map(|(new, old)| new / old).collect();
        if quotients.len() != new.len() {
            return None;
        }
        let Logs { count, mean, variance } = Logs::of(&quotients)?;
        let half = student(count - 1.0) * (variance / count).sqrt();
        Some(Ratio { guess: mean.exp(), low: (mean - half).exp(), high: (mean + half).exp() })
    }

    /// Whether it is certainly (at 95 %) not 1.
    pub(crate) fn is_outside_noise(&self) -> bool {
        self.low > 1.0 || self.high < 1.0
    }
}

struct Logs {
    count: f64,
    mean: f64,
    variance: f64,
}

impl Logs {
    fn of(values: &[f64]) -> Option<Self> {
        if values.len() < 2 || values.iter().any(|value| *value <= 0.0 || !value.is_finite()) {
            return None;
        }
        let count = values.len() as f64;
        let mean = values.iter().map(|value| value.ln()).sum::<f64>() / count;
        let variance = values.iter().map(|value| (value.ln() - mean).powi(2)).sum::<f64>() / (count - 1.0);
        Some(Logs { count, mean, variance })
    }
}

/// The 97.5 % quantile of Student's t distribution, from a table; between its lines the larger value.
fn student(freedom: f64) -> f64 {
    const TABLE: [(f64, f64); 15] = [
        (1.0, 12.706),
        (2.0, 4.303),
        (3.0, 3.182),
        (4.0, 2.776),
        (5.0, 2.571),
        (6.0, 2.447),
        (7.0, 2.365),
        (8.0, 2.306),
        (9.0, 2.262),
        (10.0, 2.228),
        (12.0, 2.179),
        (15.0, 2.131),
        (20.0, 2.086),
        (30.0, 2.042),
        (60.0, 2.000),
    ];
    let line = TABLE.iter().rev().find(|(degrees, _)| *degrees <= freedom);
    line.map_or(TABLE[0].1, |(_, quantile)| *quantile)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn noise_is_told_from_change() {
        let old = [100.0, 103.0, 98.0, 101.0, 99.0];
        let same = Ratio::of(&[101.0, 99.0, 102.0, 97.0, 104.0], &old).unwrap();
        assert!(!same.is_outside_noise(), "{same:?}");
        let faster = Ratio::of(&[111.0, 113.0, 108.0, 112.0, 110.0], &old).unwrap();
        assert!(faster.is_outside_noise() && faster.low > 1.05 && faster.high < 1.16, "{faster:?}");
        assert!((faster.guess - 1.106).abs() < 0.005, "{faster:?}");
        assert_eq!(Ratio::of(&[1.0], &old), None);
        assert_eq!(Ratio::of(&[1.0, 0.0], &old), None);
    }

    #[test]
    fn what_disturbs_both_of_a_pair_does_not_count() {
        let old = [100.0, 50.0, 80.0, 200.0, 120.0];
        let new: Vec<f64> = old.iter().zip([1.10, 1.11, 1.09, 1.10, 1.12]).map(|(old, times)| old * times).collect();
        let ratio = Ratio::of_pairs(&new, &old).unwrap();
        assert!(ratio.is_outside_noise() && ratio.low > 1.08 && ratio.high < 1.13, "{ratio:?}");
        assert!(!Ratio::of(&new, &old).unwrap().is_outside_noise());
        assert_eq!(Ratio::of_pairs(&new[1..], &old), None);
        assert_eq!(Ratio::of_pairs(&[1.0, 2.0], &[1.0, 0.0]), None);
        assert_eq!(Ratio::of_pairs(&[1.0], &[1.0]), None);
    }

    #[test]
    fn two_noisy_values_say_little() {
        let ratio = Ratio::of(&[150.0, 90.0], &[100.0, 80.0]).unwrap();
        assert!(!ratio.is_outside_noise(), "{ratio:?}");
        assert!(student(1.5) > student(2.0) && student(1000.0) < 2.01);
    }
}
