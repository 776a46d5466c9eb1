package apiserver

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/wire"
)

var noon = time.Date(2026, 11, 28, 12, 0, 0, 0, time.UTC)

func ago(d time.Duration) time.Time { return noon.Add(-d) }

// heldAgainst is what a status of these nodes and peers says, line by line, what is
// only settling with a "settling: " before it.
func heldAgainst(nodes []api.NodeStatus, peers []api.PeerStatus) []string {
	r := reachOf("east", nodes, nil)
	all := append(nodeConcerns(nodes, r), peerConcerns("east", peers, r)...)
	concerns, settling := api.Judge(noon, append(all, r.concerns(nodes, peers)...))
	var lines []string
	for _, c := range concerns {
		lines = append(lines, c.String())
	}
	for _, c := range settling {
		lines = append(lines, "settling: "+c.String())
	}
	return lines
}

// node is a ready node with paths: "west/w1" is down, "west*2" is all two of west
// down, "west/w1<1388" is limited.
func node(name string, paths ...string) api.NodeStatus {
	n := api.NodeStatus{Name: name, State: api.NodeReady, LastSeen: ago(0)}
	for _, text := range paths {
		p := api.NodePath{Since: ago(12 * time.Second)}
		if cluster, probed, all := strings.Cut(text, "*"); all {
			p.Cluster = cluster
			fmt.Sscan(probed, &p.Probed)
		} else {
			p.Cluster, p.Node, _ = strings.Cut(text, "/")
			if other, limit, limited := strings.Cut(p.Node, "<"); limited {
				p.Node, p.Sends = other, 1480
				fmt.Sscan(limit, &p.Limit)
			}
		}
		n.Paths = append(n.Paths, p)
	}
	return n
}

func silent(n api.NodeStatus) api.NodeStatus {
	n.State, n.LastSeen = api.NodeSilent, ago(23*time.Second)
	n.Paths = nil
	return n
}

// joinedPeer is a peer with which all is well.
func joinedPeer(name string) api.PeerStatus {
	yes := true
	return api.PeerStatus{Name: name, Invited: true, Added: ago(time.Hour), AddedUs: &yes, AddedUsSince: ago(time.Hour), Control: api.ControlStatus{State: api.LinkUp, Since: ago(time.Hour)}}
}

