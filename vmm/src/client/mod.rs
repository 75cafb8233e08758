//! `lucos`: the client of the control API, one verb for each endpoint.

mod http;
mod render;
mod verb;

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand, ValueHint};
use clap_complete::Shell;
use serde_json::Value;

pub use http::RequestError;
pub use verb::{Method, Verb};

use crate::config::parse_socket_path;
use crate::control::model::ApiError;

/// Everything went well.
const OK: u8 = 0;
/// The VMM refused, or the conversation with it failed.
const FAILED: u8 = 1;
/// The command line is wrong; clap's number.
const USAGE: u8 = 2;
/// No VMM serves the socket.
const NO_VMM: u8 = 3;

/// Every exit code with its meaning, for people.
pub const EXIT_CODES: &[(u8, &str)] = &[
    (OK, "done"),
    (FAILED, "the VMM refused, or did not answer as it should; the message says why"),
    (USAGE, "the command line is wrong"),
    (NO_VMM, "there is no VMM at the socket"),
];

/// Control a running virtual machine
#[derive(Debug, Parser)]
#[command(name = "lucos", version, subcommand_required = true, arg_required_else_help = true)]
#[command(after_help = help_end())]
pub struct Cli {
    /// The socket that `lucos-vmm --api-socket SOCKET` made
    #[arg(long, value_name = "SOCKET", env = "LUCOS_API_SOCKET", global = true, value_hint = ValueHint::FilePath)]
    #[arg(value_parser = parse_socket_path)]
    api_socket: Option<PathBuf>,
    /// Print the answer as JSON, as the API gave it
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    #[command(flatten)]
    Verb(Verb),
    /// Print a script that completes the command line in SHELL
    Completions {
        /// The shell
        shell: Shell,
    },
}

fn help_end() -> String {
    let mut text = "\
Examples:
  lucos --api-socket vm.sock info
  export LUCOS_API_SOCKET=vm.sock; lucos pause && lucos resume
  lucos counters --json | jq .exits

Exit codes:"
        .to_owned();
    for (code, meaning) in EXIT_CODES {
        text = format!("{text}\n  {code}  {meaning}");
    }
    text
}

/// Does what the command line says.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    ExitCode::from(match cli.command {
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "lucos", &mut script);
            print(&script)
        }
        Command::Verb(verb) => match cli.api_socket {
            Some(socket) => ask(&verb, &socket, cli.json),
            None => fail(
                USAGE,
                "no socket is given; name the one of `lucos-vmm --api-socket` with --api-socket PATH, \
                 or in LUCOS_API_SOCKET",
            ),
        },
    })
}

fn ask(verb: &Verb, socket: &std::path::Path, json: bool) -> u8 {
    let answer = match http::request(socket, verb.method(), &(verb.path().to_owned() + &verb.query())) {
        Ok(answer) => answer,
        Err(error @ RequestError::NoVmm { .. }) => return fail(NO_VMM, &error.to_string()),
        Err(error) => return fail(FAILED, &error.to_string()),
    };
    if json {
        let printed = print((pretty(&answer.body) + "\n").as_bytes());
        return if answer.success { printed } else { FAILED };
    }
    if answer.success {
        return print(render::answer(verb, &answer.body).as_bytes());
    }
    match serde_json::from_value::<ApiError>(answer.body.clone()) {
        Ok(error) => fail(FAILED, &format!("{}; {}", error.message, error.next_step)),
        Err(_) => fail(FAILED, &format!("the VMM refused: {}", pretty(&answer.body))),
    }
}

fn pretty(value: &Value) -> String {
    serde_json::to_string_pretty(value).unwrap_or_else(|_| value.to_string())
}

fn print(text: &[u8]) -> u8 {
    let mut out = io::stdout().lock();
    match out.write_all(text).and_then(|()| out.flush()) {
        // A reader that has seen enough, as in `| head`, is no failure.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            fail(FAILED, &format!("cannot print: {error}"))
        }
        _ => OK,
    }
}

fn fail(code: u8, message: &str) -> u8 {
    // Nothing is left to tell anybody if standard error is closed.
    let _ = writeln!(io::stderr(), "lucos: {message}");
    code
}
