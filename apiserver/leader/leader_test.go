package leader_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weft-mesh/weft/apiserver/leader"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/store/storetest"
	"github.com/weft-mesh/weft/wire"
)

// server is one API server's part in the election, with a controller that remembers what
// it was given to write with.
type server struct {
	t    *testing.T
	link *storetest.Link
	e    *leader.Election
	stop func() // as an operator does
	kill func()

	mu    sync.Mutex // guards what follows
	terms []store.Store
	runs  int // controllers that run now
}

// newStore returns a store whose leases end by the clock.
func newStore() *storetest.Etcd {
	s := storetest.NewEtcd()
	s.TimeLeases()
	return s
}

func start(t *testing.T, s *storetest.Etcd, id string) *server {
	t.Helper()
	return startAt(t, s, id, "https://"+id)
}

func startAt(t *testing.T, s *storetest.Etcd, id, url string) *server {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	x := &server{t: t, link: storetest.NewLink(s)}
	var stopped atomic.Bool
	x.e = leader.New(leader.Config{
		Store: x.link.Root(), Self: wire.Server{ID: id, Name: id, URL: url, Started: time.Now()}, Lead: x.lead,
		Stopped: stopped.Load, Log: slog.New(slog.DiscardHandler),
	})
	done := make(chan error, 1)
	go func() { done <- x.e.Run(ctx) }()
	end := sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("%s: %v", id, err)
		}
	})
	x.stop = func() { stopped.Store(true); end() }
	x.kill = func() { x.link.Set(storetest.Cut); end() }
	t.Cleanup(x.stop)
	return x
}

func (x *server) lead(ctx context.Context, s store.Store) error {
	x.count(1)
	defer x.count(-1)
	x.mu.Lock()
	x.terms = append(x.terms, s)
	x.mu.Unlock()
	<-ctx.Done()
	return nil
}

func (x *server) count(n int) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.runs += n
}

// term is what the controllers of the latest term write with.
func (x *server) term() store.Store {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.terms[len(x.terms)-1]
}

func (x *server) running() int {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.runs
}

// only checks that the controllers of one server run and that the others agree.
func only(t *testing.T, leads *server, others ...*server) {
	t.Helper()
	synctest.Wait()
	id := leads.e.View().Leader.Server.ID
	if leads.running() != 1 || !leads.e.View().Leads {
		t.Errorf("%d controllers of %q run", leads.running(), id)
	}
	for _, o := range others {
		if v := o.e.View(); o.running() != 0 || v.Leads || v.Leader.Server.ID != id || !v.Vacant.IsZero() {
			t.Errorf("%d controllers of another run, which considers %q the leader", o.running(), v.Leader.Server.ID)
		}
	}
}

func put(key string) store.Txn { return store.Txn{Then: []store.Op{store.Put(key, []byte("x"))}} }

func TestSuccession(t *testing.T) {
	for _, c := range []struct {
		name   string
		end    func(*server)
		within time.Duration
		known  bool // the old leader is missing, not gone
	}{
		{"stopped", func(x *server) { x.stop() }, 0, false},
		{"killed", func(x *server) { x.kill() }, wire.ServerTTL, true},
		{"cut off", func(x *server) { x.link.Set(storetest.Cut) }, wire.ServerTTL, true},
		{"suspended", func(x *server) { x.link.Set(storetest.Suspended) }, wire.ServerTTL, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newStore()
				a := start(t, s, "a")
				synctest.Wait()
				b, d := start(t, s, "b"), start(t, s, "d")
				only(t, a, b, d)
				late := a.term()
				if _, done, err := late.Commit(t.Context(), put("before")); err != nil || !done {
					t.Error("the leader writes:", done, err)
				}

				c.end(a)
				time.Sleep(c.within)
				synctest.Wait()
				if b.running()+d.running() != 1 {
					t.Fatalf("after %v, %d lead", c.within, b.running()+d.running())
				}
				next, other := b, d
				if d.running() == 1 {
					next, other = d, b
				}
				only(t, next, other)
				a.link.Set(storetest.Works)
				if _, _, err := late.Commit(t.Context(), put("late")); !errors.Is(err, leader.ErrDeposed) {
					t.Error("the deposed leader's late write:", err)
				}
				if err := store.Write(t.Context(), late, store.Put("late", nil)); !errors.Is(err, leader.ErrDeposed) {
					t.Error("one that makes no conditions:", err)
				}
				if got := s.Dump("late"); len(got) != 0 {
					t.Error("it was written:", got)
				}
				var u storetest.Users
				if err := leader.Users(late, &u).SetUser(t.Context(), store.User{Name: "remote-west"}); !errors.Is(err, leader.ErrDeposed) || len(u.Names()) != 0 {
					t.Error("its late change of a user:", err)
				}
				if err := leader.Users(next.term(), &u).SetUser(t.Context(), store.User{Name: "remote-west"}); err != nil || len(u.Names()) != 1 {
					t.Error("the leader's:", err)
				}
				missing := 0
				for _, r := range next.e.View().Servers {
					if !r.Alive {
						missing++
					}
				}
				if all := len(next.e.View().Servers); c.known && c.name == "killed" && (all != 3 || missing != 1) || !c.known && all != 2 {
					t.Errorf("%d servers, %d of them missing", all, missing)
				}
			})
		})
	}
}

