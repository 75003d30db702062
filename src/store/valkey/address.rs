//! Where Valkey is: `redis://[user:password@]host[:port][,host[:port] …][/database]`.
//!
//! `rediss` is TLS; `redis-cluster` names some nodes of a Cluster, `redis-sentinel` Sentinels and, as its path, the
//! name of what they watch; `valkey` may stand for `redis` in each.

use std::fmt;

use percent_encoding::percent_decode_str;

const PORT: u16 = 6379;
const SENTINEL_PORT: u16 = 26379;

/// How what is at the address is found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// One server.
    One,
    /// Any of these nodes tells of the others.
    Cluster,
    /// These say which server is the primary of this name.
    Sentinel(String),
}

/// A checked address.
#[derive(Clone, PartialEq, Eq)]
pub struct Address {
    pub kind: Kind,
    /// At least one.
    pub nodes: Vec<(String, u16)>,
    pub tls: bool,
    pub user: Option<String>,
    pub password: Option<String>,
    pub database: i64,
}

impl Address {
    /// Reads it, or says what was expected; never what stands there, which may be a password.
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong = || {
            "expected a URL such as `redis://host:6379`, `rediss://user:password@host:6379/0`, \
             `redis-cluster://host:6379,host:6379` or `redis-sentinel://host:26379,host:26379/name`"
                .to_owned()
        };
        let (scheme, rest) = text.split_once("://").ok_or_else(wrong)?;
        let (engine, way) = scheme.split_once('-').unwrap_or((scheme, ""));
        let tls = match engine {
            "redis" | "valkey" => false,
            "rediss" | "valkeys" => true,
            _ => return Err(wrong()),
        };
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (login, hosts) = authority.rsplit_once('@').map_or((None, authority), |(a, b)| (Some(a), b));
        let (user, password) = login.map_or(Ok((None, None)), |login| read_login(login).ok_or_else(wrong))?;
        let (kind, database, port) = match way {
            "" => (Kind::One, path, PORT),
            "cluster" if path.is_empty() => (Kind::Cluster, path, PORT),
            "sentinel" => {
                let (name, database) = path.split_once('/').unwrap_or((path, ""));
                let name = Some(name).filter(|name| !name.is_empty()).ok_or_else(wrong)?;
                (Kind::Sentinel(name.to_owned()), database, SENTINEL_PORT)
            }
            _ => return Err(wrong()),
        };
        let database = if database.is_empty() { Some(0) } else { database.parse::<u16>().ok() };
        let nodes: Option<Vec<_>> = hosts.split(',').map(|host| read_host(host, port)).collect();
        let nodes = nodes.filter(|nodes| kind != Kind::One || nodes.len() == 1).ok_or_else(wrong)?;
        Ok(Self { kind, nodes, tls, user, password, database: database.ok_or_else(wrong)?.into() })
    }
}

fn read_login(login: &str) -> Option<(Option<String>, Option<String>)> {
    let decoded = |text: &str| percent_decode_str(text).decode_utf8().ok().map(|it| it.into_owned());
    let (user, password) = login.split_once(':')?;
    let user = Some(decoded(user)?).filter(|user| !user.is_empty());
    Some((user, Some(decoded(password)?).filter(|password| !password.is_empty())))
}

fn read_host(text: &str, port: u16) -> Option<(String, u16)> {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (host, rest) = rest.split_once(']')?;
            let port = if rest.is_empty() { port } else { rest.strip_prefix(':')?.parse().ok()? };
            (host.parse::<std::net::Ipv6Addr>().ok()?.to_string(), port)
        }
        None => match text.split_once(':') {
            Some((host, port)) => (host.to_owned(), port.parse().ok()?),
            None => (text.to_owned(), port),
        },
    };
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':');
    (!host.is_empty() && host.chars().all(plain) && port > 0).then_some((host, port))
}

/// Without who logs in.
impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, (host, port)) in self.nodes.iter().enumerate() {
            write!(f, "{}{host}:{port}", if place == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Address({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_read_as_they_are_written() {
        let told = |text: &str| {
            Address::parse(text).map(|it| (it.kind.clone(), it.to_string(), it.tls, it.database))
        };
        assert_eq!(told("redis://cache"), Ok((Kind::One, "cache:6379".to_owned(), false, 0)));
        assert_eq!(told("valkeys://[::1]:7000/3"), Ok((Kind::One, "::1:7000".to_owned(), true, 3)));
        let cluster = Ok((Kind::Cluster, "a:1,b:6379".to_owned(), false, 0));
        assert_eq!(told("redis-cluster://a:1,b"), cluster);
        let sentinel = Kind::Sentinel("main".to_owned());
        assert_eq!(told("rediss-sentinel://a,b:7/main/2"), Ok((sentinel, "a:26379,b:7".to_owned(), true, 2)));
        let address = Address::parse("redis://gate%3Away:p%40ss:w@host/").expect("an address");
        assert_eq!(address.user.as_deref(), Some("gate:way"));
        assert_eq!(address.password.as_deref(), Some("p@ss:w"));
        assert!(!format!("{address:?}{address}").contains("p@ss"));
    }

    #[test]
    fn what_is_no_address_is_refused_and_not_repeated() {
        for wrong in [
            "",
            "host:6379",
            "http://host",
            "redis://",
            "redis://a,b",
            "redis://host:0",
            "redis://host:port",
            "redis://host/name",
            "redis://secret@host",
            "redis-cluster://a/1",
            "redis-sentinel://a",
            "redis-ring://a",
            "redis://[::1",
            "redis://ho st",
        ] {
            let error = Address::parse(wrong).expect_err(wrong);
            assert!(!error.contains("secret"), "{error}");
        }
    }
}
