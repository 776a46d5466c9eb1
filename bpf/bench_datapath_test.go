package bpf

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"testing"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/ringbuf"
	"golang.org/x/sys/unix"
)

// BenchmarkDatapath measures packets at each hook for `make bench-datapath`, which takes the
// median of several runs and compares it with the targets: packets of established flows,
// packets that open one, and packets that policy denies. The node is as an agent would
// leave it: pods under a policy of 100 rules, an event for every new flow and every drop,
// and somebody who reads them.
//
// A test run repeats one packet, as the last repetition left it. So a program of our own
// runs first (see stage): it restores the packet, gives a packet that shall open a flow
// the next source port, and to or from other pods the next of all known addresses. What it
// costs is a yardstick too.
func BenchmarkDatapath(b *testing.B) {
	needRoot(b)
	b.Run("yardstick", yardsticks)
	bothFamilies(func() {
		family := "IPv4"
		if overIPv6 {
			family = "IPv6"
		}
		for _, identities := range []int{100, 16000} {
			b.Run(fmt.Sprintf("%s/%d", family, identities), func(b *testing.B) {
				r := newRig(b, identities)
				for _, c := range rigCases {
					b.Run(c.name, func(b *testing.B) { r.measure(b, c) })
				}
			})
		}
	})
}

const (
	outsider  = "198.18.0.7"  // in a prefix that the policy names
	deniedSvc = "10.101.0.82" // its only backend is e
	// pods are all on the loopback device, which every network namespace has.
	rigDevice = 1
)

// What the packets look like. Where there are answers, the flow is established.
var rigCases = []rigCase{
	{name: "established/egress/plain", program: "from_pod", want: redirect,
		in:    ip(podA, podC, tcp(1000, 80, "A").says("data")),
		opens: said("from_pod", ip(podA, podC, tcp(1000, 80, "S"))), answers: said("from_tunnel", ip(podC, podA, tcp(80, 1000, "SA")))},
	{name: "established/egress/service", program: "from_pod", want: redirect,
		in:    ip(podA, far, tcp(1001, 80, "A").says("data")),
		opens: said("from_pod", ip(podA, far, tcp(1001, 80, "S"))), answers: said("from_tunnel", ip(podC, podA, tcp(8080, 1001, "SA")))},
	{name: "established/next-door/plain", program: "from_pod", want: redirect,
		in:    ip(podA, podB, tcp(1002, 80, "A").says("data")),
		opens: said("from_pod", ip(podA, podB, tcp(1002, 80, "S"))), answers: said("from_pod", ip(podB, podA, tcp(80, 1002, "SA")))},
	{name: "established/next-door/service", program: "from_pod", want: redirect,
		in:    ip(podA, near, tcp(1003, 80, "A").says("data")),
		opens: said("from_pod", ip(podA, near, tcp(1003, 80, "S"))), answers: said("from_pod", ip(podB, podA, tcp(8080, 1003, "SA")))},
	{name: "established/tunnel/plain", program: "from_tunnel", want: redirect,
		in:    ip(podC, podA, tcp(1004, 80, "A").says("data")),
		opens: said("from_tunnel", ip(podC, podA, tcp(1004, 80, "S"))), answers: said("from_pod", ip(podA, podC, tcp(80, 1004, "SA")))},
	{name: "established/tunnel/service", program: "from_tunnel", want: redirect,
		in:    ip(podC, podA, tcp(8080, 1005, "A").says("data")),
		opens: said("from_pod", ip(podA, far, tcp(1005, 80, "S"))), answers: said("from_tunnel", ip(podC, podA, tcp(8080, 1005, "SA")))},
	{name: "established/ingress/plain", program: "to_pod", want: pass,
		in:    ip(outsider, podA, tcp(1006, 80, "A").says("data")),
		opens: said("to_pod", ip(outsider, podA, tcp(1006, 80, "S"))), answers: said("from_pod", ip(podA, outsider, tcp(80, 1006, "SA")))},
	{name: "established/device/plain", program: "from_device", want: redirect,
		in:    ip(outsider, podA, tcp(1007, 80, "A").says("data")),
		opens: said("from_device", ip(outsider, podA, tcp(1007, 80, "S"))), answers: said("from_pod", ip(podA, outsider, tcp(80, 1007, "SA")))},

	{name: "new/egress/plain", program: "from_pod", want: redirect, varies: destination, in: ip(podA, podC, tcp(0, 80, "S"))},
	{name: "new/egress/service", program: "from_pod", want: redirect, varies: port, in: ip(podA, far, tcp(0, 80, "S"))},
	{name: "new/next-door/plain", program: "from_pod", want: redirect, varies: port, in: ip(podA, podB, tcp(0, 80, "S"))},
	{name: "new/next-door/service", program: "from_pod", want: redirect, varies: port, in: ip(podA, near, tcp(0, 80, "S"))},
	{name: "new/tunnel/plain", program: "from_tunnel", want: redirect, varies: source, in: ip(podC, podA, tcp(0, 80, "S"))},
	{name: "new/ingress/plain", program: "to_pod", want: pass, varies: port, in: ip(outsider, podA, tcp(0, 80, "S"))},
	{name: "new/device/plain", program: "from_device", want: redirect, varies: port, in: ip(outsider, podA, tcp(0, 80, "S"))},

	{name: "denied/egress/plain", program: "from_pod", want: dropped, in: ip(podA, podE, tcp(1000, 80, "S"))},
	{name: "denied/egress/service", program: "from_pod", want: dropped, in: ip(podA, deniedSvc, tcp(1000, 80, "S"))},
	{name: "denied/tunnel/plain", program: "from_tunnel", want: dropped, in: ip(podE, podA, tcp(1000, 80, "S"))},
	{name: "denied/ingress/plain", program: "to_pod", want: dropped, in: ip(world, podA, tcp(1000, 80, "S"))},
	{name: "denied/device/plain", program: "from_device", want: dropped, in: ip(world, podA, tcp(1000, 80, "S"))},
}

