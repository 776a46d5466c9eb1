package bpf

import (
	"net/netip"
	"testing"

	"github.com/cilium/ebpf"
)

// FuzzPacket feeds bytes to every program: only known actions come out, each
// packet counts exactly once, and no packet to a member leaves in plaintext.
func FuzzPacket(f *testing.F) {
	needRoot(f)
	bothFamilies(func() {
		for _, cases := range [][]packetCase{pathCases, serviceCases, guardCases, icmpCases, fragmentCases, refusalCases, hopCases, ipv6Cases} {
			for _, c := range cases {
				if !c.applies() {
					continue
				}
				for _, s := range c.steps {
					if s.in != nil {
						f.Add(packet(s.in))
					} else {
						f.Add(s.frame)
					}
				}
			}
		}
	})
	// The namespaces belong to a thread, so one goroutine runs all packets.
	type job struct {
		in     []byte
		report func(format string, args ...any)
		done   chan struct{}
	}
	jobs := make(chan job)
	ready := make(chan struct{})
	go func() {
		defer close(ready)
		config := smallConfig(ownNamespaces(f))
		d, err := load(config, options{ethernetTunnel: true})
		if err != nil {
			f.Error(err)
			return
		}
		defer d.Close()
		a, b := addVeth(f, "a"), addVeth(f, "b")
		bothFamilies(func() { fillMesh(f, d.Maps(), a, b) })
		ready <- struct{}{}
		for j := range jobs {
			for name, p := range d.progs {
				for _, device := range []int{a, b} {
					fuzzOne(d, name, p, device, j.in, j.report)
				}
			}
			close(j.done)
		}
	}()
	if _, ok := <-ready; !ok {
		f.FailNow()
	}
	f.Cleanup(func() { close(jobs); <-ready })
	f.Fuzz(func(t *testing.T, in []byte) {
		// The kernel accepts no shorter packets for a test run.
		if len(in) < 14 || len(in) > 1500 || be16(in[12:]) == 0x0800 && len(in) < 34 || be16(in[12:]) == 0x86dd && len(in) < 54 {
			return
		}
		j := job{in: in, report: t.Errorf, done: make(chan struct{})}
		jobs <- j
		<-j.done
	})
}

func fuzzOne(d *Datapath, name string, p *ebpf.Program, device int, in []byte, report func(string, ...any)) {
	before, err := d.Counters()
	if err != nil {
		report("%v", err)
		return
	}
	out := make([]byte, len(in)+256)
	action, err := p.Run(&ebpf.RunOptions{Data: in, DataOut: out, Context: skb{Ifindex: uint32(device)}, Repeat: 1})
	if err != nil {
		report("%s: %v", name, err)
		return
	}
	if action != pass && action != dropped && action != redirect {
		report("%s: action %d", name, action)
	}
	after, err := d.Counters()
	if err != nil {
		report("%v", err)
		return
	}
	if n := total(after) - total(before); n != 1 {
		report("%s counted the packet %d times", name, n)
	}
	if name == "to_device" && action == pass && toRemoteMember(in) {
		report("%s lets through in plaintext\n%s", name, describe(in))
	}
}

// toRemoteMember tells whether a frame's destination is in a CIDR of the other cluster.
func toRemoteMember(in []byte) bool {
	var to netip.Addr
	switch {
	case be16(in[12:]) == 0x0800 && in[14]>>4 == 4:
		to, _ = netip.AddrFromSlice(in[30:34])
	case be16(in[12:]) == 0x86dd && in[14]>>4 == 6:
		to, _ = netip.AddrFromSlice(in[38:54])
	}
	return netip.MustParsePrefix("10.2.0.0/16").Contains(to) || netip.MustParsePrefix("fd00::10.2.0.0/112").Contains(to)
}

func total(all []Counter) (n uint64) {
	for _, c := range all {
		n += c.Packets
	}
	return n
}
