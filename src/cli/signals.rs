//! What asks a server to stop.

use std::io;

/// Ctrl-C, and where there is one SIGTERM.
pub struct Signals {
    #[cfg(unix)]
    interrupt: tokio::signal::unix::Signal,
    #[cfg(unix)]
    terminate: tokio::signal::unix::Signal,
}

/// What a shell reports for a program that the signal ended, less the number of the signal.
const KILLED: i32 = 128;
const CTRL_C: i32 = 2;
#[cfg(unix)]
const TERMINATE: i32 = 15;

#[cfg(unix)]
impl Signals {
    /// From now on these signals do not end the program by themselves.
    pub fn new() -> io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        let [interrupt, terminate] = [SignalKind::interrupt(), SignalKind::terminate()].map(signal);
        Ok(Signals { interrupt: interrupt?, terminate: terminate? })
    }

    /// Waits for one; returns the exit code of a program that it ends.
    pub async fn next(&mut self) -> i32 {
        tokio::select! {
            _ = self.interrupt.recv() => KILLED + CTRL_C,
            _ = self.terminate.recv() => KILLED + TERMINATE,
        }
    }
}

#[cfg(not(unix))]
impl Signals {
    pub fn new() -> io::Result<Self> {
        Ok(Signals {})
    }

    pub async fn next(&mut self) -> i32 {
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
        KILLED + CTRL_C
    }
}
