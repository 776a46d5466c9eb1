package wire

import (
	"encoding/base64"
	"net/netip"
	"slices"
	"strconv"

	"github.com/weft-mesh/weft/identity"
)

// Nearly all values in a large mesh are addresses and nodes, and nearly all of those are
// written by Go's encoding/json: without spaces, in plain ASCII, with fields under their own
// names and in their order. A quick reader takes these, in a fraction of the time and without
// garbage. It declines everything else, be it valid or not; then encoding/json decides. What
// is accepted, and what it means, is therefore the same with and without quick readers.

// quickly is implemented by values that have a quick reader. If it returns false, the value
// may have been filled in part.
type quickly interface{ quick(r *quick) bool }

// readQuickly reads a value, or declines.
func readQuickly(v quickly, b []byte) bool {
	r := quick{b}
	return v.quick(&r) && len(r.rest) == 0
}

// quick reads JSON from the left. What it declines it need not leave as it was.
type quick struct{ rest []byte }

func (r *quick) next(c byte) bool {
	if len(r.rest) == 0 || r.rest[0] != c {
		return false
	}
	r.rest = r.rest[1:]
	return true
}

// word reads one of JSON's words.
func (r *quick) word(word string) bool {
	if len(r.rest) < len(word) || string(r.rest[:len(word)]) != word {
		return false
	}
	r.rest = r.rest[len(word):]
	return true
}

func (r *quick) null() bool { return r.word("null") }

func (r *quick) truth(to *bool) bool {
	*to = r.word("true")
	return *to || r.word("false")
}

// object reads an object whose members are some of these, in this order, and calls read
// with the place of each.
func (r *quick) object(names []string, read func(i int) bool) bool {
	if !r.next('{') {
		return false
	}
	if r.next('}') {
		return true
	}
	for i := 0; ; i++ {
		name, ok := r.raw()
		for ok && i < len(names) && names[i] != string(name) {
			i++
		}
		if !ok || i == len(names) || !r.next(':') || !read(i) {
			return false
		}
		if r.next('}') {
			return true
		}
		if !r.next(',') {
			return false
		}
	}
}

func (r *quick) list(read func() bool) bool {
	if !r.next('[') {
		return false
	}
	if r.next(']') {
		return true
	}
	for read() {
		if r.next(']') {
			return true
		}
		if !r.next(',') {
			return false
		}
	}
	return false
}

// raw reads a string that stands for itself: printable ASCII without escapes.
func (r *quick) raw() (text []byte, ok bool) {
	if !r.next('"') {
		return nil, false
	}
	for i, c := range r.rest {
		switch {
		case c == '"':
			text, r.rest = r.rest[:i], r.rest[i+1:]
			return text, true
		case c < ' ' || c > '~' || c == '\\':
			return nil, false
		}
	}
	return nil, false
}

func (r *quick) text(to *string) bool {
	text, ok := r.raw()
	*to = string(text)
	return ok
}

// number reads a whole number of at most so many bits.
func (r *quick) number(bits int) (n uint64, ok bool) {
	end := slices.IndexFunc(r.rest, func(c byte) bool { return c < '0' || c > '9' })
	if end < 1 || end > 1 && r.rest[0] == '0' {
		return 0, false
	}
	n, err := strconv.ParseUint(string(r.rest[:end]), 10, bits)
	r.rest = r.rest[end:]
	return n, err == nil
}

func quickNumber[N ~uint8 | ~uint16 | ~uint32 | ~uint64](r *quick, bits int, to *N) bool {
	n, ok := r.number(bits)
	*to = N(n)
	return ok
}

// addr reads an address, or the zero Addr from "".
func (r *quick) addr(to *netip.Addr) bool {
	text, ok := r.raw()
	if !ok {
		return false
	}
	if *to, ok = dotted(text); ok {
		return true
	}
	return to.UnmarshalText(text) == nil
}

// dotted reads the usual form of an IPv4 address.
func dotted(text []byte) (netip.Addr, bool) {
	var b [4]byte
	for i := range b {
		n, digits := 0, 0
		for digits < len(text) && digits < 3 && text[digits] >= '0' && text[digits] <= '9' {
			n = 10*n + int(text[digits]-'0')
			digits++
		}
		if digits == 0 || n > 255 || digits > 1 && text[0] == '0' {
			return netip.Addr{}, false
		}
		b[i], text = byte(n), text[digits:]
		if i < len(b)-1 {
			if len(text) == 0 || text[0] != '.' {
				return netip.Addr{}, false
			}
			text = text[1:]
		}
	}
	return netip.AddrFrom4(b), len(text) == 0
}

