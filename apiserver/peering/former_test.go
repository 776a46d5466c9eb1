package peering

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/wire"
)

func cidrs(all ...string) (out []netip.Prefix) {
	for _, s := range all {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

func TestWhatARemovedPeerLeaves(t *testing.T) {
	earlier, now := time.Unix(1000, 0), time.Unix(2000, 0)
	for _, c := range []struct {
		name   string
		former wire.Former
		peer   []string
		want   []string
	}{
		{"its CIDRs", wire.Former{}, []string{"10.2.0.0/16", "10.9.0.0/16"}, []string{"10.2.0.0/16", "10.9.0.0/16"}},
		{"and what it gave up before", wire.Former{PodCIDRs: cidrs("10.8.0.0/16", "10.2.4.0/24")}, []string{"10.2.0.0/16"}, []string{"10.2.0.0/16", "10.8.0.0/16"}},
		{"not what was forgotten since", wire.Former{PodCIDRs: cidrs("10.8.0.0/16"), Forgotten: earlier}, []string{"10.2.0.0/16"}, []string{"10.2.0.0/16"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := parted(c.former, wire.Peer{Name: "west", PodCIDRs: cidrs(c.peer...)}, now)
			want := wire.Former{Name: "west", PodCIDRs: cidrs(c.want...), Removed: now}
			if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestWhatAPeerThatIsAddedLeaves(t *testing.T) {
	earlier, now := time.Unix(1000, 0), time.Unix(2000, 0)
	peer := func(cidr ...string) wire.Peer {
		return wire.Peer{Name: "west", PodCIDRs: cidrs(cidr...), Connected: true, Added: now}
	}
	for _, c := range []struct {
		name    string
		former  wire.Former
		old     wire.Peer
		now     wire.Peer
		want    []string
		removed time.Time
	}{
		{name: "never here before", now: peer("10.2.0.0/16")},
		{name: "added again as it was", former: wire.Former{PodCIDRs: cidrs("10.2.0.0/16"), Removed: earlier}, now: peer("10.2.0.0/16")},
		{name: "with a wider CIDR", former: wire.Former{PodCIDRs: cidrs("10.2.0.0/16"), Removed: earlier}, now: peer("10.2.0.0/15")},
		{name: "with another", former: wire.Former{Name: "west", PodCIDRs: cidrs("10.2.0.0/16"), Removed: earlier}, now: peer("10.7.0.0/16"), want: []string{"10.2.0.0/16"}, removed: earlier},
		{name: "its CIDR changes while it is a peer", old: peer("10.2.0.0/16", "10.3.0.0/16"), now: peer("10.3.0.0/16"), want: []string{"10.2.0.0/16"}, removed: now},
		{name: "only invited before", old: wire.Peer{Name: "west", PodCIDRs: cidrs("10.2.0.0/16")}, now: peer("10.3.0.0/16")},
		{name: "forgotten before", former: wire.Former{PodCIDRs: cidrs("10.2.0.0/16"), Forgotten: earlier}, now: peer("10.3.0.0/16")},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, any := rejoined(c.former, c.old, c.now)
			if any != (len(c.want) > 0) {
				t.Fatalf("left %v, %v", got, any)
			}
			if any && (fmt.Sprint(got.PodCIDRs) != fmt.Sprint(cidrs(c.want...)) || !got.Removed.Equal(c.removed) || got.Name != "west") {
				t.Errorf("left %+v, want %v since %v", got, c.want, c.removed)
			}
		})
	}
}

func TestAFormerPeerIsBlockedUntilItIsForgottenOrBack(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		east, west := w.cluster(t, "east", 1), w.cluster(t, "west", 2)
		defer func() { east.stop(); west.stop() }()
		mux := http.NewServeMux()
		east.p.Mount(mux)
		blocked := func(want ...string) {
			t.Helper()
			all, err := east.p.Former(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, f := range all {
				got = append(got, f.Name)
			}
			if fmt.Sprint(got) != fmt.Sprint(want) {
				t.Errorf("blocked %v, want %v", got, want)
			}
		}
		forget := func(what string, status int, says string) {
			t.Helper()
			rec := httptest.NewRecorder()
			mux.ServeHTTP(rec, httptest.NewRequest("POST", "/v1/peers/"+url.PathEscape(what)+"/forget", nil))
			if rec.Code != status || !strings.Contains(rec.Body.String(), says) {
				t.Errorf("forget %s: %d %s, want %d with %q", what, rec.Code, rec.Body, status, says)
			}
		}
		east.read(west)
		blocked()
		forget("west", 404, "has no former peer")
		forget("10.2.0.0/16", 409, "belongs to peer west")
		forget("10.1.1.0/24", 409, "belongs to this cluster, east")
		if err := east.p.Remove(t.Context(), "west"); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		blocked("west")
		forget("10.2.0.0/16", 409, "weft peer forget west")
		forget("0.0.0.0/0", 422, "cannot be the CIDR of a cluster")
		forget("10.2.0.1/16", 422, "without bits outside the mask")
		forget("West!", 422, "name a peer that was removed")
		forget("north", 404, "weft status")

		east.read(west)
		blocked()
		if left := east.st.Dump(wire.FormerPrefix); len(left) != 0 {
			t.Errorf("left after it was added again: %v", left)
		}
		if err := east.p.Remove(t.Context(), "west"); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		for range 2 {
			forget("west", 200, `"10.2.0.0/16"`)
			blocked()
		}
		// The record stays, for nodes that were away.
		if left := east.st.Dump(wire.FormerPrefix); len(left) != 1 || !strings.Contains(left[0], `"forgotten":"2000`) {
			t.Errorf("after forgetting: %v", left)
		}
		forget("10.9.0.0/16", 200, `"10.9.0.0/16"`)
		blocked()

		rec := httptest.NewRecorder()
		mux.ServeHTTP(rec, httptest.NewRequest("GET", "/v1/peers", nil))
		var list api.PeerList
		if err := json.Unmarshal(rec.Body.Bytes(), &list); err != nil || len(list.Former) != 0 {
			t.Errorf("%v, %s", err, rec.Body)
		}
	})
}

// formerLine is the line that a removed peer leaves in the store.
func formerLine(name, cidr string) string {
	return fmt.Sprintf(`weft/state/former/%s={"name":%q,"podCIDRs":[%q],"removed":"2000-01-01T00:00:00Z"}`, name, name, cidr)
}

func with(lines []string, more string) []string {
	return slices.Sorted(slices.Values(append(slices.Clone(lines), more)))
}
