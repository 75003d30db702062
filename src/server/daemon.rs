//! What a daemon writes to, tried before it goes to the background: Pingora panics there, where nobody looks, after
//! whoever started it was told that all is well.

use std::fs::{OpenOptions, remove_file};
use std::io::ErrorKind;
use std::path::Path;

use pingora::server::configuration::ServerConf;

/// Tries the files of a gateway that is to go to the background.
pub(super) fn check(conf: &ServerConf) -> Result<(), String> {
    if !conf.daemon {
        return Ok(());
    }
    let files = [("server.pid_file", Some(&conf.pid_file)), ("server.error_log", conf.error_log.as_ref())];
    for (key, file) in files {
        // Where a daemon's folder is, a path that begins in it is not yet known to be.
        if let Some(file) = file.map(Path::new).filter(|file| file.is_absolute()) {
            attempt(key, file)?;
        }
    }
    Ok(())
}

/// Leaves no file behind that was not there.
fn attempt(key: &str, file: &Path) -> Result<(), String> {
    let was_there = file.exists();
    match OpenOptions::new().append(true).create(true).open(file) {
        Ok(_) if was_there => Ok(()),
        Ok(_) => {
            remove_file(file).map_err(|error| format!("cannot write `{key}` {}: {error}", file.display()))
        }
        Err(error) => {
            let folder =
                file.parent().filter(|folder| error.kind() == ErrorKind::NotFound && !folder.exists());
            Err(match folder {
                Some(folder) => {
                    let (file, folder) = (file.display(), folder.display());
                    format!("`{key}` {file} needs the folder {folder}: make it, or name another")
                }
                None => format!("cannot write `{key}` {}: {error}", file.display()),
            })
        }
    }
}