func TestConcernsOfPathsAndPeers(t *testing.T) {
	change := func(p api.PeerStatus, f func(*api.PeerStatus)) api.PeerStatus {
		f(&p)
		return p
	}
	no := false
	west := joinedPeer("west")
	down := change(west, func(p *api.PeerStatus) {
		p.Control = api.ControlStatus{State: api.LinkDown, Since: ago(time.Minute), Error: "no answer"}
	})
	w1Dead := change(west, func(p *api.PeerStatus) {
		p.DeadNodes, p.DeadSince = []string{"w1"}, map[string]time.Time{"w1": ago(4 * time.Minute)}
	})
	for name, c := range map[string]struct {
		nodes []api.NodeStatus
		peers []api.PeerStatus
		want  []string
	}{
		"all is well": {[]api.NodeStatus{node("n1"), node("n2")}, []api.PeerStatus{west}, nil},

		"the tunnels to a cluster are cut": {
			[]api.NodeStatus{node("n1", "west*2"), node("n2", "west*2")}, []api.PeerStatus{west, joinedPeer("north")},
			[]string{"east → west: 0 of 4 paths up (12 s); is UDP 51871–51872 open between the nodes?"},
		},
		"a cluster is gone, its control link too": {
			[]api.NodeStatus{node("n1", "west*2"), node("n2", "west*2")}, []api.PeerStatus{down},
			[]string{
				"east → west: 0 of 4 paths up (12 s); is west running, and the network to it up?",
				"control link to west is down: no answer (60 s); is its API server running, and TCP 2379 to it open? Traffic continues with the last known state",
			},
		},
		"what a silent node said last does not count": {
			[]api.NodeStatus{node("n1", "west*2"), silent(node("n2"))}, []api.PeerStatus{west},
			[]string{
				"agent on n2 has not answered for 23 s (its traffic continues): start it, or `weft node delete n2` if the machine is gone",
				"east → west: 0 of 2 paths up (12 s); is UDP 51871–51872 open between the nodes?",
			},
		},
		"one node reaches nothing of a cluster": {
			[]api.NodeStatus{node("n1", "west*2"), node("n2")}, []api.PeerStatus{west},
			[]string{"east/n1 → west: 0 of 2 paths up (12 s); is UDP 51871–51872 open between n1 and the nodes of west?"},
		},
		"one way between two nodes": {
			[]api.NodeStatus{node("n1", "west/w1"), node("n2")}, []api.PeerStatus{west},
			[]string{"path east/n1 → west/w1 is down (12 s): is UDP 51871–51872 open between the two?"},
		},
		"nobody reaches a node": {
			[]api.NodeStatus{node("n1", "west/w1"), node("n2", "west/w1")}, []api.PeerStatus{west},
			[]string{"no node of east reaches west/w1 (12 s): is UDP 51871–51872 open between the nodes of east and west/w1?"},
		},
		"a node of a peer is dead": {
			[]api.NodeStatus{node("n1", "west/w1"), node("n2", "west/w1")}, []api.PeerStatus{w1Dead},
			[]string{"west/w1 is down: neither its agent nor its tunnels have answered for 4 min; ask its operator to start it, or to delete it there"},
		},
		"an agent of a peer is dead": {
			[]api.NodeStatus{node("n1"), node("n2")}, []api.PeerStatus{w1Dead},
			[]string{"west's agent on w1 does not answer (4 min): ask its operator to start it; its traffic continues"},
		},
		"many paths are one line": {
			[]api.NodeStatus{node("n1", "west/a", "west/b", "west/c", "west/d", "west/e"), node("n2")}, []api.PeerStatus{west},
			[]string{"east → west: 5 paths are down, east/n1 → west/a first (12 s); is UDP 51871–51872 open between the nodes?"},
		},
		"two nodes of the own cluster": {
			[]api.NodeStatus{node("n1", "east*1"), node("n2", "east*1")}, nil,
			[]string{"between the nodes of east: 0 of 2 paths up (12 s); is UDP 51871–51872 open between the nodes?"},
		},
		"two of three nodes of the own cluster, said once": {
			[]api.NodeStatus{node("n1", "east/n2"), node("n2", "east/n1"), node("n3")}, nil,
			[]string{"path east/n1 → east/n2 is down (12 s): is UDP 51871–51872 open between the two?"},
		},
		"one of three is cut off": {
			[]api.NodeStatus{node("n1", "east/n2"), node("n2", "east*2"), node("n3", "east/n2")}, nil,
			[]string{"no node of east reaches east/n2 (12 s): is UDP 51871–51872 open between the nodes of east and east/n2?"},
		},
		"a node of the own cluster is dead": {
			[]api.NodeStatus{node("n1", "east*1"), silent(node("n2"))}, nil,
			[]string{"node n2 is down: neither its agent nor its tunnels have answered for 23 s; start it, or `weft node delete n2` if the machine is gone"},
		},
		"an underlay that swallows large packets": {
			[]api.NodeStatus{node("n1", "west/w1<1388"), node("n2")}, []api.PeerStatus{west},
			[]string{"path east/n1 → west/w1 carries 1,388 bytes at most, the tunnel sends 1,480 (12 s): lower the MTU of both nodes' devices to 1,388 and restart their agents"},
		},
		"one that is too small for any tunnel": {
			[]api.NodeStatus{node("n1", "west/w1<988")}, []api.PeerStatus{west},
			[]string{"path east/n1 → west/w1 carries 988 bytes at most, the tunnel sends 1,480 (12 s): raise the MTU of the network between them to 1,360 or more"},
		},
		"many limited paths are one line": {
			[]api.NodeStatus{node("n1", "west/a<1404", "west/b<1388", "west/c<1404"), node("n2", "west/a<1404", "west/b<1404")}, []api.PeerStatus{west},
			[]string{"5 paths from east to west swallow packets that the tunnels send, east/n1 → west/b those over 1,388 of 1,480 bytes (12 s): lower the MTU of the nodes' devices to 1,388 and restart their agents"},
		},

		"we have added, and did not invite": {
			[]api.NodeStatus{node("n1", "west*2")}, []api.PeerStatus{change(west, func(p *api.PeerStatus) { p.Invited, p.AddedUs = false, nil })},
			[]string{"west was added here, but has not added east (60 min): give it the file of `weft peer invite west`"},
		},
		"we have added and invited, and it has not added us": {
			[]api.NodeStatus{node("n1")}, []api.PeerStatus{change(west, func(p *api.PeerStatus) { p.AddedUs, p.AddedUsSince = &no, ago(time.Minute) })},
			[]string{"west was added here, but has not added east (60 s): give it the file of `weft peer invite west`"},
		},
		"it is about to add us": {
			[]api.NodeStatus{node("n1")}, []api.PeerStatus{change(west, func(p *api.PeerStatus) { p.AddedUs, p.AddedUsSince = &no, ago(time.Second) })},
			[]string{"settling: west was added here, but has not added east (1 s): give it the file of `weft peer invite west`"},
		},
		"a peer that does not say whom it has added": {
			[]api.NodeStatus{node("n1")}, []api.PeerStatus{change(west, func(p *api.PeerStatus) { p.AddedUs = nil })}, nil,
		},
		"we have invited, and not added": {
			[]api.NodeStatus{node("n1")}, []api.PeerStatus{{Name: "west", Invited: true, Control: api.ControlStatus{State: api.LinkInvited, Since: ago(time.Hour)}}},
			[]string{"west was invited but has not been added here (60 min): add the file of its `weft peer invite east`, or `weft peer remove west`"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(c.want, heldAgainst(c.nodes, c.peers)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestWhyABackendCannotBeReached(t *testing.T) {
	r := reachOf("east", []api.NodeStatus{node("n1", "west*2", "north/a"), node("n2", "west*2", "north/a", "north/b"), silent(node("n3"))}, nil)
	for where, want := range map[end]string{
		{"west", "w1"}:  "no path to west is up",
		{"west", ""}:    "no path to west is up",
		{"north", "a"}:  "no path to north/a is up",
		{"north", "b"}:  "", // n1 reaches it
		{"north", ""}:   "",
		{"east", "n1"}:  "",
		{"east", "n3"}:  "", // its agent is silent, and its tunnels answer
		{"south", "s1"}: "",
	} {
		if got := r.why(where.cluster, where.node); got != want {
			t.Errorf("%v: %q, want %q", where, got, want)
		}
	}
	if got := reachOf("east", nil, nil).why("west", "w1"); got != "" {
		t.Errorf("nobody has said anything: %q", got)
	}
}

func TestStatusShowsPathsThatANodeSaysAreDown(t *testing.T) {
	p := start(t, config(t))
	n1 := p.agent(join(t, p.admin(), 1))
	down := wire.NodePath{Cluster: "west", Probed: 2, Since: time.Now().Add(-time.Minute).UTC().Truncate(time.Second)}
	mark := store.Put(wire.NodeSyncedKey("n1"), []byte("start"))
	if err := store.Write(t.Context(), n1, mark, store.Put(wire.NodePathsKey("n1"), wire.Marshal(wire.NodePaths{Paths: []wire.NodePath{down}}))); err != nil {
		t.Fatal(err)
	}
	shows := func(want ...api.NodePath) func() error {
		return func() error {
			s, err := p.admin().Status(t.Context())
			if err == nil && !slices.Equal(s.Nodes[0].Paths, want) {
				err = fmt.Errorf("got %+v", s.Nodes[0].Paths)
			}
			return err
		}
	}
	eventually(t, "the path is shown", shows(api.NodePath(down)))
	if err := store.Write(t.Context(), n1, store.Delete(mark.Key)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "what a silent agent said last is not shown", shows())
	if err := store.Write(t.Context(), n1, mark); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it counts again", shows(api.NodePath(down)))
	if err := store.Write(t.Context(), n1, store.Delete(wire.NodePathsKey("n1"))); err != nil {
		t.Fatal(err)
	}
	eventually(t, "what is over is not shown", shows())
}