// A server that was cut off for a while takes part again, under another term.
func TestReturn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStore()
		a := start(t, s, "a")
		synctest.Wait()
		b := start(t, s, "b")
		only(t, a, b)
		a.link.Set(storetest.Suspended)
		time.Sleep(wire.ServerTTL)
		synctest.Wait()
		if b.running() != 1 || a.running() != 1 {
			t.Fatal("a suspended server does not know that it was deposed", a.running(), b.running())
		}
		a.link.Set(storetest.Works)
		time.Sleep(10 * time.Second)
		only(t, b, a)
		if v := a.e.View(); v.Failed != nil || len(v.Servers) != 2 || !v.Servers[0].Alive {
			t.Errorf("%+v", v)
		}
		b.stop()
		only(t, a)
		if _, _, err := a.term().Commit(t.Context(), put("again")); err != nil {
			t.Error(err)
		}
	})
}

// expire ends a server's lease, as if its store had been too busy to hear it.
func expire(t *testing.T, s *storetest.Etcd, id string) { s.Expire(leaseOf(t, s, id)) }

// A leader that loses its lease, or its store for a while, goes on if nobody has taken over:
// controllers that begin again read everything again, and keep the store just as busy.
func TestALostLeaseEndsNothingByItself(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStore()
		a := start(t, s, "a")
		only(t, a)
		first := a.term()
		for _, lose := range []func(){
			func() { expire(t, s, "a") },
			func() { expire(t, s, "a"); time.Sleep(time.Second); expire(t, s, "a") },
			func() {
				a.link.Set(storetest.Cut)
				time.Sleep(time.Minute)
				a.link.Set(storetest.Works)
			},
		} {
			lose()
			if _, done, err := first.Commit(t.Context(), put("meanwhile")); err != nil || !done {
				t.Error("it cannot write:", done, err)
			}
			time.Sleep(5 * time.Second)
			only(t, a)
			if v := a.e.View(); len(a.terms) != 1 || v.Failed != nil || !v.Vacant.IsZero() || !v.Servers[0].Alive {
				t.Errorf("term %d, %+v", len(a.terms), v)
			}
		}

		// Others do not wait for it.
		b := start(t, s, "b")
		only(t, a, b)
		expire(t, s, "a")
		time.Sleep(time.Second)
		only(t, b, a)
		if _, _, err := first.Commit(t.Context(), put("late")); !errors.Is(err, leader.ErrDeposed) {
			t.Error("the deposed one's late write:", err)
		}
		time.Sleep(time.Minute)
		only(t, b, a)
		// It leads again when nobody else does, by another term.
		b.kill()
		time.Sleep(wire.ServerTTL)
		only(t, a)
		if len(a.terms) != 2 {
			t.Errorf("term %d", len(a.terms))
		}
	})
}

// A store that lost the leadership, or was put back to before it, has the leader win again.
func TestTermEndsWithItsKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStore()
		before := s.Copy()
		a := start(t, s, "a")
		only(t, a)
		late := a.term()
		s.PutBack(before)
		if _, _, err := late.Commit(t.Context(), put("late")); !errors.Is(err, leader.ErrDeposed) {
			t.Error(err)
		}
		time.Sleep(wire.ServerTTL)
		only(t, a)
		if _, _, err := a.term().Commit(t.Context(), put("again")); err != nil {
			t.Error(err)
		}
	})
}

// A crashed server that is back before its lease ends does not wait for itself.
func TestSucceedsItself(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStore()
		a := start(t, s, "a")
		only(t, a)
		a.kill()
		again := start(t, s, "a")
		only(t, again)
		if n := len(again.e.View().Servers); n != 1 {
			t.Errorf("%d servers", n)
		}
		// Nor does one that has lost its data folder, or whose store was restored.
		again.kill()
		moved := startAt(t, s, "a2", "https://a")
		only(t, moved)
		if v := moved.e.View(); len(v.Servers) != 1 || v.Servers[0].ID != "a2" {
			t.Errorf("%+v", v.Servers)
		}
		// Another server waits until the lease ends.
		moved.kill()
		other := start(t, s, "b")
		synctest.Wait()
		if other.running() != 0 || len(other.e.View().Servers) != 2 {
			t.Errorf("%d controllers run, %+v", other.running(), other.e.View().Servers)
		}
		time.Sleep(wire.ServerTTL + time.Second)
		only(t, other)
	})
}

