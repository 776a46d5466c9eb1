package mirror

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/identity"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/wire"
)

func TestPaceLendsAndIsPaidBack(t *testing.T) {
	now := time.Now()
	rate := Rate{Changes: 10, Bytes: 1000}
	for _, test := range []struct {
		name           string
		changes, bytes int
		after          time.Duration
		want           time.Duration
	}{
		{"nothing", 0, 0, 0, 0},
		{"what was saved", 1200, 120_000, 0, 0},
		{"more changes", 1210, 0, 0, time.Second},
		{"more bytes", 0, 125_000, 0, 5 * time.Second},
		{"the greater debt counts", 1210, 125_000, 0, 5 * time.Second},
		{"half of it is paid", 0, 124_000, 2 * time.Second, 2 * time.Second},
		{"all of it", 0, 124_000, 4 * time.Second, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := newPace(rate, now)
			p.spend(now, test.changes, test.bytes)
			if got := p.wait(now.Add(test.after)); got != test.want {
				t.Errorf("waits %v, want %v", got, test.want)
			}
		})
	}
	// However long a peer is quiet, it cannot save up more.
	p := newPace(rate, now)
	p.pay(now.Add(time.Hour))
	p.spend(now.Add(time.Hour), 1220, 0)
	if got := p.wait(now.Add(time.Hour)); got != 2*time.Second {
		t.Errorf("after an hour of quiet it waits %v", got)
	}
}

func TestQueueKeepsTheLastOfEachKey(t *testing.T) {
	q, now := newQueue(), time.Now()
	a, b := folder{name: "a"}, folder{name: "b"}
	event := func(key, value string) store.Event { return store.Event{KV: store.KV{Key: key, Value: []byte(value)}} }
	q.put(a, []store.Event{event("1", "x"), event("2", "x")}, 2, now)
	q.put(b, []store.Event{event("1", "x")}, 3, now.Add(time.Second))
	if n, bytes := q.put(a, []store.Event{event("1", "yyyy"), {KV: store.KV{Key: "3"}, Deleted: true}}, 4, now.Add(2*time.Second)); n != 4 || bytes != 10 {
		t.Errorf("%d entries, %d bytes", n, bytes)
	}
	if n, since := q.oldest(); n != 4 || since != now {
		t.Errorf("%d wait since %v", n, since.Sub(now))
	}
	var got []string
	for {
		f, events := q.take(2, 6)
		if len(events) == 0 {
			break
		}
		for _, e := range events {
			got = append(got, fmt.Sprintf("%s/%s=%s", f.name, e.Key, e.Value))
		}
		got = append(got, ".")
	}
	if text := strings.Join(got, " "); text != "a/1=yyyy . a/2=x . b/1=x . a/3= ." {
		t.Error(text)
	}
	if n, bytes := q.put(a, nil, 5, now); n != 0 || bytes != 0 {
		t.Errorf("left are %d entries, %d bytes", n, bytes)
	}
}

// A peer rewrites a large value as fast as it can, and claims names without end. The
// history in our store is bounded, the last value arrives, and status says what is late
// until nothing is.
func TestAPeerThatChangesTooFastIsLate(t *testing.T) {
	run(t, func(b *bench) {
		b.stop()
		b.start()
		b.limit(Rate{Changes: 10, Bytes: 10 << 10})
		key := wire.IdentityStateKey(131080)
		labels := func(i int) []byte {
			return fmt.Appendf(nil, "k8s:io.cilium.k8s.policy.cluster=west;k8s:n=%d;k8s:pad=%s;", i, strings.Repeat("x", 10<<10))
		}
		before := b.ours.Revision()
		const seconds, perSecond = 200, 10
		for i := range seconds * perSecond {
			if err := store.Write(t.Context(), b.theirs, store.Put(key, labels(i))); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Second / perSecond)
		}
		synctest.Wait()
		wrote := b.ours.Revision() - before
		if most := int64(seconds + burst.Seconds() + 5); wrote > most || wrote < seconds/2 {
			t.Errorf("%d values of 10 KiB became history in %d s at 10 KiB a second", wrote, seconds)
		}
		time.Sleep(5 * time.Second)
		b.same()
		if p := b.concerns(); p != "" {
			t.Errorf("nothing waits, and problems are %q", p)
		}

		// 2000 names at once: what was saved up goes through, the rest comes late.
		b.wait()
		b.wait()
		for i := range 2000 {
			name := fmt.Sprintf("s-%d", i)
			value := slice(func(s *wire.ClusterEndpointSlice) { s.Name = name })
			if err := store.Write(t.Context(), b.theirs, store.Put(wire.SliceStateKey("west", "shop", name), value)); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		copied := func() int { return len(b.ours.Dump(wire.EndpointSlices.CachePrefix("west"))) }
		if n := copied(); n > 1400 {
			t.Errorf("%d names at once", n)
		}
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if p := b.concerns(); !strings.Contains(p, "peer west: it changes more than 10 entries") || !strings.Contains(p, "changes wait") {
			t.Errorf("problems %q", p)
		}
		if s := b.state(); s.State != api.LinkUp {
			t.Errorf("control %+v", s)
		}
		time.Sleep(5 * time.Minute)
		b.same()
		if p := b.concerns(); p != "" {
			t.Errorf("problems %q", p)
		}
	})
}

