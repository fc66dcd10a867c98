//! Network namespaces for tests, with their own ports and abstract sockets (network_namespaces(7)).

use std::{io, net::UdpSocket, os::fd::AsRawFd as _};

/// `SIOCSIFFLAGS` of linux/sockios.h.
const SET_FLAGS: u16 = 0x8914;

/// Moves the calling thread and its future child processes to a new network namespace with a
/// loopback device.
///
/// # Errors
/// Without `CAP_SYS_ADMIN`, or on a kernel without network namespaces.
pub fn enter() -> io::Result<()> {
    // SAFETY: takes flags and no memory; other threads of this process are not affected.
    if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // `struct ifreq` of linux/if.h: 16 bytes of name, then flags. The device is initially down.
    let mut request = [0_u8; 40];
    request[..2].copy_from_slice(b"lo");
    request[16..18].copy_from_slice(&(libc::IFF_UP as libc::c_short).to_ne_bytes());
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    // SAFETY: an open socket, and a request as large as `struct ifreq` that outlives the call.
    if unsafe { libc::ioctl(socket.as_raw_fd(), SET_FLAGS.into(), request.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{
        net::TcpListener,
        os::{linux::net::SocketAddrExt as _, unix::net::SocketAddr, unix::net::UnixListener},
        thread,
    };

    use super::*;
    use crate::or_skip;

    #[test]
    fn abstract_socket_names_and_ports_are_per_namespace() {
        or_skip!(thread::spawn(enter).join().unwrap());
        let bind = || UnixListener::bind_addr(&SocketAddr::from_abstract_name("wattcast-test-netns").unwrap());
        let entered = move || {
            enter().unwrap();
            let (socket, port) = (bind().unwrap(), TcpListener::bind("127.0.0.1:9").unwrap());
            std::net::TcpStream::connect("127.0.0.1:9").unwrap();
            assert!(bind().is_err(), "once per namespace");
            (socket, port)
        };
        let all = [thread::spawn(entered), thread::spawn(entered)].map(|thread| thread.join().unwrap());
        drop(all);
    }
}
