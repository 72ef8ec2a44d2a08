//! Which shard of a server an end of the generator is on, without asking it: the kernel chooses among the sockets of a
//! `SO_REUSEPORT` group by a hash of both addresses (socket(7)), whoever has opened them.

use std::io;
use std::net::{SocketAddr, SocketAddrV4, UdpSocket};
use std::time::{Duration, Instant};

use waypost_server::packet_io::{UdpOptions, bind_udp};

use crate::clients::{BATCH, Clients};
use crate::relay::Endpoint;
use crate::waypost::end;

/// How long a datagram may take.
const LIMIT: Duration = Duration::from_secs(5);

/// Ends sorted by where a server of two shards has them.
#[derive(Clone, Debug)]
pub struct Sorted {
    /// By the end's socket, then by its shard.
    pools: [[Vec<Endpoint>; 2]; 2],
}

impl Sorted {
    /// Enough ends for `sessions` sessions of two with a server that will listen on `at`, which nobody does at present.
    ///
    /// # Errors
    ///
    /// What the kernel said, or when the hash is very uneven.
    pub fn new(clients: &mut Clients, at: SocketAddrV4, sessions: usize) -> io::Result<Self> {
        // Half of them fall on each side, give or take a few.
        let ends: Vec<Endpoint> = (0..2 * (sessions + sessions / 8 + 64)).map(end).collect();
        let mut pools: [[Vec<Endpoint>; 2]; 2] = Default::default();
        for (end, shard) in ends.iter().zip(members_of_group(clients, at, &ends)?) {
            pools[end.socket][shard].push(*end);
        }
        let least = sessions.div_ceil(2);
        if pools.iter().flatten().any(|pool| pool.len() < least) {
            return Err(io::Error::other("the kernel's choice of sockets is uneven"));
        }
        Ok(Self { pools })
    }

    /// The ends of sessions whose members are on the same shard, or each on another; sessions take turns on the shards.
    #[must_use]
    pub fn ends(&self, sessions: usize, apart: bool) -> Vec<Endpoint> {
        let pair = |i: usize| {
            let shard = i % 2;
            let of_other = if apart { 1 - shard } else { shard };
            [self.pools[0][shard][i / 2], self.pools[1][of_other][i / 2]]
        };
        (0..sessions).flat_map(pair).collect()
    }
}

/// For each end, which socket of a group of two gets what it sends to `at`.
fn members_of_group(
    clients: &mut Clients,
    at: SocketAddrV4,
    ends: &[Endpoint],
) -> io::Result<Vec<usize>> {
    let options = UdpOptions {
        reuse_port: true,
        ..UdpOptions::default()
    };
    let mut group = Vec::new();
    for _ in 0..2 {
        let socket: UdpSocket = bind_udp(SocketAddr::V4(at), &options)?;
        socket.set_nonblocking(true)?;
        group.push(socket);
    }
    let mut found = vec![None; ends.len()];
    for (n, chunk) in ends.chunks(BATCH).enumerate() {
        for (i, end) in (n * BATCH..).zip(chunk) {
            clients.stage(*end, at, |bytes| {
                bytes[..8].copy_from_slice(&(i as u64).to_le_bytes());
                8
            });
        }
        clients.flush();
        let give_up = Instant::now() + LIMIT;
        let mut missing = chunk.len();
        while missing > 0 {
            for (member, socket) in group.iter().enumerate() {
                let mut bytes = [0; 8];
                match socket.recv(&mut bytes) {
                    Ok(8) => {
                        if let Some(found) = found.get_mut(u64::from_le_bytes(bytes) as usize) {
                            missing -= usize::from(found.replace(member).is_none());
                        }
                    }
                    Ok(_) => {}
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => return Err(error),
                }
            }
            if Instant::now() > give_up {
                return Err(io::ErrorKind::TimedOut.into());
            }
        }
    }
    Ok(found.into_iter().flatten().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_opens_the_group_gets_the_same_ends() {
        let mut clients = Clients::open(2).expect("sockets");
        let free = UdpSocket::bind("127.0.0.1:0").expect("a port");
        let SocketAddr::V4(at) = free.local_addr().expect("an address") else {
            unreachable!("it is IPv4");
        };
        drop(free);
        let sorted = Sorted::new(&mut clients, at, 200).expect("a group");
        for (apart, differ) in [(false, 0), (true, 200)] {
            let ends = sorted.ends(200, apart);
            let shards = members_of_group(&mut clients, at, &ends).expect("a group");
            let differing = shards.chunks(2).filter(|pair| pair[0] != pair[1]).count();
            assert_eq!(differing, differ);
            let unique: std::collections::HashSet<_> =
                ends.iter().map(|end| (end.socket, end.ip)).collect();
            assert_eq!(unique.len(), 400);
        }
    }
}
