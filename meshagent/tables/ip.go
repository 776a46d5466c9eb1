package tables

import (
	"net/netip"

	"github.com/weft-mesh/weft/identity"
	"github.com/weft-mesh/weft/wire"
)

// IP says who has an address or prefix of a cluster.
type IP struct {
	Cluster  string
	Prefix   netip.Prefix // a single address has all bits
	Identity identity.Number
	// Host is the node behind which it lies, by its tunnel endpoint.
	Host           netip.Addr
	Namespace, Pod string
	NamedPorts     []wire.NamedPort
}

// Key is "cluster/prefix".
func (i *IP) Key() string {
	var b [96]byte // so that only the result is garbage: this is asked for most often of all
	return string(i.Prefix.AppendTo(append(append(b[:0], i.Cluster...), '/')))
}

var ips = table[*IP]{
	name: "ips", imported: true, written: true,
	columns: []string{"Cluster", "Address", "Identity", "Host", "Pod"},
	cells: func(i *IP) []string {
		return []string{i.Cluster, show(i.Prefix), i.Identity.String(), addr(i.Host), pod(i.Namespace, i.Pod)}
	},
}
