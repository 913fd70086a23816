//! Which part of a node a stack belongs to.

use super::stacks::{Frame, Sample};

/// A part of a node, or of the system under it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Part {
    KernelNetwork,
    KernelFiles,
    KernelWaiting,
    KernelMemory,
    KernelOther,
    Rocksdb,
    Crypto,
    Quic,
    Core,
    Storage,
    Net,
    Node,
    Runtime,
    Allocator,
    Other,
}

/// How the kernel's functions begin that tell what it does. The outermost that is known decides: a system call is for what it was called for, whatever
/// happens to be done in it.
const KERNEL: [(&str, Part); 30] = [
    ("__x64_sys_send", Part::KernelNetwork),
    ("__x64_sys_recv", Part::KernelNetwork),
    ("__sys_send", Part::KernelNetwork),
    ("__sys_recv", Part::KernelNetwork),
    ("sock_write", Part::KernelNetwork),
    ("sock_read", Part::KernelNetwork),
    ("net_rx", Part::KernelNetwork),
    ("eventfd_", Part::KernelWaiting),
    ("__x64_sys_epoll", Part::KernelWaiting),
    ("__x64_sys_futex", Part::KernelWaiting),
    ("__x64_sys_clock_nanosleep", Part::KernelWaiting),
    ("__x64_sys_sched", Part::KernelWaiting),
    ("__x64_sys_fdatasync", Part::KernelFiles),
    ("__x64_sys_fsync", Part::KernelFiles),
    ("__x64_sys_sync_file_range", Part::KernelFiles),
    ("__x64_sys_fallocate", Part::KernelFiles),
    ("__x64_sys_open", Part::KernelFiles),
    ("__x64_sys_unlink", Part::KernelFiles),
    ("__x64_sys_rename", Part::KernelFiles),
    ("__x64_sys_close", Part::KernelFiles),
    ("__x64_sys_pwrite", Part::KernelFiles),
    ("__x64_sys_pread", Part::KernelFiles),
    ("ext4_", Part::KernelFiles),
    ("vfs_fsync", Part::KernelFiles),
    ("new_sync_write", Part::KernelFiles),
    ("asm_exc_page_fault", Part::KernelMemory),
    ("exc_page_fault", Part::KernelMemory),
    ("__x64_sys_m", Part::KernelMemory),
    ("__x64_sys_brk", Part::KernelMemory),
    ("__schedule", Part::KernelWaiting),
];

/// First parts of paths of functions.
const CRATES: [(&str, Part); 20] = [
    ("rocksdb", Part::Rocksdb),
    ("librocksdb_sys", Part::Rocksdb),
    ("ring", Part::Crypto),
    ("rustls", Part::Crypto),
    ("webpki", Part::Crypto),
    ("quinn", Part::Quic),
    ("quinn_proto", Part::Quic),
    ("quinn_udp", Part::Quic),
    ("raft_core", Part::Core),
    ("raft_storage", Part::Storage),
    ("raft_net", Part::Net),
    ("raft_node", Part::Node),
    ("tokio", Part::Runtime),
    ("tokio_util", Part::Runtime),
    ("mio", Part::Runtime),
    ("futures_util", Part::Runtime),
    ("__rust_alloc", Part::Allocator),
    ("__rdl_alloc", Part::Allocator),
    ("__rdl_realloc", Part::Allocator),
    ("__rdl_dealloc", Part::Allocator),
];

/// Functions of the C library and of C++ that give and take memory.
const ALLOCATOR: [&str; 17] = [
    "malloc",
    "__libc_malloc",
    "_int_malloc",
    "_int_free",
    "_int_realloc",
    "__libc_calloc",
    "calloc",
    "realloc",
    "__libc_realloc",
    "free",
    "cfree",
    "__libc_free",
    "malloc_consolidate",
    "unlink_chunk",
    "sysmalloc",
    "operator new",
    "operator delete",
];

impl Part {
    /// Of the code that was running: the innermost function that belongs to somebody.
    pub(super) fn of(sample: &Sample) -> Part {
        if sample.is_in_kernel() {
            let kernel = sample.frames.iter().take_while(|frame| frame.kernel);
            return kernel.filter_map(Part::of_frame).last().unwrap_or(Part::KernelOther);
        }
        sample.frames.iter().find_map(Part::of_frame).unwrap_or(Part::Other)
    }

    /// Of a function that is called by one of the part `caller`.
    pub(super) fn of_call(frame: &Frame, caller: Option<Part>) -> Option<Part> {
        let own = Part::of_frame(frame);
        match caller {
            _ if !frame.kernel => own.or(caller),
            // The system call decides.
            Some(part @ (Part::KernelNetwork | Part::KernelFiles | Part::KernelWaiting | Part::KernelMemory)) => {
                Some(part)
            }
            _ => own.or(Some(Part::KernelOther)),
        }
    }

