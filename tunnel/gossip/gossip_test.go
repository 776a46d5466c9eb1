package gossip

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/memberlist"
	"go.uber.org/goleak"

	"github.com/weft-mesh/weft/internal/loopbacktest"
)

// memberVariable turns this test binary into a member that never says goodbye:
// its own address and a seed's.
const memberVariable = "WEFT_TEST_GOSSIP_MEMBER"

func TestMain(m *testing.M) {
	if text, ok := os.LookupEnv(memberVariable); ok {
		self, seed, _ := strings.Cut(text, " ")
		p, err := New(Config{
			Self:  Member{Cluster: "west", Role: APIServer, Name: "a", Addr: netip.MustParseAddrPort(self)},
			Label: "test", Speed: VeryFast, Keys: [][]byte{key(1)}, Clusters: []string{"east", "west"},
		})
		if err != nil {
			panic(err)
		}
		p.SetSeeds([]netip.AddrPort{netip.MustParseAddrPort(seed)})
		panic(p.Run(context.Background()))
	}
	goleak.VerifyTestMain(m)
}

func TestKilledMemberIsSoonDead(t *testing.T) {
	both := []string{"east", "west"}
	one := start(t, Config{Self: Member{Cluster: "east", Name: "1"}, Clusters: both, Keys: [][]byte{key(1)}})
	two := start(t, Config{Self: Member{Cluster: "east", Name: "2"}, Clusters: both, Keys: [][]byte{key(1)}})
	two.SetSeeds(seeds(one))
	const victim = "west/apiserver/a"
	var took []time.Duration
	for range 5 {
		process := exec.Command(os.Args[0])
		process.Env = append(os.Environ(), fmt.Sprintf("%s=%v %v", memberVariable, here(t), one.cfg.Self.Addr))
		if err := process.Start(); err != nil {
			t.Fatal(err)
		}
		known := func(r *running) bool { return slices.Contains(r.names(), victim) }
		eventually(t, "both know the third", func() bool { return known(one) && known(two) })
		process.Process.Kill()
		process.Wait()
		killed := time.Now()
		eventually(t, "both hold it for dead", func() bool { return !known(one) && !known(two) })
		took = append(took, time.Since(killed))
	}
	t.Logf("dead for both after %v", took)
	if slices.Min(took) > 3*time.Second { // below 0.5 s, but for a busy machine
		t.Errorf("dead only after %v", took)
	}
	if !one.told(Dead, victim) || one.told(Left, victim) {
		t.Error("a killed member did not say goodbye")
	}
}

// here returns an address that no other member has.
func here(t *testing.T) netip.AddrPort { return netip.AddrPortFrom(loopbacktest.Addr(t), 17946) }

// running is a pool with its goroutine and its events and reports.
type running struct {
	*Pool
	stop func() error

	mu      sync.Mutex
	events  []Event  // guarded by mu
	reports []Report // guarded by mu
}

func key(b byte) []byte { return bytes.Repeat([]byte{b}, 32) }

func start(t *testing.T, cfg Config) *running {
	t.Helper()
	r := &running{}
	cfg.Speed, cfg.Label = VeryFast, "test"
	cfg.Self.Role = APIServer
	cfg.Self.Addr = here(t)
	cfg.Log = slog.New(slog.DiscardHandler)
	cfg.Sign, cfg.Verify = signer(cfg.Self.Cluster), verify
	cfg.OnEvent = func(e Event) { r.mu.Lock(); r.events = append(r.events, e); r.mu.Unlock() }
	cfg.OnReport = func(e Report) { r.mu.Lock(); r.reports = append(r.reports, e); r.mu.Unlock() }
	p, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	r.Pool = p
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	r.stop = sync.OnceValue(func() error { cancel(); return <-done })
	t.Cleanup(func() {
		if err := r.stop(); err != nil {
			t.Error(err)
		}
	})
	return r
}

// signer signs like a cluster; verify checks it.
func signer(cluster string) func([]byte) ([]byte, error) {
	return func(text []byte) ([]byte, error) {
		sum := sha256.Sum256(append([]byte("key of "+cluster), text...))
		return sum[:], nil
	}
}

func verify(cluster string, text, signature []byte) error {
	if want, _ := signer(cluster)(text); !bytes.Equal(want, signature) {
		return errors.New("signed by somebody else")
	}
	return nil
}

func signed(by string, r Report) Report {
	r.Signature, _ = signer(by)(r.text())
	return r
}

func (r *running) names() (names []string) {
	for _, m := range r.Members() {
		names = append(names, m.String())
	}
	return names
}

func (r *running) told(kind Kind, name string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.ContainsFunc(r.events, func(e Event) bool { return e.Kind == kind && e.Member.String() == name })
}

func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !holds() {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
		<-tick.C
	}
}

func seeds(pools ...*running) (addrs []netip.AddrPort) {
	for _, p := range pools {
		addrs = append(addrs, p.cfg.Self.Addr)
	}
	return addrs
}

