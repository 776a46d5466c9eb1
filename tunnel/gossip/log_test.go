package gossip

import (
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/memberlist"
)

// What an operator can act on is logged; how gossip works goes to debug, whatever its
// level in memberlist.
func TestMemberlistLog(t *testing.T) {
	for _, tt := range []struct {
		line    string
		level   string // empty: not shown
		refused uint64
	}{
		{"[WARN] memberlist: Refuting a dead message (from: east/agent/n1)", "", 0},
		{"[WARN] memberlist: Refuting a suspect message (from: east/agent/n1)", "", 0},
		{"[ERR] memberlist: Failed fallback TCP ping: timeout 1s: dial tcp 192.0.2.1:7946: i/o timeout", "", 0},
		{"[ERR] memberlist: Push/Pull with west/apiserver/a failed: dial tcp 192.0.2.1:7946: connect: connection refused", "", 0},
		{"[ERR] memberlist: Failed to send gossip to 192.0.2.1:7946: sendto: network is unreachable", "", 0},
		{"[INFO] memberlist: Suspect west/agent/n1 has failed, no acks received", "", 0},
		{"[DEBUG] memberlist: Initiating push/pull sync with: west/agent/n1 192.0.2.1:7946", "", 0},
		{"[ERR] memberlist: Conflicting address for east/agent/n1. Mine: 192.0.2.1:7946 Theirs: 192.0.2.2:7946 Old state: 0", "", 0}, // NotifyConflict says it
		{`[WARN] memberlist: ignoring alive message for 'north/agent/n1': member "north/agent/n1" is of cluster "north", which is not a peer`, "INFO", 0},
		{"[WARN] memberlist: Was able to connect to east/agent/n1 over TCP but UDP probes failed, network may be misconfigured", "", 0},
		{"[ERR] memberlist: Error reading UDP packet: bad file descriptor", "WARN", 0},
		{"[ERR] memberlist: Decrypt packet failed: No installed keys could decrypt the message from=192.0.2.3:7946", "", 1},
		{`[ERR] memberlist: discarding packet with unacceptable label "memberlist: ignoring alive message for ": from: from=192.0.2.3:7946`, "", 1},
		{"", "", 0},
	} {
		var out strings.Builder
		var refused atomic.Uint64
		w := lineWriter{slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{Level: slog.LevelInfo})), &refused}
		if n, err := w.Write([]byte(tt.line + "\n")); n != len(tt.line)+1 || err != nil {
			t.Errorf("%q: %d, %v", tt.line, n, err)
		}
		if got := out.String(); tt.level == "" && got != "" || tt.level != "" && !strings.Contains(got, "level="+tt.level+" ") {
			t.Errorf("%q is logged as %q, want level %q", tt.line, got, tt.level)
		}
		if refused.Load() != tt.refused {
			t.Errorf("%q: %d refused, want %d", tt.line, refused.Load(), tt.refused)
		}
	}
}

// The round trip of a member is forgotten when it leaves, also if an answer comes late:
// members come and go for as long as the pool exists.
func TestRoundTripsAreForgottenWithTheirMember(t *testing.T) {
	p, err := New(Config{
		Self: Member{Cluster: "east", Role: Agent, Name: "n1", Addr: netip.MustParseAddrPort("127.0.0.1:7946")}, Label: "test",
		Speed: VeryFast, Keys: [][]byte{make([]byte, 32)}, Clusters: []string{"east"},
	})
	if err != nil {
		t.Fatal(err)
	}
	d := &delegate{p}
	n := &memberlist.Node{Name: "east/agent/n2", Addr: net.IPv4(127, 0, 0, 1), Port: 7947, Meta: []byte(`{"cluster":"east","role":"agent","name":"n2"}`)}
	m, err := member(n)
	if err != nil {
		t.Fatal(err)
	}
	d.NotifyJoin(n)
	d.NotifyPingComplete(n, time.Second, nil)
	if p.RTT(m) != time.Second {
		t.Errorf("measured %v", p.RTT(m))
	}
	d.NotifyLeave(n)
	d.NotifyPingComplete(n, time.Second, nil)
	if len(p.rtt) > 0 {
		t.Errorf("of a member that left, %v is kept", p.rtt)
	}
}
