//! Asking the router for a port that it forwards, in the way of UPnP's Internet Gateway Device (WANIPConnection:1, sections
//! 2.4.16 and 2.4.18). Talks to the default gateway only, and believes nothing about other hosts that an answer names.

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use crate::port_mapping::{LIFETIME_SECS, exchange};

/// Where gateways listen for searches (UPnP Device Architecture 1.1 section 1.3.2, which also allows to ask one host).
const SEARCH_PORT: u16 = 1900;
/// How long an answer is waited for, each time that it is asked.
const SEARCH_WAITS: [Duration; 3] = [Duration::from_millis(400); 3];
const HTTP_TIMEOUT: Duration = Duration::from_secs(2);
/// No description or answer is read further than this.
const BODY_MAX: u64 = 128 * 1024;
const SERVICES: [&str; 3] = [
    "urn:schemas-upnp-org:service:WANIPConnection:2",
    "urn:schemas-upnp-org:service:WANIPConnection:1",
    "urn:schemas-upnp-org:service:WANPPPConnection:1",
];
/// External ports that are tried if the first is another host's.
const PORTS: [u16; 3] = [0, 1_009, 2_003];

/// A port that the router forwards. Dropping it gives it back.
#[derive(Debug)]
pub(crate) struct UpnpMapping {
    control: Control,
    pub(crate) external_port: u16,
    /// What the router was asked for last, and took.
    pub(crate) lifetime_secs: u32,
    local: Ipv4Addr,
    local_port: u16,
    /// Some routers know no mapping that ends.
    is_permanent: bool,
}

/// The service of a gateway that forwards ports.
#[derive(Debug)]
struct Control {
    at: SocketAddr,
    path: String,
    service: &'static str,
}

impl UpnpMapping {
    /// Asks the gateway to forward a port, UDP and if it likes TCP too.
    pub(crate) fn request(gateway: IpAddr, local_port: u16) -> Option<Self> {
        Self::request_of((gateway, SEARCH_PORT).into(), local_port)
    }

    fn request_of(gateway: SocketAddr, local_port: u16) -> Option<Self> {
        let (at, path) = search(gateway)?;
        let description = http(at, "GET", &path, "", "").ok()?;
        let (service, path) = find_service(&description)?;
        let control = Control { at, path, service };
        let local = local_ip(gateway)?;
        for offset in PORTS {
            let external = local_port
                .checked_add(offset)
                .unwrap_or(local_port - offset);
            for lease in [LIFETIME_SECS, 0] {
                if control.add("UDP", external, local, local_port, lease) {
                    // Streams want the same port, and do without if they cannot have it.
                    control.add("TCP", external, local, local_port, lease);
                    return Some(Self {
                        control,
                        external_port: external,
                        lifetime_secs: LIFETIME_SECS,
                        local,
                        local_port,
                        is_permanent: lease == 0,
                    });
                }
            }
        }
        None
    }

    /// Asks for the same again, a mapping without end too: a router that was restarted may have forgotten it. Returns whether the
    /// router grants it.
    pub(crate) fn renew(&self) -> bool {
        let lease = if self.is_permanent { 0 } else { LIFETIME_SECS };
        let add = |protocol| {
            self.control.add(
                protocol,
                self.external_port,
                self.local,
                self.local_port,
                lease,
            )
        };
        let granted = add("UDP");
        add("TCP");
        granted
    }
}

impl Drop for UpnpMapping {
    /// Gives the ports back. A router that does not answer forgets them when the lease is over.
    fn drop(&mut self) {
        for protocol in ["UDP", "TCP"] {
            self.control.delete(protocol, self.external_port);
        }
    }
}

impl Control {
    fn add(&self, protocol: &str, external: u16, ip: Ipv4Addr, local: u16, lease: u32) -> bool {
        self.act(
            "AddPortMapping",
            &format!(
                "<NewRemoteHost></NewRemoteHost><NewExternalPort>{external}</NewExternalPort><NewProtocol>{protocol}</NewProtocol><NewInternalPort>{local}</NewInternalPort><NewInternalClient>{ip}</NewInternalClient><NewEnabled>1</NewEnabled><NewPortMappingDescription>waypost</NewPortMappingDescription><NewLeaseDuration>{lease}</NewLeaseDuration>"
            ),
        )
    }

    fn delete(&self, protocol: &str, external: u16) -> bool {
        self.act(
            "DeletePortMapping",
            &format!(
                "<NewRemoteHost></NewRemoteHost><NewExternalPort>{external}</NewExternalPort><NewProtocol>{protocol}</NewProtocol>"
            ),
        )
    }

