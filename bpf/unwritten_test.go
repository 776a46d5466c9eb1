package bpf

import (
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"
)

// refusesRows makes each attempt of a packet to write a row fail with this error, in 32 bits as on
// kernels before 6.4: there the upper half of the register is zero.
func refusesRows(errno unix.Errno) func(*ebpf.CollectionSpec) {
	return func(spec *ebpf.CollectionSpec) {
		for _, p := range spec.Programs {
			for i, in := range p.Instructions {
				if p.Type == ebpf.SchedCLS && in.IsBuiltinCall() && asm.BuiltinFunc(in.Constant) == asm.FnMapUpdateElem {
					failed := asm.Mov.Imm32(asm.R0, -int32(errno))
					failed.Metadata = in.Metadata
					p.Instructions[i] = failed
				}
			}
		}
	}
}

// Only a full table is called full. What lasts for a moment is another reason, and a row that
// exists is none by itself.
func TestRowsThatCannotBeWritten(t *testing.T) {
	cases := []struct {
		name   string
		state  func(*node)
		hook   string
		in     func() layer
		exists Reason // if all rows do
		full   uint64 // how often the pod's account notes a full table
	}{
		{"a flow", nil, "from a", func() layer { return ip(podA, podC, tcp(1000, 80, "S")) }, ReasonFailed, 1},
		{"a flow through a service", onlyC, "from a", func() layer { return ip(podA, far, tcp(1000, 80, "S")) }, ReasonNoPort, 0},
		{"a masquerade", masquerades(5000, 5009), "out of node", func() layer { return ip(podA, world, tcp(1000, 443, "S")) }, ReasonNoPort, 0},
		{"a connection to a node port", here, "into node", func() layer { return ip(world, outside, tcp(7000, nodePort, "S")) }, ReasonFailed, 0},
	}
	for errno, want := range map[unix.Errno]Reason{unix.E2BIG: ReasonFlowTableFull, unix.EBUSY: ReasonFailed, unix.ENOMEM: ReasonFailed, unix.EEXIST: 0} {
		t.Run(unix.ErrnoName(errno), func(t *testing.T) {
			shared := newNodeOf(t, func(*Config) {}, options{ethernetTunnel: true, edit: refusesRows(errno)})
			for _, c := range cases {
				t.Run(c.name, func(t *testing.T) {
					n := shared.again(t)
					if c.state != nil {
						c.state(n)
					}
					set(n, n.m.Shares, uint32(n.a), Share{})
					s := step{hook: c.hook, in: c.in(), want: want}
					if errno == unix.EEXIST {
						s.want = c.exists
					}
					n.step(0, s)
					account, _, err := n.m.Shares.Lookup(uint32(n.a))
					if want != ReasonFlowTableFull {
						c.full = 0
					}
					if err != nil || account.Used != 0 || account.Refused != c.full {
						n.Errorf("account of the pod: %+v, %v; want that it holds nothing and met a full table %d times", account, err, c.full)
					}
				})
			}
		})
	}
}
