package tunnel_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weft-mesh/weft/tunnel"
)

// On a node without addresses of IPv6 inside the mesh the kernel must not announce itself over
// IPv6: every announcement would show up as a drop.
func TestTunnelsAreQuietInIPv6(t *testing.T) {
	needRoot(t)
	a, _ := pair(t)
	for _, device := range a.config.Devices {
		link := a.link(device)
		a.do(func() error {
			addrs, err := netlink.AddrList(link, netlink.FAMILY_V6)
			if len(addrs) > 0 {
				t.Errorf("%s has IPv6 addresses: %v", device, addrs)
			}
			return err
		})
	}
}

// A node with a pod CIDR of each family has an address of each on both lanes and routes of each,
// and reaches its peers over both. Even as a router it says nothing of its own on a lane. It
// goes on listening to the routers that it listened to.
func TestTunnelsOfBothFamilies(t *testing.T) {
	needRoot(t)
	a, b := pair(t)
	second := func(n *node) netip.Addr { return netip.MustParseAddr("fd00:10:1:" + n.name[1:] + "::1") }
	local := func(n *node) netip.Prefix { return netip.PrefixFrom(second(n), 64).Masked() }
	members := []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("fd00:10:1::/48")}
	const listens = "/proc/sys/net/ipv6/conf/wire/accept_ra"
	for _, n := range []*node{a, b} {
		n.do(func() error { return os.WriteFile(listens, []byte("1"), 0) })
		other := map[*node]*node{a: b, b: a}[n]
		for range 2 { // the second time, everything is there
			peer := other.peer(other.status().Own)
			peer.Allowed = append(peer.Allowed, local(other))
			n.do(func() error {
				_, err := n.lanes.Set(context.Background(), []tunnel.Peer{peer}, true)
				return err
			})
			n.do(func() error {
				return n.host.Set(context.Background(), tunnel.Network{
					Internal: n.internal, Second: second(n), MTU: 1420, Members: members, Local: []netip.Prefix{n.cidr, local(n)},
				}, true)
			})
		}
		n.do(func() error {
			if text, err := os.ReadFile(listens); err != nil || strings.TrimSpace(string(text)) != "2" {
				t.Errorf("accept_ra of a device that listened is %q, %v", text, err)
			}
			return nil
		})
		for _, device := range n.config.Devices {
			link := n.link(device)
			if link.Attrs().RawFlags&unix.IFF_MULTICAST != 0 {
				t.Errorf("%s is in groups, and would say so", device)
			}
			n.do(func() error {
				addrs, err := netlink.AddrList(link, netlink.FAMILY_ALL)
				var have []string
				for _, addr := range addrs {
					have = append(have, addr.IPNet.String())
				}
				if want := fmt.Sprintf("%v/32 %v/128", n.internal, second(n)); strings.Join(have, " ") != want {
					t.Errorf("%s has %v, want %s", device, have, want)
				}
				return err
			})
		}
		n.do(func() error {
			routes, err := netlink.RouteListFiltered(unix.AF_INET6, &netlink.Route{Protocol: 187}, netlink.RT_FILTER_PROTOCOL)
			if len(routes) != 4 { // by both lanes, unreachable without, and the node's own
				t.Errorf("IPv6 routes %v", routes)
			}
			return err
		})
	}
	a.do(func() error { // the members are gone
		err := a.host.Set(context.Background(), tunnel.Network{
			Internal: a.internal, Second: second(a), MTU: 1420, Members: members[:1], Local: []netip.Prefix{a.cidr, local(a)},
		}, true)
		if err != nil {
			return err
		}
		routes, err := netlink.RouteListFiltered(unix.AF_INET6, &netlink.Route{Protocol: 187}, netlink.RT_FILTER_PROTOCOL)
		if len(routes) != 1 {
			t.Errorf("without the member, IPv6 routes %v", routes)
		}
		if err != nil {
			return err
		}
		return a.host.Set(context.Background(), tunnel.Network{
			Internal: a.internal, Second: second(a), MTU: 1420, Members: members, Local: []netip.Prefix{a.cidr, local(a)},
		}, true)
	})
	var server net.PacketConn
	b.do(func() (err error) {
		server, err = net.ListenPacket("udp6", netip.AddrPortFrom(second(b), 9).String())
		return err
	})
	defer server.Close()
	var client net.Conn
	a.do(func() (err error) {
		client, err = net.Dial("udp6", server.LocalAddr().String())
		return err
	})
	defer client.Close()
	// The second one's checksum comes out as zero, which receivers drop.
	for _, sent := range [][]byte{[]byte("weft"), sumsToZero(client.LocalAddr(), server.LocalAddr())} {
		if _, err := client.Write(sent); err != nil {
			t.Fatal(err)
		}
		if err := server.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
			t.Fatal(err)
		}
		heard := make([]byte, 16)
		n, from, err := server.ReadFrom(heard)
		if err != nil || !bytes.Equal(heard[:n], sent) || from.(*net.UDPAddr).AddrPort().Addr() != second(a) {
			t.Errorf("sent %x: heard %x from %v, %v", sent, heard[:n], from, err)
		}
	}
}

// sumsToZero is a payload whose UDP checksum, from and to these addresses, comes out as zero.
func sumsToZero(from, to net.Addr) []byte {
	const length = 8 + 2
	sum := uint32(length + unix.IPPROTO_UDP + length) // the header's own copy of the length too
	for _, addr := range []net.Addr{from, to} {
		at := addr.(*net.UDPAddr).AddrPort()
		sum += uint32(at.Port())
		for words := at.Addr().AsSlice(); len(words) > 0; words = words[2:] {
			sum += uint32(binary.BigEndian.Uint16(words))
		}
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return binary.BigEndian.AppendUint16(nil, ^uint16(sum))
}
