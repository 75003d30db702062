//! How a scripted server answers, said in one line.

use super::Llama;
use super::router::RouterScript;

/// How an answer's end is told, truthfully or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    Length,
    Chunked,
    Close,
    /// `content-length` names more than is sent.
    TooShort,
    /// `content-length` names less than is sent.
    TooLong,
}

/// Where an answer breaks off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cut {
    Never,
    /// The request is read and the connection closed.
    BeforeHead,
    /// In the middle of the head.
    InHead,
    /// After so many pieces (events of a stream, or the one piece of a plain answer).
    Pieces(usize),
    /// After so many bytes of the body, the last piece cut through.
    Bytes(usize),
}

#[derive(Debug, Clone)]
pub(crate) struct Script {
    pub(super) status: u16,
    pub(super) words: Vec<String>,
    pub(super) plain: Option<String>,
    pub(super) content_type: Option<&'static str>,
    pub(super) events: Option<Vec<String>>,
    pub(super) headers: Vec<(String, String)>,
    pub(super) holds_head: bool,
    pub(super) holds: bool,
    pub(super) cut: Cut,
    pub(super) ending: Option<Ending>,
    pub(super) chunk_sizes: Vec<usize>,
    pub(super) end_mark: bool,
    pub(super) garbage: bool,
    pub(super) healthy: bool,
    pub(super) props_status: u16,
    pub(super) model: String,
    pub(super) api_key: Option<String>,
    pub(super) counts: bool,
    pub(super) slots: u32,
    pub(super) listed: Option<usize>,
    pub(super) holds_counts: bool,
    pub(super) props_body: Option<String>,
    pub(super) tls: bool,
    pub(super) base: Option<&'static str>,
    pub(super) router: Option<RouterScript>,
}

/// A healthy server that answers everything with "Hello".
pub(crate) fn scripted() -> Script {
    Script {
        status: 200,
        words: vec!["Hel".to_owned(), "lo".to_owned()],
        plain: None,
        content_type: None,
        events: None,
        headers: Vec::new(),
        holds_head: false,
        holds: false,
        cut: Cut::Never,
        ending: None,
        chunk_sizes: Vec::new(),
        end_mark: true,
        garbage: false,
        healthy: true,
        props_status: 200,
        model: "tiny".to_owned(),
        api_key: None,
        counts: true,
        slots: 1000,
        listed: None,
        holds_counts: false,
        props_body: None,
        tls: false,
        base: None,
        router: None,
    }
}

impl Script {
    pub(crate) async fn start(self) -> Llama {
        Llama::start(self).await
    }

    /// The words that it generates, one event each where the answer is streamed.
    pub(crate) fn streams<const N: usize>(mut self, words: [&str; N]) -> Self {
        self.words = words.map(str::to_owned).to_vec();
        self
    }

    /// This very body, to everything.
    pub(crate) fn answers(mut self, body: impl Into<String>) -> Self {
        self.plain = Some(body.into());
        self
    }

    /// What it says that its answers are.
    pub(crate) fn content_type(mut self, content_type: &'static str) -> Self {
        self.content_type = Some(content_type);
        self
    }

    /// These very pieces as the body of a stream.
    pub(crate) fn events<const N: usize>(mut self, pieces: [&str; N]) -> Self {
        self.events = Some(pieces.map(str::to_owned).to_vec());
        self
    }

    /// What it says of its slots; so many that nobody waits if it is not asked to.
    pub(crate) fn slots(mut self, slots: u32) -> Self {
        self.slots = slots;
        self
    }

    /// How many slots `/slots` lists; without this it is switched off.
    pub(crate) fn lists_slots(mut self, slots: usize) -> Self {
        self.listed = Some(slots);
        self
    }

    /// Before it tells the tokens of a prompt it waits for `Llama::release`.
    pub(crate) fn holds_counts(mut self) -> Self {
        self.holds_counts = true;
        self
    }

    /// It has no way to count the tokens of a prompt.
    pub(crate) fn does_not_count(mut self) -> Self {
        self.counts = false;
        self
    }

    pub(crate) fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    pub(crate) fn status(mut self, status: u16) -> Self {
        self.status = status;
        self
    }

    /// Before the answer's body, and before each event of a stream, it waits for `Llama::release`. A stream's head
    /// is out before that, a plain answer's is not: as the real server does it.
    pub(crate) fn holds(mut self) -> Self {
        self.holds = true;
        self
    }

    /// A stream's head waits for `Llama::release` too.
    pub(crate) fn slow_start(mut self) -> Self {
        self.holds = true;
        self.holds_head = true;
        self
    }

    /// It breaks off after so many events.
    pub(crate) fn dies_after(mut self, events: usize) -> Self {
        self.cut = Cut::Pieces(events);
        self
    }

