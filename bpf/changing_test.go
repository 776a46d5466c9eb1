package bpf

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
)

// BenchmarkChanging compares packets of established flows at rest with the same packets
// while addresses change. A round is one packet of each of 1,000 flows. In a round of
// the second kind one of the 16,000 addresses that are known has changed before: if each
// flow sends 325 packets a second, that is 325 changes a second, and were every flow
// judged again after every change, every packet would be.
//
// Both kinds take turns at coming first, after a round that warms the caches; what an
// empty program costs is taken off. Medians of rounds, so that an interrupt does not
// count.
func BenchmarkChanging(b *testing.B) {
	for _, c := range []struct {
		name   string
		change func(b *testing.B, m *Maps, address Addr, again uint32)
	}{
		{"address", func(b *testing.B, m *Maps, address Addr, again uint32) {
			info, _, err := m.IPs.Lookup(address)
			if err != nil {
				b.Fatal(err)
			}
			info.Identity = 200000 + again%16000 // allowed as well
			set(b, m.IPs, address, info)
			raise(b, m.Revisions, RevisionOf(address))
		}},
		{"everything", func(b *testing.B, m *Maps, _ Addr, again uint32) {
			s, _, err := m.Settings.Lookup(0)
			if err != nil {
				b.Fatal(err)
			}
			s.Revision++
			set(b, m.Settings, 0, s)
		}},
	} {
		b.Run(c.name, func(b *testing.B) { changing(b, c.change) })
	}
}

func changing(b *testing.B, change func(b *testing.B, m *Maps, address Addr, again uint32)) {
	const flows, known = 1000, 16000
	n := benchNode(b, known)
	m, from, empty := n.Maps(), n.progs["from_pod"], emptyProgram(b)
	set(b, m.Budgets, 0, Budget{Each: 1 << 17})
	first := netip.MustParseAddr("10.2.3.0")
	at := func(i int) netip.Addr {
		a := first.As4()
		a[2], a[3] = a[2]+byte(i>>8), byte(i)
		return netip.AddrFrom4(a)
	}
	var packets [][]byte
	for i := range flows {
		in := packet(ip(podA, at(i*known/flows).String(), tcp(1000, 80, "A").says("data")).withTTL(255))
		packets = append(packets, in)
		run(b, from, redirect, in, 1)
	}
	again := func() uint64 {
		count, err := n.JudgedAgain()
		if err != nil {
			b.Fatal(err)
		}
		return count
	}
	const atRest, whileChanging, nothing, warm = 0, 1, 2, 3
	var rounds [4][]float64
	var judged [4]uint64
	round := func(kind int) {
		p, action, before := from, uint32(redirect), again()
		if kind == nothing {
			p, action = empty, pass
		}
		var total float64
		for _, in := range packets {
			total += float64(run(b, p, action, in, 1).Nanoseconds())
		}
		rounds[kind] = append(rounds[kind], total/flows)
		judged[kind] += again() - before
	}
	random := rand.New(rand.NewPCG(1, 2))
	for changingFirst := false; b.Loop(); changingFirst = !changingFirst {
		round(nothing)
		round(warm)
		if !changingFirst {
			round(atRest)
		}
		change(b, m, AddrOf(at(random.IntN(known))), random.Uint32())
		round(whileChanging)
		if changingFirst {
			round(atRest)
		}
	}
	median := func(kind int) float64 {
		slices.Sort(rounds[kind])
		return rounds[kind][len(rounds[kind])/2]
	}
	rest, busy := median(atRest)-median(nothing), median(whileChanging)-median(nothing)
	b.ReportMetric(rest, "rest-ns/packet")
	b.ReportMetric(busy, "changing-ns/packet")
	b.ReportMetric(busy/rest, "changing/rest")
	b.ReportMetric(float64(judged[whileChanging])/float64(len(rounds[whileChanging])*flows), "judged-again/packet")
	b.ReportMetric(0, "ns/op")
	if judged[atRest] > judged[whileChanging] {
		b.Errorf("%d flows were judged again at rest, %d while addresses changed", judged[atRest], judged[whileChanging])
	}
}

// raise raises a revision.
func raise(t testing.TB, revisions Table[uint32, uint32], row uint32) {
	t.Helper()
	r, _, err := revisions.Lookup(row)
	if err != nil {
		t.Fatal(err)
	}
	set(t, revisions, row, r+1)
}
