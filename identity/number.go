package identity

import (
	"fmt"
	"strconv"
)

// Number is a security identity as it stands in maps, in etcd and in Cilium's
// wire format. The zero value means "not known".
type Number uint32

// The reserved numbers, under Cilium's names.
const (
	Unknown       Number = 0
	Host          Number = 1 // the node itself
	World         Number = 2 // outside of every member cluster
	Unmanaged     Number = 3
	Health        Number = 4
	Init          Number = 5 // a workload whose labels are not known yet
	RemoteNode    Number = 6 // any other node of any member cluster
	KubeAPIServer Number = 7 // a remote node that runs an API server of the own cluster
	Ingress       Number = 8
	WorldIPv4     Number = 9
	WorldIPv6     Number = 10

	// UnknownMember stands for an address in a member cluster's CIDR that no
	// identity is known for. It is Weft's own, taken from the unused numbers
	// 116 to 127, never leaves the node and never matches world.
	UnknownMember Number = 127

	// FirstUserReserved to LastUserReserved are kept for fixed identities.
	FirstUserReserved Number = 128
	LastUserReserved  Number = 255

	// FirstAllocatable is the lowest number that is ever given to labels.
	FirstAllocatable Number = 256
)

// Scope is the top byte of a Number: how far the number means the same.
type Scope uint8

const (
	ScopeGlobal     Scope = 0 // the whole mesh; reserved numbers too
	ScopeLocal      Scope = 1 // one node: CIDR identities
	ScopeRemoteNode Scope = 2 // one node: remote nodes by label

	scopeShift = 24
	scopeBits  = 0xff << scopeShift
)

// Scope says how far n means the same.
func (n Number) Scope() Scope { return Scope(n >> scopeShift) }

// LocalNumber is the i-th node-local number, as CIDR identities use them.
// Only the low 24 bits of i count.
func LocalNumber(i uint32) Number {
	return Number(ScopeLocal)<<scopeShift | Number(i)&^scopeBits
}

// Reserved reports whether n is below the allocatable numbers.
func (n Number) Reserved() bool { return n < FirstAllocatable }

var reservedNames = map[Number]string{
	Unknown:       "unknown",
	Host:          "host",
	World:         "world",
	Unmanaged:     "unmanaged",
	Health:        "health",
	Init:          "init",
	RemoteNode:    "remote-node",
	KubeAPIServer: "kube-apiserver",
	Ingress:       "ingress",
	WorldIPv4:     "world-ipv4",
	WorldIPv6:     "world-ipv6",
	UnknownMember: "unknown-member",
}

// String is the name of a reserved number, the decimal digits of any other.
func (n Number) String() string {
	if name, ok := reservedNames[n]; ok {
		return name
	}
	return strconv.FormatUint(uint64(n), 10)
}

// ParseNumber reads what String writes, and a reserved number's digits too.
func ParseNumber(s string) (Number, error) {
	for n, name := range reservedNames {
		if s == name {
			return n, nil
		}
	}
	v, err := strconv.ParseUint(s, 10, 32)
	if err != nil {
		return 0, fmt.Errorf("identity %q is neither a number nor a reserved name such as %q", s, World)
	}
	return Number(v), nil
}

// ReservedLabels are the labels a reserved number stands for, such as
// reserved:host; nil if n has none.
func ReservedLabels(n Number) Labels {
	name, ok := reservedNames[n]
	if !ok || n == Unknown {
		return nil
	}
	labels := Labels{{Source: SourceReserved, Key: name}}
	if n == KubeAPIServer {
		labels = append(labels, Label{Source: SourceReserved, Key: RemoteNode.String()})
	}
	return labels
}

// AllReserved maps every named reserved number to its labels, Unknown left
// out. The caller owns the map.
func AllReserved() map[Number]Labels {
	all := make(map[Number]Labels, len(reservedNames))
	for n := range reservedNames {
		if labels := ReservedLabels(n); labels != nil {
			all[n] = labels
		}
	}
	return all
}

// ClusterID numbers a cluster in identities and maps: 1 to 255 or 1 to 511,
// as the mesh's Split says. The zero value means "not known".
type ClusterID uint16

// ParseClusterID reads a decimal ClusterID within the split. It rejects 0.
func (s Split) ParseClusterID(text string) (ClusterID, error) {
	v, err := strconv.ParseUint(text, 10, 16)
	if err != nil {
		return 0, fmt.Errorf("cluster ID %q is not a number; choose one from 1 to %d", text, s.MaxCluster())
	}
	return ClusterID(v), s.CheckCluster(ClusterID(v))
}

// CheckCluster says what is wrong with id under this split; nil if nothing.
func (s Split) CheckCluster(id ClusterID) error {
	if id < 1 || id > s.MaxCluster() {
		return fmt.Errorf("cluster ID %d is out of range; choose one from 1 to %d", id, s.MaxCluster())
	}
	return nil
}

// Split divides the 24 bits of a global number between cluster and identity.
// All clusters of a mesh use the same one, and it cannot change while they
// live. Its value is the number of clusters it allows.
type Split uint16

const (
	Split255 Split = 255 // 8 + 16 bits: 65,536 identities a cluster
	Split511 Split = 511 // 9 + 15 bits: 32,768 identities a cluster
)

// SplitFor is the split of a mesh with maxConnectedClusters 255 or 511; 0
// means the default, 255.
func SplitFor(maxConnectedClusters int) (Split, error) {
	switch maxConnectedClusters {
	case 0, int(Split255):
		return Split255, nil
	case int(Split511):
		return Split511, nil
	}
	return 0, fmt.Errorf("maxConnectedClusters is %d; set it to 255 or 511, the same in every cluster", maxConnectedClusters)
}

// shift is how many low bits number identities inside one cluster.
func (s Split) shift() uint {
	if s == Split511 {
		return 15
	}
	return 16
}

// MaxCluster is the highest cluster ID.
func (s Split) MaxCluster() ClusterID {
	if s == Split511 {
		return 511
	}
	return 255
}

// Cluster is the cluster whose range holds n; 0 for reserved, node-local and
// remote-node numbers.
func (s Split) Cluster(n Number) ClusterID {
	if n.Scope() != ScopeGlobal {
		return 0
	}
	return ClusterID(n >> s.shift())
}

// Range is the first and last number of a cluster. Cluster 0, which only a
// Cilium cluster outside of any mesh has, begins at FirstAllocatable.
func (s Split) Range(id ClusterID) (first, last Number) {
	first = Number(id) << s.shift()
	last = first + 1<<s.shift() - 1
	if id == 0 {
		first = FirstAllocatable
	}
	return first, last
}