    /// Has the gateway do something; returns whether it did.
    fn act(&self, action: &str, arguments: &str) -> bool {
        let service = self.service;
        let body = format!(
            "<?xml version=\"1.0\"?><s:Envelope xmlns:s=\"http://schemas.xmlsoap.org/soap/envelope/\" s:encodingStyle=\"http://schemas.xmlsoap.org/soap/encoding/\"><s:Body><u:{action} xmlns:u=\"{service}\">{arguments}</u:{action}></s:Body></s:Envelope>"
        );
        let headers = format!(
            "content-type: text/xml; charset=\"utf-8\"\r\nsoapaction: \"{service}#{action}\"\r\n"
        );
        http(self.at, "POST", &self.path, &headers, &body).is_ok()
    }
}

/// Where the gateway describes itself.
fn search(gateway: SocketAddr) -> Option<(SocketAddr, String)> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    socket.connect(gateway).ok()?;
    let request = format!(
        "M-SEARCH * HTTP/1.1\r\nHOST: {gateway}\r\nMAN: \"ssdp:discover\"\r\nMX: 1\r\nST: urn:schemas-upnp-org:device:InternetGatewayDevice:1\r\n\r\n"
    );
    exchange(&socket, request.as_bytes(), &SEARCH_WAITS, |answer| {
        location(&String::from_utf8_lossy(answer), gateway.ip())
    })
}

/// The LOCATION of an answer to a search, if it is on the gateway itself.
fn location(answer: &str, gateway: IpAddr) -> Option<(SocketAddr, String)> {
    let url = answer.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("location").then(|| value.trim())
    })?;
    let rest = url.strip_prefix("http://")?;
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    let at: SocketAddr = match host.parse() {
        Ok(at) => at,
        Err(_) => (host.parse::<IpAddr>().ok()?, 80).into(),
    };
    let is_plain = path.bytes().all(|byte| byte.is_ascii_graphic());
    (at.ip() == gateway && is_plain).then(|| (at, format!("/{path}")))
}

/// The first service of a description that forwards ports, and the path by which it is controlled.
fn find_service(description: &str) -> Option<(&'static str, String)> {
    SERVICES.into_iter().find_map(|service| {
        let entries = description.split("<service>").skip(1);
        let entry = entries
            .filter_map(|rest| rest.split("</service>").next())
            .find(|entry| element(entry, "serviceType") == Some(service))?;
        let url = element(entry, "controlURL")?;
        // An absolute URL would name another host, or the same one again.
        let path = match url.strip_prefix("http://") {
            Some(rest) => rest.split_once('/').map_or("", |(_, path)| path),
            None => url.trim_start_matches('/'),
        };
        let is_plain = path.bytes().all(|byte| byte.is_ascii_graphic());
        is_plain.then(|| (service, format!("/{path}")))
    })
}

fn element<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(&format!("<{name}>"))?;
    Some(rest.split_once('<')?.0.trim())
}

/// One HTTP exchange; the body of the answer if its status is 200.
fn http(at: SocketAddr, verb: &str, path: &str, headers: &str, body: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&at, HTTP_TIMEOUT)?;
    stream.set_read_timeout(Some(HTTP_TIMEOUT))?;
    stream.set_write_timeout(Some(HTTP_TIMEOUT))?;
    let len = body.len();
    // HTTP/1.0, so that nothing comes in chunks.
    let request = format!(
        "{verb} {path} HTTP/1.0\r\nhost: {at}\r\nconnection: close\r\ncontent-length: {len}\r\n{headers}\r\n{body}"
    );
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    let deadline = Instant::now() + HTTP_TIMEOUT;
    let mut bytes = [0; 4_096];
    let mut left = BODY_MAX;
    loop {
        let len = stream.read(&mut bytes)?;
        let is_late = Instant::now() >= deadline;
        left = left.saturating_sub(len as u64);
        answer.extend_from_slice(&bytes[..len]);
        if len == 0 {
            break;
        }
        if is_late || left == 0 {
            return Err(io::ErrorKind::InvalidData.into());
        }
    }
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .ok_or(io::ErrorKind::InvalidData)?;
    if head.split(' ').nth(1) == Some("200") {
        Ok(body.to_owned())
    } else {
        Err(io::ErrorKind::PermissionDenied.into())
    }
}

