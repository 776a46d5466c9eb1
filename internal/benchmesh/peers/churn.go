package peers

import (
	"context"
	"math/rand/v2"
	"time"
)

// Rates are how many changes of each kind a cluster makes per second.
type Rates [kinds]float64

// ScaleTest are the rates of Cilium's own scale test: 325 changes per second in 250
// clusters. A pod that is a backend has its slices changed in the same transaction.
func ScaleTest() Rates { return Rates{Address: 1, Identity: 0.2, Node: 0.1} }

// Total is the changes per second that n clusters make.
func (r Rates) Total(n int) float64 {
	sum := 0.0
	for _, rate := range r {
		sum += rate
	}
	return sum * float64(n)
}

// due returns how many changes of each kind n clusters have made after a time.
func (r Rates) due(n int, after time.Duration) (counts [kinds]int) {
	for k, rate := range r {
		counts[k] = int(rate * float64(n) * after.Seconds())
	}
	return counts
}

// churnTick is the pause between two looks at the clock.
const churnTick = 5 * time.Millisecond

// Churn makes changes at the given rates until ctx ends, and returns how many. each, if
// not nil, learns of every one of them.
func (w *World) Churn(ctx context.Context, rates Rates, seed uint64, each func(Change)) (made int) {
	r := rand.New(rand.NewPCG(seed, 0))
	tick := time.NewTicker(churnTick)
	defer tick.Stop()
	var done [kinds]int
	for began := time.Now(); ; {
		select {
		case <-ctx.Done():
			return made
		case <-tick.C:
		}
		for k, due := range rates.due(len(w.Clusters), time.Since(began)) {
			for ; done[k] < due && ctx.Err() == nil; done[k]++ {
				change := w.Random(r, Kind(k))
				made++
				if each != nil {
					each(change)
				}
			}
		}
	}
}