type rigCase struct {
	name, program  string
	in             *ipLayer
	want           uint32 // action
	varies         what   // from packet to packet
	opens, answers rigStep
}

type what int

const (
	nothing     what = iota
	port             // the source port
	source           // and the source address
	destination      // and the destination address
)

type rigStep struct {
	program string
	in      *ipLayer
}

func said(program string, in *ipLayer) rigStep { return rigStep{program, in} }

// rig is a node to measure, see benchNode.
type rig struct {
	*Datapath
	identities int
	events     *ringbuf.Reader
}

func newRig(b *testing.B, identities int) *rig {
	b.Helper()
	d := benchNode(b, identities)
	m := d.Maps()
	for _, pod := range []string{podA, podB} {
		ep, _, _ := m.Endpoints.Lookup(addr(pod))
		ep.Ifindex, ep.Set = rigDevice, 7
		set(b, m.Endpoints, addr(pod), ep)
	}
	const idOutsider = 300000
	set(b, m.Prefixes, prefix("198.18.0.0/24"), IPInfo{Identity: idOutsider})
	for _, id := range []uint32{idA, idB, idOutsider} {
		set(b, m.Classes, ClassKey{Gen: 1, Identity: id}, 5)
	}
	set(b, m.Services, front(deniedSvc, 6), Service{ID: 82, Groups: 1, Group: [MaxGroups]Group{{Cluster: 1, Count: 1, Weight: 1}}})
	set(b, m.Backends, SlotKey{Service: 82, Cluster: 1}, Backend{Addr: addr(podE), Port: PortOf(8080), Node: 2})
	set(b, m.Members, MemberKey{Service: 82, Addr: addr(podE), Port: PortOf(8080)}, Member{})
	// c alone is behind the service, so that it is known who answers.
	set(b, m.Services, front(far, 6), Service{ID: 81, Groups: 1, Group: [MaxGroups]Group{{Cluster: 2, Count: 1, Weight: 1}}})
	set(b, m.Budgets, 0, Budget{Each: 1 << 17, Node: 1 << 10})
	s, _, _ := m.Settings.Lookup(0)
	s.Trace = 1
	set(b, m.Settings, 0, s)
	events, err := ringbuf.NewReader(d.maps["events"])
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { events.Close() })
	return &rig{d, identities, events}
}

