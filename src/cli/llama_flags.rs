//! llama.cpp's short flags of several letters, which clap does not know.

use std::ffi::OsString;

use clap::Command;

const LONG_NAMES: [(&str, &str); 2] = [("-ngl", "--gpu-layers"), ("-fa", "--flash-attn")];

/// The arguments with llama.cpp's `-ngl` and `-fa` in their long form; values, and what stands behind
/// `--`, stay as they are.
pub(super) fn with_long_names(
    command: &Command,
    args: impl Iterator<Item = OsString>,
) -> Vec<OsString> {
    let takes_hyphens = flags_whose_values_may_begin_with_a_hyphen(command);
    let (mut is_value, mut is_behind_dashes) = (false, false);
    let in_long_form = |arg: OsString| {
        if is_behind_dashes || std::mem::take(&mut is_value) {
            return arg;
        }
        let text = arg.to_str().unwrap_or_default();
        is_behind_dashes = text == "--";
        is_value = takes_hyphens.iter().any(|flag| flag == text);
        let (name, value) = text.find('=').map_or((text, ""), |at| text.split_at(at));
        match LONG_NAMES.iter().find(|(short, _)| name == *short) {
            Some((_, long)) => format!("{long}{value}").into(),
            None => arg,
        }
    };
    args.map(in_long_form).collect()
}

/// Of all commands; other options refuse such values.
fn flags_whose_values_may_begin_with_a_hyphen(command: &Command) -> Vec<String> {
    let commands = std::iter::once(command).chain(command.get_subcommands());
    commands
        .flat_map(Command::get_arguments)
        .filter(|argument| argument.is_allow_hyphen_values_set())
        .filter_map(|argument| argument.get_long().map(|long| format!("--{long}")))
        .collect()
}
