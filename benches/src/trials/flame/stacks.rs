//! Stacks as perf tells them.

/// What a thread was doing at a moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Sample {
    /// Name of the thread.
    pub(super) thread: String,
    /// How much it counts.
    pub(super) weight: u64,
    /// Functions, the innermost first.
    pub(super) frames: Vec<Frame>,
}

/// A function that is being called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Frame {
    /// Its name, with its path.
    pub(super) name: String,
    /// Whether it is the kernel's.
    pub(super) kernel: bool,
}

/// How threads begin: the same everywhere, and of no interest.
const BEGINNINGS: [&str; 6] = [
    "clone3",
    "start_thread",
    "[unknown]",
    "std::sys::backtrace::__rust_begin_short_backtrace",
    "core::ops::function::FnOnce::call_once{{vtable.shim}}",
    "<std::sys::thread::unix::Thread>::new::thread_start",
];

impl Sample {
    /// What it was in, as it is shown.
    pub(super) fn function(&self) -> &str {
        self.frames.first().map_or("[unknown]", |frame| &frame.name)
    }

    /// Whether it was in the kernel.
    pub(super) fn is_in_kernel(&self) -> bool {
        self.frames.first().is_some_and(|frame| frame.kernel)
    }
}

/// Reads the output of `perf script` with the fields comm, tid, period, event, ip, sym, dso. A sample is a line that tells the thread, one line for each function,
/// and an empty one. What makes no sense is passed over.
pub(super) fn parse(text: &str) -> Vec<Sample> {
    text.split("\n\n").filter_map(sample).collect()
}

fn sample(text: &str) -> Option<Sample> {
    let mut lines = text.trim_start_matches('\n').lines();
    // The name of a thread may contain anything; what follows it, no spaces.
    let mut words = lines.next()?.trim_end().rsplit(' ').filter(|word| !word.is_empty());
    let (_event, weight, _thread_id) = (words.next()?, words.next()?.parse().ok()?, words.next()?);
    let mut name: Vec<&str> = words.collect();
    name.reverse();
    let mut frames: Vec<Frame> = lines.filter_map(frame).collect();
    while frames.last().is_some_and(|frame| BEGINNINGS.contains(&frame.name.as_str())) && frames.len() > 1 {
        frames.pop();
    }
    Some(Sample { thread: name.join(" "), weight, frames })
}

fn frame(line: &str) -> Option<Frame> {
    let (_address, rest) = line.trim().split_once(' ')?;
    let (name, object) = rest.rsplit_once(" (")?;
    let kernel = object.starts_with("[kernel") || object.starts_with("[guest.kernel") || object.ends_with(".ko)");
    // What the compiler has cut off, and its hashes.
    let name = name.split_once(".isra.").map_or(name, |(name, _)| name);
    let name = name.split_once(".llvm.").map_or(name, |(name, _)| name);
    Some(Frame { name: name.to_owned(), kernel })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "raft-node-3 16964    2004008 cpu-clock:pppH: 
\tffffffff813a2293 finish_task_switch.isra.0 ([kernel.kallsyms])
\t          108f36 epoll_wait (/usr/lib/libc.so.6)
\t          34db6d tokio::runtime::context::scoped::Scoped<T>::set (/a b/raft-node)
\t           891f4 start_thread (/usr/lib/libc.so.6)
\tffffffffffffffff [unknown] ([unknown])

rocksdb: low 0 7 1 cycles: 
\t 1 rocksdb::(anonymous namespace)::f(int, char) (/raft-node)

";

    #[test]
    fn what_perf_says_is_understood() {
        let samples = parse(TEXT);
        assert_eq!(samples.len(), 2, "{samples:?}");
        let names: Vec<_> = samples[0].frames.iter().map(|frame| frame.name.as_str()).collect();
        assert_eq!(names, ["finish_task_switch", "epoll_wait", "tokio::runtime::context::scoped::Scoped<T>::set"]);
        assert!(samples[0].is_in_kernel() && !samples[0].frames[1].kernel);
        assert_eq!((samples[0].thread.as_str(), samples[0].weight), ("raft-node-3", 2_004_008));
        assert_eq!((samples[1].thread.as_str(), samples[1].weight), ("rocksdb: low 0", 1));
        assert_eq!(samples[1].function(), "rocksdb::(anonymous namespace)::f(int, char)");
    }

    #[test]
    fn nonsense_is_passed_over() {
        assert_eq!(parse(""), []);
        assert_eq!(parse("x\n\ny z\n\n"), []);
        let lone = parse("t 1 5 e: \n\tffff [unknown] ([unknown])\n\n");
        assert_eq!(lone[0].function(), "[unknown]");
    }
}