// A member that is gone has left if it said so last; otherwise it is dead.
func TestGoodbyeIsNotADeath(t *testing.T) {
	for leaving, want := range map[bool]Kind{false: Dead, true: Left} {
		west := alone(t, "west")
		gone := &memberlist.Node{Name: west.cfg.Self.String(), Addr: west.cfg.Self.Addr.Addr().AsSlice(), Port: west.cfg.Self.Addr.Port(), Meta: west.NodeMeta(memberlist.MetaMaxSize)}
		var told []Kind
		east := alone(t, "east")
		east.cfg.OnEvent = func(e Event) { told = append(told, e.Kind) }
		east.NotifyJoin(gone)
		west.leaving.Store(leaving)
		gone.Meta = west.NodeMeta(memberlist.MetaMaxSize)
		east.NotifyUpdate(gone)
		east.NotifyLeave(gone)
		if !slices.Equal(told, []Kind{Alive, want}) {
			t.Errorf("leaving %v: told %v", leaving, told)
		}
	}
}

// What a member says reaches everybody who pings it, up to MaxSaid bytes and every time,
// but only from members that are let in.
func TestWhoPingsAMemberHearsWhatItSays(t *testing.T) {
	both := []string{"east", "west"}
	var mu sync.Mutex
	text, heard := []byte("one"), map[string]string{}
	east := start(t, Config{Self: Member{Cluster: "east", Name: "a"}, Clusters: both, Keys: [][]byte{key(1)}, OnSaid: func(m Member, said []byte) {
		mu.Lock()
		defer mu.Unlock()
		heard[m.String()] = string(said)
	}})
	west := start(t, Config{Self: Member{Cluster: "west", Name: "a"}, Clusters: both, Keys: [][]byte{key(1)}, Say: func() []byte {
		mu.Lock()
		defer mu.Unlock()
		return text
	}})
	quiet := start(t, Config{Self: Member{Cluster: "west", Name: "quiet"}, Clusters: both, Keys: [][]byte{key(1)}})
	west.SetSeeds(seeds(east))
	quiet.SetSeeds(seeds(east))
	hears := func(want string) func() bool {
		return func() bool {
			mu.Lock()
			defer mu.Unlock()
			return heard["west/apiserver/a"] == want
		}
	}
	eventually(t, "east hears west", hears("one"))
	mu.Lock()
	text = bytes.Repeat([]byte("x"), MaxSaid+1)
	mu.Unlock()
	eventually(t, "east hears what is new, cut off", hears(strings.Repeat("x", MaxSaid)))
	mu.Lock()
	if len(heard) != 1 {
		t.Errorf("heard of %v", heard)
	}
	clear(heard)
	mu.Unlock()
	east.SetClusters([]string{"east"})
	said := alone(t, "west")
	node := &memberlist.Node{Name: said.cfg.Self.String(), Addr: said.cfg.Self.Addr.Addr().AsSlice(), Port: said.cfg.Self.Addr.Port(), Meta: said.NodeMeta(memberlist.MetaMaxSize)}
	(&delegate{east.Pool}).NotifyPingComplete(node, time.Millisecond, []byte("lie"))
	mu.Lock()
	defer mu.Unlock()
	if heard[node.Name] == "lie" {
		t.Error("heard a member of a cluster that is not let in")
	}
}

func TestMembersFindOneAnotherAndSayGoodbye(t *testing.T) {
	both := []string{"east", "west"}
	// On a busy machine a member may now and then look dead, or its goodbye be missed,
	// but not every time.
	meet := func() (heardGoodbye bool) {
		east := start(t, Config{Self: Member{Cluster: "east", Name: "a"}, Clusters: both, Keys: [][]byte{key(1), key(2)}})
		west := start(t, Config{Self: Member{Cluster: "west", Name: "a"}, Clusters: both, Keys: [][]byte{key(2), key(1)}})
		west.SetSeeds(seeds(east, west))
		eventually(t, "east sees west", func() bool { return slices.Equal(east.names(), []string{"west/apiserver/a"}) })
		eventually(t, "west sees east", func() bool { return slices.Equal(west.names(), []string{"east/apiserver/a"}) })
		eventually(t, "east knows the round trip to west", func() bool { return east.RTT(west.cfg.Self) > 0 })
		if err := west.stop(); err != nil {
			t.Fatal(err)
		}
		eventually(t, "west is gone", func() bool { return len(east.names()) == 0 })
		return east.told(Left, "west/apiserver/a") && !east.told(Dead, "west/apiserver/a")
	}
	for range 5 {
		if meet() {
			return
		}
	}
	t.Error("who says goodbye counts as dead")
}

