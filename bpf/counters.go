package bpf

import (
	"fmt"
	"slices"
)

// Counter is how many packets left the datapath for one reason since the maps were
// created.
type Counter struct {
	Reason  Reason
	Dir     Direction
	Packets uint64
	Bytes   uint64
}

// MaxClusters is the number of rows of table clusters: IDs 1 to 511.
const MaxClusters = 512

// PortRows is the number of rows of table ports: two generations.
const PortRows = 2 * portProto << 16

// counted is a row of map counters on one CPU.
type counted struct{ Packets, Bytes uint64 }

// Counters returns the sums over all CPUs, in order of reason, then direction.
// Reasons that never occurred are absent.
func (d *Datapath) Counters() ([]Counter, error) {
	var all []Counter
	reasons := make([]Reason, 0, len(reasonNames))
	for r := range reasonNames {
		reasons = append(reasons, r)
	}
	slices.Sort(reasons)
	for _, r := range reasons {
		for _, dir := range []Direction{Egress, Ingress} {
			var cpus []counted
			if err := d.maps["counters"].Lookup(uint32(r)<<1|uint32(dir), &cpus); err != nil {
				return nil, fmt.Errorf("read counter %s: %w", r, err)
			}
			c := Counter{Reason: r, Dir: dir}
			for _, cpu := range cpus {
				c.Packets += cpu.Packets
				c.Bytes += cpu.Bytes
			}
			if c.Packets > 0 {
				all = append(all, c)
			}
		}
	}
	return all, nil
}

// Lost is how many events were lost because the buffer was full.
func (d *Datapath) Lost() (uint64, error) { return d.sum("lost") }

// JudgedAgain is how many packets found that a verdict no longer held and had their flow
// judged again.
func (d *Datapath) JudgedAgain() (uint64, error) { return d.sum("judged_again") }

// sum adds up the only row of a map over all CPUs.
func (d *Datapath) sum(name string) (n uint64, err error) {
	var cpus []uint64
	if err := d.maps[name].Lookup(uint32(0), &cpus); err != nil {
		return 0, fmt.Errorf("read map %s: %w", name, err)
	}
	for _, cpu := range cpus {
		n += cpu
	}
	return n, nil
}
