//! A request's way to a server and its answer's way back, as often as the hooks ask for another try.
//!
//! This is what Pingora's own loop does between `upstream_peer` and the answer's last byte, and calls those of its
//! hooks that the gateway has, in the same order. Pingora 0.9.1 has what comes from the server and what goes to the
//! caller pass through a channel between two halves, gives a body that was read ahead back only up to 64 KiB, has one
//! timeout for all that a server sends, ends an answer with its first caller, and closes a caller's connection where no
//! server could be reached. Connections by TLS and whatever the caller speaks are Pingora's, here as there.

use std::future::poll_fn;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::{Buf, Bytes};
use futures_util::FutureExt;
use http::{Method, Version};
use pingora::http::RequestHeader;
use pingora::protocols::Stream;
use pingora::protocols::http::HttpTask;
use pingora::protocols::http::v1::client::http_req_header_to_wire;
use pingora::upstreams::peer::HttpPeer;
use pingora::{Error, ErrorType, OrErr, Result};
use pingora_proxy::{ProxyHttp, Session};
use tokio::io::AsyncWriteExt;
use tokio::time::timeout;

use super::Proxy;
use super::conduit::Line;
use super::context::Context;
use super::reply::Reply;
use super::{outlet, respond};

/// How many pieces of an answer that are there at once are passed on at once.
const BATCH: usize = 4;

/// How long the end of an answer is waited for that has come.
const LAST_CHUNK_TIME_MAX: Duration = Duration::from_millis(100);

/// The error of a request that no server is asked for any more: `Route::failure` says why.
pub(super) const REFUSED: ErrorType = ErrorType::Custom("no further try");

/// Ends with all that its caller is to have, or with the error that [`super::failure::end`] puts an end to.
pub(super) async fn exchange(proxy: &Proxy, session: &mut Session, ctx: &mut Box<Context>) -> Result<()> {
    loop {
        match attempt(proxy, session, ctx).await {
            Ok(()) => return outlet::finish(session, ctx).await,
            Err(error) if *error.etype() == REFUSED && !ctx.outlet.is_hidden() => {
                let gateway = Arc::clone(&ctx.gateway);
                let Some(refusal) = ctx.route.failure.clone() else { return Err(error) };
                return Box::pin(respond::refuse(&gateway, session, ctx, refusal)).await;
            }
            Err(error) if error.retry() => {}
            Err(error) => return Err(error),
        }
    }
}

/// One try.
async fn attempt(proxy: &Proxy, session: &mut Session, ctx: &mut Box<Context>) -> Result<()> {
    let peer = proxy.upstream_peer(session, ctx).await?;
    let (conduits, now) = (Arc::clone(&ctx.gateway.conduits), ctx.gateway.clock.now());
    // The second try is made on a connection of its own: a pool that died idle has died whole.
    let afresh = ctx.route.broken > 0;
    // The clock of the try before is not this one's.
    ctx.route.timing.rest();
    let line = tokio::select! {
        biased;
        line = conduits.line(&peer, afresh, now) => line,
        gone = outlet::watch(session, ctx) => return Err(proxy.error_while_proxy(&peer, session, gone, ctx, false)),
    };
    let Line { stream, was_used } = match line {
        Ok(line) => line,
        Err(error) => return Err(proxy.fail_to_connect(session, &peer, ctx, error.into_up()).into_up()),
    };
    let passed = match send(proxy, session, ctx, &peer, stream).await {
        Ok(asked) => pass(proxy, session, ctx, &peer, asked).await,
        Err(error) => Err(error),
    };
    passed.map_err(|error| proxy.error_while_proxy(&peer, session, error, ctx, was_used))
}

/// A server that has the request, or as much of it as it took.
struct Asked {
    reply: Reply,
    /// Why it has not all of it. It may have answered nevertheless.
    unsent: Option<Box<Error>>,
}

