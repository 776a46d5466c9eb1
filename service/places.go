package service

import (
	"cmp"
	"slices"
)

// Place is where a cluster's group comes among those of a frontend.
type Place struct {
	Cluster ClusterID
	Near    Near
	Tier    uint8
	// Taking is whether any of its backends gets new connections.
	Taking bool
}

// stock counts what one cluster has behind one port.
type stock struct {
	// ready ones by how near they are, and the kinds of hints that some of them lack.
	ready          [Nears]int
	lacks          Near
	last, draining int
}

func (s *sorted) stock() (n stock) {
	n.lacks, n.draining = s.lacks, len(s.draining)
	if !s.ready {
		n.last = len(s.taking[0])
		return n
	}
	for near, part := range s.taking {
		n.ready[near] = len(part)
	}
	return n
}

func (s *stock) allReady() (n int) {
	for _, part := range s.ready {
		n += part
	}
	return n
}

// nearest is the least step of a ready backend.
func (s *stock) nearest() uint8 {
	least := uint8(stepFar)
	for near, n := range s.ready {
		if n > 0 {
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
	places, omitted, flat := arrange(own, svc, stocks)
	return places, len(omitted) == 0 && !flat
}

// arrange orders the groups of a frontend. If they are too many, those of a cluster become
// one, flat, and then the least preferred clusters are omitted.
func arrange(own ClusterID, svc *Service, of map[ClusterID]stock) (places []Place, omitted []ClusterID, flat bool) {
	if places = inOrder(own, svc, of); len(places) > MaxGroups {
		for cluster, s := range of {
			n := s.allReady()
			flat = flat || n > s.ready[0]
			s.ready = [Nears]int{n}
			of[cluster] = s
		}
		places = inOrder(own, svc, of)
	}
	for len(places) > MaxGroups {
		omitted = append(omitted, places[len(places)-1].Cluster)
		places = places[:len(places)-1]
	}
	slices.Reverse(omitted)
	return places, omitted, flat
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
		case s.allReady() > 0:
			for part, n := range s.ready {
				if n > 0 {
					add(Place{Near: Near(part), Taking: true}, min(far, step(Near(part), s.lacks)))
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
		cmp.Compare(p.Cluster, other.Cluster), cmp.Compare(p.Near, other.Near))
}

func first(yes bool) int {
	if yes {
		return 1
	}
	return 0
}