    /// It breaks off after so many bytes of the body.
    pub(crate) fn dies_after_bytes(mut self, bytes: usize) -> Self {
        self.cut = Cut::Bytes(bytes);
        self
    }

    /// It reads the request and closes.
    pub(crate) fn dies_at_once(mut self) -> Self {
        self.cut = Cut::BeforeHead;
        self
    }

    /// It breaks off within the answer's head.
    pub(crate) fn half_header(mut self) -> Self {
        self.cut = Cut::InHead;
        self
    }

    /// It answers with what is not HTTP.
    pub(crate) fn garbage(mut self) -> Self {
        self.garbage = true;
        self
    }

    /// The body is sent in chunks of these sizes, the last one again and again, wherever events begin or end.
    pub(crate) fn chunked_as<const N: usize>(mut self, sizes: [usize; N]) -> Self {
        self.chunk_sizes = sizes.to_vec();
        self.ending = Some(Ending::Chunked);
        self
    }

    /// A stream is announced with its length too.
    pub(crate) fn with_length(mut self) -> Self {
        self.ending = Some(Ending::Length);
        self
    }

    /// The end of the body is the end of the connection.
    pub(crate) fn close_delimited(mut self) -> Self {
        self.ending = Some(Ending::Close);
        self
    }

    /// `content-length` promises ten bytes that never come.
    pub(crate) fn wrong_length(mut self) -> Self {
        self.ending = Some(Ending::TooShort);
        self
    }

    /// Ten bytes follow what `content-length` names.
    pub(crate) fn more_than_its_length(mut self) -> Self {
        self.ending = Some(Ending::TooLong);
        self
    }

    /// From its start on it speaks TLS, as `llama.invalid`, by the certificate in tests/tls.
    pub(crate) fn tls(mut self) -> Self {
        self.tls = true;
        self
    }

    /// Its endpoints stand under this instead of `/v1`.
    pub(crate) fn base(mut self, base: &'static str) -> Self {
        self.base = Some(base);
        self
    }

    /// The path of the table that this one is.
    pub(super) fn path(&self, path: &str) -> String {
        match self.base {
            None => path.to_owned(),
            Some(base) => path.strip_prefix(base).map_or("/astray".to_owned(), |rest| format!("/v1{rest}")),
        }
    }

    /// `/props` is this very text.
    pub(crate) fn says_of_itself(mut self, body: &str) -> Self {
        self.props_body = Some(body.to_owned());
        self
    }

    /// A stream ends in good order, but without its protocol's end mark.
    pub(crate) fn without_end_mark(mut self) -> Self {
        self.end_mark = false;
        self
    }

    /// `/health` says that the model is still loading.
    pub(crate) fn unhealthy(mut self) -> Self {
        self.healthy = false;
        self
    }

    /// `/props` is answered with this status.
    pub(crate) fn props(mut self, status: u16) -> Self {
        self.props_status = status;
        self
    }

    /// The model that `/v1/models` and `/props` report.
    pub(crate) fn model(mut self, name: &str) -> Self {
        self.model = name.to_owned();
        self
    }

    /// Whoever does not present this key gets a 401.
    pub(crate) fn api_key(mut self, key: &str) -> Self {
        self.api_key = Some(key.to_owned());
        self
    }

    /// It is a router of these models, so many of which it has loaded at once.
    pub(crate) fn routes<const N: usize>(mut self, models: [&str; N], loaded_max: usize) -> Self {
        self.router = Some(RouterScript {
            models: models.map(str::to_owned).to_vec(),
            loaded_max,
            slots: Some(2),
            keeps_all: false,
            works_elsewhere: false,
            autoloads: true,
        });
        self
    }

    fn router(mut self, change: impl FnOnce(&mut RouterScript)) -> Self {
        change(self.router.as_mut().expect("a router"));
        self
    }

    /// Each of its models has so many slots.
    pub(crate) fn slots_each(self, slots: u32) -> Self {
        self.router(|router| router.slots = Some(slots))
    }

    /// The command lines of its models do not say their slots; each says 2 once it is loaded.
    pub(crate) fn tells_no_slots(self) -> Self {
        self.router(|router| router.slots = None)
    }

    /// It unloads nothing.
    pub(crate) fn keeps_all(self) -> Self {
        self.router(|router| router.keeps_all = true)
    }

    /// Its models work for somebody else too.
    pub(crate) fn works_elsewhere(self) -> Self {
        self.router(|router| router.works_elsewhere = true)
    }

    /// It says that it loads nothing by itself.
    pub(crate) fn loads_nothing(self) -> Self {
        self.router(|router| router.autoloads = false)
    }
}
