package mirror

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/wire"
)

func TestLimitDecides(t *testing.T) {
	l := Limit{Entries: 100, Bytes: 10_000}
	for name, c := range map[string]struct {
		entries, bytes int
		over, near     string
	}{
		"far":             {90, 9000, "", ""},
		"near":            {91, 10, "", "91 of at most 100 entries are copied"},
		"near in bytes":   {1, 9001, "", "9001 of at most 10000 bytes are copied"},
		"full":            {100, 10_000, "", "100 of at most 100 entries"},
		"one too many":    {101, 10, "over its limit of 100 entries; raise peerEntries", "101 of at most 100 entries"},
		"a byte too many": {1, 10_001, "over its limit of 10000 bytes; raise peerBytes", "10001 of at most 10000 bytes"},
	} {
		err := l.check(c.entries, c.bytes)
		if (err != nil) != (c.over != "") || err != nil && (!errors.Is(err, errOverLimit) || !strings.Contains(err.Error(), c.over)) {
			t.Errorf("%s: %v", name, err)
		}
		if near, next := l.near(c.entries, c.bytes); (near == "") != (next == "") || (near != "") != (c.near != "") || !strings.Contains(near, c.near) {
			t.Errorf("%s: %q", name, near)
		}
	}
}

// A peer grows without end: our copy stays as it was at the limit.
func TestFloodEndsAtTheLimit(t *testing.T) {
	run(t, func(b *bench) {
		b.m.conf.Limit = Limit{Entries: 11, Bytes: 1 << 20}
		b.pod(10, 131073)
		b.pod(11, 131073)
		b.same()
		if p := b.concerns(); !strings.Contains(p, "peer west: 11 of at most 11 entries are copied") {
			t.Errorf("problems %q", p)
		}
		before := b.got()
		over := func(when string) {
			t.Helper()
			if s := b.state(); s.State != api.LinkRefused || !strings.Contains(s.Error, "over its limit of 11 entries; raise peerEntries") {
				t.Errorf("%s: control %+v", when, s)
			}
			if diff := cmp.Diff(before, b.got()); diff != "" {
				t.Errorf("%s:\n%s", when, diff)
			}
		}
		b.pod(12, 131073)
		over("one more")
		if s := b.state(); !strings.Contains(s.Error, "--peer-entries") {
			t.Errorf("control %+v", s)
		}
		for n := 13; n < 100; n++ {
			b.pod(n, 131073)
		}
		b.wait()
		over("listed")
		refused := uint64(0)
		for _, r := range b.m.Status(time.Now()).Refused {
			if r.Reason == string(OverLimit) {
				refused += r.Count
			}
		}
		if refused == 0 {
			t.Error("the excess is not listed as refused")
		}
		b.stop()
		b.start() // with room for all
		b.same()
		b.m.conf.Limit = Limit{Entries: 120, Bytes: 1 << 20}
		for n := 13; n < 100; n++ {
			b.there(store.Delete(podKey(n)))
		}
		b.m.mu.Lock()
		entries, bytes := len(b.m.have), b.m.bytes
		b.m.known = false
		b.m.mu.Unlock()
		if err := b.m.recall(t.Context()); err != nil || b.m.bytes != bytes || len(b.m.have) != entries {
			t.Errorf("counted %d bytes of %d entries, there are %d of %d; %v", bytes, entries, b.m.bytes, len(b.m.have), err)
		}
	})
}

