package meshagent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weft-mesh/weft/bpf"
)

// Outside is how the world sees a node.
type Outside struct {
	// Addrs are the addresses of its device, in the kernel's order.
	Addrs []netip.Addr
	// FirstPort and LastPort are the range from which the kernel gives the node's own
	// connections their ports.
	FirstPort, LastPort uint16
}

// outsideTurn is how soon another address of the node's device is noticed.
const outsideTurn = 2 * time.Second

// masquerade keeps the rows by which the datapath lets pods' packets to the world come from
// the node's address.
type masquerade struct {
	conf    Config
	node    netip.Addr // where tunnels end
	maps    *bpf.Maps
	outside func() (Outside, error) // nil: pods keep their addresses
	trouble *trouble
}

// Run works until ctx ends. It leaves the rows alone at the end.
func (m *masquerade) Run(ctx context.Context) error {
	for ctx.Err() == nil {
		m.trouble.tell(m.turn())
		select {
		case <-ctx.Done():
		case <-time.After(outsideTurn):
		}
	}
	return nil
}

// turn writes what is not as wanted. What pods keep their addresses for comes first.
func (m *masquerade) turn() error {
	var row bpf.Masquerading
	var problem error
	if m.conf.Masquerade && m.outside != nil {
		now, err := m.outside()
		if err != nil {
			return err
		}
		row, problem = masquerading(now, m.node)
	}
	if err := m.writeNative(); err != nil {
		return err
	}
	was, _, err := m.maps.Masquerading.Lookup(0)
	if err != nil || was == row {
		return errors.Join(problem, err)
	}
	return errors.Join(problem, m.maps.Masquerading.Update(0, row))
}

func (m *masquerade) writeNative() error {
	want := map[bpf.PrefixKey]bool{}
	for _, p := range m.conf.native() {
		want[bpf.PrefixOf(p)] = true
	}
	rows, failed := m.maps.Native.All()
	have := maps.Collect(rows)
	if err := failed(); err != nil {
		return err
	}
	for k := range want {
		if _, ok := have[k]; !ok {
			if err := m.maps.Native.Update(k, 1); err != nil {
				return err
			}
		}
	}
	for k := range have {
		if !want[k] {
			if err := m.maps.Native.Delete(k); err != nil {
				return err
			}
		}
	}
	return nil
}

// native are the prefixes towards which pods keep their addresses. To several receivers at
// once nobody answers.
func (c Config) native() []netip.Prefix {
	all := slices.Clone(c.NonMasqueradeCIDRs)
	for _, p := range []struct {
		prefix string
		not    bool
	}{
		{"224.0.0.0/4", false}, {"255.255.255.255/32", false}, {"ff00::/8", false},
		{"169.254.0.0/16", c.MasqLinkLocal}, {"fe80::/10", c.MasqLinkLocalIPv6},
	} {
		if !p.not {
			all = append(all, netip.MustParsePrefix(p.prefix))
		}
	}
	return all
}

// masquerading is what pods' packets get on the way out: of each IP family the address where
// tunnels end, if the device has it, or else its first that others can answer to. With an
// error the row is the best there is.
func masquerading(o Outside, node netip.Addr) (row bpf.Masquerading, err error) {
	for _, a := range append([]netip.Addr{node}, o.Addrs...) {
		family := 0
		if a.Is6() {
			family = 1
		}
		if row.Addr[family] == (bpf.Addr{}) && a.IsGlobalUnicast() && slices.Contains(o.Addrs, a) {
			row.Addr[family] = bpf.AddrOf(a)
		}
	}
	if row.Addr == [2]bpf.Addr{} {
		return bpf.Masquerading{}, errors.New("the node's device has no address that the world could answer to; give it one")
	}
	row.First, row.Last, err = portsBeside(o.FirstPort, o.LastPort)
	return row, err
}

const (
	// Ports from nodePorts on are for services that nodes offer: Kubernetes' default range.
	nodePorts, afterNodePorts = 30000, 32768
	// fewPorts are too few for the connections of a node's pods to one address and port.
	fewPorts = 4096
)

// portsBeside returns the larger range of unprivileged ports beside the one from which the
// node's own connections get theirs, and an error if it is small.
func portsBeside(first, last uint16) (from, to uint16, err error) {
	below, above := int(min(first, nodePorts))-1024, 65535-int(max(last, afterNodePorts-1))
	n := max(below, above)
	switch {
	case n <= 0:
		from, to = 1, 0
	case below >= above:
		from, to = 1024, 1024+uint16(below)-1
	default:
		from, to = 65535-uint16(above)+1, 65535
	}
	if n < fewPorts {
		err = fmt.Errorf("net.ipv4.ip_local_port_range %d-%d leaves only %d ports for pods: set it to 32768-60999, for example", first, last, max(n, 0))
	}
	return from, to, err
}

// outsideOf looks at a device, and at the kernel's range of ports.
func outsideOf(device netlink.Link) (o Outside, err error) {
	all, err := netlink.AddrList(device, netlink.FAMILY_ALL)
	if err != nil {
		return o, fmt.Errorf("list the addresses of %s: %w", device.Attrs().Name, err)
	}
	for _, a := range all {
		ip, ok := netip.AddrFromSlice(a.IP)
		if ok && a.Flags&unusable == 0 {
			o.Addrs = append(o.Addrs, ip.Unmap())
		}
	}
	text, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range")
	if err != nil {
		return o, err
	}
	if _, err := fmt.Sscan(strings.TrimSpace(string(text)), &o.FirstPort, &o.LastPort); err != nil {
		return o, fmt.Errorf("net.ipv4.ip_local_port_range is %q: %w", text, err)
	}
	return o, nil
}

// Flags of addresses that nobody may use, yet or any more.
const unusable = unix.IFA_F_TENTATIVE | unix.IFA_F_DADFAILED | unix.IFA_F_DEPRECATED
