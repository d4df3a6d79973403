//! The hub of the tests as a program, for other clients: `test_hub PORT`. It forgets everything when it ends.

#[path = "../tests/hub/mod.rs"]
mod hub;

fn main() {
    let port = std::env::args().nth(1).and_then(|port| port.parse().ok()).unwrap_or(0);
    let server = hub::Server::start(port);
    eprintln!("{}", server.address);
    loop {
        std::thread::park();
    }
}
