//! What a model's output means, by the names in use.

use crate::error::{Invalid, Result};
use crate::parameter::Parameter;

/// Names, and that of `prediction_type` in a `scheduler_config.json`.
const NAMES: [(&str, &str); 6] = [
    ("epsilon", "epsilon"),
    ("eps", "epsilon"),
    ("v", "v_prediction"),
    ("v_prediction", "v_prediction"),
    ("v-prediction", "v_prediction"),
    ("sample", "sample"),
];

/// The `prediction_type` that a user means.
pub fn prediction_type(name: &str) -> Result<&'static str> {
    let found = NAMES.iter().find(|(alias, _)| alias.eq_ignore_ascii_case(name));
    found.map(|&(_, prediction)| prediction).ok_or_else(|| {
        Invalid::value(Parameter::Prediction, name)
            .problem("no such prediction; there are epsilon, v and sample")
            .error()
    })
}
