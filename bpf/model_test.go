package bpf_test

import (
	"bytes"
	"cmp"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	cmpdiff "github.com/google/go-cmp/cmp"
	"github.com/weft-mesh/weft/bpf"
	"github.com/weft-mesh/weft/bpf/model"
)

var (
	firstSeed = flag.Uint64("first", 1, "the first seed of TestModel")
	seeds     = flag.Int("seeds", 200, "how many seeds TestModel tries")
	onlySteps = flag.String("only", "", "make only these steps of each seed, as a failure printed them")
)

// steps is how many events a seed has.
const steps = 70

// TestModel compares the programs with their specification, package model: each seed draws a
// small mesh and what happens in it, and after each packet both must agree on what became of
// it, byte by byte, and on what is remembered.
func TestModel(t *testing.T) {
	r := newRig(t)
	r.portClasses()
	only := parseOnly(t, *onlySteps)
	var all tally
	began := time.Now()
	for seed := *firstSeed; seed < *firstSeed+uint64(*seeds); seed++ {
		script, wrong := r.play(seed, nil, nil, &all)
		if only != nil {
			_, wrong = r.play(seed, script, only, &all)
		} else if wrong != "" {
			only, wrong = r.shorten(seed, script, wrong)
		}
		if wrong != "" {
			t.Fatalf("seed %d: %s\nreplay: go test ./bpf -run 'TestModel$' -first %d -seeds 1 -only %s", seed, wrong, seed, join(only))
		}
	}
	t.Logf("%d packets, %.0f a second; %v", all.packets, float64(all.packets)/time.Since(began).Seconds(), all)
}

// tally counts what was compared, so that a test that compares nothing is seen.
type tally struct {
	packets int
	by      map[bpf.Reason]int
}

func (t *tally) add(r bpf.Reason) {
	if t.by == nil {
		t.by = map[bpf.Reason]int{}
	}
	t.packets++
	t.by[r]++
}

func (t tally) String() string {
	var b strings.Builder
	for r := range 64 {
		if n := t.by[bpf.Reason(r)]; n > 0 {
			fmt.Fprintf(&b, "%v %d, ", bpf.Reason(r), n)
		}
	}
	return b.String()
}

func parseOnly(t *testing.T, s string) (only []int) {
	for _, part := range strings.FieldsFunc(s, func(c rune) bool { return c == ',' }) {
		i, err := strconv.Atoi(part)
		if err != nil {
			t.Fatalf("-only %s: give numbers of steps", s)
		}
		only = append(only, i)
	}
	return only
}

func join(kept []int) string {
	var s []string
	for _, i := range kept {
		s = append(s, strconv.Itoa(i))
	}
	return strings.Join(s, ",")
}

// shorten leaves out steps without which the seed fails as well.
func (r *rig) shorten(seed uint64, script []step, wrong string) ([]int, string) {
	var kept []int
	for i := range script {
		kept = append(kept, i)
	}
	for size := len(kept) / 2; size > 0; size /= 2 {
		for from := 0; from+size <= len(kept); {
			less := slices.Delete(slices.Clone(kept), from, from+size)
			if _, w := r.play(seed, script, less, &tally{}); w != "" {
				kept, wrong = less, w
				continue
			}
			from += size
		}
	}
	return kept, wrong
}

// play draws what happens with a seed, up to what goes wrong; or it plays some steps of a
// script, with the frames that were drawn then.
func (r *rig) play(seed uint64, script []step, only []int, all *tally) ([]step, string) {
	drawing := script == nil
	for range 1000 {
		t := &tale{world: r.draw(rand.New(rand.NewPCG(seed, 0))), all: all}
		t.n.Witness = t
		for i := range steps {
			if !drawing && !slices.Contains(only, i) {
				continue
			}
			if drawing {
				script = append(script, t.next(rand.New(rand.NewPCG(seed, uint64(i+1))), t.story))
			}
			if t.step(script[i], rand.New(rand.NewPCG(seed, uint64(steps+i+1)))); t.wrong != "" || t.late {
				break
			}
		}
		switch {
		case !t.late:
			return script, t.verdict()
		case drawing:
			script = nil
		}
	}
	r.Fatal("the machine is too slow: no seed got through without a pause between two system calls")
	return nil, ""
}

