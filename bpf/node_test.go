package bpf

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/ringbuf"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	_ "github.com/weft-mesh/weft/internal/firstthread"
)

// The mesh of the packet tests, seen from node 1 of cluster 1:
//
//	cluster 1  node 1 (here)  10.1.1.0/24  pods a .10, b .11, held .12
//	           node 2         10.1.2.0/24  pod e .10
//	cluster 2  node 3         10.2.1.0/24  pod c .10
//	           node 4         10.2.2.0/24  pod d .10
//	services   10.101.0.80:80   tcp, udp: b:8080, else c:8080 and d:8080
//	           10.101.0.81:80   tcp, udp: c and d only
//	           10.101.0.99:80   tcp: no backends
const (
	podA, podB, podHeld = "10.1.1.10", "10.1.1.11", "10.1.1.12"
	podC, podD, podE    = "10.2.1.10", "10.2.2.10", "10.1.2.10"
	nodeInternal        = "10.1.1.1"
	world               = "192.0.2.7"
	near, far, empty    = "10.101.0.80", "10.101.0.81", "10.101.0.99"

	idA, idB, idC, idD, idE = 65601, 65602, 131201, 131202, 65603
	ifTunnel0, ifTunnel1    = 901, 902
)

// node is a Datapath in a network and mount namespace of its own.
type node struct {
	testing.TB
	*Datapath
	m      *Maps
	config Config
	a, b   int // devices of the pods' host sides
	events *ringbuf.Reader
	mark   uint32 // of the next packet

	network netns.NsHandle
}

func needRoot(t testing.TB) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
}

// ownNamespaces moves the calling goroutine into fresh namespaces with a BPF
// file system at the returned path. The thread ends with the goroutine.
func ownNamespaces(t testing.TB) string {
	t.Helper()
	needRoot(t)
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET | unix.CLONE_NEWNS); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := unix.Mount("bpf", dir, "bpf", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	return filepath.Join(dir, "weft")
}

func smallConfig(dir string) Config {
	c := Defaults()
	c.PinDir = dir
	l := &c.Limits
	l.Nodes = 64
	for _, rows := range []*uint32{&l.Flows, &l.Endpoints, &l.Prefixes, &l.Services, &l.Backends, &l.Members, &l.Policy, &l.Sets, &l.Fragments} {
		*rows = 1 << 10
	}
	l.IPs, l.Classes = 1<<14, 1<<14
	return c
}

func newNode(t testing.TB) *node {
	t.Helper()
	return newNodeWith(t, func(*Config) {})
}

func newNodeWith(t testing.TB, edit func(*Config)) *node {
	t.Helper()
	return newNodeOf(t, edit, options{ethernetTunnel: true})
}

func newNodeOf(t testing.TB, edit func(*Config), o options) *node {
	t.Helper()
	n := &node{TB: t, config: smallConfig(ownNamespaces(t))}
	edit(&n.config)
	d, err := load(n.config, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	if n.network, err = netns.Get(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.network.Close() })
	n.Datapath, n.m = d, d.Maps()
	n.a, n.b = addVeth(t, "a"), addVeth(t, "b")
	if n.events, err = ringbuf.NewReader(d.maps["events"]); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.events.Close() })
	fillMesh(t, n.m, n.a, n.b)
	return n
}

// again resets the node for another case, because loading takes most of the time.
// The case runs in the node's network. Table ports is too large to clear: whoever
// writes to it cleans up.
func (n *node) again(t testing.TB) *node {
	t.Helper()
	runtime.LockOSThread() // and so the thread ends with the case
	if err := netns.Set(n.network); err != nil {
		t.Fatal(err)
	}
	fresh := *n
	fresh.TB = t
	for _, clear := range []func(testing.TB){
		clearer(n.m.Settings), clearer(n.m.Revisions), clearer(n.m.Flows), clearer(n.m.Masquerades), clearer(n.m.Masquerading), clearer(n.m.Native), clearer(n.m.Affinities), clearer(n.m.Visitors), clearer(n.m.Sources), clearer(n.m.Shares), clearer(n.m.Endpoints), clearer(n.m.IPs),
		clearer(n.m.Prefixes), clearer(n.m.Nodes), clearer(n.m.Clusters), clearer(n.m.Services), clearer(n.m.Backends),
		clearer(n.m.Balancing), clearer(n.m.Maglev), clearer(n.m.Members), clearer(n.m.Classes), clearer(n.m.Policy), clearer(n.m.Sets),
		clearer(&table[[24]byte, [44]byte]{"fragments", n.maps["fragments"]}), clearer(&table[uint32, uint64]{"errors_sent", n.maps["errors_sent"]}),
	} {
		clear(t)
	}
	set(t, n.m.Budgets, 0, BudgetFor(n.config.Limits.Flows, 0))
	fillMesh(t, n.m, n.a, n.b)
	return &fresh
}

