package mirror

import (
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/wire"
)

func TestLiesAreRefusedAndCounted(t *testing.T) {
	run(t, func(b *bench) {
		before := b.got()
		b.there(store.Put("cilium/state/ip/v1/default/10.1.1.2", []byte(`{"IP":"10.1.1.2","ID":131073}`)))
		b.there(store.Put("cilium/state/ip/v1/default/10.1.1.3", []byte(`{"IP":"10.1.1.3","ID":131073}`)))
		b.there(store.Put("cilium/state/identities/v1/id/65537", []byte("k8s:io.cilium.k8s.policy.cluster=west;")))
		b.there(store.Put("weft/export/liveness", []byte(`{}`)))
		if diff := cmp.Diff(before, b.got()); diff != "" {
			t.Errorf("a lie changed our copy:\n%s", diff)
		}
		var got []string
		for _, r := range b.m.Status(time.Now()).Refused {
			got = append(got, fmt.Sprintf("%s %s %s %d", r.Cluster, r.Resource, r.Reason, r.Count))
			if r.Example == "" || r.Last.IsZero() {
				t.Errorf("no example: %+v", r)
			}
		}
		want := []string{"west identities foreign-identity 1", "west ip foreign-address 2", "west weft malformed 1"}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(diff)
		}
		// What is withdrawn or corrected is no longer shown as refused, whether seen as
		// a change or missing from a list.
		b.there(store.Delete("cilium/state/ip/v1/default/10.1.1.2"), store.Put("weft/export/liveness", []byte(`{"more":"lies"}`)))
		if got := b.refused(); got != "identities foreign-identity 1, ip foreign-address 1, weft malformed 1" {
			t.Errorf("after a withdrawal: %s", got)
		}
		b.there(store.Put("cilium/state/nodes/v1/west/n2", []byte(`{"Name":"n2","Cluster":"west","ClusterID":2,"IPAddresses":[{"Type":"InternalIP","IP":"127.0.0.1"}]}`)))
		if got := b.refused(); !strings.Contains(got, "nodes foreign-address 1") {
			t.Errorf("a node lies: %s", got)
		}
		b.there(store.Put("cilium/state/nodes/v1/west/n2", []byte(`{"Name":"n2","Cluster":"west","ClusterID":2}`)))
		if got := b.refused(); strings.Contains(got, "nodes") {
			t.Errorf("it no longer does: %s", got)
		}
		b.theirs.Fail(func(string, string) error { return store.ErrUnavailable })
		b.wait()
		b.theirs.Fail(nil)
		b.there(store.Delete("cilium/state/ip/v1/default/10.1.1.3"), store.Delete("cilium/state/identities/v1/id/65537"), store.Delete("weft/export/liveness"))
		b.wait()
		if got := b.refused(); got != "" {
			t.Errorf("after a list without lies: %s", got)
		}
		ever := map[string]uint64{}
		b.m.Refusals(func(resource string, reason Reason, n uint64) { ever[resource+" "+string(reason)] = n })
		if ever["ip foreign-address"] != 2 || ever["nodes foreign-address"] != 1 || ever["weft malformed"] != 1 {
			t.Errorf("counted for good: %v", ever)
		}
		// An entry that turns into a lie is deleted.
		b.pod(2, 1)
		b.same()
		// Lies in a list are refused too.
		b.stop()
		b.start()
		b.same()
	})
}

// refused sums up the claims that are refused now.
func (b *bench) refused() string {
	var all []string
	for _, r := range b.m.Status(time.Now()).Refused {
		all = append(all, fmt.Sprintf("%s %s %d", r.Resource, r.Reason, r.Count))
	}
	return strings.Join(all, ", ")
}

// A peer tells us whether it has added us, if it lets us read that.
func TestPeerSaysWhetherItHasAddedUs(t *testing.T) {
	run(t, func(b *bench) {
		says := func() string {
			if s := b.m.Status(time.Now()); s.AddedUs != nil {
				return fmt.Sprint(*s.AddedUs, time.Since(s.AddedUsSince) < time.Minute)
			}
			return "nothing"
		}
		if got := says(); got != "false true" {
			t.Errorf("not added: %s", got)
		}
		b.there(store.Put(wire.JoinedKey("north"), nil))
		if got := says(); got != "false true" {
			t.Errorf("another was added: %s", got)
		}
		b.there(store.Put(wire.JoinedKey("east"), nil))
		if got := says(); got != "true true" {
			t.Errorf("added: %s", got)
		}
		b.there(store.Delete(wire.JoinedKey("east")))
		if got := says(); got != "false true" {
			t.Errorf("removed: %s", got)
		}
		b.stop()
		// Cilium or an older version: it does not let us read that.
		b.theirs.Fail(func(_, key string) error {
			if strings.HasPrefix(key, wire.JoinedClustersPrefix) {
				return store.ErrDenied
			}
			return nil
		})
		b.start()
		if got := says(); got != "nothing" || b.state().State != api.LinkUp {
			t.Errorf("it says %s, control %+v", got, b.state())
		}
	})
}

// The data age of an unreachable peer survives a restart.
func TestHeardBeforeTheStart(t *testing.T) {
	run(t, func(b *bench) {
		b.stop()
		b.theirs.Fail(func(string, string) error { return store.ErrUnavailable })
		b.heard = time.Now().Add(-time.Hour)
		b.start()
		if s := b.state(); s.State == api.LinkUp || s.AgeSeconds != 3600 {
			t.Errorf("control %+v, want an age of an hour", s)
		}
		b.theirs.Fail(nil)
		b.wait()
		if s := b.state(); s.State != api.LinkUp || s.AgeSeconds > 60 {
			t.Errorf("control %+v", s)
		}
	})
}

// A link that is down for one reason after another has not been up in between.
func TestSinceWhenALinkIsNotUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := New(Config{Log: slog.New(slog.DiscardHandler)})
		began := time.Now()
		for _, step := range []struct {
			state string
			want  time.Duration // since it began; negative: it is up
		}{
			{api.LinkDown, 0}, {api.LinkConnecting, 0}, {api.LinkUp, -1}, {api.LinkUp, -1},
			{api.LinkRefused, 4 * time.Minute}, {api.LinkDown, 4 * time.Minute}, {api.LinkDown, 4 * time.Minute}, {api.LinkUp, -1}, {api.LinkDown, 8 * time.Minute},
		} {
			m.setState(step.state, nil)
			want := time.Time{}
			if step.want >= 0 {
				want = began.Add(step.want)
			}
			if got := m.Status(time.Now()).Control.NotUpSince; !got.Equal(want) {
				t.Errorf("%v after it began, %s: not up since %v, want %v", time.Since(began), step.state, got, want)
			}
			time.Sleep(time.Minute)
		}
	})
}
