package api

import (
	"net/netip"
	"time"
)

// States of an API server.
const (
	ServerLeads   = "leads"   // it runs the controllers
	ServerReady   = "ready"   // it would, if the one that leads ended
	ServerMissing = "missing" // it gives no sign of life, and was not stopped on purpose
	ServerStopped = "stopped" // it was stopped, and its member of the store is missed
	ServerJoining = "joining" // it receives a copy of the store
	ServerInvited = "invited" // it was added, and has never joined
)

// States of an API server's member of the embedded store.
const (
	StoreUp   = "up"
	StoreDown = "down"
)

// ServerStatus is one API server of the cluster.
type ServerStatus struct {
	Cluster string `json:"cluster"`
	Name    string `json:"name"` // its address, unless it was given a name
	ID      string `json:"id,omitempty"`
	URL     string `json:"url,omitempty"`
	State   string `json:"state"` // one of the constants above
	// Since is when the state began, as far as the server that answers knows: it leads,
	// was started, or is missing since then. AgeSeconds is how long ago that was.
	Since      time.Time `json:"since,omitzero"`
	AgeSeconds float64   `json:"ageSeconds"`
	Version    string    `json:"version,omitempty"`
	// Answers is set for the server that answers.
	Answers bool `json:"answers,omitempty"`
	// Store is the state of its member of the store: StoreUp or StoreDown, empty if it has
	// no vote yet or the cluster uses an existing etcd. What follows describes the member.
	Store string `json:"store,omitempty"`
	// StoreLeads says that the other members follow it.
	StoreLeads bool `json:"storeLeads,omitempty"`
	// StoreAddress is where the other members reach it, host:port.
	StoreAddress string `json:"storeAddress,omitempty"`
	// StoreVersion and StoreBytes are empty if it does not answer.
	StoreVersion string `json:"storeVersion,omitempty"`
	StoreBytes   int64  `json:"storeBytes,omitempty"`
}

// ServerList answers GET /v1/servers.
type ServerList struct {
	Cluster string         `json:"cluster"`
	Servers []ServerStatus `json:"servers"`
	// Quorum is nil if the cluster uses an existing etcd.
	Quorum *Quorum `json:"quorum,omitempty"`
}

// Quorum counts the votes in the embedded store.
type Quorum struct {
	// Members have a vote; Up of them answer; Needed must, or nothing can be written.
	Members int `json:"members"`
	Up      int `json:"up"`
	Needed  int `json:"needed"`
}

// ServerRequest asks for another API server.
type ServerRequest struct {
	Name string `json:"name"`
	// Address is the machine's. Port is where its etcd listens for those of the other API
	// servers; 0 means the port of the API server that answers.
	Address netip.Addr `json:"address"`
	Port    uint16     `json:"port,omitempty"`
}

// ServerBundleKind is the kind of a ServerBundle.
const ServerBundleKind = "ServerBundle"

// ServerBundle is everything that another API server needs to join, kept by it as a 0600
// file: it holds the key of the certificate authority.
type ServerBundle struct {
	Kind      string `json:"kind"`
	Cluster   string `json:"cluster"`
	ClusterID uint32 `json:"clusterID"`
	Name      string `json:"name"`
	// Address is where the other members of the store reach it, host:port.
	Address string `json:"address"`
	// Token makes bundles of the same name differ: only the latest is good, until Expires.
	Token   string    `json:"token"`
	Expires time.Time `json:"expires"`
	// EtcdEndpoints are those of the members that there are.
	EtcdEndpoints []string `json:"etcdEndpoints"`
	CA            string   `json:"ca"`    // PEM bundle of the cluster
	CAKey         string   `json:"caKey"` // its key
}

// String hides what is secret.
func (ServerBundle) String() string { return "[join bundle of an API server]" }

// GoString hides what is secret.
func (b ServerBundle) GoString() string { return b.String() }

// ServerChange says what became of an API server.
type ServerChange struct {
	Cluster string `json:"cluster"`
	Name    string `json:"name"`
	Action  string `json:"action"`
	// Quorum is that afterwards; nil if the cluster uses an existing etcd.
	Quorum *Quorum `json:"quorum,omitempty"`
}
