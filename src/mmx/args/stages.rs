//! The value parser of a training stage's name, over the one list of stages.

use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use mmx_data::stages::{self, STAGES, StageInfo};

/// Takes the name of a stage, and shows all of them with their help.
pub(crate) fn parser() -> impl TypedValueParser<Value = &'static StageInfo> {
    let values = STAGES.map(|stage| PossibleValue::new(stage.name).help(stage.help));
    PossibleValuesParser::new(values)
        .try_map(|name| stages::stage(&name).ok_or(format!("expected a stage, found {name}")))
}
