//! Threads whose work can wait.

/// By how much a thread in the background is "nicer" than the others; 19 would be most.
const NICENESS: i32 = 10;

/// From now on this thread gets the processor only while others have little use for it: a snapshot of gigabytes must not delay a write. On Linux priorities belong to
/// threads; elsewhere they belong to processes, so nothing is done there.
pub(crate) fn yield_to_others() {
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::process::setpriority_process(None, NICENESS) {
        tracing::debug!(%error, "a thread keeps its priority");
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn only_this_thread_becomes_nicer() {
        let own = || rustix::process::getpriority_process(None).unwrap();
        let before = own();
        let other = std::thread::spawn(move || {
            yield_to_others();
            own()
        });
        assert_eq!(other.join().unwrap(), before.max(NICENESS));
        assert_eq!(own(), before);
    }
}
