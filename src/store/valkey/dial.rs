//! Connects to Valkey: one server, a Cluster, or whichever server the Sentinels name.

use std::path::PathBuf;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::cluster::{ClusterClientBuilder, ClusterConfig};
use redis::cluster_async::ClusterConnection;
use redis::sentinel::{SentinelClientBuilder, SentinelServerType};
use redis::{
    AsyncConnectionConfig, Client, ConnectionAddr, ConnectionInfo, IntoConnectionInfo, RedisConnectionInfo,
    RedisError, TlsCertificates, TlsMode,
};

use super::address::{Address, Kind};

/// To connect and log in.
const CONNECT_TIME_MAX: Duration = Duration::from_millis(500);

/// Of the client itself; whoever asks gives up long before.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(1);

/// What connecting takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dial {
    pub address: Address,
    /// Whom TLS trusts, as PEM; `None`: the system's roots. Read anew with each connection.
    pub ca: Option<PathBuf>,
}

/// A connection: cheap to clone, and all clones are one pipeline.
#[derive(Clone)]
pub(super) enum Wire {
    One(MultiplexedConnection),
    Cluster(ClusterConnection),
}

impl Dial {
    pub(super) async fn connect(&self) -> Result<Wire, String> {
        let connected = tokio::time::timeout(2 * CONNECT_TIME_MAX, self.by_kind());
        let late = |_| format!("no connection within {} ms", (2 * CONNECT_TIME_MAX).as_millis());
        connected.await.map_err(late)?
    }

    async fn by_kind(&self) -> Result<Wire, String> {
        let why = |error: RedisError| error.to_string();
        let tls = self.certificates()?;
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_TIME_MAX))
            .set_response_timeout(Some(ANSWER_TIME_MAX));
        match &self.address.kind {
            Kind::One => {
                let node = self.nodes().next().ok_or("no address")?;
                let client = match tls {
                    Some(tls) => Client::build_with_tls(node, tls),
                    None => Client::open(node),
                };
                let connected =
                    client.map_err(why)?.get_multiplexed_async_connection_with_config(&config).await;
                connected.map(Wire::One).map_err(why)
            }
            Kind::Sentinel(name) => {
                let addresses = self.nodes().map(|node| node.addr().clone());
                let mut builder = SentinelClientBuilder::new(addresses, name, SentinelServerType::Master)
                    .map_err(why)?
                    .set_client_to_redis_db(self.address.database);
                if let Some(tls) = tls {
                    builder = builder
                        .set_client_to_redis_tls_mode(TlsMode::Secure)
                        .set_client_to_redis_certificates(tls.clone())
                        .set_client_to_sentinel_tls_mode(TlsMode::Secure)
                        .set_client_to_sentinel_certificates(tls);
                }
                if let Some(user) = &self.address.user {
                    builder = builder.set_client_to_redis_username(user);
                }
                if let Some(password) = &self.address.password {
                    builder = builder.set_client_to_redis_password(password);
                }
                let mut client = builder.build().map_err(why)?;
                let connected = client.get_async_connection_with_config(&config).await;
                connected.map(Wire::One).map_err(why)
            }
            Kind::Cluster => {
                let mut builder = ClusterClientBuilder::new(self.nodes()).retries(1).max_retry_wait(50);
                if let Some(tls) = tls {
                    builder = builder.certs(tls);
                }
                let config = ClusterConfig::new()
                    .set_connection_timeout(CONNECT_TIME_MAX)
                    .set_response_timeout(ANSWER_TIME_MAX);
                let client = builder.build().map_err(why)?;
                client.get_async_connection_with_config(config).await.map(Wire::Cluster).map_err(why)
            }
        }
    }

    /// Of TLS; `None`: plain.
    fn certificates(&self) -> Result<Option<TlsCertificates>, String> {
        if !self.address.tls {
            return Ok(None);
        }
        let read =
            |path: &PathBuf| std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()));
        let root_cert = self.ca.as_ref().map(read).transpose()?;
        Ok(Some(TlsCertificates { client_tls: None, root_cert }))
    }

    fn nodes(&self) -> impl Iterator<Item = ConnectionInfo> {
        let Address { tls, user, password, database, nodes, .. } = &self.address;
        nodes.iter().filter_map(move |(host, port)| {
            let mut login = RedisConnectionInfo::default().set_db(*database);
            if let Some(user) = user {
                login = login.set_username(user);
            }
            if let Some(password) = password {
                login = login.set_password(password);
            }
            let (host, port) = (host.clone(), *port);
            let address = match tls {
                true => ConnectionAddr::TcpTls { host, port, insecure: false, tls_params: None },
                false => ConnectionAddr::Tcp(host, port),
            };
            Some(address.into_connection_info().ok()?.set_redis_settings(login))
        })
    }
}
