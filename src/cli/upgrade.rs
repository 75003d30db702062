//! `ai-gateway upgrade`: the running gateway starts this binary as its successor and hands over to it.

use std::path::Path;

use ai_gateway::config::Settings;
use ai_gateway::server;

use super::{Failure, print};

pub(crate) fn run(file: &Path, settings: &Settings) -> Result<(), Failure> {
    let failed = |why: String| Failure::Failed(format!("ai-gateway: {why}"));
    let Some(pid_file) = &settings.server.pid_file else {
        let why = format!(
            "{}: the running gateway cannot be found: name `server.pid_file`, and start it anew once",
            file.display()
        );
        return Err(Failure::Wrong(why));
    };
    let Some(process) = server::running(pid_file).map_err(failed)? else {
        let why = format!("no gateway runs by {}: start one with `ai-gateway run`", pid_file.display());
        return Err(failed(why));
    };
    if process == 1 {
        let why =
            "the gateway is the first process of its container, which ends with it: replace the container";
        return Err(failed(why.to_owned()));
    }
    let absolute = |path: &Path| std::path::absolute(path).map_err(|error| failed(error.to_string()));
    let binary = std::env::current_exe().map_err(|error| failed(error.to_string()))?;
    let socket = absolute(&settings.server.upgrade_sock)?;
    let done = server::upgrade(process, &socket, &binary, &absolute(file)?)
        .map_err(|why| failed(format!("process {process} is not replaced and serves as before: {why}")))?;
    let requests = match done.requests {
        0 => "has nothing left to do".to_owned(),
        1 => "finishes one request".to_owned(),
        requests => format!("finishes {requests} requests"),
    };
    print(&format!("process {} serves; process {process} {requests}", done.process))
}
