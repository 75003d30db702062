//! The file that names the serving process.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use pingora::server::configuration::ServerConf;

/// The number of a process has ten digits at most.
const FILE_BYTES_MAX: u64 = 64;

/// `server.pid_file`. Removed at the end, if it still names this process.
#[derive(Debug, Clone)]
pub(super) struct PidFile(PathBuf);

impl PidFile {
    /// Fails where the file names another gateway that runs. One of a dead process is nobody's.
    pub(super) fn claim(path: &Path) -> Result<Self, String> {
        if let Some(process) = running(path)?
            && process != own()
        {
            return Err(format!(
                "`server.pid_file` {} names process {process}, a gateway that runs: stop it, replace it with \
                 `ai-gateway upgrade`, or name another file",
                path.display()
            ));
        }
        Ok(Self(path.to_owned()))
    }

    /// Of a process that is to be succeeded.
    pub(super) fn of(path: &Path) -> Self {
        Self(path.to_owned())
    }

    /// Names this process, whole at once where its folder may be written to.
    pub(super) fn write(&self) -> Result<(), String> {
        let text = format!("{}\n", own());
        let replaced = || -> io::Result<()> {
            let folder = self.0.parent().filter(|folder| !folder.as_os_str().is_empty());
            let mut file = tempfile::NamedTempFile::new_in(folder.unwrap_or(Path::new(".")))?;
            file.write_all(text.as_bytes())?;
            let readable = std::os::unix::fs::PermissionsExt::from_mode(0o644);
            file.as_file().set_permissions(readable)?;
            file.persist(&self.0).map_err(|error| error.error)?;
            Ok(())
        };
        // A daemon that has changed its user may write the file that root made for it, and nothing beside it.
        replaced()
            .or_else(|_| std::fs::write(&self.0, &text))
            .map_err(|error| format!("cannot write `server.pid_file` {}: {error}", self.0.display()))
    }

    /// Removes it, if no other process has taken over.
    pub(super) fn remove(&self) {
        if named(&self.0).ok().flatten() == Some(own()) {
            let _ = std::fs::remove_file(&self.0);
        }
    }
}

/// Where Pingora writes the number of a daemon, before that has changed its user. It names the process before that
/// serves, and renames the file of another, so a successor's goes elsewhere: into a file to be removed.
pub(super) fn scratch_of_a_daemon(conf: &mut ServerConf, own: Option<&PidFile>) -> Option<PathBuf> {
    let path = match own {
        Some(PidFile(path)) => {
            // It names nobody who runs.
            let _ = std::fs::remove_file(path);
            path.clone()
        }
        None => std::env::temp_dir().join(format!("ai-gateway-{}.pid", std::process::id())),
    };
    conf.pid_file = path.display().to_string();
    (conf.daemon && own.is_none()).then_some(path)
}

fn own() -> i32 {
    i32::try_from(std::process::id()).unwrap_or_default()
}

/// The process that a file names; `None`: there is no file.
fn named(path: &Path) -> Result<Option<i32>, String> {
    // A pipe would be waited for, and a device may never end.
    if path.metadata().is_ok_and(|it| !it.is_file() || it.len() > FILE_BYTES_MAX) {
        return Err(format!("`server.pid_file` {} is not the file of a process's number", path.display()));
    }
    match std::fs::read_to_string(path) {
        Ok(text) => match text.trim().parse() {
            Ok(process) if process > 0 => Ok(Some(process)),
            // What a full disk leaves of one.
            _ if text.trim().is_empty() => Ok(None),
            _ => Err(format!("`server.pid_file` {} does not hold the number of a process", path.display())),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(format!("cannot read `server.pid_file` {}: {error}", path.display())),
    }
}

/// The gateway that a file names, if it runs.
pub fn running(path: &Path) -> Result<Option<i32>, String> {
    let Some(process) = named(path)? else { return Ok(None) };
    let name = |process: i32| std::fs::read_to_string(format!("/proc/{process}/comm"));
    // Another program may have got the number of a gateway that has ended.
    let is_gateway = name(process).is_ok_and(|name| name.starts_with("ai-gateway"));
    Ok(Some(process).filter(|_| is_gateway))
}
