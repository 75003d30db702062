//! A terminal with a program on it: what one would see there, and keys pressed.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::num::NonZero;
use std::os::unix::fs::OpenOptionsExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcgetattr, tcsetwinsize};

use super::gateway::binary;

/// `O_NOCTTY`: the terminal is the program's and not the test's.
const NOT_OURS: i32 = rustix::fs::OFlags::NOCTTY.bits().cast_signed();

pub(crate) struct Terminal {
    child: Child,
    keyboard: File,
    /// The program's side, for its modes.
    line: File,
    modes_before: String,
    seen: Arc<Mutex<Seen>>,
}

struct Seen {
    screen: vt100::Parser,
    bytes: Vec<u8>,
}

impl Terminal {
    /// Runs `ai-gateway` there with these arguments and, besides them, `variables`.
    pub(crate) fn run(arguments: &[&str], (columns, rows): (u16, u16), variables: &[(&str, &str)]) -> Self {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let ours = openpt(flags).expect("the machine has terminals");
        grantpt(&ours).and_then(|()| unlockpt(&ours)).expect("it is ours");
        let path = ptsname(&ours, Vec::new()).expect("it has a name");
        let path = path.to_str().expect("ASCII");
        let line = OpenOptions::new().read(true).write(true).custom_flags(NOT_OURS).open(path);
        let line = line.expect("it opens");
        let keyboard = File::from(ours);
        resize(&keyboard, columns, rows);
        let modes_before = modes(&line);
        let side = || Stdio::from(line.try_clone().expect("it is open"));
        // It makes the terminal the program's own, which then hears of its size.
        let mut command = Command::new("setsid");
        command.arg("--ctty").arg(binary()).args(arguments).env_clear().env("TERM", "xterm");
        command.envs(variables.iter().copied()).stdin(side()).stdout(side()).stderr(side());
        let child = command.spawn().expect("setsid is there");
        let screen = vt100::Parser::new(some(rows), some(columns), 0);
        let seen = Arc::new(Mutex::new(Seen { screen, bytes: Vec::new() }));
        let (sees, mut from) = (Arc::clone(&seen), keyboard.try_clone().expect("it is open"));
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(read @ 1..) = from.read(&mut bytes) {
                let mut seen = sees.lock().expect("not poisoned");
                seen.screen.process(&bytes[..read]);
                seen.bytes.extend_from_slice(&bytes[..read]);
            }
        });
        Self { child, keyboard, line, modes_before, seen }
    }

    pub(crate) fn press(&mut self, keys: &str) {
        self.keyboard.write_all(keys.as_bytes()).expect("the terminal is open");
    }

    pub(crate) fn resize(&self, columns: u16, rows: u16) {
        self.seen.lock().expect("not poisoned").screen.screen_mut().set_size(some(rows), some(columns));
        resize(&self.keyboard, columns, rows);
    }

    /// What stands on it.
    pub(crate) fn text(&self) -> String {
        self.seen.lock().expect("not poisoned").screen.screen().contents()
    }

    pub(crate) fn shows(&self, text: &str) -> bool {
        self.text().contains(text)
    }

    /// All that was ever written to it.
    pub(crate) fn written(&self) -> String {
        String::from_utf8_lossy(&self.seen.lock().expect("not poisoned").bytes).into_owned()
    }

    pub(crate) fn signal(&self, name: &str) {
        let sent = Command::new("sh").arg("-c").arg(format!("kill -{name} {}", self.child.id())).status();
        assert!(sent.expect("there is a shell").success(), "it has ended: {}", self.text());
    }

    /// How it ended.
    pub(crate) async fn exit(&mut self) -> ExitStatus {
        let child = &mut self.child;
        let mut ended = None;
        eventually!(
            {
                ended = ended.or(child.try_wait().expect("the child is ours"));
                ended.is_some()
            },
            "it goes on"
        );
        ended.expect("just seen")
    }

    /// Whether it is as it was before the program: its own screen, a cursor, echo.
    pub(crate) fn is_restored(&self) -> bool {
        let seen = self.seen.lock().expect("not poisoned");
        let screen = seen.screen.screen();
        !screen.alternate_screen() && !screen.hide_cursor() && modes(&self.line) == self.modes_before
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the terminal\n{}", self.text());
        }
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn resize(terminal: &File, columns: u16, rows: u16) {
    let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(terminal, size).expect("it is a terminal");
}

fn some(cells: u16) -> NonZero<u16> {
    NonZero::new(cells).expect("a terminal has some")
}

fn modes(line: &File) -> String {
    let modes = tcgetattr(line).expect("it is a terminal");
    format!("{:?} {:?} {:?}", modes.input_modes, modes.output_modes, modes.local_modes)
}