// tale is one seed's events.
type tale struct {
	*world
	all   *tally
	story []sent
	told  []string
	wrong string
	late  bool // the kernel's clock went on too far to say how old a flow was

	rows  map[bpf.FlowKey]bpf.Flow // as they are in the kernel
	masks map[model.Key]model.MaskRow
	event *bpf.Event
	why   bpf.Reason
}

func (t *tale) step(s step, rng *rand.Rand) {
	t.told = append(t.told, s.what)
	switch {
	case s.change != nil:
		s.change(t.world, rng)
	case s.pause > 0:
		if t.n.Now+s.pause+10*time.Second < time.Duration(bpf.Now()) { // no row is from before the machine started
			t.n.Now += s.pause
		}
	}
	for _, frame := range s.frames {
		if t.packet(s.at, frame); t.wrong != "" || t.late {
			return
		}
	}
}

// verdict is what went wrong, after what.
func (t *tale) verdict() string {
	if t.wrong == "" {
		return ""
	}
	return strings.Join(append(t.told, t.wrong), "\n")
}

// aged is how far from a limit a row's age is kept, so that it does not matter when exactly
// the kernel looks.
const aged = 150 * time.Millisecond

// tick is more than one of the kernel's coarse clock.
const tick = 10 * time.Millisecond

// settle makes sure of that, and lets no real time pass for the kernel's rows.
func (t *tale) settle() (now uint64) {
	limits := []time.Duration{500 * time.Millisecond, time.Second, bpf.NotTCP, bpf.TCPClosing, bpf.TCPEstablished, 20 * time.Second, 100 * time.Second}
	near := func(seen time.Duration) bool {
		return slices.ContainsFunc(limits, func(l time.Duration) bool { return (t.n.Now - seen - l).Abs() < aged })
	}
	for again := true; again; {
		again = false
		for _, f := range t.n.Flows() {
			again = again || near(f.Seen)
		}
		for _, seen := range t.n.Sessions() {
			again = again || near(seen)
		}
		if again {
			t.n.Now += aged
		}
	}
	now = bpf.Now()
	rows := map[bpf.FlowKey]bpf.Flow{}
	for k, row := range t.rows {
		if f := t.n.Flows()[keyOf(k)]; f != nil && row.Flags&bpf.FlowAnswers == 0 {
			// A tick ago, so that the next sequence number is noted: see lib/sequence.h.
			row.Seen = now - uint64(t.n.Now-f.Seen+tick)
			rows[k] = row
		}
	}
	t.must(t.m.Flows.UpdateBatch(rows))
	for k, seen := range t.n.Sessions() {
		table, at := t.session(k)
		row, ok, err := table.Lookup(at)
		if row.Seen = now - uint64(t.n.Now-seen); ok {
			err = table.Update(at, row)
		}
		t.must(err)
	}
	return now
}

// session is where the row of a client's session is.
func (t *tale) session(k model.Client) (bpf.Table[bpf.AffinityKey, bpf.Affinity], bpf.AffinityKey) {
	at := bpf.AffinityKey{Client: bpf.AddrOf(k.Client), Service: k.Service}
	if k.Outside {
		return t.m.Visitors, at
	}
	return t.m.Affinities, at
}

func keyOf(k bpf.FlowKey) model.Key {
	return model.Key{Local: k.Local.Netip(), Peer: k.Remote.Netip(), Port: k.Lport.Number(), PeerPort: k.Rport.Number(), Proto: k.Proto}
}

