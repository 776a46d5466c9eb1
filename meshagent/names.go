package meshagent

import (
	"encoding/json"
	"hash/maphash"
	"net/http"
	"slices"
	"strings"

	"github.com/cilium/statedb"
	mcs "sigs.k8s.io/mcs-api/pkg/apis/v1beta1"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/meshagent/tables"
	"github.com/weft-mesh/weft/service"
	"github.com/weft-mesh/weft/wire"
)

// names tells the node's name server, another process, what services there are.
type names struct {
	own    string
	tables *tables.Tables
	listed <-chan struct{}
}

const (
	// mostTold bounds what is told at once, in services and endpoints.
	mostTold = 2000
	// mostEndpoints of a headless service are told: no answer has room for more.
	mostEndpoints = 4000
)

// serve tells everything and then what changes, until the caller leaves.
func (n *names) serve(w http.ResponseWriter, r *http.Request) {
	ctx := r.Context()
	select {
	case <-ctx.Done():
		return
	case <-n.listed:
	}
	db := n.tables.DB
	txn := db.WriteTxn(n.tables.Services, n.tables.Slices, n.tables.Imports)
	services, err1 := n.tables.Services.Changes(txn)
	parts, err2 := n.tables.Slices.Changes(txn)
	imports, err3 := n.tables.Imports.Changes(txn)
	txn.Commit()
	for _, err := range []error{err1, err2, err3} {
		if err != nil {
			refuse(w, api.Refuse(http.StatusInternalServerError, "", "follow services: %v", err))
			return
		}
	}
	defer services.Close()
	defer parts.Close()
	defer imports.Close()

	hashes := map[string]uint64{}   // of what was told, by key
	importOf := map[string]string{} // keys of imports, by the service that has the address
	seed := maphash.MakeSeed()
	flush := http.NewResponseController(w)
	out := json.NewEncoder(w)
	complete := false
	for {
		txn := db.ReadTxn()
		dirty := map[string]bool{} // "namespace/name" of services, and with a slash before it of imports
		mark := func(id string) {
			dirty[id] = true
			if key := importOf[id]; key != "" {
				dirty[key] = true
			}
		}
		seqS, moreS := services.Next(txn)
		for c := range seqS {
			mark(c.Object.ID())
		}
		seqP, moreP := parts.Next(txn)
		for c := range seqP {
			mark(c.Object.ServiceID())
		}
		seqI, moreI := imports.Next(txn)
		for c := range seqI {
			key, id := "/"+c.Object.Key(), c.Object.Namespace+"/"+wire.DerivedName(c.Object.Namespace, c.Object.Name)
			if importOf[id] = key; c.Deleted {
				delete(importOf, id)
			}
			dirty[key] = true
		}
		var e api.NamesEvent
		send := func() bool {
			if err := out.Encode(e); err != nil {
				return false
			}
			e = api.NamesEvent{}
			return flush.Flush() == nil
		}
		told := 0
		for key := range dirty {
			v := n.of(txn, key)
			was, known := hashes[key]
			if v.Gone && !known {
				continue
			}
			sum := maphash.Bytes(seed, wire.Marshal(v))
			if known && was == sum {
				continue
			}
			if hashes[key] = sum; v.Gone {
				delete(hashes, key)
			}
			e.Services = append(e.Services, v)
			if told += 1 + len(v.Endpoints); told >= mostTold {
				if told = 0; !send() {
					return
				}
			}
		}
		if !complete || len(e.Services) > 0 {
			complete, e.Complete = true, true
			if !send() {
				return
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-moreS:
		case <-moreP:
		case <-moreI:
		}
	}
}

// of returns what a name server knows under a key.
func (n *names) of(txn statedb.ReadTxn, key string) api.NamedService {
	id, set := strings.CutPrefix(key, "/")
	ns, name, _ := strings.Cut(id, "/")
	v := api.NamedService{Set: set, Namespace: ns, Name: name}
	headless := false
	if set {
		i := tables.Get(txn, n.tables.Imports, id)
		if i == nil {
			v.Gone = true
			return v
		}
		headless, id = i.Object.Spec.Type == mcs.Headless, ns+"/"+wire.DerivedName(ns, name)
	}
	svc := tables.Get(txn, n.tables.Services, n.own+"/"+id)
	if svc == nil {
		v.Gone = true
		return v
	}
	v.Addresses = svc.Addresses
	if !set {
		headless = len(svc.Addresses) == 0
	}
	for _, p := range svc.Ports {
		v.Ports = append(v.Ports, api.NamedPort{Name: p.Name, Protocol: string(p.Protocol), Port: p.Port})
	}
	if v.Headless = headless; !headless {
		return v
	}
	v.Addresses = nil
	add := func(cluster string, s *service.Slice) {
		if cluster != n.own && !svc.Global {
			return
		}
		var ports []api.NamedPort
		for _, p := range s.Ports {
			ports = append(ports, api.NamedPort{Name: p.Name, Protocol: string(p.Protocol), Port: p.Port})
		}
		for _, e := range s.Endpoints {
			if len(v.Endpoints) < mostEndpoints && (e.Ready || svc.PublishNotReady && !e.Draining) {
				v.Endpoints = append(v.Endpoints, api.NamedEndpoint{Cluster: cluster, Hostname: e.Hostname, Address: e.Addr, Ports: ports})
			}
		}
	}
	inSlices := map[string]bool{}
	for _, s := range n.tables.SlicesOf(txn, id) {
		inSlices[s.Cluster] = true
		add(s.Cluster, &s.Slice)
	}
	for _, s := range n.tables.ServicesOf(txn, id) {
		if s.Cluster == n.own || inSlices[s.Cluster] {
			continue
		}
		for _, c := range s.CarriedSlices() {
			add(s.Cluster, &c)
		}
	}
	slices.SortStableFunc(v.Endpoints, func(a, b api.NamedEndpoint) int {
		if c := strings.Compare(a.Cluster, b.Cluster); c != 0 {
			return c
		}
		return a.Address.Compare(b.Address)
	})
	return v
}
