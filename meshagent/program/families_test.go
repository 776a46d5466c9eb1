package program

import "net/netip"

// addr is an address of either IP family, at the same place in both.
func (c changer) addr(cluster, node, last byte) netip.Addr {
	if c.IntN(3) == 0 {
		return six(cluster, node, last)
	}
	return netip.AddrFrom4([4]byte{10, cluster, node, last})
}

// six is the address of IPv6 at the place of 10.cluster.node.last.
func six(cluster, node, last byte) netip.Addr {
	return netip.AddrFrom16([16]byte{0: 0xfd, 3: 0x10, 5: cluster, 7: node, 15: last})
}

// backend is an address of a pod, or sometimes of a process of one of our nodes.
func (c changer) backend(cluster, node, last byte) netip.Addr {
	if c.IntN(8) == 0 {
		return netip.AddrFrom4([4]byte{192, 0, 1, 1 + last%3})
	}
	return c.addr(cluster, node, last)
}
