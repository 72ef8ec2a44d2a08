//! A forwarder without a protocol over the server's own packet input and output.

use std::io;
use std::net::SocketAddr;

use clap::{Parser, ValueEnum};
use waypost_benches::forwarder::{HEADER, HEADER_BYTES, announce, read_destinations};
use waypost_server::mmsg::Mmsg;
use waypost_server::packet_io::{IoConfig, PacketIo, UdpOptions, bind_udp};
use waypost_server::ring::Ring;

#[derive(Clone, Copy, ValueEnum)]
enum Backend {
    Ring,
    Mmsg,
}

/// Forwards packets by the number in their first four bytes.
#[derive(Parser)]
struct Arguments {
    /// The backend to use.
    #[arg(long)]
    io: Backend,
    /// Longest wait for company of a datagram under load, in microseconds.
    #[arg(long, default_value_t = 0)]
    coalesce_us: u32,
}

fn main() -> io::Result<()> {
    let arguments = Arguments::parse();
    let config = IoConfig {
        coalesce_us: arguments.coalesce_us,
        ..IoConfig::default()
    };
    match arguments.io {
        Backend::Ring => forward(Ring::new(&config).map_err(io::Error::other)?),
        Backend::Mmsg => forward(Mmsg::new(&config).map_err(io::Error::other)?),
    }
}

fn forward(mut io: impl PacketIo) -> io::Result<()> {
    let destinations: Vec<SocketAddr> = read_destinations()?
        .into_iter()
        .map(SocketAddr::V4)
        .collect();
    let options = UdpOptions {
        recv_buffer_bytes: Some(8 << 20),
        send_buffer_bytes: Some(8 << 20),
        ..UdpOptions::default()
    };
    let socket = bind_udp(SocketAddr::from(([127, 0, 0, 1], 0)), &options)?;
    let at = socket.local_addr()?;
    let id = io.add_socket(socket)?;
    announce(at)?;
    loop {
        io.turn(None)?;
        while let Some(received) = io.next() {
            let Some(index) = io.payload(&received.buf).first_chunk().copied() else {
                continue;
            };
            if let Some(&to) = destinations.get(u32::from_be_bytes(index) as usize) {
                io.forward(received.buf, HEADER_BYTES, &HEADER, id, to);
            }
        }
    }
}
