package meshagent

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"sigs.k8s.io/yaml"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/meshagent/reflector"
	"github.com/weft-mesh/weft/meshagent/tables"
	"github.com/weft-mesh/weft/wire"
)

// running is an agent of Kubernetes as far as its bundle goes.
type running struct {
	*testing.T
	*enrollment
	tables *tables.Tables
	bundle *api.JoinBundle
	ended  chan error

	mu    sync.Mutex      // guards what follows
	now   *api.JoinBundle // what the API server answers; nil: nothing
	asked int
	state reflector.State
}

func (r *running) set(do func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	do()
}

// registered writes the node's registration as the agent reads it; nil removes it.
func (r *running) registered(reg *wire.Registration) {
	txn := r.tables.DB.WriteTxn(r.tables.Nodes)
	tables.Put(txn, r.tables.Nodes, &tables.Node{Cluster: "east", Name: "n1", Registration: reg, State: &wire.NodeState{Name: "n1"}})
	txn.Commit()
}

// after lets time pass, and checks how often the API servers were asked since.
func (r *running) after(what string, d time.Duration, want int) {
	r.Helper()
	r.set(func() { r.asked = 0 })
	time.Sleep(d)
	synctest.Wait()
	r.set(func() {
		if r.asked != want {
			r.Errorf("%s: asked %d times, want %d", what, r.asked, want)
		}
	})
}

func (r *running) told() (text string) {
	for p := range tables.ProblemsOf(r.tables.DB.ReadTxn(), r.tables, wire.ProblemParts) {
		text += p.Error
	}
	return text
}

func rejoining(t *testing.T, f func(r *running, as wire.Registration)) {
	bundle := testBundle(t, "n1")
	synctest.Test(t, func(t *testing.T) {
		r := &running{T: t, tables: tables.New(), bundle: bundle, ended: make(chan error, 1), state: reflector.State{Connected: true, Synced: true}}
		r.enrollment = enrolling(t, func(api.Bootstrap, string, string) (*api.JoinBundle, error) {
			r.mu.Lock()
			defer r.mu.Unlock()
			if r.asked++; r.now == nil {
				return nil, errors.New("nobody answers")
			}
			return r.now, nil
		})
		put(t, r.enrollment.join, bundle)
		put(t, r.enrollment.token, "secret")
		put(t, r.enrollment.bootstrap, api.Bootstrap{Servers: []string{"https://192.0.2.1:7443"}, CA: bundle.CA})
		as := wire.Registration{Name: "n1", Addresses: bundle.Addresses, PodCIDRs: bundle.PodCIDRs}
		r.registered(&as)
		part := &rejoin{enrollment: r.enrollment, bundle: bundle, tables: r.tables, trouble: partTrouble(r.tables, "enrollment", "this node's join bundle is out of date", slog.New(slog.DiscardHandler)),
			states: []func() reflector.State{func() reflector.State {
				r.mu.Lock()
				defer r.mu.Unlock()
				return r.state
			}}}
		ctx, stop := context.WithCancel(t.Context())
		go func() { r.ended <- part.Run(ctx) }()
		f(r, as)
		stop()
		synctest.Wait()
	})
}

// A node that is registered in another way starts again as that; one that is not registered
// joins again.
func TestAnAgentThatRunsJoinsAgain(t *testing.T) {
	rejoining(t, func(r *running, as wire.Registration) {
		r.after("registered as its bundle says", time.Hour, 0)

		r.registered(nil)
		r.after("removed for a moment", rejoinAfter-rejoinTurn, 0)
		r.registered(&as)
		r.after("and back", time.Hour, 0)

		r.registered(nil)
		r.after("removed, and nobody answers", 10*time.Minute, 21)
		if text := r.told(); !strings.Contains(text, "it is not registered; another join bundle cannot be had: nobody answers") {
			r.Errorf("told %q", text)
		}
		r.set(func() { r.now = r.bundle })
		r.after("somebody answers", enrollRetryMost, 1)
		r.registered(&as) // as the answer was given
		r.after("it is back", time.Hour, 0)
		if text := r.told(); text != "" {
			r.Errorf("told %q", text)
		}

		moved := *r.bundle
		moved.Addresses = []netip.Addr{netip.MustParseAddr("192.0.2.7")}
		r.set(func() { r.now = &moved })
		as.Addresses = moved.Addresses
		r.registered(&as)
		r.after("it has moved", 2*rejoinAfter, 1)
		if err := <-r.ended; !errors.Is(err, errRejoined) {
			r.Errorf("it ended with %v", err)
		}
		var is api.JoinBundle
		text, err := os.ReadFile(r.enrollment.join)
		if err != nil || yaml.Unmarshal(text, &is) != nil || is.Addresses[0] != moved.Addresses[0] {
			r.Errorf("it starts again at %v, %v", is.Addresses, err)
		}
	})
}

// The store may have lost an agent's rights, or be another cluster's by now.
func TestAnAgentThatIsDeniedJoinsAgain(t *testing.T) {
	rejoining(t, func(r *running, as wire.Registration) {
		r.set(func() { r.now, r.state = r.bundle, reflector.State{Error: "permission denied", Denied: true} })
		r.after("denied", rejoinAfter+rejoinTurn, 1)
		r.set(func() { r.state = reflector.State{Connected: true} })
		r.after("its rights are back", time.Hour, 0)

		r.set(func() { r.state = reflector.State{Error: "no answer"} })
		r.after("the store is away", time.Minute, 0)

		other := testBundle(r.T, "n1")
		put(r.T, r.enrollment.bootstrap, api.Bootstrap{Servers: []string{"https://192.0.2.1:7443"}, CA: other.CA})
		r.set(func() { r.now = other })
		r.after("the cluster was rebuilt", 2*rejoinAfter, 1)
		if err := <-r.ended; !errors.Is(err, errRejoined) {
			r.Errorf("it ended with %v", err)
		}
	})
}

// What a token is not for is not started.
func TestAnAgentDoesNotBecomeAnotherNode(t *testing.T) {
	rejoining(t, func(r *running, _ wire.Registration) {
		other := *r.bundle
		other.Node = "n2"
		r.set(func() { r.now = &other })
		r.registered(nil)
		r.after("its token is another node's", rejoinAfter+rejoinTurn, 1)
		if text := r.told(); !strings.Contains(text, "this is node east/n2: restart the agent") {
			r.Errorf("told %q", text)
		}
	})
}
