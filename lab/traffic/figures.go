package traffic

import (
	"cmp"
	"math"
	"slices"
	"time"
)

// Tally summarizes samples.
type Tally struct {
	Requests  int
	Failed    int
	Errors    map[string]int // failures by reason
	ByCluster map[string]int // answers by the server's cluster
	ByPod     map[string]int // answers by cluster/pod
	Resent    int            // TCP segments lost
	Slowest   time.Duration  // answer
}

// Count makes a Tally.
func Count(samples []Sample) Tally {
	t := Tally{Errors: map[string]int{}, ByCluster: map[string]int{}, ByPod: map[string]int{}}
	for _, s := range samples {
		t.Requests++
		t.Resent += int(s.Resent)
		if s.Error != "" {
			t.Failed++
			t.Errors[s.Error]++
			continue
		}
		t.ByCluster[s.Cluster]++
		t.ByPod[s.Cluster+"/"+s.Pod]++
		t.Slowest = max(t.Slowest, time.Duration(s.Took)*time.Microsecond)
	}
	return t
}

// Recovery is how long requests kept failing after a fault: the time from the fault to
// the start of the first request that succeeded and was followed only by successes. A
// request fails if it ends with an error or takes longer than patience.
//
// Only requests that have ended are in samples, and only of those that began before
// known have all ended. Later successes prove nothing, as others may still fail. ok is
// false until requests have been made and succeeded throughout the steady time up to
// known.
func Recovery(samples []Sample, fault, known time.Time, patience, steady time.Duration) (d time.Duration, ok bool) {
	sorted := slices.Clone(samples)
	slices.SortFunc(sorted, func(a, b Sample) int { return cmp.Compare(a.At, b.At) })
	var lastBad, firstGood, lastGood time.Time
	for _, s := range sorted {
		if s.End().Before(fault) {
			continue
		}
		if s.Error != "" || time.Duration(s.Took)*time.Microsecond > patience {
			lastBad, firstGood = s.Begin(), time.Time{}
			continue
		}
		if s.Begin().Before(fault) || s.Begin().After(known) {
			continue
		}
		if firstGood.IsZero() {
			firstGood = s.Begin()
		}
		lastGood = s.Begin()
	}
	if firstGood.IsZero() || lastGood.Sub(firstGood) < steady || known.Sub(lastGood) > steady {
		return 0, false
	}
	if lastBad.IsZero() {
		return 0, true
	}
	return firstGood.Sub(fault), true
}

// Percentile returns the value that a share of the values does not exceed, by the
// nearest-rank method; 0 if there are no values.
func Percentile(values []float64, share float64) float64 {
	if len(values) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(values))
	rank := int(math.Ceil(share * float64(len(sorted))))
	return sorted[min(max(rank, 1), len(sorted))-1]
}