// packet gives a frame to both, and compares.
func (t *tale) packet(at hook, frame []byte) {
	now := t.settle()
	got, event, err := t.run(at, frame)
	if err != nil {
		t.fail("%v", err)
		return
	}
	if t.late = bpf.Now()-now > uint64(aged-2*tick); t.late {
		return
	}
	t.readFlows()
	t.event, t.why = event, got.Reason
	want := at.in(t.n, frame)
	for _, c := range t.n.Complaints() {
		t.fail("%s", c)
	}
	t.all.add(got.Reason)
	if want.Verdict == model.Drop {
		want.Frame = nil
	}
	if g, w := got.String(), want.String(); g != w {
		t.fail("%v\n  got  %s\n  want %s", bpf.Describe(frame), g, w)
	}
	if want.Frame != nil && got.Frame != nil {
		t.compare(frame, got.Frame, want.Frame)
	}
	t.compareFlows()
	if got.Verdict != model.Drop && model.Sound(frame) {
		t.story = append(t.story, sent{at, frame, got})
	}
}

func (t *tale) fail(format string, args ...any) {
	t.wrong += "\n" + fmt.Sprintf(format, args...)
}

// compare compares frames. Of one that was not sound when it came, checksums are as wrong as
// they were.
func (t *tale) compare(in, got, want []byte) {
	if bytes.Equal(got, want) || !model.Sound(in) {
		return
	}
	t.fail("%s\n  got  %s\n  want %s\n  got  %x\n  want %x", bpf.Describe(in), bpf.Describe(got), bpf.Describe(want), got, want)
}

func (t *tale) readFlows() {
	t.rows = map[bpf.FlowKey]bpf.Flow{}
	rows, failed := t.m.Flows.All()
	for k, f := range rows {
		t.rows[k] = f
	}
	t.must(failed())
	t.masks = map[model.Key]model.MaskRow{}
	masks, failed := t.m.Masquerades.All()
	for k, m := range masks {
		t.masks[keyOf(k)] = model.MaskRow{Kind: m.Kind, Answer: m.Answer == 1, To: netip.AddrPortFrom(m.Addr.Netip(), m.Port.Number()), Other: m.Other.Number()}
	}
	t.must(failed())
}

// remembered is what both know of a flow.
type remembered struct {
	Flags          bpf.FlowFlags
	As             uint16
	To             netip.AddrPort
	Identity, Rule uint32
	Service        uint32
	Node, Cluster  uint16
	Via            bpf.Via
	Device         uint32
	Owner          uint32
}

func (t *tale) compareFlows() {
	got := map[model.Key]remembered{}
	for k, f := range t.rows {
		if f.Flags&bpf.FlowAnswers != 0 {
			continue
		}
		r := remembered{Flags: f.Flags.Alone(), As: f.Flags.Other().Number(), Identity: f.Identity, Rule: f.Rule, Service: f.Service, Node: f.Node, Cluster: f.Cluster, Via: f.Via, Device: f.Ifindex, Owner: f.Owner}
		if f.Flags&bpf.FlowTranslated != 0 {
			r.To = netip.AddrPortFrom(f.Backend.Netip(), f.Bport.Number())
		}
		got[keyOf(k)] = r
	}
	for k, f := range t.n.Flows() {
		want := row(f)
		if have, ok := got[k]; !ok {
			t.fail("flow %v is not remembered: %+v", k, want)
		} else if have != want {
			t.fail("flow %v\n  got  %+v\n  want %+v", k, have, want)
		}
		delete(got, k)
	}
	for k, have := range got {
		t.fail("flow %v is remembered: %+v", k, have)
	}
	if diff := cmpdiff.Diff(t.n.MaskRows(), t.masks, cmpdiff.Comparer(func(a, b netip.AddrPort) bool { return a == b }), cmpdiff.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		t.fail("rows of masquerades (- want, + got):\n%s", diff)
	}
}