// A failed condition of the controllers' own is no deposition, and a store that fails
// neither.
func TestFenceTellsConditionsApart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStore()
		a := start(t, s, "a")
		only(t, a)
		txn := put("taken")
		txn.If = []store.Cond{{Key: "taken", Modified: 7}}
		if _, done, err := a.term().Commit(t.Context(), txn); done || err != nil {
			t.Error(done, err)
		}
		for _, o := range store.CommitEach(t.Context(), a.term(), []store.Txn{txn, put("free")}) {
			if o.Err != nil {
				t.Error(o.Err)
			}
		}
		if got := s.Dump("free"); len(got) != 1 {
			t.Error("one that fails holds up the others")
		}
		s.Fail(func(call, key string) error {
			if call == "commit" {
				return store.ErrUnavailable
			}
			return nil
		})
		if _, _, err := a.term().Commit(t.Context(), put("x")); !errors.Is(err, store.ErrUnavailable) {
			t.Error(err)
		}
		s.Fail(nil)
		only(t, a)
	})
}

// Nobody leads a store that grants no leases; every server says why.
func TestCannotWin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStore()
		s.Fail(func(call, key string) error {
			if call == "grant" {
				return store.ErrFull
			}
			return nil
		})
		began := time.Now()
		a := start(t, s, "a")
		time.Sleep(time.Minute)
		if v := a.e.View(); v.Leads || !errors.Is(v.Failed, store.ErrFull) || !v.Vacant.Equal(began) {
			t.Errorf("%+v", v)
		}
		s.Fail(nil)
		time.Sleep(5 * time.Second)
		only(t, a)
		if v := a.e.View(); v.Failed != nil {
			t.Error(v.Failed)
		}
	})
}

// slow is a store whose first list takes long.
type slow struct {
	leader.Store
	listed atomic.Bool
}

func (s *slow) Grant(ctx context.Context, ttl time.Duration) (store.Lease, error) {
	time.Sleep(time.Second) // so that the first list is not that of whoever wants a lease
	return s.Store.Grant(ctx, ttl)
}

func (s *slow) List(ctx context.Context, prefix string) ([]store.KV, store.Point, error) {
	if !s.listed.Swap(true) {
		time.Sleep(5 * time.Second)
	}
	return s.Store.List(ctx, prefix)
}

// Whoever leads knows the other API servers: agents and peers forget those that it does not
// name.
func TestWhoLeadsKnowsTheOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStore()
		b := start(t, s, "b")
		synctest.Wait()
		b.kill()
		time.Sleep(2 * wire.ServerTTL)
		var knew []leader.Row
		var e *leader.Election
		ctx, cancel := context.WithCancel(t.Context())
		e = leader.New(leader.Config{
			Store: &slow{Store: storetest.NewLink(s).Root()}, Self: wire.Server{ID: "a", Name: "a", URL: "https://a"}, Log: slog.New(slog.DiscardHandler),
			Lead: func(ctx context.Context, _ store.Store) error {
				knew = e.View().Servers
				<-ctx.Done()
				return nil
			},
			Stopped: func() bool { return true },
		})
		done := make(chan error, 1)
		go func() { done <- e.Run(ctx) }()
		time.Sleep(time.Minute)
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if len(knew) == 0 || knew[len(knew)-1].Name != "b" {
			t.Errorf("it led knowing %+v", knew)
		}
	})
}

func TestProblemsOfAProcess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStore()
		a, b := start(t, s, "a"), start(t, s, "b")
		synctest.Wait()
		shown := func(want string) {
			t.Helper()
			synctest.Wait()
			if got := string(b.e.View().Servers[0].Problems); got != want {
				t.Errorf("problems of a: %q, want %q", got, want)
			}
		}
		report := func(text []byte) {
			t.Helper()
			if err := a.e.Report(t.Context(), text); err != nil {
				t.Error(err)
			}
		}
		report([]byte("disk"))
		shown("disk")
		s.Expire(leaseOf(t, s, "a"))
		time.Sleep(time.Second)
		shown("disk") // under the next lease
		report(nil)
		shown("")
	})
}

func leaseOf(t *testing.T, s *storetest.Etcd, id string) store.Lease {
	t.Helper()
	kv, err := s.Get(t.Context(), wire.ServerAliveKey(id))
	if err != nil {
		t.Fatal(err)
	}
	return kv.Lease
}

// Controllers that end without being asked end the server: it would lead and do nothing.
func TestControllersThatEnd(t *testing.T) {
	for _, broken := range []error{nil, errors.New("broken")} {
		t.Run(fmt.Sprint(broken), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newStore()
				e := leader.New(leader.Config{
					Store: storetest.NewLink(s).Root(), Self: wire.Server{ID: "a"}, Lead: func(context.Context, store.Store) error { return broken },
					Stopped: func() bool { return false }, Log: slog.New(slog.DiscardHandler),
				})
				err := e.Run(t.Context())
				if err == nil || broken != nil && !errors.Is(err, broken) {
					t.Error(err)
				}
				if got := s.Dump(wire.ServerAliveKey("")); len(got) != 0 {
					t.Error("it did not resign:", got)
				}
			})
		})
	}
}
