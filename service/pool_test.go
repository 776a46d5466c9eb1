package service

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"testing"
)

// Pools that follow slices one by one hold what Frontends makes of all of them, and say
// of each backend when its role changes.
func TestPoolsFollowFrontends(t *testing.T) {
	svc := &Service{Namespace: "shop", Name: "web", Global: true, Addresses: []netip.Addr{addr("10.101.0.1")}, Ports: []Port{{Name: "http", Protocol: TCP, Port: 80}}}
	for seed := range uint64(200) {
		r := rand.New(rand.NewPCG(seed, 1))
		svc.Affinity = []Affinity{AffinityNone, AffinityLocal, AffinityRemote}[seed%3]
		svc.Global = seed%4 > 0
		svc.Distribution = Distribution(seed / 3 % 3)
		svc.Split = nil
		if seed%5 == 0 {
			svc.Split = &Split{By: map[ClusterID]uint16{2: uint16(seed / 5 % 2)}, Rest: 3}
		}
		slices := map[ClusterID][]Slice{}
		pools := map[ClusterID]*Pool{}
		roles := map[ClusterID]map[netip.AddrPort]Role{}
		for step := range 60 {
			cluster := ClusterID(1 + r.IntN(3))
			if seed%10 == 0 {
				cluster = ClusterID(1 + r.IntN(MaxGroups+4))
			}
			if pools[cluster] == nil {
				pools[cluster], roles[cluster] = NewPool(fromEast, svc, cluster, svc.Ports[0], true), map[netip.AddrPort]Role{}
			}
			var before, after *Slice
			all := slices[cluster]
			if len(all) > 0 && r.IntN(3) > 0 {
				i := r.IntN(len(all))
				old := all[i]
				before = &old
				all = append(all[:i:i], all[i+1:]...)
			}
			if r.IntN(4) > 0 {
				s := randomSlice(r, step)
				after = &s
				all = append(all, s)
			}
			slices[cluster] = all
			pools[cluster].Replace(before, after, func(b netip.AddrPort, was, now Role) {
				if roles[cluster][b] != was || was == now {
					t.Fatalf("seed %d step %d: %v was %d, said to be %d, now %d", seed, step, b, roles[cluster][b], was, now)
				}
				if roles[cluster][b] = now; now == NoRole {
					delete(roles[cluster], b)
				}
			})
			want := Frontends(fromEast, svc, slices)[0]
			places, ok := Places(east, svc, pools)
			if ok != (len(want.Omitted) == 0 && !want.Merged) || len(places) != len(want.Groups) {
				t.Fatalf("seed %d step %d: %v and %v, want %v, %v and %v", seed, step, places, ok, want.Groups, want.Omitted, want.Merged)
			}
			members := map[ClusterID]map[netip.AddrPort]Role{}
			for i, g := range want.Groups {
				if at := (Place{g.Cluster, g.Near, g.Class, g.Tier, len(g.Backends) > 0}); places[i] != at {
					t.Fatalf("seed %d step %d: place %d is %v, want %v", seed, step, i, places[i], at)
				}
				if members[g.Cluster] == nil {
					members[g.Cluster] = map[netip.AddrPort]Role{}
				}
				for _, b := range g.Backends {
					members[g.Cluster][netip.AddrPortFrom(b.Addr, b.Port)] = takes(g.Near, b.Weight)
				}
				for _, b := range g.Draining {
					members[g.Cluster][netip.AddrPortFrom(b.Addr, b.Port)] = Draining
				}
			}
			for cluster, have := range members {
				if !want.Merged && !maps.Equal(have, roles[cluster]) || !maps.Equal(roles[cluster], maps.Collect(pools[cluster].Backends())) {
					t.Fatalf("seed %d step %d: cluster %d has %v, want %v", seed, step, cluster, roles[cluster], have)
				}
			}
		}
	}
}

func randomSlice(r *rand.Rand, n int) Slice {
	s := Slice{Namespace: "shop", Name: fmt.Sprint("web-", n), Service: "web", Ports: []SlicePort{{"http", TCP, uint16(8080 + r.IntN(2))}}}
	for range r.IntN(5) {
		e := Endpoint{Addr: netip.AddrFrom4([4]byte{10, 1, 1, byte(1 + r.IntN(6))}), Ready: r.IntN(3) > 0, Serving: r.IntN(2) == 0, Terminating: r.IntN(2) == 0}
		e.Node, e.Zone = fmt.Sprint("n", 1+r.IntN(2)), []string{"a", "b", "a", "b", ""}[r.IntN(5)]
		switch r.IntN(12) {
		case 0, 1:
			e = Endpoint{Addr: addr("fd00::1"), Ready: true}
		case 2:
			e.Hints = &Hints{Zones: []string{"a", "b"}[:1+r.IntN(2)]}
		case 3:
			e.Hints = &Hints{Nodes: []string{"n1", "n2"}[r.IntN(2):]}
		}
		s.Endpoints = append(s.Endpoints, e)
	}
	switch r.IntN(5) {
	case 0:
		s.Drain()
	case 1, 2:
		s.Weight = []uint16{1, 50, 99, 101, 200, 65535}[r.IntN(6)]
	}
	return s
}
