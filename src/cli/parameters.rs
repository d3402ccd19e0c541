//! The flags of a request's values, from the table of parameters.

use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Args, Command, FromArgMatches};
use sdrt::error::Error;
use sdrt::parameter::{Interface, Parameter};
use sdrt::pipeline::RequestPatch;

/// Flags that do nothing without another one, by its name in clap.
const NEEDS: [(Parameter, &str); 3] = [
    (Parameter::Strength, "init_image"),
    (Parameter::HiresStrength, "hires-scale"),
    (Parameter::HiresSteps, "hires-scale"),
];

/// The values that the user gives, without the prompt, which may come from elsewhere.
pub struct ParameterArgs {
    pub patch: RequestPatch,
}

fn parameters() -> impl Iterator<Item = Parameter> {
    RequestPatch::PARAMETERS.iter().copied().filter(|&parameter| parameter != Parameter::Prompt)
}

fn flag(parameter: Parameter) -> Arg {
    let row = parameter.row();
    let read = move |text: &str| -> Result<String, Error> {
        RequestPatch::default().set(parameter, text).map(|()| text.to_string())
    };
    let mut arg = Arg::new(row.flag)
        .long(row.flag)
        .value_name(row.value_name)
        .help_heading(row.group.heading())
        .value_parser(read);
    if let Some(short) = row.short {
        arg = arg.short(short);
    }
    if let Some(alias) = row.alias {
        arg = arg.visible_alias(alias);
    }
    if let Some(default) = row.default {
        arg = arg.default_value(default);
    }
    match NEEDS.iter().find(|(dependent, _)| *dependent == parameter) {
        Some((_, needed)) => arg.requires(*needed),
        None => arg,
    }
}

impl Args for ParameterArgs {
    fn augment_args(command: Command) -> Command {
        command.args(parameters().map(flag))
    }
    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for ParameterArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut patch = RequestPatch::default();
        for parameter in parameters() {
            let id = parameter.row().flag;
            let is_given = matches.value_source(id) == Some(ValueSource::CommandLine);
            if let Some(text) = matches.get_one::<String>(id).filter(|_| is_given) {
                let set = patch.set(parameter, text);
                set.map_err(|error| clap::Error::raw(clap::error::ErrorKind::ValueValidation, error))?;
            }
        }
        Ok(ParameterArgs { patch })
    }
    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// Gives flags without help of their own that of the table, and those of `sdrt run` the table's order.
pub fn described(command: Command) -> Command {
    let names: Vec<String> = command.get_subcommands().map(|command| command.get_name().into()).collect();
    names.into_iter().fold(command, |command, name| {
        let is_run = name == "run";
        command.mut_subcommand(name, |command| {
            command.mut_args(|arg| {
                let parameter = arg.get_long().and_then(Parameter::of_flag);
                let Some(parameter) = parameter.filter(|_| arg.get_help().is_none()) else { return arg };
                let arg = arg.help(parameter.help(Interface::CommandLine));
                if is_run { arg.display_order(parameter as usize) } else { arg }
            })
        })
    })
}
