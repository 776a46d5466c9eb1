package wire

import (
	"strings"
	"time"
)

// Keys about the cluster's API servers, which alone read and write them.
const (
	ServersPrefix = "weft/servers/"
	// LeaderKey holds the Leader. It has no lease: it is another server's to take once this
	// one's ServerAliveKey is gone.
	LeaderKey     = ServersPrefix + "leader"
	knownPrefix   = ServersPrefix + "known/"
	alivePrefix   = ServersPrefix + "alive/"
	serverProblem = ServersPrefix + "problems/"
	// ForgottenPrefix has a key for each node of an emptied store that does not come back.
	ForgottenPrefix = "weft/forgotten/"
)

// ForgottenKey exists if a node of an emptied store does not come back.
func ForgottenKey(node string) string { return ForgottenPrefix + node }

// ParseForgottenKey is the inverse of ForgottenKey.
func ParseForgottenKey(key string) (node string, ok bool) { return one(key, ForgottenPrefix) }

// ServerTTL is how long an API server's sign of life lasts. Shorter, and where there are
// several, a busy disk or machine costs a change of leader, after which every peer is read
// again; longer, and the controllers stand still for that long after a death.
const ServerTTL = 8 * time.Second

// Server is an API server of the cluster.
type Server struct {
	// ID is that of its data folder, so that a restarted server is the same.
	ID string `json:"id"`
	// Name is its address, unless it was given another one, and URL that of its API.
	Name    string    `json:"name"`
	URL     string    `json:"url"`
	Version string    `json:"version,omitempty"`
	Started time.Time `json:"started"`
	// Gossip and WANGossip are its host:port in the pools of the cluster's agents and
	// of all clusters' API servers; empty if it takes no part.
	Gossip    string `json:"gossip,omitempty"`
	WANGossip string `json:"wanGossip,omitempty"`
}

// Leader is the API server that runs the controllers.
type Leader struct {
	Server Server    `json:"server"`
	Since  time.Time `json:"since"`
}

// ServerKnownKey holds a Server. It outlives the server's death, but not its stop.
func ServerKnownKey(id string) string { return knownPrefix + id }

// ServerAliveKey holds the Server under its lease.
func ServerAliveKey(id string) string { return alivePrefix + id }

// ServerProblemsKey holds the Problems of the server's own process under its lease;
// absent if there are none.
func ServerProblemsKey(id string) string { return serverProblem + id }

// ServersEntry is the kind of a key below ServersPrefix.
type ServersEntry int

const (
	ServersEntryLeader ServersEntry = iota + 1
	ServersEntryKnown
	ServersEntryAlive
	ServersEntryProblems
)

// ParseServersKey parses any key below ServersPrefix. id is empty for the leader.
func ParseServersKey(key string) (id string, entry ServersEntry, ok bool) {
	if key == LeaderKey {
		return "", ServersEntryLeader, true
	}
	for prefix, entry := range map[string]ServersEntry{knownPrefix: ServersEntryKnown, alivePrefix: ServersEntryAlive, serverProblem: ServersEntryProblems} {
		if id, ok := strings.CutPrefix(key, prefix); ok && id != "" && !strings.Contains(id, "/") {
			return id, entry, true
		}
	}
	return "", 0, false
}
