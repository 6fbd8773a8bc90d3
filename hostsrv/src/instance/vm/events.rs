//! Owns libvirt's event side: the process-wide event loop on a thread of its own, and the subscriptions of one
//! connection. An event carries no meaning here: it rings, and whoever listens looks at the world again.
#![allow(unsafe_code)]
// virt 0.4 has no safe names for the event loop and for callbacks. Each block says why it is sound.

use crate::instance::Bell;
use std::ffi::{CStr, c_int, c_void};
use std::sync::OnceLock;
use tokio::sync::watch;
use virt::connect::Connect;
use virt_sys as sys;

/// What an event wakes.
#[derive(Clone)]
pub struct Rings {
    /// The reconciler.
    pub bell: Bell,
    /// Counts; calls of this driver that wait for a domain's state to change follow it.
    pub changes: watch::Sender<u64>,
    /// The thread that keeps the connection; told of its end.
    pub link: std::sync::mpsc::SyncSender<()>,
}

impl Rings {
    pub fn ring(&self) {
        self.changes.send_modify(|count| *count = count.wrapping_add(1));
        self.bell.notify_one();
    }
}

/// Starts the event loop, once in a process. libvirt wants it to be there before the first connection.
pub fn run_loop() {
    static LOOP: OnceLock<()> = OnceLock::new();
    LOOP.get_or_init(|| {
        virt::error::clear_error_callback();
        // SAFETY: takes no arguments; the OnceLock makes it the first and only registration of this process.
        if unsafe { sys::virEventRegisterDefaultImpl() } != 0 {
            tracing::error!(
                "libvirt's event loop cannot be registered: changes of VMs are seen only at resync"
            );
            return;
        }
        let run = || {
            loop {
                // SAFETY: takes no arguments; only this thread ever runs the loop, as libvirt demands.
                if unsafe { sys::virEventRunDefaultImpl() } < 0 {
                    tracing::warn!("libvirt's event loop: {}", virt::error::Error::last_error());
                    std::thread::sleep(std::time::Duration::from_secs(1));
                }
            }
        };
        if let Err(error) = std::thread::Builder::new().name("libvirt-events".into()).spawn(run) {
            tracing::error!("libvirt's event loop has no thread: {error}");
        }
    });
}

/// The callbacks of one connection, undone by [`unsubscribe`].
pub struct Subscription(Vec<c_int>);

/// Lets lifecycle changes, I/O errors, devices that a guest has let go of, memory that it has taken or given back, guest agents
/// that come and go, and the connection's end, ring.
pub fn subscribe(connection: &Connect, rings: &Rings) -> Result<Subscription, virt::error::Error> {
    let mut ids = Vec::new();
    // SAFETY (all transmutes): libvirt passes every domain callback through one generic type and calls it back with
    // the arguments of the event's own type, which is what these functions have.
    let lifecycle: sys::virConnectDomainEventGenericCallback =
        unsafe { std::mem::transmute::<sys::virConnectDomainEventCallback, _>(Some(on_lifecycle)) };
    let io_error: sys::virConnectDomainEventGenericCallback =
        unsafe { std::mem::transmute::<sys::virConnectDomainEventIOErrorCallback, _>(Some(on_io_error)) };
    let removed: sys::virConnectDomainEventGenericCallback = unsafe {
        std::mem::transmute::<sys::virConnectDomainEventDeviceRemovedCallback, _>(Some(on_device_removed))
    };
    let agent: sys::virConnectDomainEventGenericCallback =
        unsafe { std::mem::transmute::<sys::virConnectDomainEventAgentLifecycleCallback, _>(Some(on_agent)) };
    let memory: sys::virConnectDomainEventGenericCallback = unsafe {
        std::mem::transmute::<sys::virConnectDomainEventMemoryDeviceSizeChangeCallback, _>(Some(on_memory))
    };
    for (event, callback) in [
        (sys::VIR_DOMAIN_EVENT_ID_LIFECYCLE, lifecycle),
        (sys::VIR_DOMAIN_EVENT_ID_IO_ERROR, io_error),
        (sys::VIR_DOMAIN_EVENT_ID_DEVICE_REMOVED, removed),
        (sys::VIR_DOMAIN_EVENT_ID_AGENT_LIFECYCLE, agent),
        (sys::VIR_DOMAIN_EVENT_ID_MEMORY_DEVICE_SIZE_CHANGE, memory),
    ] {
        let opaque = Box::into_raw(Box::new(rings.clone())).cast::<c_void>();
        // SAFETY: the connection is open; `opaque` is a leaked box of Rings that libvirt hands to the callback and
        // gives back exactly once, to `free`, when the callback is removed. On failure it never calls `free`.
        let id = unsafe {
            sys::virConnectDomainEventRegisterAny(
                connection.as_ptr(),
                std::ptr::null_mut(),
                event as c_int,
                callback,
                opaque,
                Some(free),
            )
        };
        if id < 0 {
            let error = virt::error::Error::last_error();
            // SAFETY: libvirt did not take the box, see above.
            unsafe { free(opaque) };
            unsubscribe(connection, &Subscription(ids));
            return Err(error);
        }
        ids.push(id);
    }
    let opaque = Box::into_raw(Box::new(rings.clone())).cast::<c_void>();
    // SAFETY: as above.
    let done = unsafe {
        sys::virConnectRegisterCloseCallback(connection.as_ptr(), Some(on_close), opaque, Some(free))
    };
    if done != 0 {
        let error = virt::error::Error::last_error();
        // SAFETY: as above.
        unsafe { free(opaque) };
        unsubscribe(connection, &Subscription(ids));
        return Err(error);
    }
    Ok(Subscription(ids))
}

