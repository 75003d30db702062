//! What systemd is told, where it started the process (`Type=notify`); elsewhere nothing.

use sd_notify::NotifyState;

/// This process serves.
pub(super) fn serving() {
    tell(&[NotifyState::Ready, NotifyState::MainPid(std::process::id())]);
}

/// That process serves, and this one ends when it has finished what it has.
pub(super) fn serving_process(process: i32) {
    if let Ok(process) = u32::try_from(process) {
        tell(&[NotifyState::MainPid(process)]);
    }
}

/// This process ends.
pub(super) fn stopping() {
    tell(&[NotifyState::Stopping]);
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        log::warn!("systemd is not told: {error}");
    }
}
