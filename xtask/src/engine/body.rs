//! Bytes that are written on one thread and sent on another, and the way back. A few MiB are on the way at any time,
//! however many there are in all.

use std::io::{self, Read, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc as blocking};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::Stream;
use tokio::sync::mpsc;

/// How much goes to the engine at once, and how many of these wait for it.
const CHUNK: usize = 256 << 10;
const WAITING: usize = 8;

/// An engine that takes no byte for so long takes none any more.
const STALL: Duration = Duration::from_mins(10);

/// The end that is written to.
pub(super) struct Writer {
    sender: mpsc::Sender<io::Result<Bytes>>,
    buffer: Vec<u8>,
    sent: Arc<AtomicU64>,
}

/// The end that the request reads, until [`Body::close`].
#[derive(Clone)]
pub(super) struct Body {
    receiver: Arc<Mutex<mpsc::Receiver<io::Result<Bytes>>>>,
    sent: Arc<AtomicU64>,
    watched: mpsc::WeakSender<io::Result<Bytes>>,
}

/// Both ends.
pub(super) fn pipe() -> (Writer, Body) {
    let (sender, receiver) = mpsc::channel(WAITING);
    let sent = Arc::new(AtomicU64::new(0));
    let watched = sender.downgrade();
    let writer = Writer { sender, buffer: Vec::with_capacity(CHUNK), sent: Arc::clone(&sent) };
    (writer, Body { receiver: Arc::new(Mutex::new(receiver)), sent, watched })
}

impl Writer {
    fn send(&mut self, item: io::Result<Bytes>) -> io::Result<()> {
        let hung_up = |_| io::Error::new(io::ErrorKind::BrokenPipe, "the engine takes no more bytes");
        self.sender.blocking_send(item).map_err(hung_up)?;
        self.sent.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Breaks the request off, so that the engine does not take what it has for the whole.
    pub(super) fn abort(mut self) {
        // Where the engine has hung up already there is nothing to break off.
        let _ = self.send(Err(io::Error::other("the bytes are not those that they must be")));
    }
}

impl Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(CHUNK - self.buffer.len());
        self.buffer.extend_from_slice(&bytes[..taken]);
        if self.buffer.len() == CHUNK {
            self.flush()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let full = std::mem::replace(&mut self.buffer, Vec::with_capacity(CHUNK));
        self.send(Ok(full.into()))
    }
}

impl Body {
    /// Makes the writer's next write fail. A request that ended keeps its body until its connection is closed.
    pub(super) fn close(&self) {
        self.receiver.lock().unwrap_or_else(PoisonError::into_inner).close();
    }

    /// Ends when bytes wait for an engine that takes none of them.
    pub(super) async fn stalled(&self) {
        let mut before = self.sent.load(Ordering::Relaxed);
        loop {
            tokio::time::sleep(STALL).await;
            let now = self.sent.load(Ordering::Relaxed);
            let waiting = self.watched.upgrade().is_some_and(|sender| sender.capacity() == 0);
            if waiting && now == before {
                return;
            }
            before = now;
        }
    }
}

impl Stream for Body {
    type Item = io::Result<Bytes>;

    fn poll_next(self: std::pin::Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.receiver.lock().unwrap_or_else(PoisonError::into_inner).poll_recv(context)
    }
}

/// Chunks that come from the engine, as something to read.
pub(super) struct Reader {
    receiver: blocking::Receiver<Bytes>,
    chunk: Bytes,
}

/// Where the chunks are put, and where they are read.
pub(super) fn download() -> (blocking::SyncSender<Bytes>, Reader) {
    let (sender, receiver) = blocking::sync_channel(WAITING);
    (sender, Reader { receiver, chunk: Bytes::new() })
}

impl Read for Reader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.chunk.is_empty() {
            match self.receiver.recv() {
                Ok(chunk) => self.chunk = chunk,
                Err(_) => return Ok(0),
            }
        }
        let count = self.chunk.len().min(buffer.len());
        buffer[..count].copy_from_slice(&self.chunk.split_to(count));
        Ok(count)
    }
}
