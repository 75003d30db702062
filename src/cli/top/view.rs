//! Where the reader is, and what a key does.

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use super::board::{Board, Link};
use super::pages::Filter;
use super::table::Kind;
use super::told::{Name, Request};

/// Of a token that is typed in.
const TOKEN_CHARS_MAX: usize = 1000;

/// Rows that PgUp and PgDn go.
const PAGE_ROWS: isize = 10;

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Pane {
    #[default]
    Overview,
    Servers,
    Keys,
    Requests,
}

impl Pane {
    pub(super) const ALL: [Self; 4] = [Self::Overview, Self::Servers, Self::Keys, Self::Requests];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Overview => "Overview",
            Self::Servers => "Servers",
            Self::Keys => "Keys",
            Self::Requests => "Requests",
        }
    }

    fn beside(self, by: isize) -> Self {
        let at = (self as isize + by).rem_euclid(Self::ALL.len() as isize);
        Self::ALL[at as usize]
    }
}

/// What must be answered before anything else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Question {
    /// Whether that server is to get nothing new (`drain`), or requests again.
    Drain { server: Name, drain: bool },
    /// The operator's token, as far as it is typed.
    Token(String),
}

/// What a key asks for beyond the view.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Act {
    Nothing,
    Quit,
    Drain {
        server: Name,
        drain: bool,
    },
    Token(String),
    /// The gateway is away: ask it now.
    AskAgain,
}

/// Where the reader is.
#[derive(Debug, Clone, Default)]
pub(super) struct View {
    pub(super) pane: Pane,
    pub(super) server: usize,
    pub(super) key: usize,
    /// The number of the request that the reader looks at; `None`: the newest.
    pub(super) request: Option<u64>,
    pub(super) filter: Filter,
    pub(super) question: Option<Question>,
    pub(super) helps: bool,
    /// What came of what was last asked for.
    pub(super) said: Option<(Kind, String)>,
}

impl View {
    /// Of the requests that are shown, the one that the reader looks at.
    pub(super) fn place_in(&self, shown: &[&Request]) -> usize {
        // One that is no longer kept was older than all that are.
        let older =
            |number| shown.iter().position(|it| it.number <= number).unwrap_or(shown.len().saturating_sub(1));
        self.request.map_or(0, older)
    }

    pub(super) fn press(&mut self, key: KeyEvent, board: &Board) -> Act {
        let control = key.modifiers.contains(KeyModifiers::CONTROL);
        if control && matches!(key.code, KeyCode::Char('c' | 'd')) {
            return Act::Quit;
        }
        if control || key.modifiers.contains(KeyModifiers::ALT) {
            return Act::Nothing;
        }
        match self.question.take() {
            Some(question) => self.answer(question, key.code),
            None => self.command(key.code, board),
        }
    }

    fn answer(&mut self, question: Question, key: KeyCode) -> Act {
        match (question, key) {
            (Question::Drain { server, drain }, KeyCode::Char('y' | 'Y')) => {
                return Act::Drain { server, drain };
            }
            (Question::Drain { .. }, KeyCode::Char('n' | 'N' | 'q') | KeyCode::Esc) => {
                self.said = Some((Kind::Quiet, "Nothing was changed.".to_owned()));
            }
            (Question::Token(token), KeyCode::Enter) if !token.is_empty() => return Act::Token(token),
            (Question::Token(_), KeyCode::Esc | KeyCode::Enter) => {}
            (Question::Token(mut token), KeyCode::Char(it)) => {
                if token.chars().count() < TOKEN_CHARS_MAX {
                    token.push(it);
                }
                self.question = Some(Question::Token(token));
            }
            (Question::Token(mut token), KeyCode::Backspace) => {
                token.pop();
                self.question = Some(Question::Token(token));
            }
            // Nobody answers by accident.
            (question, _) => self.question = Some(question),
        }
        Act::Nothing
    }

    fn command(&mut self, key: KeyCode, board: &Board) -> Act {
        self.said = None;
        let helped = std::mem::take(&mut self.helps);
        match key {
            KeyCode::Char('q') => return Act::Quit,
            KeyCode::Char('?') => self.helps = !helped,
            KeyCode::Tab | KeyCode::Right | KeyCode::Char('l') => self.pane = self.pane.beside(1),
            KeyCode::BackTab | KeyCode::Left | KeyCode::Char('h') => self.pane = self.pane.beside(-1),
            KeyCode::Char(digit @ '1'..='4') => {
                self.pane = Pane::ALL[usize::from(digit as u8 - b'1')];
            }
            KeyCode::Down | KeyCode::Char('j') => self.go(1, board),
            KeyCode::Up | KeyCode::Char('k') => self.go(-1, board),
            KeyCode::PageDown | KeyCode::Char(' ') => self.go(PAGE_ROWS, board),
            KeyCode::PageUp => self.go(-PAGE_ROWS, board),
            KeyCode::Home | KeyCode::Char('g') => self.go(isize::MIN, board),
            KeyCode::End | KeyCode::Char('G') => self.go(isize::MAX, board),
            KeyCode::Char('f') => {
                (self.pane, self.filter, self.request) = (Pane::Requests, self.filter.next(), None);
            }
            KeyCode::Char('d') => self.ask_to_drain(board),
            KeyCode::Char('r') if board.link != Link::Live => return Act::AskAgain,
            KeyCode::Char('t') if matches!(&board.link, Link::Lost(lost) if lost.wants_token) => {
                self.question = Some(Question::Token(String::new()));
            }
            _ => {}
        }
        Act::Nothing
    }