func clearer[K comparable, V any](table Table[K, V]) func(testing.TB) {
	return func(t testing.TB) {
		t.Helper()
		var keys []K
		rows, failed := table.All()
		for k := range rows {
			keys = append(keys, k)
		}
		if err := errors.Join(failed(), table.DeleteBatch(keys)); err != nil {
			t.Fatal(err)
		}
	}
}

// ourMAC is the hardware address that test packets are sent to.
var ourMAC = net.HardwareAddr{2, 0, 0, 0, 0, 1}

func addVeth(t testing.TB, name string) int {
	t.Helper()
	la := netlink.NewLinkAttrs()
	la.Name, la.HardwareAddr = "host-"+name, ourMAC
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: la, PeerName: "pod-" + name}); err != nil {
		t.Fatal(err)
	}
	l, err := netlink.LinkByName(la.Name)
	if err != nil {
		t.Fatal(err)
	}
	return l.Attrs().Index
}

func addr(s string) Addr { return AddrOf(inFamily(netip.MustParseAddr(s))) }

func prefix(s string) PrefixKey {
	p := netip.MustParsePrefix(s)
	return PrefixKey{Bits: uint32(96 + p.Bits()), Addr: AddrOf(inFamily(p.Addr()))}
}

// set writes a row or fails the test.
func set[K comparable, V any](t testing.TB, table Table[K, V], k K, v V) {
	t.Helper()
	if err := table.Update(k, v); err != nil {
		t.Fatal(err)
	}
}

func unset[K comparable, V any](t testing.TB, table Table[K, V], k K) {
	t.Helper()
	if err := table.Delete(k); err != nil {
		t.Fatal(err)
	}
}

func fillMesh(t testing.TB, m *Maps, a, b int) {
	t.Helper()
	mac := func(last byte) [6]uint8 { return [6]uint8{0xaa, 0, 0, 0, 0, last} }
	set(t, m.Endpoints, addr(podA), Endpoint{Ifindex: uint32(a), Identity: idA, ID: 1, MAC: mac(0xa), HostMAC: mac(0xf)})
	set(t, m.Endpoints, addr(podB), Endpoint{Ifindex: uint32(b), Identity: idB, ID: 2, MAC: mac(0xb), HostMAC: mac(0xf)})
	set(t, m.Endpoints, addr(podHeld), Endpoint{Ifindex: uint32(b), Identity: idB, ID: 3, Held: 1})
	for p, ip := range map[string]IPInfo{
		"10.1.0.0/16": {Cluster: 1, Flags: IPMember},
		"10.1.1.0/24": {Cluster: 1, Flags: IPMember | IPLocal},
		"10.1.2.0/24": {Cluster: 1, Flags: IPMember, Node: 2},
		"10.2.0.0/16": {Cluster: 2, Flags: IPMember},
		"10.2.1.0/24": {Cluster: 2, Flags: IPMember, Node: 3},
		"10.2.2.0/24": {Cluster: 2, Flags: IPMember, Node: 4},
	} {
		set(t, m.Prefixes, prefix(p), ip)
	}
	set(t, m.IPs, addr(podC), IPInfo{Identity: idC, Cluster: 2, Node: 3, Flags: IPMember})
	set(t, m.IPs, addr(podD), IPInfo{Identity: idD, Cluster: 2, Node: 4, Flags: IPMember})
	set(t, m.IPs, addr(podE), IPInfo{Identity: idE, Cluster: 1, Node: 2, Flags: IPMember})
	set(t, m.Nodes, 2, Node{Path: PathAlive, Keyed: 1, Cluster: 1})
	set(t, m.Nodes, 3, Node{Path: PathAlive, Keyed: 1, Cluster: 2, Lane: 1})
	set(t, m.Nodes, 4, Node{Path: PathAlive, Keyed: 1, Cluster: 2})
	set(t, m.Clusters, 2, Cluster{Path: PathAlive})

	local := Group{Cluster: 1, Tier: 0, Weight: 1, Count: 1}
	remote := Group{Cluster: 2, Tier: 1, Weight: 1, Count: 2}
	for _, proto := range []uint8{6, 17, 132} {
		set(t, m.Services, front(near, proto), Service{ID: 80, Groups: 2, Group: [MaxGroups]Group{local, remote}})
		set(t, m.Services, front(far, proto), Service{ID: 81, Groups: 1, Group: [MaxGroups]Group{remote}})
		set(t, m.Services, front(empty, proto), Service{ID: 99})
	}
	backend := func(service, slot uint32, cluster uint16, pod string, node uint16) {
		set(t, m.Backends, SlotKey{Service: service, Slot: slot, Cluster: cluster}, Backend{Addr: addr(pod), Port: PortOf(8080), Node: node})
		set(t, m.Members, MemberKey{Service: service, Addr: addr(pod), Port: PortOf(8080)}, Member{})
	}
	backend(80, 0, 1, podB, 0)
	for _, service := range []uint32{80, 81} {
		backend(service, 0, 2, podC, 3)
		backend(service, 1, 2, podD, 4)
	}
	set(t, m.Settings, 0, Settings{
		Revision: 1, PolicyGen: 1, TunnelIfindex: [2]uint32{ifTunnel0, ifTunnel1}, Internal: internal(nodeInternal), Cluster: 1,
	})
}

