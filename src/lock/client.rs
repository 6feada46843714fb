//! Sees that a client went away while its request waits for another one's fetch. Pingora waits without looking at the connection.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd, RawFd};

use tokio::io::Interest;
use tokio::net::TcpStream;

/// A second descriptor of the client's socket: it can be watched beside the one that Pingora reads.
///
/// To be called by the task that serves the connection, which owns `socket` and keeps it open meanwhile.
#[allow(unsafe_code)]
pub fn duplicate(socket: RawFd) -> Option<OwnedFd> {
    // SAFETY: the caller owns the connection, so the descriptor is open for as long as this borrow lives.
    let socket = unsafe { BorrowedFd::borrow_raw(socket) };
    // No descriptor is left: then nobody watches, and the wait has its limit.
    socket.try_clone_to_owned().ok()
}

/// Ends when the client has closed its side, or the connection broke.
pub async fn gone(socket: OwnedFd) {
    let Ok(socket) = TcpStream::from_std(socket.into()) else { return std::future::pending().await };
    loop {
        match socket.ready(Interest::READABLE).await {
            Ok(ready) if ready.is_read_closed() => return,
            // The next request, sent early. Not ours to read: it is forgotten that it is there, until something else happens.
            Ok(_) => drop(socket.try_io(Interest::READABLE, || Err::<(), _>(io::ErrorKind::WouldBlock.into()))),
            Err(_) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;
    use std::time::Duration;
    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;
    use tokio::time::timeout;

    #[tokio::test]
    async fn a_client_is_gone_when_it_closes_and_not_when_it_sends_more() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let mut client = TcpStream::connect(listener.local_addr().expect("bound")).await.expect("connected");
        let (server, _) = listener.accept().await.expect("accepted");
        let mut gone = Box::pin(gone(duplicate(server.as_raw_fd()).expect("a descriptor")));
        client.write_all(b"GET / HTTP/1.1\r\n").await.expect("sent");
        assert!(timeout(Duration::from_millis(50), &mut gone).await.is_err());
        drop(client);
        timeout(Duration::from_secs(5), gone).await.expect("seen");
    }
}
