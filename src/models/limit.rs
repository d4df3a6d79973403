//! How far a form of a model may be from another before it counts as another model.

use mmx_converters::gguf::GgmlType;

/// The measure that decides whether a row is ok.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Measure {
    /// Largest absolute difference of a logit.
    MaxAbsDiff,
    /// Mean KL divergence, nats.
    MeanKl,
}

impl Measure {
    /// The measure's name in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::MaxAbsDiff => "max_abs_diff",
            Self::MeanKl => "mean_kl",
        }
    }
}

/// The default measure and limit for weights of a type.
///
/// f32: the order of sums differs between engines (measured up to 1.3e-5 on the golden models, and
/// growing with the size of the logits, so the limit is taken relative to the largest logit above
/// 10). 16 bits and blocks: about ten times the mean KL measured on the golden models, whose rows
/// are so short that they are the worst case (F16 < 3e-7, BF16 < 5e-4, Q8_0 < 1e-3, Q4_0 < 6.2e-2;
/// docs/formats/gguf.md, "Quantized types").
pub fn default_limit(ty: GgmlType, largest_logit: f64) -> (Measure, f64) {
    match ty {
        GgmlType::F32 | GgmlType::F64 => {
            (Measure::MaxAbsDiff, 1e-4 * (largest_logit / 10.0).max(1.0))
        }
        GgmlType::F16 => (Measure::MeanKl, 1e-4),
        GgmlType::BF16 => (Measure::MeanKl, 5e-3),
        GgmlType::Q8_0 | GgmlType::Q6_K => (Measure::MeanKl, 1e-2),
        GgmlType::Q5_0 | GgmlType::Q5_1 | GgmlType::Q5_K => (Measure::MeanKl, 0.2),
        _ => (Measure::MeanKl, 0.6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_grow_with_the_rounding() {
        let kl = |ty| default_limit(ty, 1.0).1;
        assert!(kl(GgmlType::F16) < kl(GgmlType::BF16) && kl(GgmlType::BF16) < kl(GgmlType::Q8_0));
        assert!(kl(GgmlType::Q8_0) < kl(GgmlType::Q4_0));
        assert_eq!(default_limit(GgmlType::F32, 1.0), (Measure::MaxAbsDiff, 1e-4));
    }
}
