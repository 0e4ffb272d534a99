//! Which names may be the mesh's.
//!
//! In: a name. Out: whether the control plane is asked for it. Most names of the Internet have more labels than the mesh's
//! short ones, so that they never cost a question to the control plane.

/// Whose a name may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scope {
    /// The mesh's, or nobody's.
    Mesh,
    /// The mesh's in the first place; else the business of other name servers.
    Perhaps,
    /// Nobody's: below the mesh's domain, and of a form that it does not have. Search domains make many of these.
    Nobody,
    /// That of other name servers.
    Outside,
}

/// Whose `name` may be, where the names of Services end in `svc.<cluster domain>`.
///
/// The mesh's names are `<service>`, `<service>.<namespace>`, both of which others may have too, and
/// `<service>.<namespace>.svc` and `<service>.<namespace>.svc.<cluster domain>`, before which the name of an endpoint may
/// stand. Before each of them `_<port>._<protocol>` may stand.
pub(super) fn scope(name: &str, cluster_domain: &str) -> Scope {
    let (is_port, host) = match split_port(name) {
        Some(host) => (true, host),
        None => (false, name),
    };
    let below = host
        .strip_suffix(cluster_domain)
        .and_then(|host| host.strip_suffix(".svc."))
        .or_else(|| host.strip_suffix(".svc"));
    match (below.map(labels), labels(host)) {
        (_, 1 | 2) if !host.is_empty() && host != "localhost" => Scope::Perhaps,
        // A port of another protocol than TCP is unknown to the mesh.
        (Some(2 | 3), _) if is_port => Scope::Perhaps,
        (Some(2 | 3), _) => Scope::Mesh,
        (Some(_), _) if is_port => Scope::Outside,
        (Some(_), _) => Scope::Nobody,
        (None, _) => Scope::Outside,
    }
}

/// What stands behind `_<port>._<protocol>.`
fn split_port(name: &str) -> Option<&str> {
    let (_, rest) = name.strip_prefix('_')?.split_once("._")?;
    rest.split_once('.').map(|(_, host)| host)
}

fn labels(name: &str) -> usize {
    name.split('.').count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_that_may_be_the_meshs_are_asked_for() {
        for (name, expected) in [
            ("cart", Scope::Perhaps),
            ("cart.shop", Scope::Perhaps),
            ("example.com", Scope::Perhaps),
            ("_http._tcp.cart.shop", Scope::Perhaps),
            ("cart.shop.svc", Scope::Mesh),
            ("cart.shop.svc.cluster.local", Scope::Mesh),
            ("db-0.db.shop.svc.cluster.local", Scope::Mesh),
            ("_http._tcp.cart.shop.svc.cluster.local", Scope::Perhaps),
            ("cart.shop.shop.svc.cluster.local", Scope::Mesh),
            ("www.example.com.shop.svc.cluster.local", Scope::Nobody),
            ("shop.svc.cluster.local", Scope::Nobody),
            ("shop.svc", Scope::Perhaps),
            ("_a._b.c.example.com.shop.svc.cluster.local", Scope::Outside),
            ("www.example.com", Scope::Outside),
            ("cart.svc.cluster.local.example.com", Scope::Outside),
            ("cart.shop.cluster.local", Scope::Outside),
            ("svc.cluster.local", Scope::Outside),
            ("1.0.0.127.in-addr.arpa", Scope::Outside),
            ("_dmarc.example.com", Scope::Outside),
            ("localhost", Scope::Outside),
            ("", Scope::Outside),
        ] {
            assert_eq!(scope(name, "cluster.local"), expected, "{name}");
        }
        assert_eq!(scope("cart.shop.svc.mesh.test", "mesh.test"), Scope::Mesh);
        assert_eq!(scope("cart.shop.svc.cluster.local", "mesh.test"), Scope::Outside);
    }
}
