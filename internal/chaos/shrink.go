package chaos

import "slices"

// shrink returns a short part of the steps, by their places, that still fails: first the
// shortest prefix, then without whatever is not needed. Another attempt is made for as long
// as more allows it.
func shrink(n int, more func() bool, fails func(places []int) bool) []int {
	all := make([]int, n)
	for i := range all {
		all[i] = i
	}
	try := func(places []int) bool { return more() && fails(places) }
	for low, high := 0, n; low < high; {
		middle := (low + high) / 2
		if try(all[:middle:middle]) {
			all, high = all[:middle:middle], middle
		} else {
			low = middle + 1
		}
	}
	for size := len(all) / 2; size > 0; size /= 2 {
		for at := 0; at+size <= len(all); {
			if less := slices.Delete(slices.Clone(all), at, at+size); try(less) {
				all = less
			} else {
				at += size
			}
		}
	}
	return all
}

// part returns the steps at these places.
func part(steps []Step, places []int) (out []Step) {
	for _, i := range places {
		out = append(out, steps[i])
	}
	return out
}
