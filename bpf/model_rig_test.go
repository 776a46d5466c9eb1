package bpf_test

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/ringbuf"

	"github.com/weft-mesh/weft/bpf"
	"github.com/weft-mesh/weft/bpf/model"
)

// rig is the real datapath, in a network namespace of its own, with a device for each part.
type rig struct {
	testing.TB
	d         *bpf.Datapath
	m         *bpf.Maps
	events    *ringbuf.Reader
	redirects *ebpf.Map
	redirect  redirected // the last one
	counted   map[counterKey]uint64
	pods      [3]int
	lanes     [2]int
	device    int // of the node, towards the world
}

type counterKey struct {
	reason bpf.Reason
	dir    bpf.Direction
}

// redirected is where a program sent a packet, which a test run does not tell.
type redirected struct{ Count, Into, Device uint32 }

// observe makes programs note where they redirect packets to: each call of one of the two
// helpers becomes one of a function that writes down what it was given.
func observe(notes *ebpf.Map) func(*ebpf.CollectionSpec) {
	names := map[asm.BuiltinFunc]string{asm.FnRedirect: "note_redirect", asm.FnRedirectPeer: "note_redirect_peer"}
	return func(spec *ebpf.CollectionSpec) {
		for _, p := range spec.Programs {
			if p.Type != ebpf.SchedCLS {
				continue
			}
			used := map[asm.BuiltinFunc]bool{}
			var line fmt.Stringer // of the source: each function needs one
			for i, in := range p.Instructions {
				line = cmp.Or(line, in.Source())
				if f := asm.BuiltinFunc(in.Constant); in.IsBuiltinCall() && names[f] != "" {
					call := asm.Call.Label(names[f])
					call.Metadata = in.Metadata
					p.Instructions[i] = call.WithReference(names[f])
					used[f] = true
				}
			}
			for f := range used {
				p.Instructions = append(p.Instructions, note(names[f], line, notes, f == asm.FnRedirectPeer)...)
			}
		}
	}
}

// note is the function that stands for a helper.
func note(name string, line fmt.Stringer, notes *ebpf.Map, into bool) asm.Instructions {
	kind := int32(0)
	if into {
		kind = 1
	}
	word := &btf.Int{Name: "int", Size: 4, Encoding: btf.Signed}
	f := &btf.Func{Name: name, Linkage: btf.StaticFunc, Type: &btf.FuncProto{Return: word, Params: []btf.FuncParam{{Name: "ifindex", Type: word}}}}
	return asm.Instructions{
		btf.WithFuncMetadata(asm.LoadMapValue(asm.R2, notes.FD(), 0), f).WithSymbol(name).WithSource(line),
		asm.LoadMem(asm.R3, asm.R2, 0, asm.Word),
		asm.Add.Imm(asm.R3, 1),
		asm.StoreMem(asm.R2, 0, asm.R3, asm.Word),
		asm.StoreImm(asm.R2, 4, int64(kind), asm.Word),
		asm.StoreMem(asm.R2, 8, asm.R1, asm.Word),
		asm.Mov.Imm(asm.R0, 7),
		asm.Return(),
	}
}

// newRig loads the programs. The calling goroutine's thread gets namespaces of its own.
func newRig(t testing.TB) *rig {
	t.Helper()
	bpf.NeedRoot(t)
	config := bpf.SmallConfig(bpf.OwnNamespaces(t))
	notes, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 12, MaxEntries: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { notes.Close() })
	r := &rig{TB: t, redirects: notes}
	if r.d, err = bpf.LoadEdited(config, observe(notes)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.d.Close() })
	if err := r.d.CloseWaitingRoom(); err != nil { // a fragment that waits is no outcome
		t.Fatal(err)
	}
	r.m = r.d.Maps()
	for i := range r.pods {
		r.pods[i] = bpf.AddVeth(t, fmt.Sprint("pod", i))
	}
	for i := range r.lanes {
		r.lanes[i] = bpf.AddVeth(t, fmt.Sprint("lane", i))
	}
	r.device = bpf.AddVeth(t, "eth")
	if r.events, err = ringbuf.NewReader(r.d.Map("events")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.events.Close() })
	r.counted = r.counters()
	return r
}