async fn send(
    proxy: &Proxy,
    session: &mut Session,
    ctx: &mut Box<Context>,
    peer: &HttpPeer,
    mut stream: Stream,
) -> Result<Asked> {
    let mut request = RequestHeader::build_no_case(Method::POST, b"/", None)?;
    proxy.upstream_request_filter(session, &mut request, ctx).await?;
    let body = ctx.job.as_ref().map(|job| job.body.clone()).unwrap_or_default();
    let written = tokio::select! {
        biased;
        written = write(&mut stream, &request, body, peer.options.write_timeout) => written,
        gone = outlet::watch(session, ctx) => return Err(gone),
    };
    Ok(Asked { reply: Reply::new(stream), unsent: written.err().map(Error::into_up) })
}

/// Writes a request in as few writes as the server takes. `silence_max`: for how long it may take nothing.
pub(super) async fn write(
    stream: &mut Stream,
    request: &RequestHeader,
    body: Bytes,
    silence_max: Option<Duration>,
) -> Result<()> {
    let head = http_req_header_to_wire(request)
        .ok_or_else(|| Error::explain(ErrorType::InvalidHTTPHeader, "a request that cannot be written"))?;
    let mut request = head.chain(body);
    while request.has_remaining() {
        if within(silence_max, stream.write_buf(&mut request)).await? == 0 {
            return Error::e_explain(ErrorType::WriteError, "the server takes nothing");
        }
    }
    within(silence_max, stream.flush()).await
}

/// Most writes take no time, and no timer.
async fn within<T>(time_max: Option<Duration>, written: impl Future<Output = io::Result<T>>) -> Result<T> {
    let mut written = pin!(written);
    let written = match (written.as_mut().now_or_never(), time_max) {
        (Some(written), _) => written,
        (None, None) => written.await,
        (None, Some(time_max)) => match timeout(time_max, written).await {
            Ok(written) => written,
            Err(_) => return Error::e_explain(ErrorType::WriteTimedout, "writing the request"),
        },
    };
    written.or_err(ErrorType::WriteError, "writing the request")
}

/// Passes the answer on, piece by piece as it comes.
async fn pass(
    proxy: &Proxy,
    session: &mut Session,
    ctx: &mut Box<Context>,
    peer: &HttpPeer,
    asked: Asked,
) -> Result<()> {
    let Asked { mut reply, mut unsent } = asked;
    let is_sent = unsent.is_none();
    let mut is_over = false;
    while !is_over {
        let (first, more) = match unsent.take_if(|unsent| *unsent.etype() == ErrorType::WriteTimedout) {
            // It has been waited for: what it has not answered by now, it does not.
            Some(late) => (reply.piece().now_or_never().unwrap_or(Err(late)), true),
            None => await_piece(&mut reply, session, ctx).await?,
        };
        // A header goes out with what comes behind it; most events come alone.
        let more = more || matches!(first, Ok(HttpTask::Header(..)));
        let mut tasks = Vec::with_capacity(if more { BATCH } else { 1 });
        let mut broken = None;
        let mut next = Some(first);
        while let Some(task) = next {
            match task {
                Ok(task) => tasks.push(filter(proxy, session, ctx, task).await?),
                Err(error) => broken = Some(unsent.take().unwrap_or(error).into_up()),
            }
            is_over = tasks.last().is_some_and(HttpTask::is_end);
            next = match more && !is_over && broken.is_none() && tasks.len() < BATCH {
                true => reply.piece().now_or_never(),
                false => None,
            };
        }
        let is_told = !tasks.is_empty() && outlet::write(session, ctx, tasks).await?;
        if let Some(error) = broken.filter(|_| !is_told) {
            return Err(error);
        }
        if is_told && !is_over {
            // The caller has all that it was told would come: of an answer in chunks, the last says no more than that.
            let last = timeout(LAST_CHUNK_TIME_MAX, reply.piece()).await;
            let last = last.ok().and_then(Result::ok).filter(|task| matches!(task, HttpTask::Body(_, true)));
            filter(proxy, session, ctx, last.unwrap_or(HttpTask::Body(None, true))).await?;
            is_over = true;
        }
    }
    if let Some(stream) = reply.into_kept().await.filter(|_| is_sent) {
        let gateway = &ctx.gateway;
        gateway.conduits.keep(peer, stream, gateway.clock.now());
    }
    Ok(())
}

