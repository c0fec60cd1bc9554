//! A TCP connection that acknowledges at once what has arrived.
//!
//! Linux delays the acknowledgement on a connection on which both sides talk, up to 40 ms
//! (`TCP_DELACK_MIN`). Many servers, mosquitto among them, leave Nagle's algorithm on: they hold a small
//! packet back until the one before it is acknowledged. Together a message right behind a PUBACK takes
//! 40 ms longer.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use rustix::net::sockopt::set_tcp_quickack;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// A TCP connection that acknowledges what it reads without delay.
#[derive(Debug)]
pub struct QuickAck(TcpStream);

impl QuickAck {
    /// Returns `stream` so that it acknowledges what it reads without delay.
    #[must_use]
    pub const fn new(stream: TcpStream) -> Self {
        Self(stream)
    }

    /// Returns the address of the other side.
    ///
    /// # Errors
    /// When the connection is gone.
    #[cfg(test)]
    pub fn peer_addr(&self) -> io::Result<std::net::SocketAddr> {
        self.0.peer_addr()
    }
}

impl AsyncRead for QuickAck {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.0).poll_read(cx, buf))?;
        // The system takes it back with the next packets (tcp(7)). Without it, it is slower, and right.
        let _ = set_tcp_quickack(&self.0, true);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for QuickAck {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::sockopt::tcp_quickack;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    /// Number of turns after which the system delays acknowledgements, and more.
    const TURNS: usize = 8;

    /// Talks in turns, so that the system takes it for a dialogue.
    async fn talk(mut here: impl AsyncRead + AsyncWrite + Unpin, there: &mut TcpStream) {
        let mut byte = [0];
        for _ in 0..TURNS {
            here.write_all(b"?").await.expect("ask");
            there.read_exact(&mut byte).await.expect("hear");
            there.write_all(b"!").await.expect("answer");
            here.read_exact(&mut byte).await.expect("hear the answer");
        }
    }

    #[tokio::test]
    async fn what_is_read_in_a_dialogue_is_acknowledged_at_once() {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("listen");
        let address = listener.local_addr().expect("address");
        let pair = async || {
            let here = TcpStream::connect(address).await.expect("connect");
            (here, listener.accept().await.expect("accept").0)
        };
        let (mut plain, mut there) = pair().await;
        talk(&mut plain, &mut there).await;
        assert!(!tcp_quickack(&plain).expect("option"), "the system's way");
        let (here, mut there) = pair().await;
        let mut quick = QuickAck::new(here);
        talk(&mut quick, &mut there).await;
        assert!(tcp_quickack(&quick.0).expect("option"));
    }
}
