//! What of a file that changes is taken only when the gateway starts again: sockets, files and threads that it has.

use std::collections::BTreeSet;

use super::settings::{Listener, Settings};

impl Settings {
    /// Puts what needs a restart back to what is in force, and names it.
    pub fn keep_what_needs_a_restart(&mut self, in_force: &Self) -> Vec<String> {
        let mut names = Vec::new();
        let mut note = |changed: bool, name: &str| {
            if changed {
                names.push(name.to_owned());
            }
        };
        let (server, now) = (&self.server, &in_force.server);
        let addresses = |listen: &[Listener]| listen.iter().map(|it| it.address).collect::<Vec<_>>();
        note(addresses(&self.listen) != addresses(&in_force.listen), "listen");
        note(self.admin.listen.address != in_force.admin.listen.address, "admin.listen");
        let metrics = |settings: &Self| settings.metrics.as_ref().map(|it| it.address);
        note(metrics(self) != metrics(in_force), "metrics.listen");
        for (name, listener) in in_force.listeners() {
            note(
                self.at(listener).is_some_and(|it| it.tls.is_some() != listener.tls.is_some()),
                &format!("{name}.tls"),
            );
        }
        note(self.connections.idle != in_force.connections.idle, "connections.idle");
        note(self.shared != in_force.shared, "shared");
        note(self.usage != in_force.usage, "usage.path");
        note(self.log.access != in_force.log.access, "log.access");
        note(server.threads != now.threads, "server.threads");
        note(server.grace_period != now.grace_period, "server.grace_period_seconds");
        for key in different(&server.pingora, &now.pingora) {
            note(true, &format!("server.{key}"));
        }
        let pre_stop = self.server.pre_stop;
        self.listen = in_force.listen.iter().map(|listener| self.kept(listener)).collect();
        (self.admin.listen, self.admin.named) = (self.kept(&in_force.admin.listen), in_force.admin.named);
        self.metrics = in_force.metrics.as_ref().map(|listener| self.kept(listener));
        self.connections.idle = in_force.connections.idle;
        self.shared.clone_from(&in_force.shared);
        self.usage.clone_from(&in_force.usage);
        self.log.access.clone_from(&in_force.log.access);
        self.server.clone_from(&in_force.server);
        self.server.pre_stop = pre_stop;
        names
    }

    /// The listener of this file at the same address.
    fn at(&self, listener: &Listener) -> Option<&Listener> {
        self.listeners().map(|(_, it)| it).find(|it| it.address == listener.address)
    }

    /// A listener that is open, with the certificate that this file gives it.
    fn kept(&self, listener: &Listener) -> Listener {
        let tls = self.at(listener).and_then(|it| it.tls.clone());
        Listener {
            tls: listener.tls.as_ref().map(|in_force| tls.unwrap_or_else(|| in_force.clone())),
            ..*listener
        }
    }
}

/// The keys of Pingora's own whose lines are not in both.
fn different<'a>(one: &'a str, other: &'a str) -> BTreeSet<&'a str> {
    let missing =
        |of: &'a str, from: &'a str| of.lines().filter(move |line| !from.lines().any(|it| it == *line));
    let keys = missing(one, other).chain(missing(other, one)).filter_map(|line| line.split(':').next());
    // It has a name of its own.
    keys.filter(|key| *key != "threads").collect()
}

#[cfg(test)]
mod tests {
    use crate::config::{Settings, from_text};

    fn settings(sections: &str) -> Settings {
        let text = format!("upstreams: {{local: http://127.0.0.1:8080}}\n{sections}");
        from_text(&text, "gateway.yaml", &|_| None).expect("a good file").settings
    }

    #[test]
    fn sockets_files_and_threads_need_a_restart_and_nothing_else_does() {
        let cases: [(&str, &[&str]); 12] = [
            ("", &[]),
            ("cache: {ttl: 1s}\nlog: {level: debug, format: text}\nserver: {pre_stop: 3s}", &[]),
            ("listen: [{address: 127.0.0.1:1}]", &["listen"]),
            ("admin: {listen: 127.0.0.1:1, token: a}", &["admin.listen"]),
            ("metrics: {listen: 127.0.0.1:1}", &["metrics.listen"]),
            ("connections: {handshake: 1s, head: 1s}", &[]),
            ("connections: {idle: 1s}", &["connections.idle"]),
            ("shared: {valkey: \"redis://a\"}", &["shared"]),
            ("usage: {path: usage.db}\nlog: {access: none}", &["usage.path", "log.access"]),
            ("server: {threads: 3}", &["server.threads"]),
            ("server: {grace_period_seconds: 3}", &["server.grace_period_seconds"]),
            ("server: {pid_file: a, max_retries: 3}", &["server.max_retries", "server.pid_file"]),
        ];
        for (sections, expected) in cases {
            let mut changed = settings(sections);
            assert_eq!(changed.keep_what_needs_a_restart(&settings("")), expected, "{sections}");
            assert_eq!(changed.keep_what_needs_a_restart(&settings("")), [""; 0], "it is as it was");
        }
        let mut changed = settings("admin: {token: a}\nserver: {pre_stop: 3s, threads: 3}");
        changed.keep_what_needs_a_restart(&settings(""));
        assert!(changed.admin.token.is_some() && changed.server.pre_stop.as_secs() == 3);
    }
}