    /// Whose function it is; `None` for the language's and the system's own, which work for whoever calls them.
    fn of_frame(frame: &Frame) -> Option<Part> {
        let name = frame.name.as_str();
        let is_allocator = |known: &str| {
            let rest = name.strip_prefix(known);
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['(', '[', '.', '@']))
        };
        if frame.kernel {
            return KERNEL.iter().find(|(begin, _)| name.starts_with(begin)).map(|known| known.1);
        }
        if ALLOCATOR.into_iter().any(is_allocator) {
            return Some(Part::Allocator);
        }
        if name.starts_with("ring_core_") {
            return Some(Part::Crypto);
        }
        // `<raft_core::A as core::B>::c` is of raft_core, and so is `<core::A<raft_core::B> as core::C>::d`.
        let words = name.split(|c: char| !(c.is_alphanumeric() || c == '_' || c == ':'));
        let first = |word: &str| word.split("::").next().map(str::to_owned);
        words
            .filter(|word| word.contains("::") || word.starts_with("__r"))
            .filter_map(first)
            .find_map(|word| CRATES.iter().find(|(name, _)| *name == word).map(|known| known.1))
    }

    /// What it is called.
    pub(super) fn name(self) -> &'static str {
        match self {
            Part::KernelNetwork => "kernel: network",
            Part::KernelFiles => "kernel: files and syncs",
            Part::KernelWaiting => "kernel: waiting and waking",
            Part::KernelMemory => "kernel: memory",
            Part::KernelOther => "kernel: other",
            Part::Rocksdb => "RocksDB",
            Part::Crypto => "encryption",
            Part::Quic => "QUIC",
            Part::Core => "raft-core",
            Part::Storage => "raft-storage",
            Part::Net => "raft-net",
            Part::Node => "raft-node",
            Part::Runtime => "tokio",
            Part::Allocator => "allocator",
            Part::Other => "other",
        }
    }

    /// Its colour in pictures.
    pub(super) fn color(self) -> &'static str {
        match self {
            Part::KernelNetwork => "#f0a35e",
            Part::KernelFiles => "#e8705f",
            Part::KernelWaiting => "#f2cf6b",
            Part::KernelMemory => "#d9a0c8",
            Part::KernelOther => "#e3c9a8",
            Part::Rocksdb => "#8fb573",
            Part::Crypto => "#b39ddb",
            Part::Quic => "#7fb2e5",
            Part::Core => "#5ec4b6",
            Part::Storage => "#b5c95a",
            Part::Net => "#9cc9e8",
            Part::Node => "#84d6a3",
            Part::Runtime => "#c9c9d6",
            Part::Allocator => "#e59aa5",
            Part::Other => "#dddddd",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(frames: &[&str]) -> Sample {
        let frame = |name: &&str| match name.strip_prefix("k:") {
            Some(name) => Frame { name: name.to_owned(), kernel: true },
            None => Frame { name: (*name).to_owned(), kernel: false },
        };
        Sample { thread: "t".into(), weight: 1, frames: frames.iter().map(frame).collect() }
    }

    #[test]
    fn code_belongs_to_the_innermost_who_is_somebody() {
        let cases: [(&[&str], Part); 12] = [
            (&["__memmove_avx512", "<alloc::vec::Vec<T>>::f", "raft_core::raft::Raft::step"], Part::Core),
            (&["<quinn::connection::ConnectionDriver as core::future::future::Future>::poll"], Part::Quic),
            (&["quinn_proto::crypto::rustls::<impl quinn_proto::A for alloc::B>::decrypt"], Part::Quic),
            (&["<rustls::crypto::ring::quic::PacketKey as rustls::quic::PacketKey>::f", "quinn::x"], Part::Crypto),
            (&["<core::iter::Map<raft_node::X> as core::iter::Iterator>::next", "tokio::f"], Part::Node),
            (&["ring_core_0_17_14__aes_gcm_enc_update", "quinn_proto::x"], Part::Crypto),
            (&["_int_malloc", "malloc", "raft_net::f"], Part::Allocator),
            (&["operator new(unsigned long)", "rocksdb::X"], Part::Allocator),
            (&["std::_Rb_tree<int>::f()", "rocksdb::(anonymous namespace)::f(int)"], Part::Rocksdb),
            (&["free_something", "main"], Part::Other),
            (&["bytes::bytes_mut::shared_v_drop", "raft_storage::rocks::f"], Part::Storage),
            (&["<&mut raft_net::F as core::G>::h"], Part::Net),
        ];
        for (frames, part) in cases {
            assert_eq!(Part::of(&sample(frames)), part, "{frames:?}");
        }
    }

    #[test]
    fn the_kernel_works_for_the_system_call() {
        let cases: [(&[&str], Part); 6] = [
            (
                &["k:iowrite16", "k:net_rx_action", "k:udp_sendmsg", "k:__x64_sys_sendmsg", "quinn_udp::f"],
                Part::KernelNetwork,
            ),
            (&["k:__schedule", "k:jbd2_x", "k:ext4_sync_file", "k:__x64_sys_fdatasync", "f"], Part::KernelFiles),
            (&["k:eventfd_write", "k:vfs_write", "k:__x64_sys_write", "tokio::x"], Part::KernelWaiting),
            (
                &["k:finish_task_switch", "k:__schedule", "k:do_epoll_wait", "k:__x64_sys_epoll_wait"],
                Part::KernelWaiting,
            ),
            (&["k:clear_page", "k:asm_exc_page_fault", "raft_core::f"], Part::KernelMemory),
            (&["k:irqentry_exit_to_user_mode", "raft_core::f"], Part::KernelOther),
        ];
        for (frames, part) in cases {
            assert_eq!(Part::of(&sample(frames)), part, "{frames:?}");
        }
    }
}
