package peering

import (
	"errors"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/apiserver/authority"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/store/storetest"
	"github.com/weft-mesh/weft/wire"
)

func TestInvitedOnly(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		east := w.cluster(t, "east", 1)
		defer func() { east.stop() }()
		blank := east.left()
		in, err := east.p.Invite(t.Context(), "west")
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if s := east.status("west"); s.Control.State != api.LinkInvited || s.Control.Since.IsZero() {
			t.Errorf("status %+v", s)
		}
		if err := authority.CheckPair([]byte(in.Cert), []byte(in.Key), []byte(in.CA), "remote-west"); err != nil {
			t.Error(err)
		}
		if _, err := east.p.Release(t.Context(), "west"); !refusal(err, http.StatusNotFound) {
			t.Errorf("release: %v", err)
		}
		if err := east.p.Remove(t.Context(), "west"); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(blank, east.left()); diff != "" || len(east.users.Names()) != 0 {
			t.Errorf("left behind: %v\n%s", east.users.Names(), diff)
		}
		for _, name := range []string{"east", "", "Not/A/Name"} {
			if _, err := east.p.Invite(t.Context(), name); !refusal(err, http.StatusUnprocessableEntity) {
				t.Errorf("invite of %q: %v", name, err)
			}
		}
	})
}

// A certificate from before a removal stays useless, even after the peer is invited
// again and even on a rebuilt store.
func TestRemovalEndsCertificatesForGood(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		east, west := w.cluster(t, "east", 1), w.cluster(t, "west", 2)
		defer func() { east.stop(); west.stop() }()
		holder := func(in *api.Invite) string {
			t.Helper()
			pair, err := authority.Pair{Cert: []byte(in.Cert), Key: []byte(in.Key)}.TLS()
			if err != nil {
				t.Fatal(err)
			}
			return pair.Leaf.Subject.CommonName
		}
		invite := func() *api.Invite {
			t.Helper()
			in, err := east.p.Invite(t.Context(), "west")
			if err != nil {
				t.Fatal(err)
			}
			return in
		}
		seen := map[string]bool{}
		for round := range 4 {
			if round > 1 {
				east.restartOn(storetest.New(), &storetest.Users{})
			}
			first := invite()
			if _, err := west.p.Add(t.Context(), first); err != nil {
				t.Fatal(err)
			}
			east.read(west)
			east.restart()
			if second := invite(); holder(second) != holder(first) {
				t.Errorf("%s is cut off by an unused invite: %s", holder(first), holder(second))
			}
			if got := strings.Join(east.users.Names(), " "); got != holder(first) || seen[got] {
				t.Errorf("users %q, certificate for %q, before %v", got, holder(first), seen)
			}
			seen[holder(first)] = true
			if err := east.p.Remove(t.Context(), "west"); err != nil {
				t.Fatal(err)
			}
			if n := east.users.Names(); len(n) != 0 {
				t.Errorf("users %v", n)
			}
		}
	})
}

// One API server removes a peer; then another one of the same cluster starts first on
// a new store.
func TestRemovalIsKeptByEveryAPIServer(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		first := w.cluster(t, "east", 1)
		defer func() { first.stop() }()
		second := w.cluster(t, "east", 1)
		defer func() { second.stop() }()
		second.restartOn(first.st, first.users)
		if _, err := first.p.Invite(t.Context(), "west"); err != nil {
			t.Fatal(err)
		}
		if err := first.p.Remove(t.Context(), "west"); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		second.restartOn(storetest.New(), &storetest.Users{})
		if _, err := second.p.Invite(t.Context(), "west"); err != nil {
			t.Fatal(err)
		}
		if got := strings.Join(second.users.Names(), " "); got != authority.RemoteUser("west", 1) {
			t.Errorf("users %s", got)
		}
	})
}

// Each mistake gets a sentence, and nothing is altered.
// In the authMode migration all peers of a Cilium cluster share the user remote, and its
// certificate is as good as one of our own name.
func TestAPeerMayNameCiliumsSharedUser(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		east, west := w.cluster(t, "east", 1), w.cluster(t, "west", 2)
		defer func() { east.stop(); west.stop() }()
		in, err := west.p.Invite(t.Context(), "east")
		if err != nil {
			t.Fatal(err)
		}
		shared, err := west.ca.Issue(authority.Request{User: "remote", Client: true})
		if err != nil {
			t.Fatal(err)
		}
		in.Cert, in.Key = string(shared.Cert), string(shared.Key)
		if _, err := east.p.Add(t.Context(), in); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if s := east.status("west"); s.Control.State != api.LinkUp {
			t.Errorf("control %+v", s.Control)
		}
	})
}