    fn ask_to_drain(&mut self, board: &Board) {
        if self.pane != Pane::Servers {
            self.pane = Pane::Servers;
            self.said = Some((Kind::Plain, "Choose a server with j and k, then press d.".to_owned()));
            return;
        }
        if let Some(server) = board.servers.get(self.server.min(board.servers.len().saturating_sub(1))) {
            let (server, drain) = (server.server.clone(), !server.draining);
            self.question = Some(Question::Drain { server, drain });
        }
    }

    fn go(&mut self, by: isize, board: &Board) {
        let to = |at: usize, rows: usize| at.saturating_add_signed(by).min(rows.saturating_sub(1));
        match self.pane {
            Pane::Overview => {}
            Pane::Servers => self.server = to(self.server, board.servers.len()),
            Pane::Keys => self.key = to(self.key, board.access.keys.len()),
            Pane::Requests => {
                let shown = self.filter.of(&board.requests);
                let at = to(self.place_in(&shown), shown.len());
                // Who is at the top stays with the newest.
                self.request = if at == 0 { None } else { shown.get(at).map(|it| it.number) };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::told::{News, Server};
    use super::*;

    fn board() -> Board {
        let mut board = Board::default();
        let server = |name: &str, draining: bool| -> Server {
            serde_json::from_value(serde_json::json!({"server": name, "draining": draining, "up": true}))
                .unwrap()
        };
        let requests =
            (0..5).map(|number| Request { number, status: 200, complete: number != 2, ..Request::default() });
        let servers = vec![server("one", false), server("two", true)];
        board.take(News { servers, requests: requests.collect(), ..News::default() }, true);
        board
    }

    fn press(view: &mut View, board: &Board, keys: &str) -> Vec<Act> {
        let press = |it: char| {
            let code = match it {
                '\n' => KeyCode::Enter,
                '\x1b' => KeyCode::Esc,
                '\t' => KeyCode::Tab,
                it => KeyCode::Char(it),
            };
            view.press(KeyEvent::new(code, KeyModifiers::NONE), board)
        };
        keys.chars().map(press).filter(|act| *act != Act::Nothing).collect()
    }

    #[test]
    fn panes_go_round() {
        let (mut view, board) = (View::default(), board());
        for (keys, pane) in [
            ("\t", Pane::Servers),
            ("ll", Pane::Requests),
            ("l", Pane::Overview),
            ("h", Pane::Requests),
            ("2", Pane::Servers),
        ] {
            assert_eq!(press(&mut view, &board, keys), []);
            assert_eq!(view.pane, pane, "{keys}");
        }
        assert_eq!(press(&mut view, &board, "q"), [Act::Quit]);
        let control_c = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
        view.question = Some(Question::Token(String::new()));
        assert_eq!(view.press(control_c, &board), Act::Quit, "whatever is asked");
    }

    #[test]
    fn a_server_is_drained_only_by_a_yes() {
        let (mut view, board) = (View::default(), board());
        let one: Name = board.servers[0].server.clone();
        assert_eq!(press(&mut view, &board, "dd"), []);
        assert_eq!(view.question, Some(Question::Drain { server: one.clone(), drain: true }));
        assert_eq!(press(&mut view, &board, "x\n n"), []);
        assert_eq!(view.question, None);
        assert_eq!(press(&mut view, &board, "dy"), [Act::Drain { server: one, drain: true }]);
        let two = board.servers[1].server.clone();
        assert_eq!(press(&mut view, &board, "jjjdy"), [Act::Drain { server: two, drain: false }]);
        assert_eq!(press(&mut view, &Board::default(), "dy"), [], "nothing to drain");
    }

    #[test]
    fn a_chosen_request_stays_chosen_while_others_come() {
        let (mut view, mut board) = (View::default(), board());
        press(&mut view, &board, "4jj");
        assert_eq!(view.request, Some(2));
        board.take(
            News { requests: vec![Request { number: 5, ..Request::default() }], ..News::default() },
            false,
        );
        assert_eq!(view.place_in(&view.filter.of(&board.requests)), 3);
        press(&mut view, &board, "f");
        let shown = view.filter.of(&board.requests);
        assert_eq!((view.filter, view.request, shown.len()), (Filter::No, None, 2));
        press(&mut view, &board, "ffG");
        assert_eq!(view.request, Some(0));
        press(&mut view, &board, "g");
        assert_eq!(view.request, None, "the newest, whichever that is");
    }

    #[test]
    fn a_token_is_typed_only_where_one_is_wanted() {
        let (mut view, mut board) = (View::default(), board());
        assert_eq!(press(&mut view, &board, "t"), []);
        assert_eq!(view.question, None);
        let lost = super::super::board::Lost { wants_token: true, ..Default::default() };
        board.link = Link::Lost(lost);
        assert_eq!(press(&mut view, &board, "tq?\n"), [Act::Token("q?".to_owned())]);
        assert_eq!(press(&mut view, &board, "tq\x1b"), []);
        assert_eq!(press(&mut view, &board, "r"), [Act::AskAgain]);
    }
}