// What happens between two readings of the events, and before the flows are deleted: half
// of the buffer has room for the events of both sides of a flow next door, and a packet
// has so many source ports.
const (
	atOnce    = 2000
	firstPort = 1000
	allPorts  = 60000
)

func (r *rig) measure(b *testing.B, c rigCase) {
	r.clear(b)
	context := skb{Ifindex: rigDevice}
	if c.program == "to_pod" {
		context.IngressIfindex = 9 // forwarded, not the node's own
	}
	for _, s := range []rigStep{c.opens, c.answers} {
		if s.program == "" {
			continue
		}
		if action, _ := testRuns(b, r.progs[s.program], packet(s.in), context, 1); action == dropped {
			b.Fatalf("%s drops %v", s.program, s.in)
		}
	}
	in := packet(c.in)
	st := newStage(b, r.progs[c.program], in, c.varies, r.identities)
	run := func(packets int) (total time.Duration) {
		for left := packets; left > 0; left -= atOnce {
			if c.varies != nothing && st.sent+atOnce > allPorts {
				r.clear(b)
				st.rewind(b)
			}
			n := min(left, atOnce)
			action, each := testRuns(b, st.prog, in, context, n)
			if action != c.want {
				b.Fatalf("action %d, want %d", action, c.want)
			}
			st.sent += n
			total += each * time.Duration(n)
			r.read(b)
		}
		return total
	}
	run(min(b.N, 1000)) // warm
	before := r.opened(b)
	total := run(b.N)
	opened := 0
	switch {
	case c.varies != nothing && c.program == "from_pod" && r.nextDoor(c):
		opened = 2 * b.N
	case c.varies != nothing:
		opened = b.N
	}
	// A run that a signal interrupts begins again.
	if got := r.opened(b) - before; got < uint64(opened) || opened == 0 && got != 0 {
		b.Fatalf("%d packets opened %d flows, want %d", b.N, got, opened)
	}
	b.ReportMetric(float64(total.Nanoseconds())/float64(b.N), "ns/packet")
	b.ReportMetric(0, "ns/op")
}

// nextDoor tells whether the packet is delivered to a pod of the same node.
func (r *rig) nextDoor(c rigCase) bool {
	return c.in.dst == ip(podA, podB, nil).dst || c.in.dst == ip(podA, near, nil).dst
}

// opened is how many flows the pods have ever opened.
func (r *rig) opened(b *testing.B) uint64 {
	s, _, err := r.rows.Shares.Lookup(rigDevice)
	if err != nil {
		b.Fatal(err)
	}
	if s.Refused != 0 || s.Suppressed != 0 {
		b.Fatalf("the account says %+v", s)
	}
	return s.Opened
}

// clear deletes the flows that packets opened; those of benchNode stay.
func (r *rig) clear(b *testing.B) {
	b.Helper()
	var made []FlowKey
	rows, failed := r.rows.Flows.All()
	for k := range rows {
		if k.Lport != PortOf(9) {
			made = append(made, k)
		}
	}
	if err := errors.Join(failed(), r.rows.Flows.DeleteBatch(made)); err != nil {
		b.Fatal(err)
	}
	s, ok, err := r.rows.Shares.Lookup(rigDevice)
	if err != nil {
		b.Fatal(err)
	}
	if ok {
		s.Used = 0
		set(b, r.rows.Shares, rigDevice, s)
	}
	r.read(b)
}