func TestBadInvites(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		east, west, south := w.cluster(t, "east", 1), w.cluster(t, "west", 2), w.cluster(t, "south", 3)
		defer func() { east.stop(); west.stop(); south.stop() }()
		east.read(west)
		other, err := south.p.Invite(t.Context(), "other")
		if err != nil {
			t.Fatal(err)
		}
		expired, err := south.ca.Issue(authority.Request{User: "remote-east", Client: true, Lifetime: -time.Hour})
		if err != nil {
			t.Fatal(err)
		}
		good, err := south.p.Invite(t.Context(), "east")
		if err != nil {
			t.Fatal(err)
		}
		n1 := wire.Registration{Name: "n1", Addresses: []netip.Addr{netip.MustParseAddr("172.16.1.1")}}
		if err := store.Write(t.Context(), east.st, store.Put(wire.RegistrationKey("n1"), wire.Marshal(n1))); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		before := east.st.Dump("")
		for _, c := range []struct {
			name   string
			change func(*api.Invite)
			status int
			want   string
		}{
			{"another kind", func(in *api.Invite) { in.Kind = "JoinBundle" }, 422, "this is not an invite"},
			{"for another cluster", func(in *api.Invite) { in.For = "north" }, 422, `weft peer invite east`},
			{"a bad name", func(in *api.Invite) { in.Cluster = "So uth" }, 422, "use 1 to 32 of a-z"},
			{"our name", func(in *api.Invite) { in.Cluster = "east" }, 409, "our own name"},
			{"our ID", func(in *api.Invite) { in.ID = 1 }, 409, "cluster ID 1 is our own"},
			{"a peer's ID", func(in *api.Invite) { in.ID = 2 }, 409, `cluster ID 2 is used by peer "west"`},
			{"a peer's name", func(in *api.Invite) { in.Cluster = "west" }, 409, "a peer of this name already exists with cluster ID 2, not 3"},
			{"ID 0", func(in *api.Invite) { in.ID = 0 }, 422, "from 1 to 255"},
			{"ID beyond the range", func(in *api.Invite) { in.ID = 256 }, 422, "from 1 to 255"},
			{"another maximum", func(in *api.Invite) { in.MaxConnectedClusters = 511 }, 409, "maxConnectedClusters"},
			{"no family in common", func(in *api.Invite) { in.PodCIDRs = []netip.Prefix{netip.MustParsePrefix("fd00:10:2::/48")} }, 409, "its pods have addresses of IPv6 alone and ours of IPv4 alone, so none could reach another; give cluster east an IPv6 pod CIDR too"},
			{"our CIDR", func(in *api.Invite) { in.PodCIDRs = []netip.Prefix{netip.MustParsePrefix("10.1.128.0/17")} }, 409, "overlaps our own 10.1.0.0/16"},
			{"our service CIDR", func(in *api.Invite) { in.PodCIDRs = []netip.Prefix{netip.MustParsePrefix("10.101.1.0/24")} }, 409, "overlaps our service CIDR"},
			{"our IPv6 service CIDR", func(in *api.Invite) { in.PodCIDRs = []netip.Prefix{netip.MustParsePrefix("fd00:10:101::/64")} }, 409, "overlaps our service CIDR fd00:10:101::/112"},
			{"IPv4 for IPv6", func(in *api.Invite) { in.IPv6ServiceCIDR = in.ServiceCIDR }, 422, "its IPv6 service CIDR is 10.103.0.0/16; correct ipv6ServiceCIDR there"},
			{"a peer's CIDR", func(in *api.Invite) { in.PodCIDRs = []netip.Prefix{netip.MustParsePrefix("10.2.0.0/15")} }, 409, `overlaps 10.2.0.0/16 of peer "west"`},
			{"no CIDR", func(in *api.Invite) { in.PodCIDRs = nil }, 422, "no pod CIDR"},
			{"everything", func(in *api.Invite) { in.PodCIDRs = []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0")} }, 422, "wider than /8"},
			{"half of everything", func(in *api.Invite) { in.PodCIDRs = []netip.Prefix{netip.MustParsePrefix("128.0.0.0/1")} }, 422, "wider than /8"},
			{"loopback", func(in *api.Invite) { in.PodCIDRs = []netip.Prefix{netip.MustParsePrefix("127.3.0.0/16")} }, 422, "127.0.0.0/8, which no machine"},
			{"cloud metadata", func(in *api.Invite) { in.ServiceCIDR = netip.MustParsePrefix("169.254.0.0/16") }, 422, "169.254.0.0/16, which no machine"},
			{"our node", func(in *api.Invite) { in.PodCIDRs = []netip.Prefix{netip.MustParsePrefix("172.16.0.0/16")} }, 409, "contains 172.16.1.1, the address of our node n1"},
			{"host bits", func(in *api.Invite) { in.PodCIDRs = []netip.Prefix{netip.MustParsePrefix("10.3.0.1/16")} }, 422, "without bits outside"},
			{"its own overlap", func(in *api.Invite) { in.PodCIDRs = append(in.PodCIDRs, netip.MustParsePrefix("10.3.1.0/24")) }, 422, "overlap"},
			{"expired long ago", func(in *api.Invite) {
				in.Expires = time.Now().Add(-time.Hour)
				in.Cert, in.Key = string(expired.Cert), string(expired.Key)
			}, 422, "the invite expired on 1999-12-31; ask for a new one with `weft peer invite east`"},
			{"expired", func(in *api.Invite) { in.Cert, in.Key = string(expired.Cert), string(expired.Key) }, 422, "has expired on"},
			{"another's certificate", func(in *api.Invite) { in.Cert, in.Key = other.Cert, other.Key }, 422, `is for "remote-other"`},
			{"another CA", func(in *api.Invite) { in.CA = string(west.ca.Bundle()) }, 422, "not signed by the ca"},
			{"no CA", func(in *api.Invite) { in.CA = "" }, 422, "no certificate"},
			{"another key", func(in *api.Invite) { in.Key = other.Key }, 422, "do not belong together"},
			{"no endpoint", func(in *api.Invite) { in.EtcdEndpoints = nil }, 422, "how its store is reached"},
			{"plain endpoint", func(in *api.Invite) { in.EtcdEndpoints = []string{"http://south.test:2379"} }, 422, "https://host:port"},
			{"gossip address", func(in *api.Invite) { in.GossipAddresses = []string{"south"} }, 422, "host:port"},
			{"gossip key", func(in *api.Invite) { in.GossipKey = "abc" }, 422, "gossip key"},
		} {
			in := *good
			in.PodCIDRs = append([]netip.Prefix(nil), good.PodCIDRs...)
			c.change(&in)
			_, err := east.p.Add(t.Context(), &in)
			if !refusal(err, c.status) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%s: %v", c.name, err)
			}
		}
		twice := *good
		twice.ID, twice.PodCIDRs = 1, east.own.PodCIDRs
		var e *api.Error
		if _, err := east.p.Add(t.Context(), &twice); !errors.As(err, &e) || len(e.Problems) != 2 {
			t.Errorf("two mistakes: %v", err)
		}

		w.probe = errors.New("the certificate of the server at south.test:2379 is not signed by the CA in the invite")
		if _, err := east.p.Add(t.Context(), good); !refusal(err, 422) || !strings.Contains(err.Error(), "not signed by the CA") {
			t.Errorf("CA mismatch: %v", err)
		}
		w.probe = nil
		south.export(`{"id":7,"capabilities":{"syncedCanaries":true}}`)
		if _, err := east.p.Add(t.Context(), good); !refusal(err, 409) || !strings.Contains(err.Error(), "cluster ID is 7") {
			t.Errorf("another cluster answers: %v", err)
		}
		south.st.Fail(func(string, string) error { return store.ErrDenied })
		if _, err := east.p.Add(t.Context(), good); !refusal(err, 422) || !strings.Contains(err.Error(), "does not let us read") {
			t.Errorf("no user there: %v", err)
		}
		south.st.Fail(nil)

		if diff := cmp.Diff(before, east.st.Dump("")); diff != "" {
			t.Errorf("altered:\n%s", diff)
		}
	})
}