// A peer that rewrites everything and breaks the link off, again and again, leaves no
// more history than one whose changes are followed.
func TestListsKeepThePaceToo(t *testing.T) {
	run(t, func(b *bench) {
		b.limit(Rate{Changes: 1000, Bytes: 10 << 10})
		const labels = 20
		rewrite := func(round int) {
			for i := range labels {
				value := fmt.Appendf(nil, "k8s:io.cilium.k8s.policy.cluster=west;k8s:n=%d;k8s:pad=%s;", round, strings.Repeat("x", 10<<10))
				if err := store.Write(t.Context(), b.theirs, store.Put(wire.IdentityStateKey(identity.Number(131080+i)), value)); err != nil {
					t.Fatal(err)
				}
			}
		}
		rewrite(0)
		synctest.Wait()
		began, before := time.Now(), b.m.counts().written
		for round := 1; round <= 60; round++ {
			b.theirs.Fail(func(call, _ string) error {
				if call == "watch" {
					return store.ErrUnavailable
				}
				return nil
			})
			rewrite(round)
			time.Sleep(6 * time.Second)
		}
		b.theirs.Fail(nil)
		rounds := float64(b.m.counts().written-before) / labels
		if most := (time.Since(began)+burst).Seconds()/labels + 2; rounds > most {
			t.Errorf("200 KiB became history %.0f times in %v, at 10 KiB a second at most %.0f", rounds, time.Since(began), most)
		}
		if s := b.state(); s.State != api.LinkConnecting || !strings.Contains(s.Error, "it changed more than 1000 entries or 10 KiB a second; it is read again in") {
			t.Errorf("control %+v", s)
		}
		time.Sleep(10 * time.Minute)
		b.same()
		if s := b.state(); s.State != api.LinkUp {
			t.Errorf("control %+v", s)
		}
	})
}

// Changes that waited when the link broke are read by the next list; until then the
// peer is down, not late.
func TestNothingIsLateWithoutALink(t *testing.T) {
	run(t, func(b *bench) {
		b.limit(Rate{Changes: 1, Bytes: 1 << 20})
		for n := range 400 {
			b.there(store.Put(wire.SliceStateKey("west", "shop", fmt.Sprint("s-", n)), slice(func(s *wire.ClusterEndpointSlice) { s.Name = fmt.Sprint("s-", n) })))
		}
		time.Sleep(10 * time.Second)
		if p := b.concerns(); !strings.Contains(p, "changes wait") {
			t.Fatalf("problems %q", p)
		}
		b.theirs.Fail(func(string, string) error { return store.ErrUnavailable })
		b.wait()
		if p := b.concerns(); p != "" || b.state().State != api.LinkDown {
			t.Errorf("control %+v, problems %q", b.state(), p)
		}
		b.theirs.Fail(nil)
		time.Sleep(10 * time.Minute)
		b.same()
	})
}

func (m *Mirror) counts() counters {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.count
}

// limit gives the peer another rate, from now on.
func (b *bench) limit(r Rate) {
	b.m.mu.Lock()
	defer b.m.mu.Unlock()
	b.m.conf.Rate, b.m.pace = r, newPace(r, time.Now())
}
