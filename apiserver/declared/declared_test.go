package declared

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// site is a cluster: its peers, its Kubernetes and its Joiner. A certificate is the number of
// the invite; parting voids those given out before.
type site struct {
	name  string
	world map[string]*site

	mu      sync.Mutex // guards what follows
	peers   map[string]*wire.Peer
	given   map[string]uint64 // the invite that a peer of ours must have to read us
	held    map[string]uint64 // the one that we have of a peer
	since   map[string]time.Time
	next    uint64
	token   string
	away    bool
	shown   map[string]Status
	asked   int
	refuses error // to add
	joiner  *Joiner
}

func (s *site) lock() func() { s.mu.Lock(); return s.mu.Unlock }

func (s *site) set(do func()) {
	defer s.lock()()
	do()
}

// Records implements Peering.
func (s *site) Records() ([]wire.Peer, bool) {
	defer s.lock()()
	var out []wire.Peer
	for _, p := range s.peers {
		out = append(out, *p)
	}
	return out, true
}

// Status implements Peering.
func (s *site) Status() (out []api.PeerStatus) {
	s.mu.Lock()
	names, held := []string{}, map[string]uint64{}
	for name, p := range s.peers {
		if p.Connected {
			names, held[name] = append(names, name), s.held[name]
		}
	}
	s.mu.Unlock()
	for _, name := range names {
		other := s.world[name]
		other.mu.Lock()
		up := !other.away && other.given[s.name] != 0 && held[name] >= other.given[s.name]
		p := other.peers[s.name]
		added := p != nil && p.Connected
		other.mu.Unlock()
		status := api.PeerStatus{Name: name, Control: api.ControlStatus{State: api.LinkUp}}
		s.mu.Lock()
		if !up {
			if s.since[name].IsZero() {
				s.since[name] = time.Now()
			}
			status.Control = api.ControlStatus{State: api.LinkDown, NotUpSince: s.since[name], Error: "permission denied"}
		} else {
			delete(s.since, name)
			status.AddedUs = &added
		}
		s.mu.Unlock()
		out = append(out, status)
	}
	return out
}

// EndsSoon implements Peering.
func (s *site) EndsSoon(string, time.Time) bool { return false }

// InviteDeclared implements Peering.
func (s *site) InviteDeclared(_ context.Context, cluster string) (*api.Invite, error) {
	defer s.lock()()
	p := s.peers[cluster]
	if p == nil {
		p = &wire.Peer{Name: cluster, Declared: true}
		s.peers[cluster] = p
	}
	if !p.Declared {
		return nil, api.Conflict("", "joined by command")
	}
	s.next++
	if p.Invited = true; s.given[cluster] == 0 {
		s.given[cluster] = s.next
	}
	return &api.Invite{Cluster: s.name, ID: uint32(s.next)}, nil
}

// AddDeclared implements Peering.
func (s *site) AddDeclared(_ context.Context, in *api.Invite) error {
	defer s.lock()()
	if s.refuses != nil {
		return s.refuses
	}
	p := s.peers[in.Cluster]
	if p == nil {
		p = &wire.Peer{Name: in.Cluster, Declared: true}
		s.peers[in.Cluster] = p
	}
	p.Connected, s.held[in.Cluster] = true, uint64(in.ID)
	return nil
}

// RemoveDeclared implements Peering.
func (s *site) RemoveDeclared(_ context.Context, cluster string) error {
	defer s.lock()()
	if p := s.peers[cluster]; p != nil && p.Declared {
		delete(s.peers, cluster)
		delete(s.given, cluster)
	}
	return nil
}

// Declared implements Peering.
func (s *site) Declared(context.Context) ([]string, error) { return nil, nil }

// Token implements Kubernetes.
func (s *site) Token(_ context.Context, secret string) ([]byte, error) {
	defer s.lock()()
	if s.token == "" {
		return nil, errors.New("there is no Secret " + secret)
	}
	return []byte(s.token), nil
}

// ShowPeer implements Kubernetes.
func (s *site) ShowPeer(_ context.Context, name, _ string, status Status) error {
	defer s.lock()()
	s.shown[name] = status
	return nil
}

// Ask implements Caller: the first server is the name of a site, the second, if any, somebody
// in between, who has a channel of its own to each.
func (s *site) Ask(ctx context.Context, servers []string, make func([]byte) api.JoinRequest) (*api.JoinAnswer, []byte, error) {
	s.mu.Lock()
	s.asked++
	s.mu.Unlock()
	other := s.world[servers[0]]
	other.mu.Lock()
	away := other.away
	other.mu.Unlock()
	if away {
		return nil, nil, errors.New("connection refused")
	}
	mine, theirs := []byte("channel"), []byte("channel")
	if len(servers) > 1 {
		theirs = []byte("another")
	}
	answer, err := other.joiner.Answer(ctx, make(mine), theirs)
	return answer, mine, err
}

