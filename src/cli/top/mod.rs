//! `ai-gateway top`: the operator's page, in a terminal, for those who have only ssh.
//!
//! It shows what the page shows and reads what the page reads, `GET /dashboard/live`. One thread hears the gateway
//! (`feed`), one the keyboard, one the signals; what they hear comes to one place in its order, changes what is known
//! (`board`) or where the reader is (`view`), and the screen is drawn anew (`screen`). Where nobody sits at a terminal
//! it is told once, as text.

mod board;
mod feed;
mod hour;
mod outcome;
mod pages;
mod plain;
mod screen;
mod table;
mod terminal;
mod text;
mod told;
mod view;

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ai_gateway::config::Settings;
use jiff::tz::TimeZone;
use ratatui::crossterm::event::{self, Event, KeyEvent, KeyEventKind};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use signal_hook::iterator::Signals;

use super::place::Place;
use super::{Failure, print};
use board::{Board, Link, Lost};
use feed::{Stream, Token};
use screen::Scene;
use table::Kind;
use terminal::Taken;
use told::Name;
use view::{Act, View};

/// What is heard and not yet looked at.
const HEARD_MAX: usize = 16;
/// A server is drained within this, or that is given up.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(8);
const TOKEN_BYTES_MAX: u64 = 16 << 10;

/// What the command line says.
#[derive(Debug, Default)]
pub(crate) struct Wishes {
    pub(crate) admin: Option<String>,
    pub(crate) token_file: Option<PathBuf>,
    pub(crate) once: bool,
}

/// What the threads hear.
enum Heard {
    /// `true`: the first of its connection.
    News(Box<told::News>, bool),
    Lost(Lost),
    Key(KeyEvent),
    Resized,
    /// What came of what was asked for.
    Said(Kind, String),
    /// It is to end, by a signal.
    End,
    /// The keyboard is gone.
    Deaf(std::io::Error),
}

pub(crate) fn show(settings: &Settings, wishes: &Wishes) -> Result<(), Failure> {
    let listener = &settings.admin.listen;
    let place = match &wishes.admin {
        Some(url) => Place::at(url, listener.tls.as_ref()).map_err(Failure::Wrong)?,
        None => Place::of(listener),
    };
    if wishes.admin.is_none() && listener.asks_for_certificates() {
        return Err(Failure::Failed(format!(
            "{} asks for a certificate (`admin.tls.client_ca`), and `top` has none to show: guard it by `admin.token`",
            place.url()
        )));
    }
    let token = match &wishes.token_file {
        Some(file) => Some(read_token(file)?),
        None => settings.admin.token.as_ref().map(|token| token.0.clone()),
    };
    if wishes.once || !terminal::is_one() {
        return once(&place, token.as_deref());
    }
    watch(place, token)
}

fn read_token(file: &Path) -> Result<String, Failure> {
    let wrong = |why: String| Failure::Wrong(format!("--token-file {}: {why}", file.display()));
    let mut token = String::new();
    let read = File::open(file).and_then(|file| file.take(TOKEN_BYTES_MAX).read_to_string(&mut token));
    read.map_err(|error| wrong(error.to_string()))?;
    match token.trim() {
        "" => Err(wrong("it is empty".to_owned())),
        token => Ok(token.to_owned()),
    }
}

/// Prints how things stand.
fn once(place: &Place, token: Option<&str>) -> Result<(), Failure> {
    let told = Stream::open(place, token).and_then(|mut stream| stream.next());
    let news = told.map_err(|lost| {
        let advice = lost.advice.replace(" Press t to type it in.", "");
        Failure::Failed(format!("no word from the gateway at {}: {}. {advice}", place.url(), lost.why))
    })?;
    let mut board = Board::default();
    board.take(news, true);
    print(&plain::told(&board, &place.url(), &TimeZone::system()))
}

/// Shows it until the reader leaves.
fn watch(place: Place, token: Option<String>) -> Result<(), Failure> {
    let failed = |error: std::io::Error| Failure::Failed(format!("ai-gateway: no terminal: {error}"));
    let (tell, heard) = sync_channel(HEARD_MAX);
    hear_signals(tell.clone()).map_err(failed)?;
    let (taken, mut terminal) = Taken::take().map_err(failed)?;
    hear_keys(tell.clone());
    let ends = Watch::begin(place, token, tell).run(&mut terminal, &heard);
    drop(taken);
    ends.map_err(failed)
}

