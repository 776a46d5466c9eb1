package policy

import (
	"cmp"

	"github.com/weft-mesh/weft/identity"
)

// World is everything that verdicts depend on.
type World struct {
	Cluster  string // the local cluster's name: the scope of selectors that name none
	Policies []*Policy
	Groups   []*CIDRGroup // that policies refer to
	// Identities are all known identities, including CIDR identities. The reserved
	// ones may be omitted.
	Identities map[identity.Number]identity.Labels
}

// AnyClass is the class of entries that apply to every peer.
const AnyClass uint32 = 0xffffffff

// Tables is the content of the kernel's policy maps for one generation.
//
// The kernel looks up (class, protocol, port class), (class, protocol, any) and
// (class, any, any), then the same three for AnyClass; the first entry found decides.
// If there is none, the set's default does.
//
// Not safe for concurrent use.
type Tables struct {
	// Classes maps an identity to its class. Class 0 is for identities that are not
	// listed: nothing allows them by label, and every denial applies to them.
	Classes map[identity.Number]uint32
	// Ports maps the ports of a protocol to port classes, sorted and without
	// overlap; a port in no range has port class 0. For ICMP, ports are types.
	Ports   map[uint8][]PortRange
	Sets    map[uint32]SetInfo // set 0, which allows everything, is not listed
	Entries map[EntryKey]Entry
	Rules   []RuleInfo // by cookie; Rules[0] is empty because cookie 0 means no rule

	compiler *compiler
	changes  Changes
}

// Changes are the rows that have become different, in the order in which the kernel
// must get them: nobody may be in a class before all its entries are there. An entry
// that the kernel has keeps its verdict as long as its set exists.
type Changes struct {
	Entries map[EntryKey]Entry
	Sets    []uint32                   // new ones
	Ports   map[uint8][]PortRange      // later ones count; class 0: none
	Classes map[identity.Number]uint32 // 0: none
	// Of these nothing is left. They are returned by Sweep alone.
	GoneEntries []EntryKey
	GoneSets    []uint32
}

func newChanges() Changes {
	return Changes{Entries: map[EntryKey]Entry{}, Ports: map[uint8][]PortRange{}, Classes: map[identity.Number]uint32{}}
}

// Take returns what has changed since it was last called.
func (t *Tables) Take() Changes {
	out := t.changes
	t.changes = newChanges()
	return out
}

// PortRange is a run of ports of one port class.
type PortRange struct {
	First, Last uint16
	Class       uint16
}

// SetInfo describes a policy set: what all subjects under the same rules share.
type SetInfo struct {
	Enforced [2]bool         // by Direction: traffic that no entry allows is denied
	Policies [2][]PolicyName // by Direction: the policies that apply, sorted
}

// PolicyName identifies a policy. Namespace is empty if it is cluster-wide.
type PolicyName struct {
	Kind, Namespace, Name string
}

func (n PolicyName) compare(m PolicyName) int {
	return cmp.Or(cmp.Compare(n.Namespace, m.Namespace), cmp.Compare(n.Name, m.Name), cmp.Compare(n.Kind, m.Kind))
}

// EntryKey is what the kernel looks up.
type EntryKey struct {
	Set   uint32
	Class uint32 // AnyClass: every peer
	Port  uint16 // port class; 0: any
	Proto uint8  // 0: any
	Dir   Direction
}

// Entry is a verdict and the rule it comes from.
type Entry struct {
	Deny bool
	Rule uint32 // cookie
}

// Verdict is the fate of a new flow.
type Verdict struct {
	Allow   bool
	Rule    uint32 // cookie of the rule that decided, or 0 for none
	Default bool   // no rule matched: Allow is the set's default
}
