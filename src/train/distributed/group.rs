//! The processes of a run, as one of them sees them: sums, copies and meetings of all.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs, UdpSocket};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tch::{Device, Tensor};

use super::bridge::{Backend, Operation, Store, Work};
use super::hub::Hub;
use super::place::Place;
use super::watch::Watch;
use crate::error::{Error, Result};

/// How long ranks wait for each other unless something else is said: torch's own default.
pub const TIMEOUT: Duration = Duration::from_secs(600);

/// How often a rank that waits looks whether another has failed.
const LOOK: Duration = Duration::from_millis(100);
/// c10d's own limits are longer than ours: it would not say who is missing.
const LONGER: Duration = Duration::from_secs(60);

/// The processes of a run, as one of them sees them.
///
/// Every rank calls the same operations in the same order. When one fails, is killed or cannot be
/// heard any more, all others' operations end within seconds with an error that names it.
#[derive(Clone, Debug)]
pub struct Group {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    place: Place,
    backend: Arc<Backend>,
    /// Operations begin one after another, in one order on all ranks.
    order: Mutex<()>,
    watch: Arc<Watch>,
    limit: Duration,
    // dropped after `watch` has said goodbye
    _hub: Option<Hub>,
    _store: Store,
}

/// An operation that has begun.
#[derive(Debug)]
#[must_use = "the tensors are whole only after `wait`"]
pub struct Pending {
    work: Work,
    inner: Arc<Inner>,
    number: u64,
    what: &'static str,
}

/// Meets the other processes of a run: they are to come, and each operation to end, within
/// `timeout`. Operations are those of tensors on `device`.
///
/// # Errors
/// A master that cannot be reached, a port that is taken, processes that do not come: named.
pub fn connect(place: &Place, device: Device, timeout: Duration) -> Result<Group> {
    let Place { rank, size, .. } = *place;
    let (host, port) = (place.master.0.as_str(), place.master.1);
    let own_host = host_name();
    let at =
        |reason: String| Error::failed(format!("rank {rank} of {size} ({own_host}): {reason}"));
    let own = own_address(host, port).map_err(&at)?;
    let serve = rank == 0 && !place.served;
    let prefix = format!("mmx/{}", place.launch);
    let store = Store::open((host, port), serve, &prefix, timeout).map_err(|reason| {
        at(match serve {
            true if reason.contains("EADDRINUSE") || reason.contains("in use") => {
                format!("port {port} of {host}: expected to be free for the run, found it taken")
            }
            true => format!("{host}:{port} cannot be served: {reason}"),
            false => format!(
                "expected rank 0 at {host}:{port} within {} s, found nobody",
                timeout.as_secs()
            ),
        })
    })?;
    let store_failed = |reason: String| at(format!("the store at {host}:{port}: {reason}"));
    let own = match outward(&store, place, own, timeout) {
        Ok(own) => own,
        Err(reason) => {
            if rank == 0 {
                let _ = store.set("hub", &format!("! {reason}")); // it is this rank's error anyway
            }
            return Err(at(reason));
        }
    };
    let hub = match rank {
        0 => {
            let hub =
                Hub::serve(own, size, timeout).map_err(|e| at(format!("address {own}: {e}")))?;
            let (address, token) = hub.address();
            store.set("hub", &format!("{address} {token}")).map_err(store_failed)?;
            Some(hub)
        }
        _ => None,
    };
    let text = store.get("hub", timeout).map_err(|_| {
        at(format!("expected rank 0 of {size} within {} s, found nobody", timeout.as_secs()))
    })?;
    if let Some(reason) = text.strip_prefix("! ") {
        return Err(Error::failed(reason));
    }
    let (address, token) = text
        .split_once(' ')
        .and_then(|(address, token)| Some((address.parse::<SocketAddr>().ok()?, token)))
        .ok_or_else(|| at(format!("expected rank 0's address in the store, found {text:?}")))?;
    let watch = Watch::connect(address, token, (rank, size, &own_host), timeout)
        .map_err(|e| at(format!("rank 0 at {address}: {e}")))?;
    watch.all_here(timeout).map_err(Error::failed)?;
    let longer = timeout + LONGER;
    let backend = match device {
        Device::Cpu => Backend::gloo(&store, own, rank, size, longer),
        Device::Cuda(_) => Backend::nccl(&store, rank, size, longer),
        other => Err(format!("expected processes on cpu or cuda devices, found {other:?}")),
    };
    let backend = backend.map_err(|reason| Error::failed(watch.explain(&reason)))?;
    let (backend, watch) = (Arc::new(backend), Arc::new(watch));
    if device.is_cuda() {
        abort_with(&backend, &watch)?;
    }
    Ok(Group {
        inner: Arc::new(Inner {
            place: place.clone(),
            backend,
            order: Mutex::new(()),
            watch,
            limit: timeout,
            _hub: hub,
            _store: store,
        }),
    })
}

