//! Being asked to end: the work ends at its next step and leaves nothing half done. Asked twice, the process ends at once.

use std::process::exit;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Result;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

/// The exit code of what was interrupted, as shells have it.
pub const EXIT_CODE: u8 = 130;

/// A flag that Ctrl-C sets; a second one before the flag is taken back ends the process.
pub fn ctrl_c() -> Result<Arc<AtomicBool>> {
    watch(false)
}

/// As [`ctrl_c`], for work that must tidy up: what else ends processes is heard too.
pub fn any() -> Result<Arc<AtomicBool>> {
    watch(true)
}

/// For between two steps of the work: an error once `flag` is set.
pub fn check(flag: &AtomicBool) -> xylem::Result<()> {
    if flag.load(Ordering::Relaxed) { Err(xylem::Error::Stopped) } else { Ok(()) }
}

fn watch(termination: bool) -> Result<Arc<AtomicBool>> {
    let flag = Arc::new(AtomicBool::new(false));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let set = Arc::clone(&flag);
    std::thread::spawn(move || {
        runtime.block_on(async {
            let (heard, mut signals) = unbounded_channel();
            listen(termination, heard);
            while signals.recv().await.is_some() {
                if set.swap(true, Ordering::Relaxed) {
                    exit(EXIT_CODE.into());
                }
            }
        });
    });
    Ok(flag)
}

/// Sends each signal to `heard`. What can't be listened to ends the process as ever.
#[cfg(unix)]
fn listen(termination: bool, heard: UnboundedSender<()>) {
    use tokio::signal::unix::{SignalKind, signal};
    let all = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
    for kind in all.into_iter().take(if termination { 3 } else { 1 }) {
        let Ok(mut stream) = signal(kind) else { continue };
        let heard = heard.clone();
        tokio::spawn(async move { while stream.recv().await.is_some() && heard.send(()).is_ok() {} });
    }
}

#[cfg(not(unix))]
fn listen(_termination: bool, heard: UnboundedSender<()>) {
    tokio::spawn(async move { while tokio::signal::ctrl_c().await.is_ok() && heard.send(()).is_ok() {} });
}
