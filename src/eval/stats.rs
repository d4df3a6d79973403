//! Intervals of confidence.

/// The z of a normal distribution within which 95 % of it lie.
pub const Z95: f64 = 1.959_964;

/// Wilson's interval at 95 % for `right` of `n`. Source: Wilson 1927.
pub fn interval(right: usize, n: usize) -> (f64, f64) {
    let (n, z) = (n.max(1) as f64, Z95);
    let p = right as f64 / n;
    let centre = (p + z * z / (2.0 * n)) / (1.0 + z * z / n);
    let half = z * (p * (1.0 - p) / n + z * z / (4.0 * n * n)).sqrt() / (1.0 + z * z / n);
    ((centre - half).max(0.0), (centre + half).min(1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interval_holds_the_share_and_stays_within_bounds() {
        for (right, n) in [(0, 10), (10, 10), (90, 100), (1, 1)] {
            let (low, high) = interval(right, n);
            let share = right as f64 / n as f64;
            assert!(low <= share + 1e-12 && share <= high + 1e-12 && low >= 0.0 && high <= 1.0);
        }
        // Wilson's interval for 90 of 100: 0.8256 .. 0.9448
        let (low, high) = interval(90, 100);
        assert!((low - 0.8256).abs() < 1e-3 && (high - 0.9448).abs() < 1e-3, "{low} {high}");
    }
}
