//! Servers' names to addresses: a file in the form of `/etc/hosts` where one is named, then the system's resolver.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use tokio::task::spawn_blocking;
use tokio::time::timeout;

use crate::route::ServerUrl;

/// Resolving a name takes no longer; the resolver itself may go on, on a thread of its own.
const RESOLVE_TIME_MAX: Duration = Duration::from_secs(5);

/// A larger file is some other one.
const HOSTS_BYTES_MAX: u64 = 1 << 20;

pub struct Names {
    hosts: Option<PathBuf>,
}

impl Names {
    /// `hosts`: looked at again with each name, so that it may change.
    pub fn new(hosts: Option<PathBuf>) -> Self {
        // A daemon changes its folder.
        Self { hosts: hosts.map(|file| std::path::absolute(&file).unwrap_or(file)) }
    }

    /// Every address of a server, or why there is none.
    pub async fn look_up(&self, url: &ServerUrl) -> Result<Vec<SocketAddr>, String> {
        let (host, port) = (url.host.as_str(), url.port);
        if let Ok(literal) = host.parse::<IpAddr>() {
            return Ok(vec![SocketAddr::new(literal, port)]);
        }
        let why = |why: &str| Err(format!("its name `{host}` does not resolve: {why}"));
        if let Some(file) = self.hosts.clone() {
            let text = spawn_blocking(move || {
                let length = std::fs::metadata(&file).map_or(0, |it| it.len());
                if length > HOSTS_BYTES_MAX {
                    String::new()
                } else {
                    std::fs::read_to_string(file).unwrap_or_default()
                }
            });
            let listed = listed(&text.await.unwrap_or_default(), host);
            if !listed.is_empty() {
                return Ok(listed.into_iter().map(|address| SocketAddr::new(address, port)).collect());
            }
        }
        if host == "invalid" || host.ends_with(".invalid") {
            // RFC 6761: whoever resolves names knows that these have no address, and asks nobody.
            return why("names under `.invalid` never do");
        }
        match timeout(RESOLVE_TIME_MAX, tokio::net::lookup_host((host, port))).await {
            Ok(Ok(found)) => match found.collect::<Vec<_>>() {
                none if none.is_empty() => why("it has no address"),
                found => Ok(found),
            },
            Ok(Err(error)) => why(&error.to_string()),
            Err(_) => why("no answer in time"),
        }
    }
}

/// The addresses of a name in a text of lines of an address and its names.
fn listed(hosts: &str, name: &str) -> Vec<IpAddr> {
    let line = |line: &str| {
        let mut words = line.split('#').next()?.split_ascii_whitespace();
        let address = words.next()?.parse().ok()?;
        words.any(|word| word.eq_ignore_ascii_case(name)).then_some(address)
    };
    hosts.lines().filter_map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hosts_file_lists_every_address_of_a_name() {
        let hosts =
            "127.0.0.1 localhost gpu # not: other\n# 127.0.0.9 gpu\n\n::1\tGPU\nnonsense gpu\n127.0.0.2";
        let found = |name: &str| listed(hosts, name).iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(found("gpu"), ["127.0.0.1", "::1"]);
        assert_eq!(found("localhost"), ["127.0.0.1"]);
        assert!(found("other").is_empty() && found("gp").is_empty());
    }
}
