//! A TCP connection between two hosts that carries bytes one way, and when they arrived.

use std::io::{Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use selvedge_model::Time;
use socket2::{Domain, Protocol, Socket, Type};

use crate::stream::longest_gap;
use crate::{Error, Host, clock};

/// How fast bytes are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// 64 bytes, again and again after such a pause.
    Every(Duration),
    /// As fast as the connection takes them.
    Full,
}

/// A running connection. It ends when the value is dropped.
#[derive(Debug)]
pub struct Connection {
    ends: [TcpStream; 2],
    log: Arc<Log>,
    threads: Vec<JoinHandle<()>>,
}

/// What both ends report.
#[derive(Debug, Default)]
struct Log {
    over: AtomicBool,
    arrivals: Mutex<Vec<(Time, usize)>>,
}

impl Connection {
    /// Connects `from`, with its address there, to `to`, and sends at `pace` from then on.
    ///
    /// # Errors
    /// If the port is taken, or there is no connection within ten seconds.
    pub fn open(from: (&Host, IpAddr), to: (&Host, SocketAddr), pace: Pace) -> Result<Self, Error> {
        let what = || format!("connect {} to {} on {}", from.0.name(), to.1, to.0.name());
        let listener = to.0.run(|| TcpListener::bind(to.1))?.map_err(Error::io(what()))?;
        let sender = from.0.run(|| connect(from.1, to.1))?.map_err(Error::io(what()))?;
        let (receiver, _) = listener.accept().map_err(Error::io(what()))?;
        let log = Arc::new(Log::default());
        let clone = |end: &TcpStream| end.try_clone().map_err(Error::io("duplicate a descriptor"));
        let ends = [clone(&sender)?, clone(&receiver)?];
        let (of_sender, of_receiver) = (Arc::clone(&log), Arc::clone(&log));
        let threads = vec![
            std::thread::spawn(move || send(sender, pace, &of_sender)),
            std::thread::spawn(move || receive(receiver, &of_receiver)),
        ];
        Ok(Self { ends, log, threads })
    }

    /// Whether neither end has given up.
    #[must_use]
    pub fn is_open(&self) -> bool {
        !self.log.over.load(Ordering::Relaxed)
    }

    /// How many bytes arrived between two moments.
    #[must_use]
    pub fn bytes_between(&self, from: Time, to: Time) -> u64 {
        let within = self.arrivals().into_iter().filter(|(at, _)| (from..=to).contains(at));
        within.map(|(_, bytes)| bytes as u64).sum()
    }

    /// The longest time between two moments in which nothing arrived, the edges included.
    #[must_use]
    pub fn gap_between(&self, from: Time, to: Time) -> Duration {
        let times = self.arrivals().into_iter().map(|(at, _)| at);
        longest_gap(times.filter(|at| *at >= from), from, to).0
    }

    fn arrivals(&self) -> Vec<(Time, usize)> {
        self.log.arrivals.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.log.over.store(true, Ordering::Relaxed);
        for end in &self.ends {
            // It wakes the threads; an end that is broken has woken its own.
            let _ = end.shutdown(Shutdown::Both);
        }
        for thread in self.threads.drain(..) {
            if let Err(panic) = thread.join() {
                tracing::error!(?panic, "a thread of a connection panicked");
            }
        }
    }
}

const PATIENCE: Duration = Duration::from_secs(10);
/// As much as is sent and read in one go at full pace.
const BLOCK: usize = 256 << 10;

fn connect(from: IpAddr, to: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP))?;
    socket.bind(&SocketAddr::new(from, 0).into())?;
    socket.connect_timeout(&to.into(), PATIENCE)?;
    socket.set_tcp_nodelay(true)?;
    Ok(socket.into())
}

fn send(mut end: TcpStream, pace: Pace, log: &Log) {
    let block = match pace {
        Pace::Every(_) => vec![0; 64],
        Pace::Full => vec![0; BLOCK],
    };
    while !log.over.load(Ordering::Relaxed) {
        if end.write_all(&block).is_err() {
            log.over.store(true, Ordering::Relaxed);
        }
        if let Pace::Every(pause) = pace {
            std::thread::sleep(pause);
        }
    }
}

fn receive(mut end: TcpStream, log: &Log) {
    let mut block = vec![0; BLOCK];
    while let Ok(bytes @ 1..) = end.read(&mut block) {
        let mut arrivals = log.arrivals.lock().unwrap_or_else(PoisonError::into_inner);
        arrivals.push((clock::now(), bytes));
    }
    log.over.store(true, Ordering::Relaxed);
}
