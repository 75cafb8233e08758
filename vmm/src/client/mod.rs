//! `lucos`: the client of the control API, one verb for each endpoint that only needs one request, and those for patches, which
//! need several.

mod http;
mod pages;
mod patch;
mod render;
mod verb;

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand, ValueHint};
use clap_complete::Shell;
use serde::Deserialize;
use serde_json::Value;

pub use http::RequestError;
pub use patch::PatchVerb;
pub use verb::{Method, Verb};

use patch::Desk;

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
/// The patch is not taken.
const REFUSED: u8 = 4;
/// The patch was taken, and could not be applied or rolled back.
const NOT_DONE: u8 = 5;
/// The kernel is another one.
const GONE: u8 = 6;

/// Every exit code with its meaning, for people.
pub const EXIT_CODES: &[(u8, &str)] = &[
    (OK, "done"),
    (FAILED, "the VMM refused, or did not answer as it should; the message says why"),
    (USAGE, "the command line is wrong"),
    (NO_VMM, "there is no VMM at the socket"),
    (REFUSED, "the patch is not taken: its file, its signature, its kernel, or the guest's settings"),
    (NOT_DONE, "the patch could not be applied or rolled back; what it was to change is as it was"),
    (
        GONE,
        "the guest has started another kernel, or has unloaded what was patched, and the patch went with that",
    ),
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
    #[command(flatten)]
    Patch(PatchVerb),
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
  lucos apply fix.lup --wait && lucos status

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
        Command::Verb(verb) => with_socket(cli.api_socket, |socket| ask(&verb, socket, cli.json)),
        Command::Patch(verb) => {
            with_socket(cli.api_socket, |socket| Desk { socket, json: cli.json }.serve(&verb))
        }
    })
}

fn with_socket(socket: Option<PathBuf>, then: impl FnOnce(&Path) -> u8) -> u8 {
    match socket {
        Some(socket) => then(&socket),
        None => fail(
            USAGE,
            "no socket is given; name the one of `lucos-vmm --api-socket` with --api-socket PATH, or in LUCOS_API_SOCKET",
        ),
    }
}

/// The VMM's answer, or the exit code if there is none.
fn ask_for(socket: &Path, method: Method, path: &str, body: Vec<u8>) -> Result<http::Answer, u8> {
    http::request(socket, method, path, body).map_err(|error| match error {
        RequestError::NoVmm { .. } => fail(NO_VMM, &error.to_string()),
        _ => fail(FAILED, &error.to_string()),
    })
}

fn ask(verb: &Verb, socket: &Path, json: bool) -> u8 {
    let path = verb.path().to_owned() + &verb.query();
    let body = match verb.body() {
        Ok(body) => body,
        Err(error) => return fail(FAILED, &error),
    };
    let answer = match ask_for(socket, verb.method(), &path, body) {
        Ok(answer) => answer,
        Err(code) => return code,
    };
    if json {
        let printed = print((pretty(&answer.body) + "\n").as_bytes());
        return if answer.success { printed } else { FAILED };
    }
    if answer.success {
        return print(render::answer(verb, &answer.body).as_bytes());
    }
    fail(FAILED, &refusal(&answer.body))
}

/// What a refusal says, for people.
fn refusal(body: &Value) -> String {
    match ApiError::deserialize(body) {
        Ok(error) => format!("{}; {}", error.message, error.next_step),
        Err(_) => format!("the VMM refused: {}", pretty(body)),
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
