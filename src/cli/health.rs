//! `ai-gateway health`: whether the running gateway is well.

use ai_gateway::config::{Listener, Settings};

use super::ask::{ask, is_asked_for_a_certificate};
use super::{Failure, print};

/// Asks `/health` of the first listener that asks nobody for a certificate, the operator's the last of them, and
/// prints what it says.
pub(crate) fn show(settings: &Settings) -> Result<(), Failure> {
    let callers = settings.listen.iter();
    let mut open = callers.chain([&settings.admin.listen]).filter(|it| !it.asks_for_certificates());
    let Some(listener) = open.next() else { return show_by_handshake(&settings.listen[0]) };
    let is_admin = listener.address == settings.admin.listen.address;
    let token = settings.admin.token.as_ref().filter(|_| is_admin).map(|token| token.0.as_str());
    let (status, body) = ask(listener, "/health", token).map_err(|error| nobody(listener, &error))?;
    if status == "200" { print(&body) } else { Err(Failure::Failed(body)) }
}

/// Where every listener wants a certificate, what can be said is that the gateway is there and shakes hands.
fn show_by_handshake(listener: &Listener) -> Result<(), Failure> {
    let Some(tls) = &listener.tls else { return Ok(()) };
    match is_asked_for_a_certificate(listener.address, tls) {
        Ok(_) => print("the gateway asks for a certificate: it is there"),
        Err(error) => Err(nobody(listener, &error)),
    }
}

fn nobody(listener: &Listener, error: &std::io::Error) -> Failure {
    Failure::Failed(format!("no gateway answers on {}: {error}", listener.address))
}
