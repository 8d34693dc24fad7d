//! Asks a running service whether it is up: for images without a shell, let alone curl.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// For connecting, and for each read or write. Below the 30 s that engines allow by default.
const TIMEOUT: Duration = Duration::from_secs(3);

/// Succeeds when `GET /healthz` answers 200.
///
/// # Errors
///
/// One line with the address and the cause.
pub(crate) fn ask(address: SocketAddr) -> Result<(), String> {
    match status_line(address) {
        Ok(line) if line.starts_with("HTTP/1.1 200 ") => Ok(()),
        Ok(line) => Err(format!("http://{address}/healthz answered `{line}`, expected `HTTP/1.1 200 OK`")),
        Err(cause) => Err(format!("no answer from http://{address}/healthz: {cause}")),
    }
}

fn status_line(address: SocketAddr) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    write!(stream, "GET /healthz HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    // Bounded: whatever listens there need not be this service.
    stream.take(4096).read_to_end(&mut answer)?;
    let line = answer.split(|byte| matches!(byte, b'\r' | b'\n')).next().unwrap_or_default();
    Ok(String::from_utf8_lossy(line).escape_debug().take(80).collect())
}
