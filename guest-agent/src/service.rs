//! `lucos-agent run`: sleep, ask, do, report.

use std::path::Path;

use lucos_abi::{ErrorCode, Request, RequestKind};
use rustix::io::Errno;

use crate::Failure;
use crate::host::{Host, HostError};
use crate::kernel::Kernel;
use crate::module;
use crate::serial::SerialPort;

/// Serves the host. Returns only with what ends it.
pub(crate) fn run(port: &Path, kernel: &Kernel) -> Result<(), Failure> {
    // First of all, so that no byte of the host's is missed after the hello.
    let port = SerialPort::open(port)?;
    let mut host = Host::open(kernel)?;
    greet(&mut host, kernel)?;
    loop {
        match serve_all(&mut host, kernel) {
            // A host that has begun anew knows nobody.
            Err(error) if error.code() == Some(ErrorCode::NoAgent) => {
                greet(&mut host, kernel)?;
                continue;
            }
            Err(error) if error.is_absence() => return Err(error.into()),
            Err(error) => eprintln!("lucos-agent: {error}"),
            Ok(()) => {}
        }
        port.wait()?;
    }
}

fn greet(host: &mut Host, kernel: &Kernel) -> Result<(), HostError> {
    let hello = kernel.hello();
    host.hello(&hello)?;
    eprintln!("lucos-agent: ready");
    if let Some(obstacle) = hello.obstacle(false) {
        eprintln!("lucos-agent: {obstacle}");
    }
    Ok(())
}

/// Does everything that the host has to ask for.
fn serve_all(host: &mut Host, kernel: &Kernel) -> Result<(), HostError> {
    while let Some(request) = host.next()? {
        let (id, name) = (request.id.get(), request.name().unwrap_or_default().to_owned());
        let verb = if request.kind() == Some(RequestKind::Load) { "load" } else { "unload" };
        match serve(host, kernel, &request, &name) {
            Ok(Ok(())) => eprintln!("lucos-agent: {verb} {name}: done"),
            Ok(Err(errno)) => {
                let error = std::io::Error::from_raw_os_error(errno);
                eprintln!("lucos-agent: {verb} {name}: {error}");
            }
            // It has been withdrawn meanwhile.
            Err(error) if error.code() == Some(ErrorCode::UnknownRequest) => {
                eprintln!("lucos-agent: {verb} {name}: request {id} is not wanted any more");
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Carries one request out and reports how that went: also the number of the error, if it has failed.
fn serve(
    host: &mut Host,
    kernel: &Kernel,
    request: &Request,
    name: &str,
) -> Result<Result<(), i32>, HostError> {
    let done = match carry_out(host, request, name) {
        Ok(done) => done,
        Err(error) if ends_the_request(&error) => return Err(error),
        // The host still waits for an answer.
        Err(error) => {
            eprintln!("lucos-agent: {error}");
            Err(Errno::IO)
        }
    };
    let text = if done.is_ok() { module::sections(&kernel.sections(name)) } else { String::new() };
    let done = done.map_err(Errno::raw_os_error);
    let outcome = done.map(|()| text.as_str()).map_err(i32::unsigned_abs);
    host.report(request.id.get(), kernel.taint(), outcome)?;
    Ok(done)
}

fn carry_out(host: &mut Host, request: &Request, name: &str) -> Result<Result<(), Errno>, HostError> {
    if request.kind() != Some(RequestKind::Load) {
        return Ok(module::unload(name));
    }
    let mut file = module::file().map_err(|error| HostError::Module(error.into()))?;
    host.module(request, &mut file)?;
    Ok(module::load(&file))
}

/// Whether the host waits for no answer any more.
fn ends_the_request(error: &HostError) -> bool {
    matches!(error.code(), Some(ErrorCode::UnknownRequest | ErrorCode::NoAgent | ErrorCode::Absent))
}