// row is a flow as the datapath writes it.
func row(f *model.Flow) remembered {
	r := remembered{Identity: f.Identity, Rule: f.Rule, Service: f.Service, Node: f.Node, Cluster: f.Cluster, Via: f.Via, Device: uint32(f.Device), Owner: uint32(f.Owner.Device)}
	if f.Owner.Clients {
		r.Owner = bpf.SharesOutside
	}
	serves := f.Loop && f.ByPeer
	for flag, on := range map[bpf.FlowFlags]bool{
		bpf.FlowRemoteInitiated: f.ByPeer, bpf.FlowReplied: f.Replied, bpf.FlowFinLocal: f.Fin[bpf.Egress], bpf.FlowFinRemote: f.Fin[bpf.Ingress],
		bpf.FlowReset: f.Reset, bpf.FlowService: f.Service != 0 && !serves, bpf.FlowLoop: f.Loop, bpf.FlowWaits: f.Waiting,
		bpf.FlowDirect: f.Service == 0 && f.As != f.Inside.Port,
	} {
		if on {
			r.Flags |= flag
		}
	}
	if r.Flags&bpf.FlowTranslated != 0 {
		r.To = f.To
	}
	if f.As != f.Inside.Port {
		r.As = f.As
	}
	if serves && f.ClientPort() != f.Inside.PeerPort {
		r.As = f.ClientPort()
	}
	return r
}

// ---- What the kernel drew ----

// find is the row of a flow, beside another's answers or not.
func (t *tale) find(k model.Key) (bpf.Flow, bool) {
	for _, beside := range []uint8{1, 0} {
		at := bpf.FlowKey{Local: bpf.AddrOf(k.Local), Remote: bpf.AddrOf(k.Peer), Lport: bpf.PortOf(k.Port), Rport: bpf.PortOf(k.PeerPort), Proto: k.Proto, Beside: beside}
		if f, ok := t.rows[at]; ok && f.Flags&bpf.FlowAnswers == 0 {
			return f, true
		}
	}
	return bpf.Flow{}, false
}

func (t *tale) Backend(k model.Key) (netip.AddrPort, bool) {
	if f, ok := t.find(k); ok && f.Flags&bpf.FlowService != 0 {
		return netip.AddrPortFrom(f.Backend.Netip(), f.Bport.Number()), true
	}
	if row, ok := t.masks[k]; ok && row.Answer && row.Kind == bpf.MasqueradeExposed {
		return row.To, true
	}
	if t.event != nil {
		return netip.AddrPortFrom(t.event.Dst.Netip(), t.event.Dport.Number()), true
	}
	return netip.AddrPort{}, false
}

func (t *tale) Port(k model.Key) (uint16, bool) {
	f, ok := t.find(k)
	return f.Flags.Other().Number(), ok && f.Flags.Other() != bpf.Port{}
}

// Mask is the port of a row by what leaves, Client that of a client's towards its backend.
func (t *tale) Mask(k model.Key) (uint16, bool) {
	row, ok := t.masks[k]
	return row.To.Port(), ok && !row.Answer
}

func (t *tale) Client(k model.Key) (uint16, bool) {
	row, ok := t.masks[k]
	return cmp.Or(row.Other, k.PeerPort), ok && row.Answer
}

func (t *tale) Session(k model.Client) (netip.AddrPort, bool) {
	table, at := t.session(k)
	row, ok, err := table.Lookup(at)
	t.must(err)
	return netip.AddrPortFrom(row.Backend.Netip(), row.Port.Number()), ok
}

func (t *tale) Reason() bpf.Reason { return t.why }

// portClasses writes the classes of ports, the same for every world.
func (r *rig) portClasses() {
	r.Helper()
	for proto, classes := range portClasses {
		for class, ports := range classes {
			for _, port := range ports {
				i, _ := bpf.PortIndex(1, proto, port)
				if err := r.m.Ports.Update(i, uint16(class+1)); err != nil {
					r.Fatal(err)
				}
			}
		}
	}
}
