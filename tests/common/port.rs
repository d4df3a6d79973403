//! Ports for what tests start.

use std::net::{Ipv4Addr, TcpListener};
use std::sync::atomic::{AtomicU32, Ordering};

/// A port of this machine that nobody uses now, nor is given for a connection meanwhile: one below
/// those that systems give (Linux from 32768 on).
pub(crate) fn free_port() -> u16 {
    const FIRST: u32 = 20_000;
    const COUNT: u32 = 12_000;
    static ASKED: AtomicU32 = AtomicU32::new(0);
    let begin = std::process::id().wrapping_mul(97);
    let mut ports = std::iter::repeat_with(|| {
        let place = begin.wrapping_add(ASKED.fetch_add(1, Ordering::Relaxed)) % COUNT;
        u16::try_from(FIRST + place).expect("a port")
    });
    let free = |port: &u16| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok();
    ports.find(free).expect("one of many")
}
