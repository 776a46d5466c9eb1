package policy

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/weft-mesh/weft/identity"
)

// kernel is the tables as the kernel has them, written row by row.
type kernel struct {
	*Tables // Verdict, on what is written
	ports   map[protoPort]uint16
}

func newKernel(t *Tables) *kernel {
	k := &kernel{&Tables{Classes: maps.Clone(t.Classes), Sets: maps.Clone(t.Sets), Entries: maps.Clone(t.Entries)}, map[protoPort]uint16{}}
	k.write(t, Changes{Ports: t.Ports}, func() {})
	return k
}

// write writes changes in their order, and looks at the kernel after every row.
func (k *kernel) write(t *Tables, c Changes, look func()) {
	for key, e := range c.Entries {
		k.Entries[key] = e
		look()
	}
	for _, set := range c.Sets {
		k.Sets[set] = t.Sets[set]
	}
	for proto, ranges := range c.Ports {
		for _, r := range ranges {
			for port := int(r.First); port <= int(r.Last) && port < 20; port++ {
				k.ports[protoPort{proto, uint16(port)}] = r.Class
				look()
			}
		}
	}
	for n, class := range c.Classes {
		if k.Classes[n] = class; class == 0 {
			delete(k.Classes, n)
		}
		look()
	}
	for _, key := range c.GoneEntries {
		delete(k.Entries, key)
		look()
	}
	for _, set := range c.GoneSets {
		delete(k.Sets, set)
		look()
	}
}

func (k *kernel) verdict(f Flow, set uint32) Verdict {
	k.Tables.Ports = map[uint8][]PortRange{f.Proto: {{First: f.Port, Last: f.Port, Class: k.ports[protoPort{f.Proto, f.Port}]}}}
	return k.Verdict(set, f.Direction, f.Peer, f.Proto, f.Port)
}

// Tables that follow changes give the verdicts of those compiled from scratch, are no
// larger once they were swept, and change no verdict while the kernel gets them row by
// row: whatever changes, in whatever order.
func TestRevisedTablesAreAsCompiled(t *testing.T) {
	for seed := range uint64(30) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			newRevising(t, rand.New(rand.NewPCG(seed, 3))).run(40)
		})
	}
}

type revising struct {
	*rand.Rand
	t        *testing.T
	w        World
	tables   *Tables
	kernel   *kernel
	subjects []identity.Labels
	set      []uint32 // of each subject
}

func newRevising(t *testing.T, r *rand.Rand) *revising {
	x := &revising{Rand: r, t: t, w: World{Cluster: "west", Identities: map[identity.Number]identity.Labels{}}}
	for range 3 {
		x.subjects = append(x.subjects, nil)
		x.set = append(x.set, 0)
	}
	var err error
	if x.tables, err = Compile(x.w, x.subjects); err != nil {
		t.Fatal(err)
	}
	x.kernel = newKernel(x.tables)
	for i := range x.subjects {
		x.subject(i)
	}
	return x
}

func (x *revising) run(steps int) {
	for range steps {
		var changed identity.Number
		switch x.IntN(6) {
		case 0, 1:
			x.policy()
		case 2:
			x.groups()
		case 3:
			changed = x.identity()
		case 4:
			changed = x.subject(x.IntN(len(x.subjects)))
		case 5:
			x.sweep()
		}
		next := x.placed()
		x.quietly(changed)
		x.set = next
		x.compare(5)
	}
	for x.sweep() {
	}
	x.compare(300)
	x.size()
}

func (x *revising) policy() {
	text := randomPolicy(x.Rand, x.IntN(3))
	p, err := Parse([]byte(text))
	if err != nil {
		x.t.Fatal(err)
	}
	var gone []*Policy
	x.w.Policies = slices.DeleteFunc(slices.Clone(x.w.Policies), func(old *Policy) bool {
		if old.String() == p[0].String() {
			gone = append(gone, old)
		}
		return old.String() == p[0].String()
	})
	if x.IntN(4) > 0 {
		x.w.Policies = append(x.w.Policies, p...)
	} else {
		p = nil
	}
	x.revise(gone, p)
}

func (x *revising) groups() {
	g, err := ParseGroup([]byte(randomGroup(x.Rand, x.IntN(2))))
	if err != nil {
		x.t.Fatal(err)
	}
	concerned := map[*Policy]bool{}
	note := func(g *CIDRGroup) {
		for _, p := range x.w.Policies {
			if p.RefersTo(g) {
				concerned[p] = true
			}
		}
	}
	x.w.Groups = slices.DeleteFunc(slices.Clone(x.w.Groups), func(old *CIDRGroup) bool {
		if old.Name == g.Name {
			note(old)
		}
		return old.Name == g.Name
	})
	if x.IntN(3) > 0 {
		x.w.Groups = append(x.w.Groups, g)
		note(g)
	}
	both := slices.Collect(maps.Keys(concerned))
	x.revise(both, both)
}

func (x *revising) revise(gone, now []*Policy) {
	if err := x.tables.Revise(gone, now, x.w.Groups); err != nil {
		x.t.Fatal(err)
	}
}

// subject changes a subject, and often the identity that its peers see.
func (x *revising) subject(i int) identity.Number {
	x.tables.Enlist(x.subjects[i], -1)
	x.subjects[i] = x.pod()
	x.tables.Enlist(x.subjects[i], 1)
	x.renumber()
	n := identity.Number(0x20000 + uint32(i))
	if x.IntN(3) > 0 {
		x.add(n, x.subjects[i])
	}
	return n
}

