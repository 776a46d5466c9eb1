package peering

import (
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/apiserver/authority"
	"github.com/weft-mesh/weft/wire"
)

// asCilium is a cluster as its clustermesh secret describes it.
func (c *cluster) asCilium() *api.CiliumPeer {
	c.t.Helper()
	pair, err := c.ca.Issue(authority.Request{User: "remote", Client: true})
	if err != nil {
		c.t.Fatal(err)
	}
	return &api.CiliumPeer{Cluster: c.own.Name, Endpoints: []string{endpointOf(c.own.Name)}, CA: string(c.ca.Bundle()), Cert: string(pair.Cert), Key: string(pair.Key), PodCIDRs: c.own.PodCIDRs}
}

// A Cilium cluster may be read, or read us, or both; none of that is half joined. It is
// not treated as a Weft cluster afterwards, nor the other way round.
func TestACiliumPeerComesAndGoes(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		east, west, south := w.cluster(t, "east", 1), w.cluster(t, "west", 2), w.cluster(t, "south", 3)
		defer func() { east.stop(); west.stop(); south.stop() }()
		blank := east.left()
		in, err := east.p.InviteCilium(t.Context(), "west")
		if err != nil {
			t.Fatal(err)
		}
		if err := authority.CheckPair([]byte(in.Cert), []byte(in.Key), []byte(in.CA), "remote-west"); err != nil {
			t.Error(err)
		}
		synctest.Wait()
		if s := east.status("west"); s.Control.State != api.LinkInvited || !s.Cilium || !s.Invited {
			t.Errorf("%+v", s)
		}
		if _, err := east.p.Invite(t.Context(), "west"); !refusal(err, http.StatusConflict) || !strings.Contains(err.Error(), `peer "west" is a Cilium cluster`) {
			t.Errorf("invited as Weft: %v", err)
		}
		invite, err := west.p.Invite(t.Context(), "east")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := east.p.Add(t.Context(), invite); !refusal(err, http.StatusConflict) {
			t.Errorf("added as Weft: %v", err)
		}

		status, err := east.p.AddCilium(t.Context(), west.asCilium())
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if s := east.status("west"); status.ID != 2 || s.Control.State != api.LinkUp || !s.Cilium || s.AddedUs != nil || !s.Invited || s.Added.IsZero() {
			t.Errorf("%+v", s)
		}
		// What is below weft/ at a peer that runs Cilium is not asked for.
		if got := east.st.Dump(wire.CachePrefix); len(got) != 0 {
			t.Errorf("read %q", got)
		}
		if got := east.st.Dump(wire.CiliumCachePrefix); len(got) != 2 {
			t.Errorf("%d of 2 entries", len(got))
		}

		east.read(south)
		if _, err := east.p.InviteCilium(t.Context(), "south"); !refusal(err, http.StatusConflict) || !strings.Contains(err.Error(), `peer "south" is a Weft cluster`) {
			t.Errorf("invited as Cilium: %v", err)
		}
		if _, err := east.p.AddCilium(t.Context(), south.asCilium()); !refusal(err, http.StatusConflict) {
			t.Errorf("added as Cilium: %v", err)
		}
		if err := east.p.Remove(t.Context(), "west"); err != nil {
			t.Fatal(err)
		}
		if err := east.p.Remove(t.Context(), "south"); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(with(with(blank, formerLine("south", "10.3.0.0/16")), formerLine("west", "10.2.0.0/16")), east.left()); diff != "" {
			t.Errorf("left behind:\n%s", diff)
		}
	})
}