// The operator is warned in time about a certificate that is not renewed
// automatically.
func TestOperatorHearsOfACertificateThatEnds(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		east, west := w.cluster(t, "east", 1), w.cluster(t, "west", 2)
		defer func() { east.stop(); west.stop() }()
		in, err := west.p.Invite(t.Context(), "east")
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range []struct {
			left time.Duration
			want string
		}{
			{endingSoon + time.Hour, ""},
			{endingSoon - time.Hour, "peer west: the certificate with which we read it expires on 2000-02-29; ask its operator for a new invite (`weft peer invite east`), then `weft peer add` it"},
		} {
			short, err := west.ca.Issue(authority.Request{User: authority.RemoteUser("east", 0), Client: true, Lifetime: c.left})
			if err != nil {
				t.Fatal(err)
			}
			in.Cert, in.Key = string(short.Cert), string(short.Key)
			if _, err := east.p.Add(t.Context(), in); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
			if got := strings.Join(east.concerns(), "\n"); got != c.want {
				t.Errorf("%v left: %q", c.left, got)
			}
		}
		time.Sleep(endingSoon)
		want := "peer west: the certificate with which we read it has expired; ask its operator for a new invite (`weft peer invite east`), then `weft peer add` it"
		if got := strings.Join(east.concerns(), "\n"); got != want {
			t.Errorf("ended: %q", got)
		}
	})
}

// concerns are the lines of a status, of a reason and an object each.
func (c *cluster) concerns() (lines []string) {
	for _, x := range c.p.Concerns(time.Now()) {
		if !strings.HasPrefix(x.Object, "peer ") || x.Reason == "" || x.Next == "" {
			c.t.Errorf("parts of %+v", x)
		}
		lines = append(lines, x.String())
	}
	return lines
}
