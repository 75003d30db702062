//! A file edited in one step: under a lock, so that no other edit is lost, and by a rename, so that no reader ever
//! sees half of it.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, fchown};
use std::path::Path;

use ai_gateway::config;

use super::Failure;

/// Puts what `edit` makes of the file's text in its place. A file that is not there reads as an empty one and is made,
/// for its owner alone. Of a link, what it points to is replaced.
pub(super) fn edit(path: &Path, edit: impl FnOnce(&str) -> Result<String, String>) -> Result<(), Failure> {
    let failed = |error: io::Error| Failure::Failed(format!("ai-gateway: {}: {error}", path.display()));
    let target = match path.canonicalize() {
        Err(error) if error.kind() == io::ErrorKind::NotFound && !path.is_symlink() => path.to_owned(),
        target => target.map_err(failed)?,
    };
    let folder = match target.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    };
    // The file itself is another one after each edit: what is locked is the folder.
    let folder_file = File::open(folder).map_err(failed)?;
    folder_file.lock().map_err(failed)?;

    let text = if target.exists() {
        config::read_keys_text(&target).map_err(|faults| Failure::Wrong(faults.to_string()))?
    } else {
        String::new()
    };
    let edited = edit(&text).map_err(|message| Failure::Wrong(format!("ai-gateway: {message}")))?;
    replace(&target, folder, &edited).and_then(|()| folder_file.sync_all()).map_err(failed)
}

fn replace(target: &Path, folder: &Path, text: &str) -> io::Result<()> {
    // Its permissions are the owner's alone, and it is removed where something goes wrong.
    let mut new = tempfile::Builder::new().prefix(".ai-gateway-").tempfile_in(folder)?;
    new.write_all(text.as_bytes())?;
    if let Ok(old) = fs::metadata(target) {
        fchown(new.as_file(), Some(old.uid()), Some(old.gid()))?;
        new.as_file().set_permissions(old.permissions())?;
    }
    new.as_file().sync_all()?;
    new.persist(target)?;
    Ok(())
}
