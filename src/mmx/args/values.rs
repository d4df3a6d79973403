//! Values of options that have a range: what lies outside it is misuse of the command line, told
//! with the option's name by the parser of arguments (exit code 2).

/// A count of at least one.
pub(crate) fn at_least_one(text: &str) -> Result<usize, String> {
    at_least(1, text)
}

/// A count of at least two.
pub(crate) fn at_least_two(text: &str) -> Result<usize, String> {
    at_least(2, text)
}

fn at_least(least: usize, text: &str) -> Result<usize, String> {
    match text.parse::<usize>() {
        Ok(n) if n >= least => Ok(n),
        _ => Err(format!("expected a whole number of at least {least}, found {text}")),
    }
}

/// A seed; -1 chooses one, as in other programs.
pub(crate) fn seed(text: &str) -> Result<u64, String> {
    if text == "-1" {
        return Ok(mmx_converters::random::random_seed());
    }
    text.parse().map_err(|_| format!("expected 0 or more, or -1 to choose one, found {text}"))
}

/// A temperature, which divides the logits.
pub(crate) fn temperature(text: &str) -> Result<f64, String> {
    number(text, |x| x >= 0.0 && x.is_finite(), "0 (greedy) or more")
}

/// A share of probability that is kept.
pub(crate) fn top_p(text: &str) -> Result<f64, String> {
    number(text, |x| x > 0.0 && x <= 1.0, "more than 0, at most 1")
}

/// A share of another probability.
pub(crate) fn min_p(text: &str) -> Result<f64, String> {
    number(text, |x| (0.0..=1.0).contains(&x), "0 to 1")
}

/// A factor that is not zero.
pub(crate) fn factor(text: &str) -> Result<f64, String> {
    number(text, |x| x > 0.0 && x.is_finite(), "more than 0")
}

fn number(text: &str, fits: impl Fn(f64) -> bool, expected: &str) -> Result<f64, String> {
    let found = text.parse::<f64>().ok().filter(|&x| fits(x));
    found.ok_or_else(|| format!("expected {expected}, found {text}"))
}