// bytes reads base64, or nil from null.
func (r *quick) bytes(to *[]byte) bool {
	if r.null() {
		*to = nil
		return true
	}
	text, ok := r.raw()
	if !ok {
		return false
	}
	b := make([]byte, base64.StdEncoding.DecodedLen(len(text)))
	n, err := base64.StdEncoding.Decode(b, text)
	*to = b[:n]
	return err == nil
}

// quickMap reads an object as a map, or nil from null. Of two equal keys the later counts.
func quickMap[K comparable, V any](r *quick, to *map[K]V, key func(*K) bool, value func(*V) bool) bool {
	if r.null() {
		*to = nil
		return true
	}
	if !r.next('{') {
		return false
	}
	*to = map[K]V{}
	if r.next('}') {
		return true
	}
	for {
		var k K
		var v V
		if !key(&k) || !r.next(':') || !value(&v) {
			return false
		}
		(*to)[k] = v
		if r.next('}') {
			return true
		}
		if !r.next(',') {
			return false
		}
	}
}

func (r *quick) texts(to *map[string]string) bool { return quickMap(r, to, r.text, r.text) }

var pairNames = []string{"IP", "Mask", "HostIP", "ID", "Key", "Metadata", "K8sNamespace", "K8sPodName", "K8sServiceAccount", "NamedPorts"}

func (p *IPIdentityPair) quick(r *quick) bool {
	return r.object(pairNames, func(i int) bool {
		switch i {
		case 0:
			return r.addr(&p.IP)
		case 1:
			return r.bytes(&p.Mask)
		case 2:
			return r.addr(&p.HostIP)
		case 3:
			return quickNumber[identity.Number](r, 32, &p.ID)
		case 4:
			return quickNumber(r, 8, &p.Key)
		case 5:
			return r.text(&p.Metadata)
		case 6:
			return r.text(&p.K8sNamespace)
		case 7:
			return r.text(&p.K8sPodName)
		case 8:
			return r.text(&p.K8sServiceAccount)
		}
		p.NamedPorts = []NamedPort{}
		return r.list(func() bool {
			var port NamedPort
			ok := port.quick(r)
			p.NamedPorts = append(p.NamedPorts, port)
			return ok
		})
	})
}

var portNames = []string{"Name", "Port", "Protocol"}

func (p *NamedPort) quick(r *quick) bool {
	return r.object(portNames, func(i int) bool {
		switch i {
		case 0:
			return r.text(&p.Name)
		case 1:
			return quickNumber(r, 16, &p.Port)
		}
		return r.text(&p.Protocol)
	})
}

var nodeNames = []string{
	"Name", "Cluster", "IPAddresses", "IPv4AllocCIDR", "IPv4SecondaryAllocCIDRs", "IPv6AllocCIDR", "IPv6SecondaryAllocCIDRs",
	"IPv4HealthIP", "IPv6HealthIP", "IPv4IngressIP", "IPv6IngressIP",
	"ClusterID", "Source", "EncryptionKey", "Labels", "Annotations", "WireguardPubKey", "BootID",
}

func (n *Node) quick(r *quick) bool {
	return r.object(nodeNames, func(i int) bool {
		switch i {
		case 0:
			return r.text(&n.Name)
		case 1:
			return r.text(&n.Cluster)
		case 2:
			return n.quickAddresses(r)
		case 3:
			return quickCIDR(r, &n.IPv4AllocCIDR)
		case 4:
			return quickCIDRs(r, &n.IPv4SecondaryAllocCIDRs)
		case 5:
			return quickCIDR(r, &n.IPv6AllocCIDR)
		case 6:
			return quickCIDRs(r, &n.IPv6SecondaryAllocCIDRs)
		case 7:
			return r.addr(&n.IPv4HealthIP)
		case 8:
			return r.addr(&n.IPv6HealthIP)
		case 9:
			return r.addr(&n.IPv4IngressIP)
		case 10:
			return r.addr(&n.IPv6IngressIP)
		case 11:
			return quickNumber(r, 32, &n.ClusterID)
		case 12:
			return r.text(&n.Source)
		case 13:
			return quickNumber(r, 8, &n.EncryptionKey)
		case 14:
			return r.texts(&n.Labels)
		case 15:
			return r.texts(&n.Annotations)
		case 16:
			return r.text(&n.WireguardPubKey)
		}
		return r.text(&n.BootID)
	})
}

