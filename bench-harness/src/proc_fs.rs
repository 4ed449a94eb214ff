//! What `/proc` tells about sockets, processes and the machine.
//!
//! Read at the edges of a measurement only. Everything missing or unreadable is `None` or zero: these figures
//! explain a result, they do not make it (the CPU clock that does is [`crate::sys::cpu_time`]).

use std::fs;
use std::net::SocketAddr;
use std::time::Duration;

use crate::sys;

/// User and system time of a process, in clock ticks' grain.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct SplitTime {
    /// In user mode.
    pub user: Duration,
    /// In the kernel.
    pub system: Duration,
}

/// All processes of the process group that `leader` leads, itself included.
pub fn group_members(leader: u32) -> Vec<u32> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| stat_field(*pid, 4) == Some(u64::from(leader))).collect()
}

/// User and system time of process `pid` so far.
pub fn split_time(pid: u32) -> SplitTime {
    let ticks = |field| {
        let nanos = stat_field(pid, field).unwrap_or(0) * 1_000_000_000 / sys::ticks_per_second();
        Duration::from_nanos(nanos)
    };
    SplitTime { user: ticks(13), system: ticks(14) }
}

/// Field `index` of `/proc/PID/stat`, counted from 0 as in proc(5) less one.
fn stat_field(pid: u32, index: usize) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    parse_stat(&text, index)
}

fn parse_stat(text: &str, index: usize) -> Option<u64> {
    // The second field is the name in parentheses and may hold spaces and parentheses itself.
    let (_, rest) = text.rsplit_once(") ")?;
    rest.split(' ').nth(index.checked_sub(2)?)?.trim().parse().ok()
}

/// Whether some process has a UDP socket bound to `address`.
pub fn is_udp_bound(address: SocketAddr) -> bool {
    udp_drops_of(address).is_some()
}

/// Whether some process listens for connections at `address`.
pub fn is_tcp_listening(address: SocketAddr) -> bool {
    let table = if address.is_ipv4() { "/proc/net/tcp" } else { "/proc/net/tcp6" };
    let column = local_column(address);
    let rows = fs::read_to_string(table).unwrap_or_default();
    // State 0A is LISTEN.
    rows.lines().map(str::split_ascii_whitespace).any(|mut row| row.nth(1) == Some(&column) && row.nth(1) == Some("0A"))
}

/// Resident memory of process `pid`, in bytes; 0 when it is gone.
pub fn resident_bytes(pid: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok()).unwrap_or(0) * 1024
}

/// Datagrams that the kernel dropped because the socket buffer at `address` was full.
pub fn udp_drops(address: SocketAddr) -> u64 {
    udp_drops_of(address).unwrap_or(0)
}

fn udp_drops_of(address: SocketAddr) -> Option<u64> {
    let table = if address.is_ipv4() { "/proc/net/udp" } else { "/proc/net/udp6" };
    sum_drops(&fs::read_to_string(table).ok()?, &local_column(address))
}

fn sum_drops(table: &str, column: &str) -> Option<u64> {
    let rows = table.lines().skip(1).map(|row| row.split_ascii_whitespace());
    let drops = rows.filter_map(|mut row| (row.nth(1)? == column).then(|| row.last()?.parse::<u64>().ok()).flatten());
    drops.fold(None, |sum, row| Some(sum.unwrap_or(0) + row))
}

/// An address as `/proc/net/udp` writes it: words of 32 bits in host order, then the port.
fn local_column(address: SocketAddr) -> String {
    let words: Vec<u8> = match address {
        SocketAddr::V4(v4) => v4.ip().octets().to_vec(),
        SocketAddr::V6(v6) => v6.ip().octets().to_vec(),
    };
    let hex: String = words
        .chunks_exact(4)
        .map(|word| format!("{:08X}", u32::from_ne_bytes([word[0], word[1], word[2], word[3]])))
        .collect();
    format!("{hex}:{:04X}", address.port())
}

/// The CPU's name.
pub fn cpu_model() -> Option<String> {
    let text = fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

/// Kernel name and release.
pub fn kernel() -> String {
    let read = |name: &str| fs::read_to_string(format!("/proc/sys/kernel/{name}")).unwrap_or_default();
    format!("{} {}", read("ostype").trim(), read("osrelease").trim())
}

/// This host's name, with anything but letters, digits and `-` left out.
pub fn host() -> String {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    name.chars().filter(|c| c.is_ascii_alphanumeric() || *c == '-').collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_survives_a_name_with_spaces_and_parentheses() {
        let text = "42 (a) b (c) S 1 7 7 0 -1 4194560 1 0 0 0 11 22 0 0 20 0 1 0 9 1 1\n";
        assert_eq!((parse_stat(text, 4), parse_stat(text, 13), parse_stat(text, 14)), (Some(7), Some(11), Some(22)));
    }

    #[test]
    fn drops_are_summed_over_sockets_of_one_address() {
        let table = "  sl  local_address rem_address st ... drops\n\
            1: 0100007F:13C4 00000000:0000 07 00000000:00000000 00:00000000 00000000 0 0 1 2 0 5\n\
            2: 0100007F:13C4 00000000:0000 07 00000000:00000000 00:00000000 00000000 0 0 1 2 0 6\n\
            3: 0100007F:13C5 00000000:0000 07 00000000:00000000 00:00000000 00000000 0 0 1 2 0 7\n";
        let column = local_column("127.0.0.1:5060".parse().expect("address"));
        assert_eq!(sum_drops(table, &column), Some(11));
        assert_eq!(sum_drops(table, "0100007F:0001"), None);
    }

    #[test]
    fn our_own_socket_is_seen_bound() {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").expect("bind");
        assert!(is_udp_bound(socket.local_addr().expect("address")));
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
        let address = listener.local_addr().expect("address");
        assert!(is_tcp_listening(address));
        drop(listener);
        assert!(!is_tcp_listening(address));
        assert!(group_members(u32::MAX).is_empty());
    }

    #[test]
    fn our_own_memory_is_resident() {
        assert!(resident_bytes(std::process::id()) > 1 << 16);
        assert_eq!(resident_bytes(u32::MAX), 0);
    }
}
