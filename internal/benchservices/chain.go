package main

import (
	"bufio"
	"io"
	"net/netip"
	"slices"
	"strings"
)

// chain reads from iptables-save in which order the chain KUBE-SERVICES tries the
// addresses of services. kube-proxy writes them in no order of its own.
func chain(rules io.Reader) (order []netip.Addr) {
	lines := bufio.NewScanner(rules)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		rest, ok := strings.CutPrefix(lines.Text(), "-A KUBE-SERVICES ")
		if !ok || !strings.Contains(rest, " -j KUBE-SVC-") {
			continue
		}
		fields := strings.Fields(rest)
		if i := slices.Index(fields, "-d"); i >= 0 && i+1 < len(fields) {
			if p, err := netip.ParsePrefix(fields[i+1]); err == nil {
				order = append(order, p.Addr())
			}
		}
	}
	return order
}

// A target is a service to connect to.
type target struct {
	place   string // first, middle or last
	service int
	at      int // its position in the chain, from 0
}

// targets chooses the services, of those that answer, that are nearest the beginning, the
// middle and the end of a chain. A chain of one has a first only.
func targets(order []netip.Addr, answering int) (out []target) {
	at := map[int]int{} // service to position
	for i := range answering {
		if n := slices.Index(order, serviceAddr(i).Addr()); n >= 0 {
			at[i] = n
		}
	}
	if len(at) == 0 {
		return nil
	}
	nearest := func(place string, position int) target {
		best := target{service: -1}
		for i := range answering { // in order, for ties
			if n, ok := at[i]; ok && (best.service < 0 || max(n-position, position-n) < max(best.at-position, position-best.at)) {
				best = target{place, i, n}
			}
		}
		return best
	}
	out = append(out, nearest("first", 0))
	if len(at) > 2 {
		out = append(out, nearest("middle", len(order)/2), nearest("last", len(order)-1))
	}
	return out
}
