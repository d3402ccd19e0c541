//! `--help` against the table of parameters.

use sdrt::parameter::{Interface, Parameter};
use sdrt::pipeline::RequestPatch;

use super::{Place, code, stdout};

/// The help of a command in one line.
fn help(command: &str) -> String {
    let output = Place::new().sdrt(&[command, "--help"]);
    assert_eq!(code(&output), 0);
    stdout(&output).split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The help of a parameter, as it stands behind its flag.
fn entry(parameter: Parameter) -> String {
    let row = parameter.row();
    let short = row.short.map(|short| format!("-{short}, ")).unwrap_or_default();
    let value = match (parameter, row.value_name) {
        (_, "") => String::new(),
        (Parameter::VaeTiling, value) => format!("[<{value}>] "),
        (_, value) => format!("<{value}> "),
    };
    let alias = row.alias.map(|alias| format!(" [alias: --{alias}]")).unwrap_or_default();
    let default = row.default.map(|default| match default {
        "" => " [default: \"\"]".to_string(),
        default => format!(" [default: {default}]"),
    });
    let help = parameter.help(Interface::CommandLine);
    format!("{short}--{} {value}{help}{}{alias}", row.flag, default.unwrap_or_default())
}

#[test]
fn every_flag_of_run_is_a_row_of_the_table() {
    let help = help("run");
    let shown =
        help.split(' ').filter_map(|word| word.strip_prefix("--")).map(|flag| flag.trim_end_matches("..."));
    let not_of_the_table = ["verbose", "help", "version"];
    let mut found = 0;
    for flag in shown.filter(|flag| !not_of_the_table.contains(flag)) {
        let Some(parameter) = Parameter::of_flag(flag) else { continue };
        // `[default: emoji]` and such stand behind the flags that clap's derive makes.
        let entry = entry(parameter);
        assert!(help.contains(&entry), "{entry}");
        found += 1;
    }
    assert!(found > 50, "{found}");
    for parameter in RequestPatch::PARAMETERS {
        assert!(help.contains(&entry(*parameter)), "{parameter:?}");
        assert!(help.contains(parameter.row().group.heading()), "{parameter:?}");
    }
    // Nothing is a flag that the table lacks.
    for word in help.split(' ').filter(|word| word.starts_with("--") && word.len() > 2) {
        let flag = word.trim_start_matches('-').trim_end_matches(|c: char| !c.is_ascii_lowercase());
        let is_alias = Parameter::ALL.iter().any(|parameter| parameter.row().alias == Some(flag));
        let is_known = Parameter::of_flag(flag).is_some() || is_alias || not_of_the_table.contains(&flag);
        assert!(is_known, "{word}");
    }
}

#[test]
fn commands_that_share_flags_share_their_help() {
    for (command, parameters) in [
        ("bench", &[Parameter::Width, Parameter::Model, Parameter::Device, Parameter::RandomWeights][..]),
        ("profile", &[Parameter::Height, Parameter::Vae, Parameter::Dtype]),
        ("serve", &[Parameter::Model, Parameter::ApiKey, Parameter::Cors]),
    ] {
        let help = help(command);
        for parameter in parameters {
            assert!(help.contains(&entry(*parameter)), "{command}: {parameter:?}");
        }
    }
}