// counters are read at once: one by one they take longer than all else.
func (r *rig) counters() map[counterKey]uint64 {
	r.Helper()
	const rows = 128
	type row struct{ Packets, Bytes uint64 }
	cpus := ebpf.MustPossibleCPU()
	keys, values := make([]uint32, rows), make([]row, rows*cpus)
	var cursor ebpf.MapBatchCursor
	if _, err := r.d.Map("counters").BatchLookup(&cursor, keys, values, nil); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		r.Fatal(err)
	}
	all := map[counterKey]uint64{}
	for i, k := range keys {
		for _, v := range values[i*cpus : (i+1)*cpus] {
			if v.Packets > 0 {
				all[counterKey{bpf.Reason(k >> 1), bpf.Direction(k & 1)}] += v.Packets
			}
		}
	}
	return all
}

// run gives a frame to a program, and reports what became of it.
func (r *rig) run(h hook, frame []byte) (o model.Outcome, event *bpf.Event, err error) {
	out := make([]byte, len(frame)+256)
	context := bpf.SKB{Ifindex: uint32(h.device)}
	if h.forwarded {
		context.IngressIfindex = uint32(r.device)
	}
	opts := &ebpf.RunOptions{Data: frame, DataOut: out, Context: context, Repeat: 1}
	action, err := r.d.Program(h.program).Run(opts)
	if err != nil {
		return o, nil, fmt.Errorf("%s: %w", h.program, err)
	}
	now, moved := r.counters(), uint64(0)
	for k, packets := range now {
		if d := packets - r.counted[k]; d != 0 {
			o.Reason, o.Dir = k.reason, k.dir
			moved += d
		}
	}
	r.counted = now
	if moved != 1 {
		return o, nil, fmt.Errorf("%s counted the packet %d times", h.program, moved)
	}
	last := r.redirect
	if err := r.redirects.Lookup(uint32(0), &r.redirect); err != nil {
		return o, nil, err
	}
	switch action {
	case 1<<32 - 1: // TC_ACT_UNSPEC: others at the hook decide too
		o.Verdict, o.Frame = model.Pass, opts.DataOut
	case 2:
		o.Verdict = model.Drop
	case 7:
		if r.redirect.Count != last.Count+1 {
			return o, nil, fmt.Errorf("%s redirected the packet %d times", h.program, r.redirect.Count-last.Count)
		}
		o.Verdict, o.Device, o.Frame = model.Redirect, int(r.redirect.Device), opts.DataOut
		if r.redirect.Into == 1 {
			o.Verdict = model.Into
		}
	default:
		return o, nil, fmt.Errorf("%s: action %d", h.program, action)
	}
	for {
		r.events.SetDeadline(time.Unix(1, 0))
		record, err := r.events.Read()
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return o, event, nil
		}
		if err != nil {
			return o, nil, err
		}
		e, ok := bpf.Decode(record.RawSample)
		if !ok || event != nil {
			return o, nil, fmt.Errorf("a second event, or one of %d bytes", len(record.RawSample))
		}
		event = &e
		o.Event = e.Type
		if e.Reason == bpf.ReasonPolicyDenied || e.Reason == bpf.ReasonUnknownMember {
			o.Rule = e.Rule
		}
	}
}

// hook is where a frame shows up.
type hook struct {
	program   string
	device    int
	forwarded bool // by the stack, for somebody else
}

func (h hook) String() string {
	s := fmt.Sprintf("%s %d", h.program, h.device)
	if h.forwarded {
		s += " forwarded"
	}
	return s
}

// in is what the model says of the same.
func (h hook) in(n *model.Node, frame []byte) model.Outcome {
	switch h.program {
	case "from_pod":
		return n.FromPod(h.device, frame)
	case "to_pod":
		return n.ToPod(h.device, h.forwarded, frame)
	case "from_tunnel":
		return n.FromTunnel(frame)
	case "to_tunnel":
		return n.ToTunnel(h.device, frame)
	case "from_device":
		return n.FromDevice(h.device, frame)
	}
	return n.ToDevice(frame)
}
