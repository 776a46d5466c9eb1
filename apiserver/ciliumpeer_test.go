package apiserver

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/weft-mesh/weft/api"
)

// Of a peer that runs Cilium the status says that nothing is sent to it, and nothing that
// could not be otherwise: that it is half joined, or that no path is up.
func TestWhatStatusSaysOfACiliumPeer(t *testing.T) {
	now := time.Now()
	nodes := []api.NodeStatus{{Cluster: "east", Name: "e1", State: api.NodeReady, Paths: []api.NodePath{{Cluster: "west", Probed: 2, Since: now}}}}
	const next = "run Weft on its nodes and add it again, or `weft peer remove west`"
	const bare = "west runs Cilium, so there are no tunnels to its nodes: everything to its pods is dropped, and its backends are not used (60 s); " + next
	for _, c := range []struct {
		name string
		peer api.PeerStatus
		want []string
	}{
		{"added and up", api.PeerStatus{Added: now.Add(-time.Minute), Control: api.ControlStatus{State: api.LinkUp}}, []string{bare}},
		{"added both ways", api.PeerStatus{Added: now.Add(-time.Minute), Invited: true, Control: api.ControlStatus{State: api.LinkUp}}, []string{bare}},
		{"it only reads us", api.PeerStatus{Invited: true, Control: api.ControlStatus{State: api.LinkInvited, Since: now.Add(-time.Hour)}}, nil},
		{"down", api.PeerStatus{Added: now.Add(-time.Minute), Control: api.ControlStatus{State: api.LinkDown, Since: now.Add(-time.Minute), Error: "refused"}},
			[]string{"control link to west is down: refused (60 s); is its API server running, and TCP 2379 to it open? Traffic continues with the last known state", bare}},
	} {
		c.peer.Name, c.peer.Cilium = "west", true
		peers := []api.PeerStatus{c.peer}
		r := reachOf("east", nodes, peers)
		concerns, settling := api.Judge(now, append(peerConcerns("east", peers, r), r.concerns(nodes, peers)...))
		var got []string
		for _, x := range append(concerns, settling...) {
			got = append(got, x.String())
		}
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", c.name, diff)
		}
		if got, want := r.why("west", "worker"), "west runs Cilium, so there is no tunnel to its nodes"; got != want {
			t.Errorf("%s: its backends are left out because %q", c.name, got)
		}
	}
}