// Each mistake gets a sentence, and nothing is altered.
func TestBadCiliumPeers(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		east, west, south := w.cluster(t, "east", 1), w.cluster(t, "west", 2), w.cluster(t, "south", 3)
		defer func() { east.stop(); west.stop(); south.stop() }()
		east.read(west)
		expired, err := south.ca.Issue(authority.Request{User: "remote", Client: true, Lifetime: -time.Hour})
		if err != nil {
			t.Fatal(err)
		}
		server, err := south.ca.Issue(authority.Request{User: "remote", Server: true})
		if err != nil {
			t.Fatal(err)
		}
		config := func(text string) func(*api.CiliumPeer) {
			return func(*api.CiliumPeer) { south.export(text) }
		}
		good := `{"id":3,"capabilities":{"syncedCanaries":true,"maxConnectedClusters":255}}`
		before := east.st.Dump("")
		for _, c := range []struct {
			name   string
			change func(*api.CiliumPeer)
			status int
			want   string
		}{
			{"no endpoints", func(in *api.CiliumPeer) { in.Endpoints = nil }, 422, "endpoints: there are none"},
			{"plain endpoint", func(in *api.CiliumPeer) { in.Endpoints = []string{"http://south.test:2379"} }, 422, "https://host:port"},
			{"no CA", func(in *api.CiliumPeer) { in.CA = "" }, 422, "trusted-ca-file: "},
			{"expired", func(in *api.CiliumPeer) { in.Cert, in.Key = string(expired.Cert), string(expired.Key) }, 422, "cert-file: the certificate has expired on "},
			{"a server's certificate", func(in *api.CiliumPeer) { in.Cert, in.Key = string(server.Cert), string(server.Key) }, 422, "cert-file: the certificate is not signed by the ca beside it: x509: certificate specifies an incompatible key usage"},
			{"a bad name", func(in *api.CiliumPeer) { in.Cluster = "So/uth" }, 422, "has no cilium/cluster-config/So/uth"},
			{"our ID", config(`{"id":1}`), 409, "cluster ID 1 is our own"},
			{"a peer's ID", config(`{"id":2}`), 409, `cluster ID 2 is used by peer "west"`},
			{"an ID beyond the range", config(`{"id":256}`), 422, "from 1 to 255"},
			{"another maximum", config(`{"id":3,"capabilities":{"maxConnectedClusters":511}}`), 409, "its maxConnectedClusters is 511, but ours is 255"},
			{"no ID", config(`{"capabilities":{}}`), 422, "cluster ID is 0"},
			{"a mode that nobody knows", config(`{"id":3,"capabilities":{"endpointSlicesExportMode":"x"}}`), 422, `"x" is not known`},
			{"a peer's CIDR", func(in *api.CiliumPeer) { in.PodCIDRs = west.own.PodCIDRs }, 409, `overlaps 10.2.0.0/16 of peer "west"`},
			{"everything", func(in *api.CiliumPeer) { in.PodCIDRs = []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0")} }, 422, "wider than /8"},
			{"our service CIDR in its", func(in *api.CiliumPeer) { in.ServiceCIDR = netip.MustParsePrefix("10.1.0.0/16") }, 409, "its service CIDR 10.1.0.0/16 overlaps our pod CIDR"},
			{"it does not answer", func(*api.CiliumPeer) { w.set(func() { w.down[endpointOf("south")] = true }) }, 422, "or name the ID with --id"},
		} {
			south.export(good)
			w.set(func() { clear(w.down) })
			in := south.asCilium()
			c.change(in)
			if _, err := east.p.AddCilium(t.Context(), in); !refusal(err, c.status) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%s: %v", c.name, err)
			}
		}
		if diff := cmp.Diff(before, east.st.Dump("")); diff != "" {
			t.Errorf("altered:\n%s", diff)
		}

		// With its ID, it is added before it answers, and believed only if that is right.
		w.set(func() { w.down[endpointOf("south")] = true })
		in := south.asCilium()
		in.ID = 4
		if _, err := east.p.AddCilium(t.Context(), in); err != nil {
			t.Fatal(err)
		}
		w.set(func() { clear(w.down) })
		time.Sleep(time.Minute)
		synctest.Wait()
		if s := east.status("south"); s.Control.State != api.LinkRefused || !strings.Contains(s.Control.Error, "its cluster ID is 3, but it was added with 4") || len(east.st.Dump(wire.IPs.CachePrefix("south"))) != 0 {
			t.Errorf("%+v", s.Control)
		}
	})
}

// The warning about a certificate that ends says how Cilium's is renewed.
func TestACiliumCertificateThatEnds(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		east, west := w.cluster(t, "east", 1), w.cluster(t, "west", 2)
		defer func() { east.stop(); west.stop() }()
		in := west.asCilium()
		pair, err := west.ca.Issue(authority.Request{User: "remote", Client: true, Lifetime: 24 * time.Hour})
		if err != nil {
			t.Fatal(err)
		}
		in.Cert, in.Key = string(pair.Cert), string(pair.Key)
		if _, err := east.p.AddCilium(t.Context(), in); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		c := east.p.Concerns(time.Now())
		if want := "renew it there, then `weft peer add west --cilium` its new secret"; len(c) != 1 || c[0].Next != want {
			t.Errorf("concerns %+v, want %q", c, want)
		}
	})
}
