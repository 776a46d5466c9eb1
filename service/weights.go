package service

import (
	"fmt"
	"math"
	"math/bits"
	"slices"
	"strconv"
	"strings"
)

// DefaultWeight is the weight of a backend whose slice does not say one, as in Cilium.
const DefaultWeight = 100

// Class is a range of weights. Backends of a class are alike enough to be drawn evenly and
// then accepted by their weight: none is accepted less often than every second time. A backend
// whose weight changes only moves from class to class.
//
//	class 0: DefaultWeight itself, always accepted
//	class c: up to DefaultWeight × 2^(c-evenClass), and more than half of that
type Class uint8

const (
	// Classes is how many there are.
	Classes   = 18
	evenClass = 7 // the one that reaches to DefaultWeight
)

// ClassOf is the class of a weight; 0 is not a weight.
func ClassOf(weight uint16) Class {
	if weight == DefaultWeight {
		return 0
	}
	c := Class(1)
	for c.most() < uint64(weight)<<(evenClass-1) {
		c++
	}
	return c
}

// most is the highest weight in a class, times 2^(evenClass-1).
func (c Class) most() uint64 { return DefaultWeight * c.units() }

// units is the highest weight in a class, in units of which the lowest class has one.
func (c Class) units() uint64 {
	if c == 0 {
		c = evenClass
	}
	return 1 << (c - 1)
}

// Reject is how often, out of 65536 times, a backend of this weight is rejected after it was
// drawn from a class.
func (c Class) Reject(weight uint16) uint16 {
	accepted := (uint64(weight)<<(evenClass-1)<<16 + c.most()/2) / c.most()
	return uint16(1<<16 - max(1, min(accepted, 1<<16)))
}

// classSet says which classes there are.
type classSet uint32

// merged is the class for backends of all these classes together: none weighs more.
func (s classSet) merged() Class {
	if s <= 1 {
		return 0
	}
	c := Class(bits.Len32(uint32(s)) - 1)
	if s&1 != 0 {
		c = max(c, evenClass)
	}
	return c
}

// ClusterWeights are the shares of a service's new connections by the name of the cluster
// that answers them, whatever the number of its backends.
type ClusterWeights map[string]uint16

// otherClusters stands for those that are not named.
const otherClusters = "*"

// ParseClusterWeights reads the value of AnnotationClusterWeights, such as "east=3,west=1".
func ParseClusterWeights(text string) (ClusterWeights, error) {
	out := ClusterWeights{}
	for _, part := range strings.Split(text, ",") {
		name, number, ok := strings.Cut(part, "=")
		name, number = strings.TrimSpace(name), strings.TrimSpace(number)
		if !ok || name == "" {
			return nil, fmt.Errorf("%q is not a cluster and its weight; write them as in east=3,west=1", strings.TrimSpace(part))
		}
		weight, err := strconv.ParseUint(number, 10, 16)
		if err != nil {
			return nil, fmt.Errorf("the weight of %s is %q; write a number from 0 to 65535", name, number)
		}
		if _, twice := out[name]; twice {
			return nil, fmt.Errorf("%s is named twice; name it once", name)
		}
		out[name] = uint16(weight)
	}
	return out, nil
}

// Of is the weight of a cluster: 1 if nothing is said of it.
func (w ClusterWeights) Of(cluster string) uint16 {
	for _, name := range []string{cluster, otherClusters} {
		if weight, ok := w[name]; ok {
			return weight
		}
	}
	return 1
}

// Names are the clusters that are named, in order.
func (w ClusterWeights) Names() (out []string) {
	for name := range w {
		if name != otherClusters {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}

// Split are ClusterWeights by the clusters' numbers.
type Split struct {
	By   map[ClusterID]uint16
	Rest uint16 // of all others
}

// Split looks up the numbers of clusters; nil if there are no weights. Clusters without a
// number are left out.
func (w ClusterWeights) Split(number func(name string) ClusterID) *Split {
	if len(w) == 0 {
		return nil
	}
	s := &Split{By: map[ClusterID]uint16{}, Rest: w.Of(otherClusters)}
	for _, name := range w.Names() {
		if id := number(name); id != 0 {
			s.By[id] = w[name]
		}
	}
	return s
}

// Of is the weight of a cluster. All are alike if s is nil.
func (s *Split) Of(cluster ClusterID) uint16 {
	if s == nil {
		return 1
	}
	if weight, ok := s.By[cluster]; ok {
		return weight
	}
	return s.Rest
}

// Portion is a group of backends of one class, as it takes part in a choice.
type Portion struct {
	Cluster ClusterID
	Tier    uint8
	Class   Class
	Count   int
	// Rejected is the sum of what Reject says of its backends.
	Rejected uint64
}

// mostTickets bounds the tickets of one choice, which have to fit into 32 bits.
const mostTickets = 1 << 31

// Tickets says how many tickets each backend of each portion holds, so that drawing tickets
// evenly, and rejecting some backends as Class says, gives every backend a share by its
// weight, and if there is a split every cluster one by that. nil means one ticket each.
func Tickets(all []Portion, split *Split) []uint32 {
	if split == nil && !slices.ContainsFunc(all, func(p Portion) bool { return p.Class != 0 }) {
		return nil
	}
	if split == nil {
		if out := wholeTickets(all); out != nil {
			return out
		}
	}
	// How much more often a backend of one portion is drawn than one of another.
	often := make([]float64, len(all))
	for i, p := range all {
		often[i] = float64(p.Class.units())
		if split == nil {
			continue
		}
		often[i] *= float64(split.Of(p.Cluster))
		var weight float64 // of its cluster in this tier
		for _, q := range all {
			if q.Tier == p.Tier && q.Cluster == p.Cluster {
				weight += float64(q.Class.units()) * (float64(q.Count) - float64(q.Rejected)/(1<<16))
			}
		}
		if weight > 0 {
			often[i] /= weight
		}
	}
	out := make([]uint32, len(all))
	for i, p := range all {
		var tier float64
		for j, q := range all {
			if q.Tier == p.Tier {
				tier += often[j] * float64(q.Count)
			}
		}
		out[i] = 1
		if p.Count > 0 {
			out[i] = uint32(max(1, math.Round(min(1, often[i]/tier)*mostTickets)))
		}
	}
	return out
}

// wholeTickets are as few tickets as possible that are exactly right; nil if they are too many.
func wholeTickets(all []Portion) []uint32 {
	divisor, total := uint64(0), uint64(0)
	for _, p := range all {
		divisor, total = gcd(divisor, p.Class.units()), total+p.Class.units()*uint64(p.Count)
	}
	if total/divisor > mostTickets {
		return nil
	}
	out := make([]uint32, len(all))
	for i, p := range all {
		out[i] = uint32(p.Class.units() / divisor)
	}
	return out
}

func gcd(a, b uint64) uint64 {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}
