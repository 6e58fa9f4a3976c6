//! Progress bars on standard error; none where it is no terminal.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

/// A bar over `total` bytes.
pub fn bytes(what: &'static str, total: u64) -> ProgressBar {
    bar(what, total, "{bytes} of {total_bytes}, {bytes_per_sec}, {eta} left")
}

/// A bar over `total` things.
pub fn count(what: impl Into<std::borrow::Cow<'static, str>>, total: u64) -> ProgressBar {
    bar(what, total, "{human_pos} of {human_len}, {per_sec}, {eta} left")
}

fn bar(what: impl Into<std::borrow::Cow<'static, str>>, total: u64, figures: &str) -> ProgressBar {
    let template = format!("{{msg}} {{wide_bar}} {figures}");
    let style = ProgressStyle::with_template(&template).unwrap_or_else(|_| ProgressStyle::default_bar());
    let bar = ProgressBar::new(total).with_style(style).with_message(what);
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}
