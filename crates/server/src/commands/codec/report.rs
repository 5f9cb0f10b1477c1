//! What is shown of codecs, as tables and JSON.

use serde_json::json;
use sira_tensor::TensorSpec;

use super::super::table::{self, Column};
use super::super::{print, print_line};
use super::trial::Trial;
use crate::Failure;
use crate::config::units::short_size;

/// `sira codec list`.
pub(super) fn list(json: bool) -> Result<(), Failure> {
    let stages: Vec<_> = sira_codec::stages().collect();
    if json {
        return stages.iter().try_for_each(|stage| {
            print_line(&json!({
                "stage": stage.name, "arguments": stage.form, "lossless": stage.lossless, "experimental": stage.experimental,
                "about": stage.about,
                "presets": stage.presets.iter().map(|preset| json!({ "name": preset.name, "promise": preset.promise })).collect::<Vec<_>>(),
            }))
        });
    }
    let rows: Vec<Vec<String>> = stages
        .iter()
        .map(|stage| {
            let kind = match (stage.lossless, stage.experimental) {
                (true, _) => "exact",
                (false, false) => "lossy",
                (false, true) => "lossy, experimental",
            };
            vec![format!("{}{}", stage.name, stage.form), kind.into(), stage.about.into()]
        })
        .collect();
    let table = table::lay_out(&[Column("STAGE", false), Column("KIND", false), Column("WHAT IT DOES", false)], &rows, true);
    let presets = stages
        .iter()
        .flat_map(|stage| stage.presets.iter().map(|preset| vec![format!("{}:{}", stage.name, preset.name), preset.promise.into()]));
    let presets = table::lay_out(&[Column("PRESET", false), Column("WHAT IT PROMISES", false)], &presets.collect::<Vec<_>>(), true);
    print(&format!(
        "{table}\n\nStages are joined by +, in the order of encoding; only the last may compress: planes+zstd\n\n{presets}\n\nMeasured on one small \
         model: how far the next token's distribution is off (KL, nats), and how many times smaller a KV cache of bfloat16 is."
    ))
}

/// A row for each codec that was tried.
pub(super) fn table(spec: &TensorSpec, trials: &[Trial], cores: usize) -> String {
    let columns = [
        Column("CODEC", false),
        Column("RATIO", true),
        Column("BITS", true),
        Column("ENCODE GB/s", true),
        Column("DECODE GB/s", true),
        Column("ERROR K", true),
        Column("ERROR V", true),
        Column("PUT PAYS BELOW", true),
        Column("GET PAYS BELOW", true),
    ];
    let rows: Vec<Vec<String>> = trials.iter().map(|trial| row(trial, cores)).collect();
    let axes = if spec.axes().is_empty() { String::new() } else { format!(" ({})", spec.axes().join(", ")) };
    format!(
        "{} {:?}{axes}, {}\n\n{}\n\nSpeeds are of one core. Errors are relative: the root mean square of what is lost over that of the values. A codec pays on a link \
         slower than the last columns, with {cores} core{} at it.",
        spec.dtype(),
        spec.shape(),
        short_size(spec.nbytes()),
        table::lay_out(&columns, &rows, true),
        if cores == 1 { "" } else { "s" }
    )
}

fn row(trial: &Trial, cores: usize) -> Vec<String> {
    let error = |of_role: Option<f64>| match of_role.or(trial.quality.all()) {
        _ if trial.exact => "exact".to_owned(),
        Some(error) => format!("{error:.4}"),
        None => "-".to_owned(),
    };
    let link = |speed| match trial.pays_below(speed, cores) / 1e9 {
        0.0 => "never".to_owned(),
        below => format!("{below:.1} Gbit/s"),
    };
    vec![
        trial.chain.to_string(),
        format!("{:.3}", trial.ratio()),
        format!("{:.2}", trial.bits()),
        format!("{:.2}", trial.encode / 1e9),
        format!("{:.2}", trial.decode / 1e9),
        error(trial.quality.keys()),
        error(trial.quality.values()),
        link(trial.encode),
        link(trial.decode),
    ]
}