const token = "0123456789abcdef0123456789abcdef"

// mesh runs f with the clusters east and west.
func mesh(t *testing.T, f func(t *testing.T, east, west *site)) {
	synctest.Test(t, func(t *testing.T) {
		world := map[string]*site{}
		ctx, cancel := context.WithCancel(t.Context())
		var all sync.WaitGroup
		for _, name := range []string{"east", "west"} {
			s := &site{name: name, world: world, peers: map[string]*wire.Peer{}, given: map[string]uint64{}, held: map[string]uint64{}, since: map[string]time.Time{}, shown: map[string]Status{}, token: token}
			s.joiner = New(Config{Cluster: name, Peering: s, Kubernetes: s, Caller: s, Log: slog.New(slog.DiscardHandler)})
			world[name] = s
		}
		world["nobody"] = &site{away: true}
		for _, s := range []*site{world["east"], world["west"]} {
			all.Go(func() { _ = s.joiner.Run(ctx) })
		}
		f(t, world["east"], world["west"])
		cancel()
		all.Wait()
	})
}

func (s *site) want(names ...string) {
	var objects []Object
	for _, name := range names {
		objects = append(objects, Object{Name: name, UID: name + time.Now().String(), Servers: []string{name}, Secret: "mesh"})
	}
	s.joiner.Want(objects)
}

// is checks the conditions that are shown, as STATUS/REASON of Joined, Mutual and Reachable.
func (s *site) is(t *testing.T, when, of, want string) {
	t.Helper()
	defer s.lock()()
	var got []string
	for _, c := range s.shown[of].Conditions {
		got = append(got, c.Status+"/"+c.Reason)
	}
	if strings.Join(got, " ") != want {
		t.Errorf("%s: %s's object %s is %s, want %s", when, s.name, of, strings.Join(got, " "), want)
	}
}

const joined = "True/Joined True/Mutual True/Up"

func after(d time.Duration) {
	time.Sleep(d) // in virtual time
	synctest.Wait()
}

func TestTwoObjectsJoin(t *testing.T) {
	for _, first := range []string{"east", "west"} {
		mesh(t, func(t *testing.T, east, west *site) {
			a, b := east, west
			if first == "west" {
				a, b = west, east
			}
			a.want(b.name)
			after(10 * time.Second)
			a.is(t, "alone", b.name, "False/NotAccepted Unknown/NotKnown False/NotJoined")
			if rows, ok := a.joiner.Problems(); !ok || len(rows) != 1 {
				t.Errorf("it says %v, %v", rows, ok)
			}
			b.want(a.name)
			after(40 * time.Second)
			a.is(t, "both", b.name, joined)
			b.is(t, "both", a.name, joined)
			if rows, _ := a.joiner.Problems(); len(rows) != 0 {
				t.Errorf("it says %v", rows)
			}
			asked := a.asked + b.asked
			a.joiner.Want([]Object{{Name: b.name, UID: "another", Servers: []string{b.name}, Secret: "mesh"}})
			after(time.Hour)
			if n := a.asked + b.asked; n != asked {
				t.Errorf("they are joined, and ask %d times", n-asked)
			}
		})
	}
}

// One object is deleted and comes back: what the other cluster holds is void, and replaced.
func TestPartedAndJoinedAgain(t *testing.T) {
	mesh(t, func(t *testing.T, east, west *site) {
		east.want("west")
		west.want("east")
		after(time.Minute)
		for range 3 {
			east.joiner.Want(nil)
			after(10 * time.Second)
			if len(east.peers) != 0 {
				t.Fatalf("east has %v", east.peers)
			}
			after(time.Minute)
			west.is(t, "parted", "east", "True/Joined Unknown/NotKnown False/Down")
			east.want("west")
			after(10 * time.Second)
			east.is(t, "again", "west", joined)
			west.is(t, "again", "east", joined)
		}
		// In quick succession, too, and while the other one is away.
		west.set(func() { west.away = true })
		east.joiner.Want(nil)
		after(10 * time.Second)
		east.want("west")
		after(10 * time.Second)
		east.is(t, "away", "west", "False/Unreachable Unknown/NotKnown False/NotJoined")
		west.set(func() { west.away = false })
		after(lastRetry + 10*time.Second)
		east.is(t, "back", "west", joined)
		west.is(t, "back", "east", joined)
	})
}