fn hear_signals(tell: SyncSender<Heard>) -> std::io::Result<()> {
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP, SIGQUIT])?;
    std::thread::spawn(move || {
        if signals.forever().next().is_some() {
            let _ = tell.send(Heard::End);
        }
    });
    Ok(())
}

fn hear_keys(tell: SyncSender<Heard>) {
    std::thread::spawn(move || {
        loop {
            let heard = match event::read() {
                Ok(Event::Key(key)) if key.kind != KeyEventKind::Release => Heard::Key(key),
                Ok(Event::Resize(..)) => Heard::Resized,
                Ok(_) => continue,
                Err(error) => Heard::Deaf(error),
            };
            let last = matches!(heard, Heard::Deaf(_));
            if tell.send(heard).is_err() || last {
                return;
            }
        }
    });
}

/// Watching a gateway.
struct Watch {
    place: Arc<Place>,
    token: Arc<Token>,
    again: SyncSender<()>,
    tell: SyncSender<Heard>,
    board: Board,
    view: View,
}

impl Watch {
    fn begin(place: Place, token: Option<String>, tell: SyncSender<Heard>) -> Self {
        let (place, token) = (Arc::new(place), Arc::new(Mutex::new(token)));
        let (again, asked_again) = sync_channel(1);
        let (at, with, to) = (Arc::clone(&place), Arc::clone(&token), tell.clone());
        std::thread::spawn(move || feed::follow(&at, &with, &to, &asked_again));
        Self { place, token, again, tell, board: Board::default(), view: View::default() }
    }

    fn run(mut self, terminal: &mut terminal::Screen, heard: &Receiver<Heard>) -> std::io::Result<()> {
        let (colours, zone, url) = (terminal::wants_colours(), TimeZone::system(), self.place.url());
        loop {
            let scene = Scene { board: &self.board, view: &self.view, url: &url, zone: &zone };
            terminal.draw(|frame| screen::draw(frame, &scene, colours))?;
            match heard.recv() {
                Ok(Heard::News(news, first)) => self.board.take(*news, first),
                Ok(Heard::Lost(lost)) => self.board.link = Link::Lost(lost),
                Ok(Heard::Said(kind, words)) => self.view.said = Some((kind, words)),
                Ok(Heard::Resized) => {}
                Ok(Heard::Key(key)) => match self.view.press(key, &self.board) {
                    Act::Nothing => {}
                    Act::Quit => return Ok(()),
                    Act::AskAgain => self.ask_again(),
                    Act::Drain { server, drain } => self.drain(server, drain),
                    Act::Token(token) => {
                        *self.token.lock().unwrap_or_else(PoisonError::into_inner) = Some(token);
                        self.ask_again();
                    }
                },
                Ok(Heard::Deaf(error)) => return Err(error),
                Ok(Heard::End) | Err(_) => return Ok(()),
            }
        }
    }

    fn ask_again(&self) {
        // One word is enough, and it may be there already.
        let _ = self.again.try_send(());
    }

    fn drain(&mut self, server: Name, drain: bool) {
        self.view.said = Some((Kind::Quiet, "…".to_owned()));
        let (place, token, tell) = (Arc::clone(&self.place), Arc::clone(&self.token), self.tell.clone());
        std::thread::spawn(move || {
            let (kind, words) = match change(&place, &token, &server, drain) {
                Ok(done) => (Kind::Good, done),
                Err(why) => (Kind::Bad, format!("Not done: {why}")),
            };
            let _ = tell.send(Heard::Said(kind, words));
        });
    }
}

/// Drains a server, or undrains it; says what came of it, or why not.
fn change(place: &Place, token: &Token, server: &Name, drain: bool) -> Result<String, String> {
    let target = format!("/servers/{}/{}", server.encoded(), if drain { "drain" } else { "undrain" });
    let answer = place.ask("POST", &target, feed::token_of(token).as_deref(), ANSWER_TIME_MAX);
    let answer = answer.map_err(|error| format!("the gateway cannot be reached ({error})."))?;
    let (status, name) = (answer.status, server.shown());
    match (status, drain) {
        (200, true) => Ok(format!("{name} gets nothing new, and finishes what it has.")),
        (200, false) => Ok(format!("{name} gets requests again.")),
        _ => Err(feed::message_of(answer).unwrap_or_else(|| format!("it answers {status}."))),
    }
}