// pod is an endpoint in the mesh with some of the ports, and in some of the blocks, that
// policies may name.
func (x *revising) pod() identity.Labels {
	names := map[string]bool{}
	for _, proto := range []string{"TCP", "UDP", "SCTP"} {
		names[proto+"/web"], names[proto+"/dns"] = true, true
	}
	return withAddress(x.Rand, withPorts(x.Rand, randomPod(x.Rand), names), Blocks(x.w.Policies))
}

func (x *revising) add(n identity.Number, labels identity.Labels) {
	x.w.Identities[n] = labels
	x.tables.AddIdentity(n, labels)
	x.renumber()
}

// renumber has policies follow the numbers of the ports that they name.
func (x *revising) renumber() {
	renumbered := x.tables.Renumbered()
	x.revise(renumbered, renumbered)
}

func (x *revising) identity() identity.Number {
	n := identity.Number(0x10000 + uint32(x.IntN(12)))
	labels := x.pod()
	if x.IntN(3) == 0 {
		n = identity.LocalNumber(1 + uint32(x.IntN(4)))
		labels = CIDRLabels(netip.MustParsePrefix(pick(x.Rand, "10.0.0.0/8", "10.1.2.0/24", "203.0.113.0/24", "fd00::/8")))
	}
	if x.IntN(3) == 0 {
		delete(x.w.Identities, n)
		x.tables.RemoveIdentity(n)
		x.renumber()
		return n
	}
	x.add(n, labels)
	return n
}

// placed returns the set that every subject is to have once the kernel has it.
func (x *revising) placed() (next []uint32) {
	for _, labels := range x.subjects {
		set, ok, err := x.tables.SetOf(labels)
		if !ok || err != nil {
			x.t.Fatalf("no set: %v, %v", ok, err)
		}
		next = append(next, set)
	}
	return next
}

// quietly writes what has changed. Meanwhile no verdict changes, except that of an
// identity that did.
func (x *revising) quietly(changed identity.Number) {
	type asked struct {
		Flow
		set uint32
	}
	before := map[*asked]bool{}
	for range 20 {
		f := &asked{x.flow(), pick(x.Rand, x.set...)}
		before[f] = x.kernel.verdict(f.Flow, f.set).Allow
	}
	x.kernel.write(x.tables, x.tables.Take(), func() {
		for f, want := range before {
			if got := x.kernel.verdict(f.Flow, f.set).Allow; got != want && f.Peer != changed {
				x.t.Fatalf("while rows are written, %+v is %v, before %v", f, got, want)
			}
		}
	})
}

func (x *revising) sweep() bool {
	again := x.tables.Sweep(func(set uint32) bool { return slices.Contains(x.set, set) })
	x.quietly(identity.Unknown)
	return again
}

func (x *revising) flow() Flow {
	peers := slices.Sorted(maps.Keys(x.w.Identities))
	peers = append(peers, identity.Host, identity.World, identity.WorldIPv6, identity.RemoteNode, identity.UnknownMember, 0x7fffff)
	return Flow{Direction: Direction(x.IntN(2)), Peer: peers[x.IntN(len(peers))], Port: uint16(x.IntN(13)),
		Proto: pick(x.Rand, ProtoTCP, ProtoUDP, ProtoSCTP, ProtoICMP, ProtoICMPv6, 47)}
}

func (x *revising) compare(flows int) {
	for range flows {
		i, f := x.IntN(len(x.subjects)), x.flow()
		f.Subject = x.subjects[i]
		got, want := x.kernel.verdict(f, x.set[i]), Evaluate(x.w, f)
		if problem := disagree(x.tables, got, want); problem != "" {
			x.t.Fatalf("%s: %+v, peer %v\ntables %+v %v\noracle %+v", problem, f, x.w.Identities[f.Peer], got, x.tables.Rules[got.Rule], want)
		}
	}
}

// size compares the number of everything with tables compiled from scratch.
func (x *revising) size() {
	fresh, err := Compile(x.w, x.subjects)
	if err != nil {
		x.t.Fatal(err)
	}
	sizes := func(t *Tables) string {
		classes, ports := map[uint32]bool{}, map[protoPort]bool{}
		for _, c := range t.Classes {
			classes[c] = true
		}
		ranges := 0
		for proto, rs := range t.Ports {
			for _, r := range rs {
				ports[protoPort{proto, r.Class}] = true
				ranges++
			}
		}
		c := t.compiler
		return fmt.Sprintf("%d sets, %d entries, %d identities in %d (%d) classes by %d peers, %d ranges in %d port classes, %d rules",
			len(t.Sets), len(t.Entries), len(t.Classes), len(classes), len(c.classes), len(c.peers.peers), ranges, len(ports), len(c.rules))
	}
	if got, want := sizes(x.tables), sizes(fresh); got != want {
		x.t.Errorf("%s; from scratch %s", got, want)
	}
	if len(x.kernel.Entries) != len(x.tables.Entries) || len(x.kernel.Sets) != len(x.tables.Sets) || !maps.Equal(x.kernel.Classes, x.tables.Classes) {
		x.t.Errorf("the kernel has %d entries and %d sets, want %d and %d", len(x.kernel.Entries), len(x.kernel.Sets), len(x.tables.Entries), len(x.tables.Sets))
	}
}