/// Ends what a device waits for once the run has failed: the host waits for the device, and would
/// not hear of it.
fn abort_with(backend: &Arc<Backend>, watch: &Arc<Watch>) -> Result<()> {
    let (backend, watch) = (Arc::downgrade(backend), Arc::downgrade(watch));
    let look = move || {
        while let (Some(backend), Some(watch)) = (backend.upgrade(), watch.upgrade()) {
            if watch.reason().is_some() {
                let _ = backend.abort(); // there is a reason already
                return;
            }
            drop((backend, watch));
            std::thread::sleep(LOOK);
        }
    };
    let started = std::thread::Builder::new().name("mmx-abort".into()).spawn(look);
    started.map(drop).map_err(|e| Error::failed(format!("starting a thread: {e}")))
}

impl Group {
    /// Number of this process, from 0.
    pub fn rank(&self) -> usize {
        self.inner.place.rank
    }

    /// Number of processes.
    pub fn size(&self) -> usize {
        self.inner.place.size
    }

    /// Number of this process among those of its machine, from 0.
    pub fn local_rank(&self) -> usize {
        self.inner.place.local_rank
    }

    /// A rank with its host, as sentences name it.
    pub fn name(&self, rank: usize) -> String {
        self.inner.watch.name(rank)
    }

    /// Every rank's host.
    pub fn hosts(&self) -> Vec<String> {
        self.inner.watch.hosts()
    }

    /// Sums a tensor over all ranks, in place: float32, bfloat16, float64 or int64.
    ///
    /// # Errors
    /// A rank that has failed, is gone, or does not come.
    pub fn all_reduce(&self, tensor: &mut Tensor) -> Result<()> {
        self.all_reduce_start(tensor)?.wait()
    }

    /// Begins to sum a tensor over all ranks, in place; nobody may touch it before
    /// [`Pending::wait`].
    ///
    /// # Errors
    /// See [`Group::all_reduce`].
    pub fn all_reduce_start(&self, tensor: &Tensor) -> Result<Pending> {
        self.start(Operation::AllReduce, tensor, None, 0, "a sum over all ranks")
    }

    /// Begins to sum a tensor over all ranks for `root`, in place; nobody may touch it before
    /// [`Pending::wait`], and on the other ranks it holds nothing of use afterwards.
    ///
    /// # Errors
    /// See [`Group::all_reduce`].
    pub fn reduce_start(&self, tensor: &Tensor, root: usize) -> Result<Pending> {
        self.start(Operation::Reduce, tensor, None, root, "a sum for one rank")
    }

    /// Copies `root`'s tensor to all ranks.
    ///
    /// # Errors
    /// See [`Group::all_reduce`].
    pub fn broadcast(&self, tensor: &mut Tensor, root: usize) -> Result<()> {
        self.start(Operation::Broadcast, tensor, None, root, "a copy to all ranks")?.wait()
    }

    /// Puts all ranks' inputs one after another into every rank's output.
    ///
    /// # Shapes
    /// `input` is flat, `output` `size` times as long; they share no memory.
    ///
    /// # Errors
    /// See [`Group::all_reduce`].
    pub fn all_gather(&self, output: &mut Tensor, input: &Tensor) -> Result<()> {
        self.parts(output, input)?;
        self.start(Operation::AllGather, output, Some(input), 0, "a gathering of all ranks")?.wait()
    }

    /// Sums the inputs over all ranks and puts the rank's own part of the sum into its output.
    ///
    /// # Shapes
    /// `output` is flat, `input` `size` times as long; they share no memory.
    ///
    /// # Errors
    /// See [`Group::all_reduce`].
    pub fn reduce_scatter(&self, output: &mut Tensor, input: &Tensor) -> Result<()> {
        self.parts(input, output)?;
        self.start(Operation::ReduceScatter, output, Some(input), 0, "a sum shared by all ranks")?
            .wait()
    }

    /// Waits until all ranks have come here, so long at most; `what` is the noun of what they wait
    /// for, as the error names it.
    ///
    /// # Errors
    /// Names the ranks that did not come, and what was waited for.
    pub fn barrier(&self, what: &str, limit: Duration) -> Result<()> {
        self.inner.watch.barrier(what, limit).map_err(Error::failed)
    }