func TestReportsReachEverybodyAndOnlyNewerOnesCount(t *testing.T) {
	three := []string{"east", "west", "north"}
	var pools []*running
	for i, name := range three {
		keys := [][]byte{key(byte(i + 1))}
		for j := range three {
			if j != i {
				keys = append(keys, key(byte(j+1)))
			}
		}
		pools = append(pools, start(t, Config{Self: Member{Cluster: name, Name: "a"}, Clusters: three, Keys: keys}))
	}
	// A chain: east's reports can reach north only through west.
	pools[1].SetSeeds(seeds(pools[0]))
	pools[2].SetSeeds(seeds(pools[1]))
	eventually(t, "all know all", func() bool {
		return !slices.ContainsFunc(pools, func(p *running) bool { return len(p.Members()) != 2 })
	})
	dead := func(p *running) string {
		for _, r := range p.Reports() {
			if r.Cluster == "east" {
				return strings.Join(r.Dead, ",")
			}
		}
		return "nothing"
	}
	set := func(dead ...string) {
		t.Helper()
		if err := pools[0].SetDead(dead); err != nil {
			t.Fatal(err)
		}
	}
	set("n2", "n1", "n2")
	eventually(t, "north hears of east's dead nodes", func() bool { return dead(pools[2]) == "n1,n2" })
	set()
	eventually(t, "north hears that they are back", func() bool { return dead(pools[2]) == "" })
	minuteAgo := uint64(time.Now().Add(-time.Minute).UnixNano())
	old := signed("east", Report{Cluster: "east", Reporter: "a", Sequence: minuteAgo, Dead: []string{"n9"}})
	(&delegate{pools[2].Pool}).accept(old)
	if got := dead(pools[2]); got != "" {
		t.Errorf("an older report replaced a newer one: dead %q", got)
	}
	// More than fits into a packet is sent with the exchange of full state.
	var many []string
	for i := range 500 {
		many = append(many, fmt.Sprintf("node-%03d", i))
	}
	set(many...)
	late := start(t, Config{Self: Member{Cluster: "north", Name: "late"}, Clusters: three, Keys: [][]byte{key(3), key(1), key(2)}})
	late.SetSeeds(seeds(pools[0]))
	eventually(t, "a newcomer hears of 500 dead nodes", func() bool { return dead(late) == strings.Join(many, ",") })
}

func TestStrangersAreRefusedAndCounted(t *testing.T) {
	t.Run("another key", func(t *testing.T) {
		east := start(t, Config{Self: Member{Cluster: "east", Name: "a"}, Clusters: []string{"east", "west"}, Keys: [][]byte{key(1)}})
		west := start(t, Config{Self: Member{Cluster: "west", Name: "a"}, Clusters: []string{"east", "west"}, Keys: [][]byte{key(2)}})
		west.SetSeeds(seeds(east))
		eventually(t, "east counts a refusal", func() bool { return east.Refused() > 0 })
		if names := east.names(); len(names) > 0 {
			t.Errorf("let in: %v", names)
		}
		// Once the operators have exchanged keys it works without a restart.
		if err := east.SetKeys([][]byte{key(1), key(2)}); err != nil {
			t.Fatal(err)
		}
		if err := west.SetKeys([][]byte{key(2), key(1)}); err != nil {
			t.Fatal(err)
		}
		eventually(t, "they meet", func() bool { return len(east.Members()) == 1 && len(west.Members()) == 1 })
	})
	t.Run("a cluster that is no peer", func(t *testing.T) {
		east := start(t, Config{Self: Member{Cluster: "east", Name: "a"}, Clusters: []string{"east"}, Keys: [][]byte{key(1)}})
		south := start(t, Config{Self: Member{Cluster: "south", Name: "a"}, Clusters: []string{"east", "south"}, Keys: [][]byte{key(1)}})
		south.SetSeeds(seeds(east))
		eventually(t, "east counts a refusal", func() bool { return east.Refused() > 0 })
		if names := east.names(); len(names) > 0 {
			t.Errorf("let in: %v", names)
		}
		(&delegate{east.Pool}).accept(signed("south", Report{Cluster: "south", Reporter: "a", Sequence: uint64(time.Now().UnixNano())}))
		if len(east.Reports()) > 0 {
			t.Error("a report of a stranger is kept")
		}
		east.SetClusters([]string{"south"})
		eventually(t, "let in as a peer", func() bool { return len(east.Members()) == 1 })
	})
	t.Run("a name that is not its own", func(t *testing.T) {
		node := &memberlist.Node{
			Name: "east/agent/a", Addr: net.IPv4(127, 0, 0, 1),
			Meta: []byte(`{"cluster":"west","role":"agent","name":"a"}`),
		}
		if _, err := member(node); err == nil {
			t.Error("a member that says two things of itself is let in")
		}
	})
}

func TestConfigNamesEveryMistake(t *testing.T) {
	err := Config{Self: Member{Cluster: "ea/st", Name: "a", Role: Agent}, Keys: [][]byte{{1, 2}}, Speed: "slow"}.Validate()
	for _, want := range []string{"no slash", "give the address and port", "2 bytes", "not in the list of clusters", `speed "slow"`} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("no word of %q in: %v", want, err)
		}
	}
	if _, err := New(Config{}); err == nil || errors.Unwrap(err) == nil {
		t.Errorf("an empty configuration: %v", err)
	}
}