/// This machine's address on the way to the gateway.
fn local_ip(gateway: SocketAddr) -> Option<Ipv4Addr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    socket.connect(gateway).ok()?;
    match socket.local_addr().ok()?.ip() {
        IpAddr::V4(ip) => Some(ip),
        IpAddr::V6(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;
    use std::sync::mpsc;
    use std::thread;

    /// A gateway on loopback: answers one search, then requests with these answers in turn. What it was asked comes out of
    /// the channel.
    fn gateway(
        answers: &'static [(&'static str, &'static str)],
    ) -> (SocketAddr, mpsc::Receiver<String>) {
        let search = UdpSocket::bind("127.0.0.1:0").unwrap();
        let web = TcpListener::bind("127.0.0.1:0").unwrap();
        let at = search.local_addr().unwrap();
        let location = web.local_addr().unwrap();
        let (asked, log) = mpsc::channel();
        thread::spawn(move || {
            let mut buffer = [0; 2_048];
            let (_, from) = search.recv_from(&mut buffer).unwrap();
            let answer = format!("HTTP/1.1 200 OK\r\nLocation: http://{location}/d.xml\r\n\r\n");
            search.send_to(answer.as_bytes(), from).unwrap();
            for (status, body) in answers {
                let (mut stream, _) = web.accept().unwrap();
                let mut request = Vec::new();
                let mut bytes = [0; 4_096];
                loop {
                    let len = stream.read(&mut bytes).unwrap();
                    request.extend_from_slice(&bytes[..len]);
                    let text = String::from_utf8_lossy(&request);
                    let is_whole = text.split_once("\r\n\r\n").is_some_and(|(head, body)| {
                        head.contains(&format!("content-length: {}", body.len()))
                    });
                    if is_whole || len == 0 {
                        break;
                    }
                }
                let request = String::from_utf8_lossy(&request).into_owned();
                let _ = asked.send(request);
                let answer = format!("HTTP/1.1 {status} x\r\n\r\n{body}");
                stream.write_all(answer.as_bytes()).unwrap();
            }
        });
        (at, log)
    }

    const DESCRIPTION: &str = "<root><service><serviceType>urn:schemas-upnp-org:service:Layer3Forwarding:1</serviceType><controlURL>/l3</controlURL></service><service>\n <serviceType>urn:schemas-upnp-org:service:WANIPConnection:1</serviceType>\n <controlURL>/ctl/wan</controlURL></service></root>";

    #[test]
    fn a_gateway_forwards_the_next_port_if_the_first_is_taken() {
        let (at, log) = gateway(&[
            ("200", DESCRIPTION),
            ("500", "conflict"),
            ("500", "conflict"),
            ("200", ""),
            ("200", ""),
            ("200", ""),
            ("200", ""),
            ("200", ""),
            ("200", ""),
        ]);
        let mapping = UpnpMapping::request_of(at, 40_000).unwrap();
        assert_eq!(mapping.external_port, 41_009);
        assert!(mapping.renew());
        drop(mapping);
        let log: Vec<String> = log.iter().collect();
        assert!(log[0].starts_with("GET /d.xml "));
        for (entry, parts) in log[1..].iter().zip([
            ["AddPortMapping", ">40000</NewExternalPort>", ">UDP<"],
            ["AddPortMapping", ">40000</NewExternalPort>", ">0</NewLease"],
            ["AddPortMapping", ">41009</NewExternalPort>", ">UDP<"],
            ["AddPortMapping", ">41009</NewExternalPort>", ">TCP<"],
            ["AddPortMapping", ">41009</NewExternalPort>", ">UDP<"],
            ["AddPortMapping", ">41009</NewExternalPort>", ">TCP<"],
            ["DeletePortMapping", ">41009</NewExternalPort>", ">UDP<"],
            ["DeletePortMapping", ">41009</NewExternalPort>", ">TCP<"],
        ]) {
            assert!(entry.starts_with("POST /ctl/wan "), "{entry}");
            assert!(parts.iter().all(|part| entry.contains(part)), "{entry}");
        }
    }

    #[test]
    fn other_hosts_and_nonsense_are_not_believed() {
        let gateway: IpAddr = "192.168.0.1".parse().unwrap();
        for (answer, found) in [
            ("LOCATION: http://192.168.0.1:5000/a.xml", true),
            ("location:http://192.168.0.1/a", true),
            ("location: http://192.168.0.7:5000/a.xml", false),
            ("location: http://evil.example/a.xml", false),
            ("location: https://192.168.0.1/a.xml", false),
            ("location: http://192.168.0.1:5000/a b", false),
            ("", false),
        ] {
            assert_eq!(location(answer, gateway).is_some(), found, "{answer}");
        }
        for text in [
            "",
            "<service>",
            "<service></service>",
            "<service><serviceType>",
        ] {
            assert_eq!(find_service(text), None);
        }
        let elsewhere = DESCRIPTION.replace("/ctl/wan", "http://10.0.0.1:80/ctl");
        let (_, path) = find_service(&elsewhere).unwrap();
        assert_eq!(path, "/ctl", "on the gateway");
    }
}
