package leader_test

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/apiserver/endpoints"
	"github.com/weft-mesh/weft/apiserver/export"
	"github.com/weft-mesh/weft/apiserver/identities"
	"github.com/weft-mesh/weft/apiserver/leader"
	"github.com/weft-mesh/weft/apiserver/problems"
	"github.com/weft-mesh/weft/apiserver/registry"
	"github.com/weft-mesh/weft/apiserver/state"
	"github.com/weft-mesh/weft/identity"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/store/storetest"
	"github.com/weft-mesh/weft/wire"
)

// controllers are a server with the real ones: endpoints, export, and what they report.
type controllers struct {
	link  *storetest.Link
	e     *leader.Election
	board *problems.Board
	end   func() // without a word
	stop  func()
}

func serve(t *testing.T, s *storetest.Etcd, id string) *controllers {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	link := storetest.NewLink(s)
	own := state.New(link.Root(), log)
	lead := func(ctx context.Context, s store.Store) error {
		first, last := identity.Split255.Range(1)
		alloc, err := identities.NewAllocator(s, first, last)
		if err != nil {
			return err
		}
		derive := endpoints.New(endpoints.Config{State: own, Store: s, Allocator: alloc, Cluster: "east", Log: log})
		tell := export.New(export.Config{State: own, Store: s, Cluster: wire.Cluster{Name: "east", ID: 1, MaxConnectedClusters: 255, PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")}}, Log: log})
		g, ctx := errgroup.WithContext(ctx)
		g.Go(func() error { return derive.Run(ctx) })
		g.Go(func() error { return tell.Run(ctx) })
		g.Go(func() error {
			return store.Persist(ctx, log, "publishing", func(ctx context.Context) error {
				return problems.Publish(ctx, s, derive, endpoints.ProblemPrefixes()...)
			})
		})
		return g.Wait()
	}
	var mu sync.Mutex
	stopped := false
	c := &controllers{link: link, board: problems.NewBoard(link.Root(), log), e: leader.New(leader.Config{
		Store: link.Root(), Self: wire.Server{ID: id, Name: id, URL: "https://" + id}, Lead: lead, Log: log,
		Stopped: func() bool { mu.Lock(); defer mu.Unlock(); return stopped },
	})}
	ctx, cancel := context.WithCancel(t.Context())
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return c.e.Run(ctx) })
	g.Go(func() error { return c.board.Run(ctx) })
	g.Go(func() error { return own.Run(ctx) })
	c.end = sync.OnceFunc(func() {
		cancel()
		if err := g.Wait(); err != nil {
			t.Errorf("%s: %v", id, err)
		}
	})
	c.stop = func() {
		mu.Lock()
		stopped = true
		mu.Unlock()
		c.end()
	}
	t.Cleanup(c.stop)
	return c
}

// Two servers' controllers on one store: whatever becomes of the one that leads, what the
// nodes claim is derived and exported, once, and what was refused stays known.
func TestControllersOfTwoServers(t *testing.T) {
	for _, c := range []struct {
		name  string
		end   func(*controllers)
		after time.Duration
		// returns: it comes back, and must not write what it had in mind.
		returns bool
	}{
		{"stopped", func(x *controllers) { x.stop() }, 0, false},
		{"killed", func(x *controllers) { x.link.Set(storetest.Cut); x.end() }, wire.ServerTTL, false},
		{"cut off", func(x *controllers) { x.link.Set(storetest.Cut) }, wire.ServerTTL, true},
		{"suspended", func(x *controllers) { x.link.Set(storetest.Suspended) }, wire.ServerTTL, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newStore()
				objects := registry.New(s, registry.Config{Cluster: "east", ServiceCIDR: netip.MustParsePrefix("10.101.0.0/16")})
				put := func(key string, v any) {
					t.Helper()
					if err := store.Write(t.Context(), s, store.Put(key, wire.Marshal(v))); err != nil {
						t.Fatal(err)
					}
				}
				pod := func(i int) {
					t.Helper()
					text := fmt.Sprintf("apiVersion: v1\nkind: Pod\nmetadata: {name: web-%d, namespace: shop, labels: {app: web}}\nspec: {nodeName: n1, containers: [{name: c}]}\n", i)
					if _, err := objects.Apply(t.Context(), []byte(text), api.ManifestOptions{}); err != nil {
						t.Fatal(err)
					}
				}
				claim := func(i int, ip string) {
					t.Helper()
					put(wire.NodeEndpointKey("n1", "shop", fmt.Sprint("web-", i)), wire.EndpointState{Namespace: "shop", Pod: fmt.Sprint("web-", i), IP: netip.MustParseAddr(ip), Ready: true})
				}
				exported := func() int { return len(s.Dump(wire.IPs.StatePrefix("east"))) }
				put(wire.RegistrationKey("n1"), wire.Registration{Name: "n1", Addresses: []netip.Addr{netip.MustParseAddr("172.16.1.1")}, PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.1.1.0/24")}})
				a := serve(t, s, "a")
				synctest.Wait()
				b := serve(t, s, "b")
				pod(1)
				claim(1, "10.1.1.5")
				pod(2)
				claim(2, "10.9.9.9") // a lie
				time.Sleep(time.Second)
				synctest.Wait()
				refused := func(at *controllers) {
					t.Helper()
					if r := at.board.Rows().Refused(); len(r) != 1 || r[0].Node != "n1" || at.board.Rows().Pod("shop", "web-2") == nil {
						t.Errorf("refused: %+v", r)
					}
				}
				if exported() != 1 || !a.e.View().Leads || b.e.View().Leads {
					t.Errorf("exported %d", exported())
				}
				refused(a)
				refused(b)

				c.end(a)
				pod(3)
				claim(3, "10.1.1.7") // while nobody leads
				time.Sleep(c.after)
				refused(b) // it has not looked itself yet, or it has
				time.Sleep(time.Second)
				synctest.Wait()
				refused(b)
				if exported() != 2 || !b.e.View().Leads {
					t.Errorf("the next one has exported %d", exported())
				}
				numbers := strings.Join(s.Dump(wire.IdentityIDPrefix), "\n")
				if c.returns {
					before := a.link.Commits()
					a.link.Set(storetest.Works)
					claim(1, "10.1.1.8") // both see it, one may write it
					time.Sleep(10 * time.Second)
					synctest.Wait()
					// It introduces itself again, and that is all.
					if n := a.link.Commits() - before; n != 1 || a.e.View().Leads {
						t.Errorf("the deposed one made %d writes", n)
					}
					if got := s.Dump(wire.IPStateKey(netip.MustParseAddr("10.1.1.8"))); len(got) != 1 {
						t.Errorf("exported %v", got)
					}
				}
				if now := strings.Join(s.Dump(wire.IdentityIDPrefix), "\n"); now != numbers || strings.Count(now, "\n") != 0 {
					t.Errorf("identities:\n%s\nbefore:\n%s", now, numbers)
				}
			})
		})
	}
}
