//! The terminal while the screen is on it: taken over, and given back however the command ends.

use std::io::{self, IsTerminal, Stdout, Write};

use ratatui::Terminal;
use ratatui::backend::CrosstermBackend;
use ratatui::crossterm::cursor::{Hide, Show};
use ratatui::crossterm::terminal::{
    EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode,
};
use ratatui::crossterm::{execute, queue};

pub(super) type Screen = Terminal<CrosstermBackend<Stdout>>;

/// Whether somebody sits there, who sees and types.
pub(super) fn is_one() -> bool {
    io::stdout().is_terminal() && io::stdin().is_terminal()
}

/// Whether they want colours: NO_COLOR, CLICOLOR, TERM.
pub(super) fn wants_colours() -> bool {
    anstream::AutoStream::choice(&io::stdout()) != anstream::ColorChoice::Never
}

/// The terminal is ours until this is dropped.
pub(super) struct Taken;

impl Taken {
    /// Takes it, and has it given back by a panic too, which then can be read.
    pub(super) fn take() -> io::Result<(Self, Screen)> {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            give_back();
            before(panic);
            // In whichever thread: a screen that nobody draws on any more would be left standing.
            std::process::exit(1);
        }));
        enable_raw_mode()?;
        let taken = Self;
        execute!(io::stdout(), EnterAlternateScreen, Hide)?;
        Ok((taken, Terminal::new(CrosstermBackend::new(io::stdout()))?))
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        give_back();
    }
}

/// Whatever can still be done is done: it may be gone.
fn give_back() {
    let mut stdout = io::stdout();
    let _ = queue!(stdout, LeaveAlternateScreen, Show);
    let _ = stdout.flush();
    let _ = disable_raw_mode();
}