// A peer over its limit withdraws entries, and our copy of them goes: with the change
// that takes it over the limit, and later, when it is only read by lists.
func TestOverTheLimitCopyMayShrink(t *testing.T) {
	run(t, func(b *bench) {
		b.m.conf.Limit = Limit{Entries: 14, Bytes: 1 << 20}
		copied := func(n int) bool {
			return slices.ContainsFunc(b.got(), func(line string) bool {
				return strings.HasPrefix(line, fmt.Sprintf("cilium/cache/ip/v1/west/10.2.1.%d=", n))
			})
		}
		var flood []store.Op
		for n := 10; n < 25; n++ { // more than the limit in one folder alone
			flood = append(flood, store.Put(podKey(n), wire.Marshal(wire.IPIdentityPair{IP: netip.AddrFrom4([4]byte{10, 2, 1, byte(n)}), ID: 131073})))
		}
		if !copied(2) || !copied(3) {
			t.Fatalf("nothing to withdraw: %q", b.got())
		}
		b.there(append(flood, store.Delete(podKey(2)))...)
		if s := b.state(); s.State != api.LinkRefused || copied(2) || !copied(3) || copied(10) {
			t.Errorf("with the flood: control %+v, copy %q", s, b.got())
		}
		b.there(store.Delete(podKey(3)))
		b.wait()
		b.wait()
		if s := b.state(); s.State != api.LinkRefused || copied(3) || !copied(4) || copied(10) {
			t.Errorf("after the flood: control %+v, copy %q", s, b.got())
		}
		before := b.got()
		for n := 25; n < 60; n++ {
			b.pod(n, 131073)
		}
		b.there(store.Delete(podKey(4)))
		b.wait()
		b.wait()
		if diff := cmp.Diff(before, b.got()); diff != "" {
			t.Errorf("an incomplete list changed our copy:\n%s", diff)
		}
		for n := 10; n < 60; n++ {
			b.there(store.Delete(podKey(n)))
		}
		b.wait()
		b.wait()
		b.same()
	})
}

// The error for a list that the store cut off names the bound that was exceeded.
func TestListingBrokenOff(t *testing.T) {
	for _, c := range []struct {
		err  error
		want string
	}{
		{store.ErrTooMany, "raise peerEntries"},
		{store.ErrTooMuch, "raise peerBytes"},
	} {
		run(t, func(b *bench) {
			b.theirs.Fail(func(call, key string) error {
				switch {
				case call == "watch":
					return store.ErrUnavailable
				case call == "list" && strings.HasPrefix(key, wire.CiliumStatePrefix):
					return c.err
				}
				return nil
			})
			b.wait()
			if s := b.state(); s.State != api.LinkRefused || !strings.Contains(s.Error, c.want) {
				t.Errorf("%v: control %+v", c.err, s)
			}
		})
	}
}

// A peer that comes back within the limit is copied again, without an operator.
func TestBackWithinTheLimit(t *testing.T) {
	run(t, func(b *bench) {
		b.m.conf.Limit = Limit{Entries: 100, Bytes: 1 << 20}
		b.there(store.Put("cilium/state/identities/v1/id/131074", make([]byte, 2<<20)))
		// It has no labels, so it is refused before it is counted.
		b.same()
		for n := 10; n < 120; n++ {
			b.pod(n, 131073)
		}
		if b.state().State != api.LinkRefused {
			t.Errorf("control %+v", b.state())
		}
		for n := 10; n < 120; n++ {
			b.there(store.Delete(podKey(n)))
		}
		b.wait()
		if b.state().State == api.LinkUp {
			t.Error("2 MiB of lies are listed under a limit of one")
		}
		b.there(store.Delete("cilium/state/identities/v1/id/131074"))
		b.wait()
		b.wait()
		if s := b.state(); s.State != api.LinkUp {
			t.Errorf("control %+v", s)
		}
		if n, err := b.m.Release(t.Context()); err != nil {
			t.Error(n, err)
		}
		b.same()
	})
}

// Held entries count towards the limit and can still be released.
func TestHeldEntriesCount(t *testing.T) {
	run(t, func(b *bench) {
		b.m.conf.Limit = Limit{Entries: 12, Bytes: 1 << 20}
		b.rebuilt()
		b.fill("w2")
		for n := 2; n <= 4; n++ {
			b.there(store.Delete(podKey(n)))
			b.pod(n+100, 131073)
		}
		b.pod(99, 131073)
		b.wait()
		b.wait()
		if s := b.state(); s.State != api.LinkRefused || b.held() != 3 {
			t.Errorf("held %d, control %+v", b.held(), s)
		}
		if n, err := b.m.Release(t.Context()); n != 3 || err != nil {
			t.Errorf("released %d, %v", n, err)
		}
		b.wait()
		b.wait()
		b.same()
	})
}
