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
	// Addrs are the addresses of its device that last, in the kernel's order.
	Addrs []netip.Addr
	// Tentative are those that the device has, but cannot use yet.
	Tentative []netip.Addr
	// FirstPort and LastPort are the range from which the kernel gives the node's own
	// connections their ports.
	FirstPort, LastPort uint16
	// Unread is why that range is not known.
	Unread error
}

// outsideTurn is how soon another address of the node's device is noticed.
const outsideTurn = 2 * time.Second

// masquerade keeps the rows by which the datapath lets pods' packets to the world come from
// the node's address.
type masquerade struct {
	conf    Config
	node    []netip.Addr // its own addresses, to prefer
	maps    *bpf.Maps
	outside func() (Outside, error) // nil: pods keep their addresses
	// expose is told the node's addresses outside of the mesh; nil: nobody is.
	expose  func([]netip.Addr)
	trouble *trouble
	ports   ports
}

// Run works until ctx ends. It leaves the rows alone at the end.
func (m *masquerade) Run(ctx context.Context) error {
	for ctx.Err() == nil {
		m.trouble.tell(errors.Join(m.turn(), m.ports.look()))
		select {
		case <-ctx.Done():
		case <-time.After(outsideTurn):
		}
	}
	return nil
}

// turn writes what is not as wanted. What pods keep their addresses for comes first.
func (m *masquerade) turn() error {
	was, _, err := m.maps.Masquerading.Lookup(0)
	if err != nil {
		return err
	}
	var row bpf.Masquerading
	var problem error
	if m.outside != nil {
		now, err := m.outside()
		if err != nil {
			return err
		}
		if m.expose != nil {
			m.expose(now.exposed())
		}
		if m.conf.Masquerade {
			row, problem = masquerading(now, m.node, was)
		}
	}
	if err := m.writeNative(); err != nil {
		return err
	}
	if row == was {
		return problem
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

// exposed are the addresses at which clients outside of the mesh reach node ports.
func (o Outside) exposed() []netip.Addr {
	all := append(slices.Clone(o.Addrs), o.Tentative...)
	all = slices.DeleteFunc(all, func(a netip.Addr) bool { return !a.IsGlobalUnicast() })
	slices.SortFunc(all, netip.Addr.Compare)
	return slices.Compact(all)
}

// masquerading is what pods' packets get on the way out, where they now get what was says.
// An address stays for as long as the device has it, because open connections end with it,
// and while there is none to take its place. With an error the row is the best there is.
func masquerading(o Outside, node []netip.Addr, was bpf.Masquerading) (row bpf.Masquerading, err error) {
	var problems []string
	for family, old := range was.Addr {
		has := old.Netip()
		now := leaveAs(o, node, has, family == 1)
		if row.Addr[family] = bpf.AddrOf(now); !now.IsValid() {
			row.Addr[family] = old
		}
		if has.IsValid() && (!now.IsValid() || slices.Contains(o.Tentative, now)) {
			problems = append(problems, fmt.Sprintf("the node's device has lost its address %s, so pods' connections to the world over %s are not answered: give it that address again, or another one", has, [2]string{"IPv4", "IPv6"}[family]))
		}
	}
	if row.Addr == [2]bpf.Addr{} {
		return bpf.Masquerading{}, errors.New("the node's device has no address that the world could answer to; give it one")
	}
	switch {
	case o.Unread == nil:
		row.First, row.Last, err = portsBeside(o.FirstPort, o.LastPort)
	case was.Last > 0:
		row.First, row.Last, err = was.First, was.Last, o.Unread
	default:
		row.First, row.Last, err = 1024, nodePorts-1, o.Unread
	}
	if err != nil {
		problems = append(problems, err.Error())
	}
	if len(problems) > 0 {
		return row, errors.New(strings.Join(problems, "; "))
	}
	return row, nil
}

// leaveAs chooses a family's address: the present one, the node's own, or the first
// that others can answer to; invalid if there is none. A ULA means nothing to the world, so
// it gives way to an address that does.
func leaveAs(o Outside, node []netip.Addr, present netip.Addr, ipv6 bool) netip.Addr {
	var candidates, locals []netip.Addr
	for _, a := range o.Addrs {
		switch {
		case a.Is6() != ipv6 || !a.IsGlobalUnicast():
		case a.Is6() && a.IsPrivate():
			locals = append(locals, a)
		default:
			candidates = append(candidates, a)
		}
	}
	if len(candidates) == 0 {
		candidates = locals
	}
	switch {
	case present.IsValid() && (slices.Contains(candidates, present) || slices.Contains(o.Tentative, present)):
		return present
	case len(candidates) > 0:
		if i := slices.IndexFunc(candidates, func(a netip.Addr) bool { return slices.Contains(node, a) }); i >= 0 {
			return candidates[i]
		}
		return candidates[0]
	}
	return netip.Addr{}
}

const (
	// Ports from nodePorts on are for services that nodes offer: Kubernetes' default range.
	nodePorts, afterNodePorts = 30000, 32768
	// fewPorts are too few for the connections of a node's pods to one address and port.
	fewPorts = 4096
)

// portsBeside returns the larger range of unprivileged ports beside the one from which the
// node's own connections get theirs. If that is small it returns one that overlaps, and an
// error: the datapath takes no port of a socket, but the kernel may take one of a pod's.
func portsBeside(first, last uint16) (from, to uint16, err error) {
	below, above := int(min(first, nodePorts))-1024, 65535-int(max(last, afterNodePorts-1))
	switch {
	case max(below, above) < fewPorts:
		return 1024, nodePorts - 1, fmt.Errorf("net.ipv4.ip_local_port_range %d-%d overlaps the ports of pods, so a connection of the node may get the port of a pod's: set it to 32768-60999, for example", first, last)
	case below >= above:
		return 1024, 1024 + uint16(below) - 1, nil
	}
	return 65535 - uint16(above) + 1, 65535, nil
}

// outsideOf looks at a device, and at the kernel's range of ports.
func outsideOf(device netlink.Link) (o Outside, err error) {
	all, err := netlink.AddrList(device, netlink.FAMILY_ALL)
	if err != nil {
		return o, fmt.Errorf("list the addresses of %s: %w", device.Attrs().Name, err)
	}
	for _, a := range all {
		o.add(a)
	}
	o.FirstPort, o.LastPort, o.Unread = localPorts("/proc/sys/net/ipv4/ip_local_port_range")
	return o, nil
}

// add takes an address of the device, unless it does not last.
func (o *Outside) add(a netlink.Addr) {
	ip, ok := netip.AddrFromSlice(a.IP)
	ip = ip.Unmap()
	switch {
	case !ok, a.Flags&(unix.IFA_F_DADFAILED|unix.IFA_F_DEPRECATED) != 0:
	case ip.Is6() && a.Flags&unix.IFA_F_TEMPORARY != 0: // of IPv4 the flag means secondary
	case a.Flags&unix.IFA_F_TENTATIVE != 0:
		o.Tentative = append(o.Tentative, ip)
	default:
		o.Addrs = append(o.Addrs, ip)
	}
}

// localPorts reads the range from which the kernel gives the node's own connections their
// ports.
func localPorts(file string) (first, last uint16, err error) {
	text, err := os.ReadFile(file)
	if err == nil {
		_, err = fmt.Sscan(string(text), &first, &last)
	}
	if err != nil {
		return 0, 0, fmt.Errorf("net.ipv4.ip_local_port_range cannot be read: %w", err)
	}
	return first, last, nil
}
