package service

import (
	"cmp"
	"math/bits"
	"slices"
)

// Place is where a cluster's group comes among those of a frontend.
type Place struct {
	Cluster ClusterID
	Near    Near
	Class   Class
	Tier    uint8
	// Taking is whether any of its backends gets new connections.
	Taking bool
}

// stock counts what one cluster has behind one port.
type stock struct {
	// ready says which classes there are of the ready ones, by how near they are, and lacks
	// the kinds of hints that some of them lack.
	ready          [Nears]classSet
	lacks          Near
	last, draining int
}

func (s *sorted) stock() (n stock) {
	n.lacks, n.draining = s.lacks, len(s.draining)
	if !s.ready {
		n.last = len(s.taking[part{}])
		return n
	}
	for p := range s.taking {
		n.ready[p.near] |= 1 << p.class
	}
	return n
}

// all are the classes of all that are ready.
func (s *stock) all() (classes classSet) {
	for _, some := range s.ready {
		classes |= some
	}
	return classes
}

// nearest is the least step of a ready backend.
func (s *stock) nearest() uint8 {
	least := uint8(stepFar)
	for near, classes := range s.ready {
		if classes != 0 {
			least = min(least, step(Near(near), s.lacks))
		}
	}
	return least
}

// Places orders the groups of a frontend, those that are not empty, as Frontends does. It
// returns false if they are more than MaxGroups.
func Places(own ClusterID, svc *Service, pools map[ClusterID]*Pool) (places []Place, ok bool) {
	stocks := make(map[ClusterID]stock, len(pools))
	for cluster, p := range pools {
		stocks[cluster] = p.stock()
	}
	a := arrange(own, svc, stocks)
	return a.places, len(a.omitted) == 0 && !a.merged
}

// arrangement is the order of a frontend's groups.
type arrangement struct {
	places  []Place
	omitted []ClusterID
	// merged says that all backends of a cluster are one group, because they would be too many;
	// flat, that some of them are nearer than others.
	merged, flat bool
}

// arrange orders the groups of a frontend. If they are too many, those of a cluster become
// one, and then the least preferred clusters are omitted.
func arrange(own ClusterID, svc *Service, of map[ClusterID]stock) (a arrangement) {
	if a.places = inOrder(own, svc, of); len(a.places) > MaxGroups {
		a.merged = true
		for cluster, s := range of {
			all := s.all()
			a.flat = a.flat || all != 0 && s.ready != [Nears]classSet{all}
			s.ready = [Nears]classSet{}
			if all != 0 {
				s.ready[0] = 1 << all.merged()
			}
			of[cluster] = s
		}
		a.places = inOrder(own, svc, of)
	}
	for len(a.places) > MaxGroups {
		a.omitted = append(a.omitted, a.places[len(a.places)-1].Cluster)
		a.places = a.places[:len(a.places)-1]
	}
	slices.Reverse(a.omitted)
	return a
}

func inOrder(own ClusterID, svc *Service, of map[ClusterID]stock) (places []Place) {
	counts := func(cluster ClusterID) bool { return cluster == own || svc.Global }
	near := false // without any, all are as near
	for cluster, s := range of {
		near = near || counts(cluster) && s.nearest() < stepFar
	}
	for cluster, s := range of {
		if !counts(cluster) {
			continue
		}
		add := func(at Place, more uint8) {
			at.Cluster, at.Tier = cluster, tier(svc.Affinity, cluster == own)+more
			places = append(places, at)
		}
		far := uint8(0)
		if near {
			far = stepFar
		}
		switch {
		case s.all() != 0:
			for near, classes := range s.ready {
				for ; classes != 0; classes &= classes - 1 {
					at := Place{Near: Near(near), Class: Class(bits.TrailingZeros32(uint32(classes))), Taking: true}
					add(at, min(far, step(at.Near, s.lacks)))
				}
			}
		case s.last > 0:
			add(Place{Taking: true}, tierTerminating)
		case s.draining > 0:
			add(Place{}, 0)
		}
	}
	slices.SortFunc(places, func(a, b Place) int { return a.compare(b, own) })
	return places
}

// compare orders groups as cluster own sees them. Groups that only drain come last and so
// make room for those that take connections; the own cluster comes before all others of
// its tier, so that it is omitted only while it takes none.
func (p Place) compare(other Place, own ClusterID) int {
	return cmp.Or(first(other.Taking)-first(p.Taking), cmp.Compare(p.Tier, other.Tier), first(other.Cluster == own)-first(p.Cluster == own),
		cmp.Compare(p.Cluster, other.Cluster), cmp.Compare(p.Near, other.Near), cmp.Compare(p.Class, other.Class))
}

func first(yes bool) int {
	if yes {
		return 1
	}
	return 0
}