/// Waits for the next piece of the answer, and says whether it had not to: then there may be more.
async fn await_piece(
    reply: &mut Reply,
    session: &mut Session,
    ctx: &mut Context,
) -> Result<(Result<HttpTask>, bool)> {
    let mut gone = pin!(outlet::watch(session, ctx));
    let mut at_once = true;
    poll_fn(|cx| {
        if let Poll::Ready(piece) = reply.poll_piece(cx) {
            return Poll::Ready(Ok((piece, at_once)));
        }
        at_once = false;
        gone.as_mut().poll(cx).map(Err)
    })
    .await
}

/// Has the hooks see a piece of the answer, and change it.
async fn filter(
    proxy: &Proxy,
    session: &mut Session,
    ctx: &mut Box<Context>,
    task: HttpTask,
) -> Result<HttpTask> {
    Ok(match task {
        HttpTask::Header(mut header, ends) => {
            proxy.upstream_response_filter(session, &mut header, ctx).await?;
            header.set_version(Version::HTTP_11);
            proxy.response_filter(session, &mut header, ctx).await?;
            HttpTask::Header(header, ends)
        }
        HttpTask::Body(mut body, ends) => {
            proxy.response_body_filter(session, &mut body, ends, ctx)?;
            HttpTask::Body(body, ends)
        }
        task => task,
    })
}

#[cfg(test)]
mod tests {
    use pingora::protocols::l4::stream::Stream as PlainStream;
    use tokio::io::AsyncReadExt;
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    async fn connected() -> (Stream, TcpListener) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let stream = TcpStream::connect(address).await.expect("it listens");
        (Box::new(PlainStream::from(stream)), listener)
    }

    fn header() -> RequestHeader {
        RequestHeader::build_no_case(Method::POST, b"/", None).expect("a header")
    }

    #[tokio::test]
    async fn a_request_goes_out_in_one_piece_and_a_large_one_whole() {
        let (mut stream, listener) = connected().await;
        let (mut server, _) = listener.accept().await.expect("a connection");
        write(&mut stream, &header(), Bytes::from_static(b"body"), None).await.expect("it is taken");
        // What is sent at once is read at once, between two sockets of one machine.
        let mut read = [0; 100];
        let count = server.read(&mut read).await.expect("it comes");
        assert_eq!(read[..count], *b"POST / HTTP/1.1\r\n\r\nbody");
        let large = Bytes::from(vec![7; 20 << 20]);
        let taken = async {
            let mut all = vec![0; count - 4 + large.len()];
            server.read_exact(&mut all).await.map(|_| all)
        };
        let (header, time_max) = (header(), Some(LAST_CHUNK_TIME_MAX * 100));
        let (written, taken) = tokio::join!(write(&mut stream, &header, large.clone(), time_max), taken);
        written.expect("it is taken");
        assert!(taken.expect("it comes").ends_with(&large));
    }

    #[tokio::test]
    async fn who_takes_nothing_is_not_waited_for() {
        let (mut stream, listener) = connected().await;
        let body = Bytes::from(vec![7; 40 << 20]);
        let late = write(&mut stream, &header(), body, Some(LAST_CHUNK_TIME_MAX)).await;
        assert_eq!(*late.expect_err("nobody reads").etype(), ErrorType::WriteTimedout);
        drop(listener);
        let broken = write(&mut stream, &header(), Bytes::new(), None).await.expect_err("nobody is there");
        assert_eq!(*broken.etype(), ErrorType::WriteError);
    }
}
