package policy

import (
	"fmt"
	"slices"
)

// portClasses divides the ports of each protocol into classes of ports that every
// policy treats alike. Class 0 is for ports that no policy names.
type portClasses struct {
	ranges map[uint8][]PortRange
	of     map[portSpec][]uint16 // the classes that a range consists of, ascending
}

func classifyPorts(specs []portSpec) (portClasses, error) {
	out := portClasses{ranges: map[uint8][]PortRange{}, of: map[portSpec][]uint16{}}
	byProto := map[uint8][]portSpec{}
	for _, s := range specs {
		if !s.anyPort() && !slices.Contains(byProto[s.proto], s) {
			byProto[s.proto] = append(byProto[s.proto], s)
		}
	}
	for proto, named := range byProto {
		if err := out.divide(proto, named); err != nil {
			return portClasses{}, err
		}
	}
	return out, nil
}

// divide cuts the ports of a protocol wherever a range begins or ends; pieces inside
// the same ranges form one class.
func (c *portClasses) divide(proto uint8, named []portSpec) error {
	var cuts []int
	for _, s := range named {
		cuts = append(cuts, int(s.first), int(s.last)+1)
	}
	slices.Sort(cuts)
	cuts = slices.Compact(cuts)
	classes := map[string]uint16{}
	for i := 0; i+1 < len(cuts); i++ {
		first, last := uint16(cuts[i]), uint16(cuts[i+1]-1)
		var inside []uint32
		for j, s := range named {
			if s.first <= first && last <= s.last {
				inside = append(inside, uint32(j))
			}
		}
		if len(inside) == 0 {
			continue
		}
		class, ok := classes[signature(inside)]
		if !ok {
			if len(classes) == maxPort {
				return fmt.Errorf("policies distinguish more than %d ports of IP protocol %d; merge some into ranges", maxPort, proto)
			}
			class = uint16(len(classes) + 1)
			classes[signature(inside)] = class
			for _, j := range inside {
				c.of[named[j]] = append(c.of[named[j]], class)
			}
		}
		c.ranges[proto] = append(c.ranges[proto], PortRange{first, last, class})
	}
	return nil
}

// portClass returns the class of a port, or 0 if no policy names it.
func (t *Tables) portClass(proto uint8, port uint16) uint16 {
	ranges := t.Ports[proto]
	i, found := slices.BinarySearchFunc(ranges, port, func(r PortRange, p uint16) int {
		switch {
		case r.Last < p:
			return -1
		case r.First > p:
			return 1
		}
		return 0
	})
	if !found {
		return 0
	}
	return ranges[i].Class
}