// internal is a node's internal address, of which it has one in the family.
func internal(s string) (both [2]Addr) {
	both[bit(overIPv6)] = addr(s)
	return both
}

func bit(b bool) int {
	if b {
		return 1
	}
	return 0
}

func front(ip string, proto uint8) ServiceKey {
	return ServiceKey{Addr: addr(ip), Port: PortOf(80), Proto: proto}
}

// change edits the settings and raises the revision.
func (n *node) change(edit func(*Settings)) {
	n.Helper()
	s, _, err := n.m.Settings.Lookup(0)
	if err != nil {
		n.Fatal(err)
	}
	s.Revision++
	if edit != nil {
		edit(&s)
	}
	set(n, n.m.Settings, 0, s)
}

// policy puts pod under set 7, with default deny in dir.
func (n *node) policy(pod string, dir Direction) {
	n.Helper()
	ep, _, _ := n.m.Endpoints.Lookup(addr(pod))
	ep.Set = 7
	set(n, n.m.Endpoints, addr(pod), ep)
	info := n.set7()
	info.Enforced[dir] = 1
	set(n, n.m.Sets, SetKey{Gen: 1, Set: 7}, info)
	n.change(nil)
}

// class gives identities a class of their own, and ports likewise.
func (n *node) class(class uint32, identities ...uint32) {
	for _, id := range identities {
		set(n, n.m.Classes, ClassKey{Gen: 1, Identity: id}, class)
	}
}

func (n *node) portClass(class uint16, proto uint8, port uint16) {
	i, _ := PortIndex(1, protoInFamily(proto), port)
	set(n, n.m.Ports, i, class)
	n.Cleanup(func() { unset(n, n.m.Ports, i) })
}

func (n *node) rule(k PolicyKey, e PolicyEntry) {
	k.Gen, k.Set, k.Proto = 1, 7, protoInFamily(k.Proto)
	set(n, n.m.Policy, k, e)
	info := n.set7()
	info.Shapes[k.Dir] |= k.Shape()
	set(n, n.m.Sets, SetKey{Gen: 1, Set: 7}, info)
}

// loopbackUp sets the loopback device of the test's namespace up, so that sockets are found.
func loopbackUp(t *testing.T) netlink.Link {
	t.Helper()
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		t.Fatal(err)
	}
	return lo
}

// set7 is the row of the policy set that pods have.
func (n *node) set7() SetInfo {
	info, ok, _ := n.m.Sets.Lookup(SetKey{Gen: 1, Set: 7})
	if !ok {
		info.Shapes = [2]Shapes{NoShapes, NoShapes}
	}
	return info
}

