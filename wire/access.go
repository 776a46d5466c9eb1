package wire

import (
	"net/netip"
	"slices"
)

// AccessKey holds the Access of agents, and PeerAccessKey that of a peer.
const AccessKey = AgentsPrefix + "access"

// PeerAccessKey holds an Access while the named cluster is added here as a peer.
func PeerAccessKey(cluster string) string { return JoinedPrefix(cluster) + "access" }

// Access is how a cluster's API servers and its store are reached. It changes when an API
// server is added or deleted; join bundles and invites hold what it was when they were made.
type Access struct {
	// Servers are the URLs of the API servers; peers are not told.
	Servers []string `json:"servers,omitempty"`
	// Etcd are the URLs of the store, https://host:port.
	Etcd []string `json:"etcd,omitempty"`
	// Gossip are the host:port of the API servers in the pool that the reader takes part
	// in; empty if they take part in none.
	Gossip []string `json:"gossip,omitempty"`
	// Kubernetes are the addresses of the cluster's Kubernetes API servers, which are what
	// policies mean by kube-apiserver; peers are not told. Empty: it has none, and that is the
	// API servers above.
	Kubernetes []netip.Addr `json:"kubernetes,omitempty"`
}

// Equal reports whether two lead to the same servers and stores.
func (a Access) Equal(b Access) bool {
	return slices.Equal(a.Servers, b.Servers) && slices.Equal(a.Etcd, b.Etcd) && slices.Equal(a.Gossip, b.Gossip)
}

// And returns both lists of each kind, a's first.
func (a Access) And(b Access) Access {
	return Access{Servers: and(a.Servers, b.Servers), Etcd: and(a.Etcd, b.Etcd), Gossip: and(a.Gossip, b.Gossip)}
}

func and(a, b []string) []string {
	out := slices.Clone(a)
	for _, address := range b {
		if !slices.Contains(out, address) {
			out = append(out, address)
		}
	}
	return out
}

// Lacks returns what of the store's addresses is in a and not in b.
func (a Access) Lacks(b Access) (gone []string) {
	for _, address := range a.Etcd {
		if !slices.Contains(b.Etcd, address) {
			gone = append(gone, address)
		}
	}
	return gone
}

// Follow returns what to use from now on, of each of the lists, when the cluster named before
// until now and names now. What an operator has added by hand stays: that is what is used and
// was not named. Where an operator has chosen everything, such as the address of a load
// balancer, nothing changes.
func (a Access) Follow(before, now Access) Access {
	return Access{
		Servers: follow(a.Servers, before.Servers, now.Servers),
		Etcd:    follow(a.Etcd, before.Etcd, now.Etcd),
		Gossip:  follow(a.Gossip, before.Gossip, now.Gossip),
	}
}

func follow(used, before, now []string) []string {
	named := func(address string) bool {
		return slices.Contains(now, address) || slices.Contains(before, address)
	}
	if len(now) == 0 || len(used) > 0 && !slices.ContainsFunc(used, named) {
		return used
	}
	out := slices.Clone(now)
	for _, address := range used {
		if !named(address) {
			out = append(out, address)
		}
	}
	return out
}