// read reads all events.
func (r *rig) read(b *testing.B) {
	b.Helper()
	var record ringbuf.Record
	r.events.SetDeadline(time.Unix(1, 0))
	for {
		if err := r.events.ReadInto(&record); errors.Is(err, os.ErrDeadlineExceeded) {
			return
		} else if err != nil {
			b.Fatal(err)
		}
	}
}

// stage is a program that restores the packet, with the next port and address, and goes
// on in another program.
type stage struct {
	prog *ebpf.Program
	row  *ebpf.Map // the number of the next packet, and the packet
	sent int
	in   []byte
}

const stageHead = 8 // bytes of the row before the packet

func newStage(b *testing.B, then *ebpf.Program, in []byte, varies what, addresses int) *stage {
	b.Helper()
	open := func(spec *ebpf.MapSpec) *ebpf.Map {
		m, err := ebpf.NewMap(spec)
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { m.Close() })
		return m
	}
	st := &stage{in: in, row: open(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: uint32(stageHead + len(in)), MaxEntries: 1})}
	st.rewind(b)
	next := open(&ebpf.MapSpec{Type: ebpf.ProgramArray, KeySize: 4, ValueSize: 4, MaxEntries: 1})
	if err := next.Put(uint32(0), then); err != nil {
		b.Fatal(err)
	}
	ports, sources, destinations := 34, 14+12, 14+16
	if in[12] == 0x86 {
		ports, sources, destinations = 54, 14+8+12, 14+24+12
	}
	code := asm.Instructions{
		asm.Mov.Reg(asm.R6, asm.R1),
		asm.StoreImm(asm.RFP, -4, 0, asm.Word),
		asm.LoadMapPtr(asm.R1, st.row.FD()),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, -4),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "out"),
		asm.Mov.Reg(asm.R7, asm.R0),
		asm.LoadMem(asm.R8, asm.R7, 0, asm.Word),
		asm.Mov.Reg(asm.R1, asm.R8),
		asm.Add.Imm(asm.R1, 1),
		asm.StoreMem(asm.R7, 0, asm.R1, asm.Word),
	}
	// put writes the lower 16 bits of R1 into the packet.
	put := func(at int) {
		code = append(code, asm.HostTo(asm.BE, asm.R1, asm.Half), asm.StoreMem(asm.R7, int16(stageHead+at), asm.R1, asm.Half))
	}
	if varies != nothing {
		code = append(code, asm.Mov.Reg(asm.R1, asm.R8))
		put(ports)
	}
	if at := map[what]int{source: sources, destination: destinations}[varies]; at != 0 {
		// benchNode's addresses begin at x.y.3.0.
		code = append(code, asm.Mov.Reg(asm.R1, asm.R8), asm.Mod.Imm(asm.R1, int32(addresses)), asm.Add.Imm(asm.R1, 3<<8))
		put(at + 2)
	}
	code = append(code,
		asm.Mov.Reg(asm.R1, asm.R6),
		asm.Mov.Imm(asm.R2, 0),
		asm.Mov.Reg(asm.R3, asm.R7),
		asm.Add.Imm(asm.R3, stageHead),
		asm.Mov.Imm(asm.R4, int32(len(in))),
		asm.Mov.Imm(asm.R5, 0),
		asm.FnSkbStoreBytes.Call(),
		asm.Mov.Reg(asm.R1, asm.R6),
		asm.LoadMapPtr(asm.R2, next.FD()),
		asm.Mov.Imm(asm.R3, 0),
		asm.FnTailCall.Call(),
		asm.Mov.Imm(asm.R0, -1).WithSymbol("out"),
		asm.Return(),
	)
	st.prog = program(b, code)
	return st
}

