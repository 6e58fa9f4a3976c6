//! Putting a whole folder in the place of an older one.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use crate::error::{Error, Result};

/// Moves the folder `new` to `target`, over an older folder there if there is one, which stands at `old` meanwhile: all three lie
/// beside each other. If that fails `target` is as it was.
///
/// # Errors
/// [`Error::Io`].
pub(crate) fn replace(new: &Path, target: &Path, old: &Path) -> Result<()> {
    let replaced = target.exists();
    if replaced {
        // Only now: it may be all that a process that was killed has left.
        remove(old)?;
        fs::rename(target, old).map_err(|e| Error::io(target, e))?;
    }
    if let Err(e) = fs::rename(new, target) {
        if replaced {
            // Should that fail too, the first failure says more.
            let _ = fs::rename(old, target);
        }
        return Err(Error::io(target, e));
    }
    remove(old)
}

/// Removes `dir` with all that it holds, if it is there.
///
/// # Errors
/// [`Error::Io`].
pub(crate) fn remove(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(Error::io(dir, e)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_old_folder_stays_until_the_new_one_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let [new, target, old] = ["new", "target", "old"].map(|name| dir.path().join(name));
        let make = |dir: &Path, text: &str| {
            fs::create_dir_all(dir).unwrap();
            fs::write(dir.join("a"), text).unwrap();
        };
        let held = || fs::read_to_string(target.join("a")).unwrap();
        for text in ["first", "second"] {
            make(&new, text);
            // Of a process that was killed.
            make(&old, "killed");
            replace(&new, &target, &old).unwrap();
            assert_eq!(held(), text);
            assert!(!new.exists() && !old.exists());
        }
        assert!(replace(&new, &target, &old).is_err());
        assert_eq!(held(), "second");
        assert!(!old.exists());
    }
}
