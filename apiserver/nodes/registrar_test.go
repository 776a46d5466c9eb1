package nodes

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/apiserver/authority"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/store/storetest"
	"github.com/weft-mesh/weft/wire"
)

func registrar(t *testing.T) (*Registrar, *storetest.Store, *storetest.Users) {
	t.Helper()
	ca, err := authority.Open(t.TempDir(), "east")
	if err != nil {
		t.Fatal(err)
	}
	s, users := storetest.New(), &storetest.Users{}
	return New(Config{
		Cluster: wire.Cluster{Name: "east", ID: 1, MaxConnectedClusters: 255,
			PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")}, ServiceCIDR: netip.MustParsePrefix("10.101.0.0/16")},
		Store: s, Users: users, Authority: ca, Server: "https://172.16.1.1:7443", EtcdEndpoints: func() []string { return []string{"https://172.16.1.1:2379"} },
		Others: func() []string { return []string{"https://172.16.1.2:7443"} },
		Seeds:  func() []string { return []string{"172.16.1.1:7948", "172.16.1.2:7948"} },
	}), s, users
}

func request(name, ip, cidr string) api.NodeRequest {
	r := api.NodeRequest{Name: name}
	if ip != "" {
		r.Addresses = []netip.Addr{netip.MustParseAddr(ip)}
	}
	if cidr != "" {
		r.PodCIDRs = []netip.Prefix{netip.MustParsePrefix(cidr)}
	}
	return r
}

func TestAdd(t *testing.T) {
	r, s, users := registrar(t)
	b, err := r.Add(t.Context(), request("n1", "172.16.1.1", "10.1.1.0/24"))
	if err != nil {
		t.Fatal(err)
	}
	if err := authority.CheckPair([]byte(b.Cert), []byte(b.Key), []byte(b.CA), "agent-n1"); err != nil {
		t.Error(err)
	}
	if b.GossipKey == "" || b.Cluster != "east" || b.Node != "n1" || b.ServerCert == "" {
		t.Errorf("bundle lacks something: %+v", b)
	}
	user, ok := users.User("agent-n1")
	if !ok || !slices.Equal(user.Write, []string{"weft/state/nodes/n1/"}) || slices.Contains(user.Read, wire.SecretPrefix) {
		t.Errorf("rights: %+v", user)
	}
	before := s.Dump(wire.RegistrationsPrefix)
	again, err := r.Add(t.Context(), request("n1", "", ""))
	if err != nil || again.Cert == b.Cert || again.GossipKey != b.GossipKey || !slices.Equal(before, s.Dump(wire.RegistrationsPrefix)) {
		t.Errorf("asked again: %v", err)
	}
	if b, err := r.Add(t.Context(), request("n2", "172.16.1.2", "")); err != nil || b.PodCIDRs[0] != netip.MustParsePrefix("10.1.0.0/24") {
		t.Errorf("chosen pod CIDR: %v %v", b, err)
	}
}

func TestAddRefuses(t *testing.T) {
	r, s, _ := registrar(t)
	if _, err := r.Add(t.Context(), request("n1", "172.16.1.1", "10.1.1.0/24")); err != nil {
		t.Fatal(err)
	}
	west := wire.Peer{Name: "west", ID: 2, Connected: true, PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.2.0.0/16")}, ServiceCIDR: netip.MustParsePrefix("10.102.0.0/16")}
	if err := store.Write(t.Context(), s, store.Put(wire.PeerKey("west"), wire.Marshal(west))); err != nil {
		t.Fatal(err)
	}
	before := s.Dump("")
	for name, c := range map[string]struct {
		request api.NodeRequest
		want    string
	}{
		"bad name":          {request("N_1", "172.16.1.9", ""), "cannot be a node's name"},
		"long name":         {request(strings.Repeat("n", 60), "172.16.1.9", ""), "cannot be a node's name"},
		"no address":        {request("n9", "", ""), "has no address"},
		"loopback":          {request("n9", "127.0.0.1", ""), "127.0.0.1 is a loopback address"},
		"link-local":        {request("n9", "169.254.169.254", ""), "169.254.169.254 is a link-local address"},
		"broadcast":         {request("n9", "255.255.255.255", ""), "is a reserved or broadcast address"},
		"a peer's pod":      {request("n9", "10.2.7.7", ""), "is in a CIDR of cluster west"},
		"a peer's service":  {request("n9", "10.102.0.9", ""), "is in a CIDR of cluster west"},
		"IPv6":              {request("n9", "fd00::1", "10.1.9.0/24"), "first addresses of one IP family"},
		"IPv4 in IPv6":      {request("n9", "::ffff:172.16.1.9", ""), "is IPv4 written as IPv6; write 172.16.1.9"},
		"a pod's address":   {request("n9", "10.1.1.4", ""), "is in a CIDR"},
		"another's address": {request("n9", "172.16.1.1", ""), "belongs to node n1"},
		"outside":           {request("n9", "172.16.1.9", "10.2.1.0/24"), "outside the cluster's 10.1.0.0/16"},
		"wider":             {request("n9", "172.16.1.9", "10.0.0.0/8"), "outside the cluster's"},
		"overlap":           {request("n9", "172.16.1.9", "10.1.1.128/25"), "overlaps 10.1.1.0/24 of node n1"},
		"not masked":        {request("n9", "172.16.1.9", "10.1.2.7/24"), "cannot be a node's pod CIDR"},
		"change of CIDR":    {request("n1", "", "10.1.2.0/24"), "cannot change"},
		"one more CIDR":     {api.NodeRequest{Name: "n1", PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.1.1.0/24"), netip.MustParsePrefix("10.1.2.0/24")}}, "cannot change"},
		"bad label":         {api.NodeRequest{Name: "n1", Labels: map[string]string{"zone": "a b"}}, "labels of node n1"},
	} {
		_, err := r.Add(t.Context(), c.request)
		var refused *api.Error
		if !errors.As(err, &refused) || !strings.Contains(err.Error(), c.want) || refused.Hint == "" {
			t.Errorf("%s: got %v, want %q", name, err, c.want)
		}
	}
	if !slices.Equal(before, s.Dump("")) {
		t.Error("something was altered")
	}
}

// Each node has a pod CIDR of each family of its cluster: as it was asked for, or the next
// free one. One from before the cluster had the second family gets it when it is added again.
func TestAddGivesACIDROfEachFamily(t *testing.T) {
	r, s, _ := registrar(t)
	add := func(name, ip string, cidrs ...string) string {
		t.Helper()
		req := request(name, ip, "")
		for _, c := range cidrs {
			req.PodCIDRs = append(req.PodCIDRs, netip.MustParsePrefix(c))
		}
		b, err := r.Add(t.Context(), req)
		if err != nil {
			return err.Error()
		}
		var stored wire.Registration
		kv, err := s.Get(t.Context(), wire.RegistrationKey(name))
		if err == nil {
			stored, err = wire.Unmarshal[wire.Registration](kv.Value)
		}
		if err != nil || !slices.Equal(stored.PodCIDRs, b.PodCIDRs) {
			t.Errorf("stored %v, %v", stored, err)
		}
		return join(b.PodCIDRs)
	}
	for _, step := range []struct{ got, want string }{
		{add("old", "172.16.1.9", "10.1.9.0/24"), "10.1.9.0/24"},
		{func() string {
			r.conf.Cluster.PodCIDRs = append(r.conf.Cluster.PodCIDRs, netip.MustParsePrefix("fd00:10:1::/48"))
			return join(r.conf.Cluster.PodCIDRs)
		}(), "10.1.0.0/16, fd00:10:1::/48"},
		{add("n1", "172.16.1.1"), "10.1.0.0/24, fd00:10:1::/64"},
		{add("n2", "172.16.1.2", "fd00:10:1:2::/64"), "10.1.1.0/24, fd00:10:1:2::/64"},
		{add("n3", "172.16.1.3", "fd00:10:1:1::/64", "10.1.3.0/24"), "10.1.3.0/24, fd00:10:1:1::/64"},
		{add("n4", "172.16.1.4"), "10.1.2.0/24, fd00:10:1:3::/64"},
		{add("n5", "172.16.1.5", "fd00:10:1:3::/80"), "pod CIDR fd00:10:1:3::/80 overlaps fd00:10:1:3::/64 of node n4"},
		{add("n5", "172.16.1.5", "fd00:10:2::/64"), "pod CIDR fd00:10:2::/64 of node n5 is outside the cluster's 10.1.0.0/16, fd00:10:1::/48"},
		{add("old", ""), "10.1.9.0/24, fd00:10:1:4::/64"},
		{add("old", ""), "10.1.9.0/24, fd00:10:1:4::/64"},
		{add("old", "", "10.1.9.0/24", "fd00:10:1:5::/64"), "node old has pod CIDR 10.1.9.0/24, fd00:10:1:4::/64, which cannot change to 10.1.9.0/24, fd00:10:1:5::/64 while it is registered"},
	} {
		if step.got != step.want {
			t.Errorf("got %s\nwant %s", step.got, step.want)
		}
	}
}

func TestAddManyAtOnce(t *testing.T) {
	r, _, _ := registrar(t)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			ip := netip.AddrFrom4([4]byte{172, 16, 1, byte(10 + i)}).String()
			if _, err := r.Add(t.Context(), request("n"+string(rune('a'+i)), ip, "")); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	register, err := r.Register(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	seen := map[netip.Prefix]string{}
	for name, reg := range register {
		if other := seen[reg.PodCIDRs[0]]; other != "" {
			t.Errorf("%s and %s both have %s", name, other, reg.PodCIDRs[0])
		}
		seen[reg.PodCIDRs[0]] = name
	}
	if len(seen) != 8 {
		t.Errorf("%d nodes", len(seen))
	}
}

func TestRemove(t *testing.T) {
	r, s, users := registrar(t)
	for _, q := range []api.NodeRequest{request("n1", "172.16.1.1", ""), request("n2", "172.16.1.2", "")} {
		if _, err := r.Add(t.Context(), q); err != nil {
			t.Fatal(err)
		}
	}
	pod := func(name, node string) store.Op {
		return store.Put(wire.ObjectKey("pods", "shop", name), []byte(`{"spec":{"nodeName":"`+node+`"}}`))
	}
	if err := store.Write(t.Context(), s, pod("a", "n1"), pod("b", "n2"), store.Put(wire.NodeKey("n1"), nil), store.Put(wire.NodeKey("n2"), nil)); err != nil {
		t.Fatal(err)
	}
	if gone, err := r.Remove(t.Context(), "n1"); err != nil || fmt.Sprint(gone) != "[shop/a]" {
		t.Fatal(gone, err)
	}
	for _, line := range s.Dump(wire.StatePrefix) {
		if strings.Contains(line, "n1") {
			t.Error("left over:", line)
		}
	}
	if len(s.Dump(wire.ObjectsPrefix)) != 1 || !slices.Equal(users.Names(), []string{"agent-n2"}) {
		t.Error("too much was removed, or too little")
	}
	var refused *api.Error
	if _, err := r.Remove(t.Context(), "n1"); !errors.As(err, &refused) || refused.Status != 404 {
		t.Error(err)
	}
}

// Renewing certificates leaves labels alone.
func TestLabelsStay(t *testing.T) {
	r, _, _ := registrar(t)
	labelled := request("n1", "172.16.1.1", "10.1.1.0/24")
	labelled.Labels = map[string]string{"topology.kubernetes.io/zone": "z1"}
	for _, c := range []struct {
		request api.NodeRequest
		zone    string
	}{
		{labelled, "z1"},
		{request("n1", "", ""), "z1"},
		{api.NodeRequest{Name: "n1", Labels: map[string]string{"topology.kubernetes.io/zone": "z2"}}, "z2"},
		{api.NodeRequest{Name: "n1", Labels: map[string]string{}}, ""},
	} {
		if _, err := r.Add(t.Context(), c.request); err != nil {
			t.Fatal(err)
		}
		register, err := r.Register(t.Context())
		if reg := register["n1"]; err != nil || reg.Zone() != c.zone {
			t.Errorf("after labels %v: zone %q, want %q (%v)", c.request.Labels, reg.Zone(), c.zone, err)
		}
	}
}

// A mistyped address does not move a node.
func TestAnotherAddressIsRefused(t *testing.T) {
	r, _, _ := registrar(t)
	if _, err := r.Add(t.Context(), request("n1", "172.16.1.1", "10.1.1.0/24")); err != nil {
		t.Fatal(err)
	}
	moved := request("n1", "172.16.1.9", "10.1.1.0/24")
	if _, err := r.Add(t.Context(), moved); err == nil || !strings.Contains(err.Error(), "172.16.1.1") {
		t.Errorf("moved without --replace: %v", err)
	}
	if b, err := r.Add(t.Context(), request("n1", "", "")); err != nil || b.Addresses[0].String() != "172.16.1.1" {
		t.Errorf("after the refusal: %v, %v", b, err)
	}
	moved.Replace = true
	if b, err := r.Add(t.Context(), moved); err != nil || b.Addresses[0].String() != "172.16.1.9" {
		t.Errorf("with --replace: %v", err)
	}
}

// All of a cluster have first addresses of one IP family; what comes after is free. A node
// from before is left alone.
func TestFirstAddressesAreOfOneFamily(t *testing.T) {
	for name, c := range map[string]struct {
		server   string
		requests [][]string // name and addresses
		want     string     // of the last
	}{
		"IPv6":                     {"[fd00::1]", [][]string{{"n1", "fd00::1"}, {"n2", "fd00::2", "172.16.1.2"}}, ""},
		"IPv4 in one of IPv6":      {"[fd00::1]", [][]string{{"n1", "fd00::1"}, {"n2", "172.16.1.2", "fd00::2"}}, "first address of node n2 is 172.16.1.2, but that of node n1 is fd00::1"},
		"IPv6 in one of IPv4":      {"172.16.1.1", [][]string{{"n1", "172.16.1.1"}, {"n2", "fd00::2"}}, "first address of node n2 is fd00::2, but that of node n1 is 172.16.1.1"},
		"IPv6 second":              {"172.16.1.1", [][]string{{"n1", "172.16.1.1", "fd00::1"}}, ""},
		"the API server's":         {"172.16.1.1", [][]string{{"n1", "fd00::1"}}, "but that of the API server is 172.16.1.1"},
		"the API server by a name": {"east.test", [][]string{{"n1", "fd00::1"}}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			r, _, _ := registrar(t)
			r.conf.Server = "https://" + c.server + ":7443"
			for i, words := range c.requests {
				req := api.NodeRequest{Name: words[0]}
				for _, a := range words[1:] {
					req.Addresses = append(req.Addresses, netip.MustParseAddr(a))
				}
				_, err := r.Add(t.Context(), req)
				want := ""
				if i == len(c.requests)-1 {
					want = c.want
				}
				if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
					t.Errorf("%v: got %v, want %q", words, err, want)
				}
			}
		})
	}
	r, _, _ := registrar(t)
	if _, err := r.Add(t.Context(), request("n1", "172.16.1.1", "")); err != nil {
		t.Fatal(err)
	}
	r.conf.Server = "https://[fd00::1]:7443"
	if _, err := r.Add(t.Context(), request("n1", "172.16.1.1", "")); err != nil {
		t.Errorf("a node from before: %v", err)
	}
}