// rewind begins again with the first port and address.
func (st *stage) rewind(b *testing.B) {
	b.Helper()
	st.sent = 0
	head := binary.NativeEndian.AppendUint32(nil, firstPort)
	if err := st.row.Put(uint32(0), append(append(head, 0, 0, 0, 0), st.in...)); err != nil {
		b.Fatal(err)
	}
}

func program(b *testing.B, code asm.Instructions) *ebpf.Program {
	b.Helper()
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.SchedCLS, License: "Dual BSD/GPL", Instructions: code})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { p.Close() })
	return p
}

// yardsticks measures what does not depend on our programs: an empty program, alone and
// behind a stage, and a program that draws a random number, without and with looking it
// up in a hash table of 100,000 rows.
func yardsticks(b *testing.B) {
	const rows = 100000
	in := packet(ip(podA, podC, tcp(1000, 80, "A").says("data")))
	empty := emptyProgram(b)
	table, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Hash, KeySize: 4, ValueSize: 8, MaxEntries: rows})
	if err != nil {
		b.Fatal(err)
	}
	defer table.Close()
	keys, values := make([]uint32, rows), make([]uint64, rows)
	for i := range keys {
		keys[i] = uint32(i)
	}
	if _, err := table.BatchUpdate(keys, values, nil); err != nil {
		b.Fatal(err)
	}
	draw := asm.Instructions{
		asm.FnGetPrandomU32.Call(),
		asm.Mod.Imm32(asm.R0, rows),
		asm.StoreMem(asm.RFP, -4, asm.R0, asm.Word),
	}
	end := asm.Instructions{asm.Mov.Imm(asm.R0, -1), asm.Return()}
	find := asm.Instructions{
		asm.LoadMapPtr(asm.R1, table.FD()),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, -4),
		asm.FnMapLookupElem.Call(),
	}
	all := func(parts ...asm.Instructions) (code asm.Instructions) {
		for _, p := range parts {
			code = append(code, p...)
		}
		return code
	}
	for _, y := range []struct {
		name string
		prog *ebpf.Program
	}{
		{"empty", empty},
		{"stage", newStage(b, empty, in, nothing, 0).prog},
		{"draw", program(b, all(draw, end))},
		{"lookup", program(b, all(draw, find, end))},
	} {
		b.Run(y.name, func(b *testing.B) {
			testRuns(b, y.prog, in, skb{Ifindex: rigDevice}, min(b.N, 1000)) // warm
			action, each := testRuns(b, y.prog, in, skb{Ifindex: rigDevice}, b.N)
			if action != pass {
				b.Fatalf("action %d", action)
			}
			b.ReportMetric(float64(each.Nanoseconds()), "ns/packet")
			b.ReportMetric(0, "ns/op")
		})
	}
}

// testRuns runs BPF_PROG_TEST_RUN on one packet, so many times, and returns the last
// action and how long the program took each time. The library supports a context or the
// time, but not both.
func testRuns(b *testing.B, p *ebpf.Program, in []byte, context skb, times int) (action uint32, each time.Duration) {
	b.Helper()
	attr := struct { // the member test of union bpf_attr
		fd, result, sizeIn, sizeOut uint32
		in, out                     unsafe.Pointer
		repeat, duration            uint32
		contextIn, contextOut       uint32
		context, contextBack        unsafe.Pointer
		flags, cpu, batch, _        uint32
	}{
		fd: uint32(p.FD()), in: unsafe.Pointer(&in[0]), sizeIn: uint32(len(in)), repeat: uint32(times),
		context: unsafe.Pointer(&context), contextIn: uint32(unsafe.Sizeof(context)),
	}
	const progTestRun = 10
	for {
		_, _, errno := unix.Syscall(unix.SYS_BPF, progTestRun, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr))
		if errno == unix.EINTR { // a signal of the Go runtime's; the packets so far have been sent
			continue
		}
		if errno != 0 {
			b.Fatal(errno)
		}
		return attr.result, time.Duration(attr.duration)
	}
}