var addressNames = []string{"Type", "IP"}

func (n *Node) quickAddresses(r *quick) bool {
	if r.null() {
		return true
	}
	n.IPAddresses = []NodeAddress{}
	return r.list(func() bool {
		var a NodeAddress
		ok := r.object(addressNames, func(i int) bool {
			if i == 0 {
				return r.text(&a.Type)
			}
			return r.addr(&a.IP)
		})
		n.IPAddresses = append(n.IPAddresses, a)
		return ok
	})
}

var cidrNames = []string{"IP", "Mask"}

func quickCIDR(r *quick, to **CIDR) bool {
	if r.null() {
		return true
	}
	var v cidrJSON
	read := r.object(cidrNames, func(i int) bool {
		if i == 0 {
			return r.addr(&v.IP)
		}
		return r.bytes(&v.Mask)
	})
	c, err := v.cidr()
	*to = &c
	return read && err == nil
}

func quickCIDRs(r *quick, to *[]*CIDR) bool {
	if r.null() {
		return true
	}
	*to = []*CIDR{}
	return r.list(func() bool {
		var c *CIDR
		ok := quickCIDR(r, &c)
		*to = append(*to, c)
		return ok
	})
}

var exportNodeNames, laneNames = []string{"name", "epoch", "lanes"}, []string{"publicKey", "port"}

func (n *ExportNode) quick(r *quick) bool {
	return r.object(exportNodeNames, func(i int) bool {
		switch i {
		case 0:
			return r.text(&n.Name)
		case 1:
			return quickNumber(r, 64, &n.Epoch)
		}
		lane := 0
		all := r.list(func() bool {
			if lane == len(n.Lanes) {
				return false
			}
			to := &n.Lanes[lane]
			lane++
			return r.object(laneNames, func(i int) bool {
				if i == 0 {
					return r.text(&to.PublicKey)
				}
				return quickNumber(r, 16, &to.Port)
			})
		})
		return all && lane == len(n.Lanes)
	})
}

var serviceNames = []string{
	"cluster", "namespace", "name", "frontends", "backends", "hostnames", "zones", "labels", "selector", "includeExternal", "shared", "clusterID",
}

func (s *ClusterService) quick(r *quick) bool {
	ports := func(to *map[string]L4Addr) bool { return quickMap(r, to, r.text, r.port) }
	return r.object(serviceNames, func(i int) bool {
		switch i {
		case 0:
			return r.text(&s.Cluster)
		case 1:
			return r.text(&s.Namespace)
		case 2:
			return r.text(&s.Name)
		case 3:
			return quickMap(r, &s.Frontends, r.addr, ports)
		case 4:
			return quickMap(r, &s.Backends, r.addr, ports)
		case 5:
			return quickMap(r, &s.Hostnames, r.addr, r.text)
		case 6:
			return quickMap(r, &s.Zones, r.addr, r.zone)
		case 7:
			return r.texts(&s.Labels)
		case 8:
			return r.texts(&s.Selector)
		case 9:
			return r.truth(&s.IncludeExternal)
		case 10:
			return r.truth(&s.Shared)
		}
		return quickNumber(r, 32, &s.ClusterID)
	})
}

var l4Names, zoneNames, forZoneNames = []string{"Protocol", "Port"}, []string{"zone", "forZones"}, []string{"name"}

func (r *quick) port(to *L4Addr) bool {
	return r.object(l4Names, func(i int) bool {
		if i == 0 {
			return r.text(&to.Protocol)
		}
		return quickNumber(r, 16, &to.Port)
	})
}

func (r *quick) zone(to *BackendZone) bool {
	return r.object(zoneNames, func(i int) bool {
		if i == 0 {
			return r.text(&to.Zone)
		}
		if r.null() {
			return true
		}
		to.ForZones = []ForZone{}
		return r.list(func() bool {
			var z ForZone
			ok := r.object(forZoneNames, func(int) bool { return r.text(&z.Name) })
			to.ForZones = append(to.ForZones, z)
			return ok
		})
	})
}
