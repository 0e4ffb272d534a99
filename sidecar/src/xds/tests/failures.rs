//! What goes on while the control plane is away, frozen, or comes back.

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use super::*;

#[tokio::test]
async fn a_new_stream_is_told_what_is_held_and_everything_stays_in_force() {
    let mesh = Mesh::new();
    let mut server = ControlPlane::start(&mesh).await;
    let (control, handle) = mesh.sidecar(mesh.config(server.address));
    beside(control, async {
        let mut stream = server.stream().await;
        demand(&handle, "10.0.0.1:80");
        let everything = shop();
        tokio::select! {
            _ = snapshot(&handle, |now| now.outbound.contains_key("10.0.0.1:80") && now.inbound.len() == 1) => {}
            () = stream.serve(&everything) => panic!("the stream ended"),
        }
        let before = handle.snapshots.borrow().clone();
        drop(stream);

        let mut stream = server.stream().await;
        let first = stream.subscribes(Kind::Cluster).await;
        assert_eq!(first.resource_names_subscribe, [STOCK_CLUSTER]);
        let version = wire(&stock_cluster()).version;
        assert_eq!(first.initial_resource_versions, [(STOCK_CLUSTER.to_owned(), version)].into());
        let listeners = stream.subscribes(Kind::Listener).await;
        assert_eq!(listeners.resource_names_subscribe, ["10.0.0.1:80", INBOUND]);
        // By each name that it is known under: another control plane may not know under which one it was asked for.
        for name in ["10.0.0.1:80", STOCK, INBOUND] {
            assert!(listeners.initial_resource_versions.contains_key(name), "{listeners:?}");
        }
        assert_eq!(endpoints_of(&handle.snapshots.borrow(), "10.0.0.1:80"), Some(2));

        // The same content again is the same object.
        let nonce = stream.send(&[stock_cluster()], &[]).await;
        assert_eq!(stream.answers(&nonce).await, None);
        let now = handle.snapshots.borrow().clone();
        assert!(Arc::ptr_eq(&before.outbound[STOCK], &now.outbound[STOCK]));
    })
    .await;
}

#[tokio::test]
async fn a_frozen_connection_is_noticed() {
    let mesh = Mesh::new();
    let mut server = ControlPlane::start(&mesh).await;
    let (relay, frozen) = relay(server.address).await;
    let (control, handle) = mesh.sidecar(mesh.config(relay));
    beside(control, async {
        let mut stream = server.stream().await;
        stream.subscribes(Kind::Listener).await;
        stream.send(&[inbound_listener()], &[]).await;
        snapshot(&handle, |now| now.inbound.len() == 1).await;
        frozen.send_replace(true);
        let mut status = handle.status().await.expect("runs");
        while status.stream.open {
            tokio::time::sleep(MOMENT).await;
            status = handle.status().await.expect("runs");
        }
        assert!(status.stream.last_error.is_some());
        assert_eq!(handle.snapshots.borrow().inbound.len(), 1);
        frozen.send_replace(false);
        server.stream().await.subscribes(Kind::Listener).await;
    })
    .await;
}

/// Passes bytes on for as long as it is not frozen; what was connected then stays so for ever.
async fn relay(target: std::net::SocketAddr) -> (std::net::SocketAddr, watch::Sender<bool>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let address = listener.local_addr().expect("bound");
    let (frozen, state) = watch::channel(false);
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let mut state = state.clone();
            tokio::spawn(async move {
                drop(state.wait_for(|frozen| !frozen).await.expect("the test runs"));
                let mut server = TcpStream::connect(target).await.expect("connects");
                let freezes = async { drop(state.wait_for(|frozen| *frozen).await) };
                tokio::select! {
                    _ = copy_bidirectional(&mut client, &mut server) => return,
                    () = freezes => {}
                }
                // Open, and silent.
                std::future::pending::<()>().await;
            });
        }
    });
    (address, frozen)
}

#[tokio::test]
async fn a_restart_without_a_control_plane_serves_what_was_good() {
    let mesh = Mesh::new();
    let mut server = ControlPlane::start(&mesh).await;
    let address = server.address;
    let (control, handle) = mesh.sidecar(mesh.config(address));
    beside(control, async {
        let mut stream = server.stream().await;
        demand(&handle, "10.0.0.1:80");
        let everything = shop();
        tokio::select! {
            _ = snapshot(&handle, |now| now.outbound.contains_key("10.0.0.1:80") && now.inbound.len() == 1) => {}
            () = stream.serve(&everything) => panic!("the stream ended"),
        }
    })
    .await;
    drop(server);

    let (control, handle) = mesh.sidecar(mesh.config(address));
    beside(control, async {
        let now = snapshot(&handle, |now| now.outbound.contains_key("10.0.0.1:80")).await;
        assert_eq!(endpoints_of(&now, STOCK), Some(2));
        assert_eq!(now.inbound.len(), 1);
        assert!(now.tls.is_none(), "no key is on disk");
        let readiness = *handle.readiness.borrow();
        assert!(readiness.configuration && !readiness.certificate);
        assert!(handle.status().await.expect("runs").stream.from_disk);
    })
    .await;

    let file = mesh.path("state/configuration.snapshot");
    let content = std::fs::read(&file).expect("reads");
    assert!(!String::from_utf8_lossy(&content).contains("PRIVATE KEY"));
    for damage in [&content[..content.len() - 1], b"", &[content.as_slice(), b"x"].concat()] {
        std::fs::write(&file, damage).expect("writes");
        let (control, handle) = mesh.sidecar(mesh.config(address));
        beside(control, async {
            snapshot(&handle, |now| now.generation > 0).await;
            assert!(handle.snapshots.borrow().outbound.is_empty());
        })
        .await;
    }

    // Another workload's configuration is none of ours.
    std::fs::write(&file, &content).expect("writes");
    let mut config = mesh.config(address);
    config.workload.name = "cart-2".into();
    let (control, handle) = mesh.sidecar(config);
    beside(control, async {
        let now = snapshot(&handle, |now| now.generation > 0).await;
        assert!(now.outbound.is_empty());
    })
    .await;
}

#[tokio::test]
async fn an_unwritable_state_folder_takes_nothing_down() {
    let mesh = Mesh::new();
    let mut server = ControlPlane::start(&mesh).await;
    std::fs::write(mesh.path("state"), "a file where the folder should be").expect("writes");
    let (control, handle) = mesh.sidecar(mesh.config(server.address));
    beside(control, async {
        let mut stream = server.stream().await;
        stream.subscribes(Kind::Listener).await;
        stream.send(&[inbound_listener()], &[]).await;
        snapshot(&handle, |now| now.inbound.len() == 1).await;
    })
    .await;
}