// skb is the part of struct __sk_buff that a test run may set.
type skb struct {
	_              [8]byte
	Mark           uint32
	_              [24]byte
	IngressIfindex uint32
	Ifindex        uint32
	_              [148]byte
}

// sent is the result of sending a packet.
type sent struct {
	action int
	out    []byte
	mark   uint32
	reason Reason
	dir    Direction
	event  *Event
}

const (
	pass     = 1<<32 - 1 // -1
	dropped  = 2
	redirect = 7
)

func actionOf(hook string, r Reason) int {
	switch {
	case r.Drop():
		return dropped
	case r == ReasonDelivered && (hook == "to a" || hook == "to b" || hook == "forwarded to a"):
		return pass
	case r == ReasonToStack, r == ReasonNotOurs, r == ReasonEnteredTunnel:
		return pass
	}
	return redirect
}

// send runs a program on a packet. Every packet must be counted exactly once.
func (n *node) send(program string, ifindex, from int, in []byte) sent {
	n.Helper()
	before := n.counts()
	if len(in) < 14 {
		n.Fatalf("%d bytes are no packet", len(in))
	}
	out := make([]byte, len(in)+256)
	opts := &ebpf.RunOptions{Data: in, DataOut: out, Context: skb{Mark: n.mark, Ifindex: uint32(ifindex), IngressIfindex: uint32(from)}, ContextOut: new(skb), Repeat: 1}
	action, err := n.progs[program].Run(opts)
	if err != nil {
		n.Fatalf("%s: %v", program, err)
	}
	s := sent{action: int(action), out: opts.DataOut, mark: opts.ContextOut.(*skb).Mark}
	moved := 0
	for c, packets := range n.counts() {
		if d := packets - before[c]; d != 0 {
			s.reason, s.dir = c.Reason, c.Dir
			moved += int(d)
		}
	}
	if moved != 1 {
		n.Errorf("%s counted the packet %d times", program, moved)
	}
	for {
		n.events.SetDeadline(time.Unix(1, 0))
		record, err := n.events.Read()
		if errors.Is(err, os.ErrDeadlineExceeded) {
			break
		}
		if err != nil {
			n.Fatal(err)
		}
		e, ok := decode(record.RawSample)
		if !ok {
			n.Fatalf("event of %d bytes", len(record.RawSample))
		}
		s.event = &e
	}
	return s
}

func (n *node) counts() map[Counter]uint64 {
	n.Helper()
	all, err := n.Counters()
	if err != nil {
		n.Fatal(err)
	}
	m := map[Counter]uint64{}
	for _, c := range all {
		m[Counter{Reason: c.Reason, Dir: c.Dir}] = c.Packets
	}
	return m
}

// flow looks up a flow as the pod sees it.
func (n *node) flow(pod string, lport uint16, remote string, rport uint16, proto uint8) (Flow, bool) {
	n.Helper()
	f, ok, err := n.m.Flows.Lookup(FlowKey{Local: addr(pod), Remote: addr(remote), Lport: PortOf(lport), Rport: PortOf(rport), Proto: protoInFamily(proto)})
	if err != nil {
		n.Fatal(err)
	}
	return f, ok
}

func (n *node) flows() int {
	n.Helper()
	flows, _ := n.rowsOfFlows()
	return flows
}

// answers counts the second rows of flows through services.
func (n *node) answers() int {
	n.Helper()
	_, answers := n.rowsOfFlows()
	return answers
}

func (n *node) rowsOfFlows() (flows, answers int) {
	n.Helper()
	rows, failed := n.m.Flows.All()
	for _, f := range rows {
		if f.Flags&FlowAnswers != 0 {
			answers++
		} else {
			flows++
		}
	}
	if err := failed(); err != nil {
		n.Fatal(err)
	}
	return flows, answers
}

// age moves a flow's last packet into the past. A connection that shall be over is reset as
// well: on a machine that has just started, nothing is old enough.
func (n *node) age(by time.Duration) {
	n.Helper()
	rows, failed := n.m.Flows.All()
	for k, f := range rows {
		f.Seen -= min(f.Seen, uint64(by))
		if k.Proto == 6 && by > TCPEstablished {
			f.Flags |= FlowReset
		}
		set(n, n.m.Flows, k, f)
	}
	if err := failed(); err != nil {
		n.Fatal(err)
	}
}

func be16(b []byte) uint16 { return binary.BigEndian.Uint16(b) }
