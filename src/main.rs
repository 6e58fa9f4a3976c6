//! The command `xylem`.

fn main() {}