/// Ends the callbacks, without which libvirt would keep the connection open behind our back. Refusals are of no
/// interest: the connection is usually dead.
pub fn unsubscribe(connection: &Connect, subscription: &Subscription) {
    for id in &subscription.0 {
        // SAFETY: the connection has not been closed yet; an unknown id is an error and nothing more.
        unsafe { sys::virConnectDomainEventDeregisterAny(connection.as_ptr(), *id) };
    }
    // SAFETY: as above; without a registration it is an error and nothing more.
    unsafe { sys::virConnectUnregisterCloseCallback(connection.as_ptr(), Some(on_close)) };
}

unsafe extern "C" fn free(opaque: *mut c_void) {
    // SAFETY: `opaque` came from Box::into_raw of a Rings in `subscribe`, and libvirt gives it back once.
    drop(unsafe { Box::from_raw(opaque.cast::<Rings>()) });
}

unsafe extern "C" fn on_lifecycle(
    _connection: sys::virConnectPtr,
    domain: sys::virDomainPtr,
    _event: c_int,
    _detail: c_int,
    opaque: *mut c_void,
) -> c_int {
    // SAFETY: libvirt passes a live domain and our own opaque for as long as the callback is registered.
    unsafe { ring_for(domain, opaque) };
    0
}

unsafe extern "C" fn on_io_error(
    _connection: sys::virConnectPtr,
    domain: sys::virDomainPtr,
    _source: *const std::ffi::c_char,
    _device: *const std::ffi::c_char,
    _action: c_int,
    opaque: *mut c_void,
) {
    // SAFETY: as in `on_lifecycle`.
    unsafe { ring_for(domain, opaque) };
}

unsafe extern "C" fn on_device_removed(
    _connection: sys::virConnectPtr,
    domain: sys::virDomainPtr,
    _alias: *const std::ffi::c_char,
    opaque: *mut c_void,
) {
    // SAFETY: as in `on_lifecycle`.
    unsafe { ring_for(domain, opaque) };
}

unsafe extern "C" fn on_agent(
    _connection: sys::virConnectPtr,
    domain: sys::virDomainPtr,
    _state: c_int,
    _reason: c_int,
    opaque: *mut c_void,
) {
    // SAFETY: as in `on_lifecycle`.
    unsafe { ring_for(domain, opaque) };
}

unsafe extern "C" fn on_memory(
    _connection: sys::virConnectPtr,
    domain: sys::virDomainPtr,
    _alias: *const std::ffi::c_char,
    _size: std::ffi::c_ulonglong,
    opaque: *mut c_void,
) {
    // SAFETY: as in `on_lifecycle`.
    unsafe { ring_for(domain, opaque) };
}

unsafe extern "C" fn on_close(_connection: sys::virConnectPtr, _reason: c_int, opaque: *mut c_void) {
    // SAFETY: our own opaque, alive while registered.
    let rings = unsafe { &*opaque.cast::<Rings>() };
    // A full channel means that the thread is already told.
    let _told = rings.link.try_send(());
    rings.ring();
}

/// Rings for a domain of ours; others' domains are none of our business.
unsafe fn ring_for(domain: sys::virDomainPtr, opaque: *mut c_void) {
    // SAFETY: the caller passes what libvirt passed: a live domain, whose name lives as long as it does, and a Rings.
    let (name, rings) = unsafe { (sys::virDomainGetName(domain), &*opaque.cast::<Rings>()) };
    if name.is_null() {
        return;
    }
    // SAFETY: a NUL-terminated string owned by the domain.
    if unsafe { CStr::from_ptr(name) }.to_bytes().starts_with(b"amphi-") {
        rings.ring();
    }
}
