package meshagent

import (
	"bufio"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"

	mcs "sigs.k8s.io/mcs-api/pkg/apis/v1beta1"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/meshagent/tables"
	"github.com/weft-mesh/weft/service"
	"github.com/weft-mesh/weft/wire"
)

// A name server is told what there is, and then what changes of what it answers, and nothing
// else.
func TestNamesAreTold(t *testing.T) {
	tab := tables.New()
	listed := make(chan struct{})
	close(listed)
	n := &names{own: "east", tables: tab, listed: listed}
	change := func(f func(put func(row any))) {
		txn := tab.DB.WriteTxn(tab.Services, tab.Slices, tab.Imports)
		f(func(row any) {
			switch r := row.(type) {
			case *tables.Service:
				tables.Put(txn, tab.Services, r)
			case *tables.Slice:
				tables.Put(txn, tab.Slices, r)
			case *tables.Import:
				tables.Put(txn, tab.Imports, r)
			}
		})
		txn.Commit()
	}
	derived := wire.DerivedName("shop", "db")
	addr := netip.MustParseAddr
	slice := func(cluster, svc, name string, ready bool, a string) *tables.Slice {
		return &tables.Slice{Cluster: cluster, Slice: service.Slice{
			Namespace: "shop", Name: name, Service: svc, Ports: []service.SlicePort{{Name: "tcp", Protocol: service.TCP, Port: 81}},
			Endpoints: []service.Endpoint{{Addr: addr(a), Hostname: "db-0", Ready: ready, Serving: ready}},
		}}
	}
	db := service.Service{Namespace: "shop", Name: derived, Global: true}
	change(func(put func(any)) {
		put(&tables.Service{Cluster: "east", Service: service.Service{Namespace: "shop", Name: "web", Addresses: []netip.Addr{addr("10.101.0.7")}}})
		put(&tables.Service{Cluster: "west", Service: service.Service{Namespace: "shop", Name: "other", Addresses: []netip.Addr{addr("10.102.0.7")}}})
		put(&tables.Service{Cluster: "east", Service: db})
		put(&tables.Import{Namespace: "shop", Name: "db", Object: &mcs.ServiceImport{Spec: mcs.ServiceImportSpec{Type: mcs.Headless}}})
		put(slice("west", derived, derived+"-1", true, "10.2.1.2"))
	})
	s := httptest.NewServer(http.HandlerFunc(n.serve))
	defer s.Close()
	resp, err := http.Get(s.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	next := func() map[string]api.NamedService {
		t.Helper()
		if !lines.Scan() {
			t.Fatalf("the stream ended: %v", lines.Err())
		}
		var e api.NamesEvent
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil || !e.Complete {
			t.Fatalf("%s: %v", lines.Text(), err)
		}
		out := map[string]api.NamedService{}
		for _, s := range e.Services {
			key := s.Namespace + "/" + s.Name
			if s.Set {
				key = "set " + key
			}
			out[key] = s
		}
		return out
	}
	first := next()
	if len(first) != 3 || first["shop/web"].Addresses[0] != addr("10.101.0.7") || first["shop/web"].Headless {
		t.Errorf("told %+v", first)
	}
	set := first["set shop/db"]
	if !set.Headless || len(set.Endpoints) != 1 || set.Endpoints[0].Cluster != "west" || set.Endpoints[0].Hostname != "db-0" || set.Endpoints[0].Ports[0].Port != 81 {
		t.Errorf("told %+v of the import", set)
	}
	// Backends of a service with an address are not named.
	change(func(put func(any)) { put(slice("east", "web", "web-1", true, "10.1.1.2")) })
	change(func(put func(any)) { put(slice("east", derived, derived+"-2", true, "10.1.1.3")) })
	if got := next(); len(got) != 2 || len(got["set shop/db"].Endpoints) != 2 || got["set shop/db"].Endpoints[0].Cluster != "east" {
		t.Errorf("told %+v", got)
	}
	change(func(put func(any)) { put(slice("west", derived, derived+"-1", false, "10.2.1.2")) })
	if got := next(); len(got["set shop/db"].Endpoints) != 1 {
		t.Errorf("told %+v of a pod that is not ready", got)
	}
	txn := tab.DB.WriteTxn(tab.Imports)
	tables.Drop(txn, tab.Imports, &tables.Import{Namespace: "shop", Name: "db"})
	txn.Commit()
	if got := next(); len(got) != 1 || !got["set shop/db"].Gone {
		t.Errorf("told %+v", got)
	}
}

// Pods are told where to ask, and the services of the default namespace keep their short names.
func TestResolvConf(t *testing.T) {
	got := string(resolvFile([]netip.Addr{netip.MustParseAddr("10.101.0.10"), netip.MustParseAddr("fd00::a")}, "cluster.local."))
	want := "nameserver 10.101.0.10\nnameserver fd00::a\nsearch default.svc.cluster.local svc.cluster.local cluster.local\noptions ndots:5\n"
	if got != want {
		t.Errorf("%s", got)
	}
	if hosts := string(hostsFile(nil)); strings.Contains(hosts, "cluster.local") {
		t.Errorf("%s", hosts)
	}
}
