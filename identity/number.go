package identity

import (
	"fmt"
	"strconv"
)

// Number is a security identity as used in maps, in etcd and in Cilium's wire
// format. The zero value means "not known".
type Number uint32

// The reserved numbers, under Cilium's names.
const (
	Unknown       Number = 0
	Host          Number = 1 // the node itself
	World         Number = 2 // outside every member cluster
	Unmanaged     Number = 3
	Health        Number = 4
	Init          Number = 5 // a workload whose labels are not known yet
	RemoteNode    Number = 6 // any other node of any member cluster
	KubeAPIServer Number = 7 // a remote node that runs a Kubernetes API server of the own cluster
	Ingress       Number = 8
	WorldIPv4     Number = 9
	WorldIPv6     Number = 10

	// UnknownMember stands for an address in a member cluster's CIDR whose
	// identity is not known. It is Weft's own, taken from the unused numbers 116
	// to 127, never leaves the node and never matches world.
	UnknownMember Number = 127

	// FirstUserReserved to LastUserReserved are kept for fixed identities.
	FirstUserReserved Number = 128
	LastUserReserved  Number = 255

	// FirstAllocatable is the lowest number ever given to labels.
	FirstAllocatable Number = 256
)

// Scope is the top byte of a Number: where the number has the same meaning.
type Scope uint8

const (
	ScopeGlobal     Scope = 0 // the whole mesh; reserved numbers too
	ScopeLocal      Scope = 1 // one node: CIDR identities
	ScopeRemoteNode Scope = 2 // one node: remote nodes by label

	scopeShift = 24
	scopeBits  = 0xff << scopeShift
)

// Scope says where n has the same meaning.
func (n Number) Scope() Scope { return Scope(n >> scopeShift) }

// LocalNumber returns the i-th node-local number, as used by CIDR identities. Only
// the low 24 bits of i count.
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

// ReservedLabels returns the labels a reserved number stands for, such as
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

// AllReserved maps every named reserved number except Unknown to its labels. The
// caller owns the map.
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
// depending on the mesh's Split. The zero value means "not known".
type ClusterID uint16

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

// SplitFor returns the split of a mesh with maxConnectedClusters 255 or 511; 0 means
// the default, 255.
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

// Cluster is the cluster whose range contains n; 0 for reserved, node-local and
// remote-node numbers.
func (s Split) Cluster(n Number) ClusterID {
	if n.Scope() != ScopeGlobal {
		return 0
	}
	return ClusterID(n >> s.shift())
}

// Range returns the first and last number of a cluster. Cluster 0, used only by a
// Cilium cluster outside any mesh, begins at FirstAllocatable.
func (s Split) Range(id ClusterID) (first, last Number) {
	first = Number(id) << s.shift()
	last = first + 1<<s.shift() - 1
	if id == 0 {
		first = FirstAllocatable
	}
	return first, last
}
