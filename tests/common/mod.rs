//! Running the command, for the tests of it.

use std::process::{Command, Output};

use serde_json::Value;
use tempfile::TempDir;

/// Runs the command.
pub fn xylem(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_xylem")).args(arguments).output().unwrap()
}

/// What a command that must succeed prints.
pub fn prints(arguments: &[&str]) -> String {
    let output = xylem(arguments);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

/// The JSON that a command prints.
pub fn reads(arguments: &[&str]) -> Value {
    serde_json::from_str(&prints(arguments)).unwrap()
}

/// What a command that must fail says; one line, no panic.
pub fn fails(arguments: &[&str]) -> String {
    let output = xylem(arguments);
    let errors = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {errors}");
    assert!(errors.starts_with("xylem: ") && errors.lines().count() == 1, "{errors}");
    errors
}

/// A random bundle in a folder of its own.
pub fn random_bundle() -> (TempDir, String) {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("bundle").display().to_string();
    prints(&["random", "--out", &out]);
    (dir, out)
}