// What was joined by command is nobody else's.
func TestJoinedByCommand(t *testing.T) {
	mesh(t, func(t *testing.T, east, west *site) {
		for _, s := range []*site{east, west} {
			s.set(func() {
				other := map[string]string{"east": "west", "west": "east"}[s.name]
				s.peers[other] = &wire.Peer{Name: other, Connected: true}
				s.given[other], s.held[other] = 1, 1
			})
		}
		east.want("west")
		west.want()
		after(time.Minute)
		east.is(t, "with an object", "west", "True/JoinedByCommand True/Mutual True/Up")
		if rows, _ := east.joiner.Problems(); len(rows) != 1 {
			t.Errorf("the conflict is not told: %v", rows)
		}
		east.want()
		after(time.Minute)
		if east.peers["west"] == nil || west.peers["east"] == nil || east.asked != 0 {
			t.Errorf("parted, or asked %d times", east.asked)
		}
	})
}

// Nothing is removed before it is known which objects there are.
func TestNothingIsKnownYet(t *testing.T) {
	mesh(t, func(t *testing.T, east, _ *site) {
		east.set(func() { east.peers["west"] = &wire.Peer{Name: "west", Declared: true, Connected: true} })
		after(time.Hour)
		if east.peers["west"] == nil {
			t.Error("removed")
		}
	})
}

func TestWhoHasNoTokenIsRefused(t *testing.T) {
	for name, c := range map[string]struct {
		broken  func(east, west *site) // their locks are held
		servers []string
		absent  bool // west has no object
		want    string
		given   bool
	}{
		"no secret":          {broken: func(e, _ *site) { e.token = "" }, want: "TokenUnread"},
		"a short token":      {broken: func(e, w *site) { e.token, w.token = "short", "short" }, want: "TokenTooShort"},
		"another token":      {broken: func(e, _ *site) { e.token = strings.Repeat("x", 32) }, want: "NotAccepted"},
		"no object there":    {absent: true, want: "NotAccepted"},
		"in between":         {servers: []string{"west", "by somebody"}, want: "NotAccepted"},
		"it cannot be added": {broken: func(e, _ *site) { e.refuses = errors.New("its pod CIDR overlaps") }, want: "NotAdded", given: true},
	} {
		t.Run(name, func(t *testing.T) {
			mesh(t, func(t *testing.T, east, west *site) {
				if c.broken != nil {
					east.set(func() { west.set(func() { c.broken(east, west) }) })
				}
				if c.servers == nil {
					c.servers = []string{"west"}
				}
				if !c.absent {
					west.joiner.Want([]Object{{Name: "east", UID: "1", Servers: []string{"nobody"}, Secret: "mesh"}})
				}
				east.joiner.Want([]Object{{Name: "west", UID: "1", Servers: c.servers, Secret: "mesh"}})
				after(time.Minute)
				east.is(t, name, "west", "False/"+c.want+" Unknown/NotKnown False/NotJoined")
				if given := west.given["east"] != 0; given != c.given {
					t.Errorf("an invite was given: %v", given)
				}
			})
		})
	}
}

// An object that changes is acted on at once, whatever was tried before.
func TestACorrectedObject(t *testing.T) {
	mesh(t, func(t *testing.T, east, west *site) {
		west.want("east")
		east.joiner.Want([]Object{{Name: "west", UID: "1", Servers: []string{"nobody"}, Secret: "mesh"}})
		after(time.Hour)
		east.is(t, "wrong", "west", "False/Unreachable Unknown/NotKnown False/NotJoined")
		east.joiner.Want([]Object{{Name: "west", UID: "1", Servers: []string{"west"}, Secret: "mesh"}})
		after(5 * time.Second)
		east.is(t, "corrected", "west", joined)
	})
}

func TestProofs(t *testing.T) {
	ask := api.AskProof([]byte(token), []byte("c"), "east", "west")
	for name, other := range map[string][]byte{
		"the answer's": api.AnswerProof([]byte(token), []byte("c"), "east", "west"), "turned round": api.AskProof([]byte(token), []byte("c"), "west", "east"),
		"another channel": api.AskProof([]byte(token), []byte("d"), "east", "west"), "shifted": api.AskProof([]byte(token), []byte("c"), "eas", "twest"),
	} {
		if slices.Equal(ask, other) {
			t.Errorf("%s is the same", name)
		}
	}
}
