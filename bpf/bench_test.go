package bpf

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
)

// BenchmarkPacket measures one packet through BPF_PROG_TEST_RUN, with as many
// identities, addresses, classes and flows in the maps as the name says, and the
// pod under a policy set with one rule for each of 100 classes.
//
// Established: one hot TCP flow without a service, because a packet keeps what a
// run changes in it. New: another source port in each run of one packet, which
// costs more to measure, so compare it with the baseline of that kind; within the
// pod's share, beyond it, and replacing an unanswered flow of the pod.
func BenchmarkPacket(b *testing.B) {
	for _, identities := range []int{100, 16000} {
		n := benchNode(b, identities)
		for _, c := range []struct {
			name, program string
			in            func(port uint16) []byte
		}{
			{"egress", "from_pod", func(p uint16) []byte { return packet(ip(podA, podC, tcp(p, 80, "A").says("data")).withTTL(255)) }},
			{"ingress", "from_tunnel", func(p uint16) []byte { return packet(ip(podD, podA, tcp(p, 80, "A").says("data")).withTTL(255)) }},
		} {
			b.Run(fmt.Sprintf("established/%s/%d", c.name, identities), func(b *testing.B) {
				repeat(b, n.progs[c.program], redirect, c.in(1000))
			})
			b.Run(fmt.Sprintf("new/%s/%d", c.name, identities), func(b *testing.B) {
				set(b, n.rows.Budgets, 0, Budget{Each: 1 << 17})
				single(b, n.progs[c.program], redirect, c.in, func() { forgetNew(b, n) })
			})
			b.Run(fmt.Sprintf("new beyond share/%s/%d", c.name, identities), func(b *testing.B) {
				set(b, n.rows.Budgets, 0, Budget{Common: 1 << 17})
				single(b, n.progs[c.program], redirect, c.in, func() { forgetNew(b, n) })
			})
			b.Run(fmt.Sprintf("new for another/%s/%d", c.name, identities), func(b *testing.B) {
				set(b, n.rows.Budgets, 0, Budget{Common: 100})
				single(b, n.progs[c.program], redirect, c.in, func() { forgetNew(b, n) })
			})
		}
		b.Run(fmt.Sprintf("new/service/%d", identities), func(b *testing.B) {
			set(b, n.rows.Budgets, 0, Budget{Each: 1 << 17})
			to := func(p uint16) []byte { return packet(ip(podA, far, tcp(p, 80, "A").says("data"))) }
			single(b, n.progs["from_pod"], redirect, to, func() { forgetNew(b, n) })
		})
		b.Run(fmt.Sprintf("new/service with one alive of 1000/%d", identities), func(b *testing.B) {
			set(b, n.rows.Budgets, 0, Budget{Each: 1 << 17})
			set(b, n.rows.Nodes, 5, Node{Path: PathDead, Keyed: 1, Cluster: 2})
			svc := Service{ID: 1000, Groups: 1, Group: [MaxGroups]Group{{Cluster: 2, Count: 1000, Weight: 1}}}
			set(b, n.rows.Services, front("10.101.0.100", 6), svc)
			for i := range uint32(1000) {
				row := Backend{Addr: addr(podC), Port: PortOf(8080), Node: 5}
				if i == 500 {
					row.Node = 3
				}
				set(b, n.rows.Backends, SlotKey{Service: 1000, Slot: i, Cluster: 2}, row)
			}
			to := func(p uint16) []byte { return packet(ip(podA, "10.101.0.100", tcp(p, 80, "S"))) }
			single(b, n.progs["from_pod"], redirect, to, func() { forgetNew(b, n) })
		})
		b.Run(fmt.Sprintf("denied/egress/%d", identities), func(b *testing.B) {
			repeat(b, n.progs["from_pod"], dropped, packet(ip(podA, podE, tcp(1000, 80, "S"))))
		})
	}
	empty := emptyProgram(b)
	in := packet(ip(podA, podC, tcp(1000, 80, "A").says("data")))
	b.Run("baseline/established", func(b *testing.B) { repeat(b, empty, pass, in) })
	b.Run("baseline/new", func(b *testing.B) {
		single(b, empty, pass, func(uint16) []byte { return in }, func() {})
	})
}

// BenchmarkReadPorts reads the largest array, as an agent does when it starts:
// through a memory mapping, and by the system calls used for hash tables.
func BenchmarkReadPorts(b *testing.B) {
	d, err := load(smallConfig(ownNamespaces(b)), options{})
	if err != nil {
		b.Fatal(err)
	}
	defer d.Close()
	if err := d.Maps().Ports.Update(80, 1); err != nil {
		b.Fatal(err)
	}
	found := func(b *testing.B, rows int) {
		if rows != 1 {
			b.Fatalf("found %d rows", rows)
		}
	}
	b.Run("in place", func(b *testing.B) {
		for b.Loop() {
			n, err := d.Maps().Ports.Len()
			if err != nil {
				b.Fatal(err)
			}
			found(b, n)
		}
	})
	b.Run("by batches", func(b *testing.B) {
		keys, values := make([]uint32, batch), make([]uint16, batch)
		for b.Loop() {
			var cursor ebpf.MapBatchCursor
			rows := 0
			for more := true; more; {
				n, err := d.maps["ports"].BatchLookup(&cursor, keys, values, nil)
				for _, v := range values[:n] {
					if v != 0 {
						rows++
					}
				}
				more = err == nil
				if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
					b.Fatal(err)
				}
			}
			found(b, rows)
		}
	})
}