    /// The reason why the run has ended, if a rank has failed: for work between operations.
    pub fn failed(&self) -> Option<String> {
        self.inner.watch.reason()
    }

    /// Tells all other ranks that this one cannot go on: their operations end with its sentence.
    pub fn fail(&self, error: &Error) {
        if self.failed().is_none() {
            self.inner.watch.fail(&error.to_string());
        }
    }

    fn parts(&self, whole: &Tensor, part: &Tensor) -> Result<()> {
        let (whole, part, size) = (whole.numel(), part.numel(), self.size());
        if whole != part * size {
            return Err(Error::failed(format!(
                "expected {size} parts of {part} elements, found {whole} elements"
            )));
        }
        Ok(())
    }

    fn start(
        &self,
        operation: Operation,
        output: &Tensor,
        input: Option<&Tensor>,
        root: usize,
        what: &'static str,
    ) -> Result<Pending> {
        let inner = &self.inner;
        if let Some(reason) = inner.watch.reason() {
            return Err(Error::failed(reason));
        }
        for tensor in [Some(output), input].into_iter().flatten() {
            if !tensor.is_contiguous() {
                return Err(Error::failed(format!("{what}: expected a contiguous tensor")));
            }
        }
        let (number, work) = {
            let _order = inner.order.lock().unwrap_or_else(PoisonError::into_inner);
            (inner.watch.begin(), inner.backend.start(operation, output, input, root))
        };
        let work = work.map_err(|reason| inner.fault(what, &reason))?;
        Ok(Pending { work, inner: inner.clone(), number, what })
    }
}

impl Pending {
    /// Waits until the operation has ended on this rank.
    ///
    /// # Errors
    /// See [`Group::all_reduce`].
    pub fn wait(self) -> Result<()> {
        let begun = Instant::now();
        let inner = &self.inner;
        loop {
            if self.work.wait(LOOK).map_err(|reason| inner.fault(self.what, &reason))? {
                return Ok(());
            }
            let reason = match inner.watch.reason() {
                None if begun.elapsed() < inner.limit => continue,
                None => inner.watch.late(self.number, inner.limit, self.what),
                Some(reason) => reason,
            };
            let _ = inner.backend.abort(); // there is a reason already
            return Err(Error::failed(reason));
        }
    }
}

impl Inner {
    /// The error of an operation that libtorch ended.
    fn fault(&self, what: &str, reason: &str) -> Error {
        Error::failed(self.watch.explain(&format!("{what}: {reason}")))
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if self.watch.reason().is_some() {
            self.backend.keep();
        }
    }
}

/// The address under which the other machines reach this one. Many machines know their own name as
/// a loopback address: there the master is reached from one, of no use to others, and the way to a
/// rank on another machine shows the right one.
fn outward(
    store: &Store,
    place: &Place,
    own: IpAddr,
    timeout: Duration,
) -> std::result::Result<IpAddr, String> {
    let Place { rank, size, local_size, .. } = *place;
    store.set(&format!("from/{rank}"), &own.to_string())?;
    if !own.is_loopback() || local_size == size {
        return Ok(own);
    }
    for other in 0..size {
        let text = store.get(&format!("from/{other}"), timeout).map_err(|_| {
            format!("rank {other} of {size} processes did not come within {} s", timeout.as_secs())
        })?;
        match text.parse::<IpAddr>() {
            Ok(address) if !address.is_loopback() => return own_address(&text, place.master.1),
            _ => {}
        }
    }
    Ok(own) // several machines that are one
}

/// The address from which the master is reached: what a machine's own name resolves to is often its
/// loopback address, which others cannot reach. Nothing is sent.
fn own_address(host: &str, port: u16) -> std::result::Result<IpAddr, String> {
    let found = (host, port).to_socket_addrs();
    let found = found.map_err(|e| format!("master address {host}: {e}"))?;
    let mut last = format!("master address {host}: no address of that name");
    for address in found {
        let any: IpAddr = match address {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let socket = UdpSocket::bind((any, 0));
        match socket.and_then(|s| s.connect(address).and_then(|()| s.local_addr())) {
            Ok(own) => return Ok(own.ip()),
            Err(error) => last = format!("master address {host}: {error}"),
        }
    }
    Err(last)
}

/// This machine's name.
fn host_name() -> String {
    let name = fs_err::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    match name.trim() {
        "" => std::env::var("HOSTNAME").unwrap_or_else(|_| "unknown".to_owned()),
        name => name.to_owned(),
    }
}