// BenchmarkCases measures the last packet of each case of TestPackets, repeated from
// the same state. Each run has one packet: compare with BenchmarkPacket/baseline/new.
func BenchmarkCases(b *testing.B) {
	shared := newNode(b)
	for _, c := range packetTable {
		if !c.applies() {
			continue
		}
		b.Run(c.name, func(b *testing.B) {
			n := shared.again(b)
			n.play(c)
			last := c.steps[len(c.steps)-1]
			in := last.frame
			if last.in != nil {
				in = packet(last.in)
			}
			program, device, from := n.hookOf(last.hook)
			context := skb{Ifindex: uint32(device), IngressIfindex: uint32(from)}
			var total time.Duration
			for range b.N {
				_, took := testRuns(b, n.progs[program], in, context, 1)
				total += took
			}
			b.ReportMetric(float64(total.Nanoseconds())/float64(b.N), "ns/packet")
			b.ReportMetric(0, "ns/op")
		})
	}
}

func emptyProgram(b *testing.B) *ebpf.Program {
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.SchedCLS, License: "MIT",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, -1), asm.Return()},
	})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { p.Close() })
	return p
}

// hops is how many times a packet with the highest time to live can be delivered.
const hops = 254

// repeat sends one packet b.N times. Within a run the packet keeps its changes, and
// each delivery costs it a hop, so no run is longer than its hops.
func repeat(b *testing.B, p *ebpf.Program, want uint32, in []byte) {
	b.Helper()
	run(b, p, want, in, hops) // warm
	var total time.Duration
	for left := b.N; left > 0; left -= hops {
		times := min(left, hops)
		total += run(b, p, want, in, times) * time.Duration(times)
	}
	b.ReportMetric(float64(total.Nanoseconds())/float64(b.N), "ns/packet")
	b.ReportMetric(0, "ns/op")
}

// single sends b.N packets one by one, each from the next port, and calls forget
// before it uses a port again.
func single(b *testing.B, p *ebpf.Program, want uint32, in func(port uint16) []byte, forget func()) {
	b.Helper()
	var total time.Duration
	for i := range b.N {
		if uint16(i) == 0 {
			forget()
		}
		total += run(b, p, want, in(uint16(i)), 1)
	}
	b.ReportMetric(float64(total.Nanoseconds())/float64(b.N), "ns/packet")
	b.ReportMetric(0, "ns/op")
}

func run(b *testing.B, p *ebpf.Program, want uint32, in []byte, times int) time.Duration {
	b.Helper()
	got, each, err := p.Benchmark(in, times, nil)
	if err != nil {
		b.Fatal(err)
	}
	if got != want {
		b.Fatalf("action %d, want %d", got, want)
	}
	return each
}

// forgetNew deletes the flows that runs have created; those of benchNode stay.
func forgetNew(b *testing.B, d *Datapath) {
	b.Helper()
	flows := d.rows.Flows
	unset(b, d.rows.Shares, 1)
	unset(b, d.rows.Shares, SharesCommon)
	var made []FlowKey
	rows, failed := flows.All()
	for k, f := range rows {
		if f.Flags&FlowAnswers != 0 || k.Remote == addr(podC) || k.Remote == addr(podD) || k.Remote == addr(far) || k.Remote == addr("10.101.0.100") {
			made = append(made, k)
		}
	}
	if err := failed(); err != nil {
		b.Fatal(err)
	}
	if err := flows.DeleteBatch(made); err != nil {
		b.Fatal(err)
	}
}

// benchNode has pod a on the loopback device, where test runs without a context
// take place.
func benchNode(b *testing.B, identities int) *Datapath {
	b.Helper()
	config := smallConfig(ownNamespaces(b))
	config.Limits.Flows, config.Limits.IPs, config.Limits.Classes = 1<<18, 1<<15, 1<<15
	d, err := load(config, options{ethernetTunnel: true})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { d.Close() })
	m := d.Maps()
	fillMesh(b, m, 1, 2)
	ips, classes, flows := map[Addr]IPInfo{}, map[ClassKey]uint32{}, map[FlowKey]Flow{}
	at := netip.MustParseAddr("10.2.3.0")
	for i := range identities {
		id := uint32(200000 + i)
		a := AddrOf(inFamily(at))
		ips[a] = IPInfo{Identity: id, Cluster: 2, Node: 3, Flags: IPMember}
		classes[ClassKey{Gen: 1, Identity: id}] = uint32(1 + i%100)
		flows[FlowKey{Local: addr(podA), Remote: a, Lport: PortOf(9), Rport: PortOf(80), Proto: 6}] =
			Flow{Seen: Now(), Revision: 1, Via: ViaTunnel, Ifindex: 1}
		at = at.Next()
	}
	classes[ClassKey{Gen: 1, Identity: idC}], classes[ClassKey{Gen: 1, Identity: idD}] = 5, 5
	for _, err := range []error{m.IPs.UpdateBatch(ips), m.Classes.UpdateBatch(classes), m.Flows.UpdateBatch(flows)} {
		if err != nil {
			b.Fatal(err)
		}
	}
	for _, number := range []uint16{80, 8080} {
		port, _ := PortIndex(1, 6, number)
		set(b, m.Ports, port, 1)
	}
	info := SetInfo{Enforced: [2]uint8{1, 1}, Shapes: [2]Shapes{NoShapes, NoShapes}}
	for class := range uint32(101) {
		for _, dir := range []Direction{Egress, Ingress} {
			k := PolicyKey{Gen: 1, Set: 7, Class: class + 1, Port: 1, Proto: 6, Dir: dir}
			set(b, m.Policy, k, PolicyEntry{Rule: class})
			info.Shapes[dir] |= k.Shape()
		}
	}
	set(b, m.Sets, SetKey{Gen: 1, Set: 7}, info)
	ep, _, _ := m.Endpoints.Lookup(addr(podA))
	ep.Set = 7
	set(b, m.Endpoints, addr(podA), ep)
	return d
}
