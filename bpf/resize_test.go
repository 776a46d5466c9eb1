package bpf

import (
	"bytes"
	"log/slog"
	"maps"
	"net/netip"
	"testing"
	"time"
)

// restart loads another generation and returns what it logged, too.
func restart(t *testing.T, c Config) (*Datapath, string) {
	t.Helper()
	var log bytes.Buffer
	c.Log = slog.New(slog.NewTextHandler(&log, nil))
	return mustLoad(t, c, options{}), log.String()
}

func rowsOf[K comparable, V any](t *testing.T, table Table[K, V]) map[K]V {
	t.Helper()
	rows, failed := table.All()
	all := maps.Collect(rows)
	if err := failed(); err != nil {
		t.Fatal(err)
	}
	return all
}

// A smaller table keeps the connections that fit, the answered ones first and each with all
// of its rows, and who holds them.
func TestFewerFlows(t *testing.T) {
	c := smallConfig(ownNamespaces(t))
	first := mustLoad(t, c, options{})
	const pod, answered, opening, over, room = 5, 300, 200, 400, 350
	now := Now()
	flow := func(n int, seen uint64, flags FlowFlags) FlowKey {
		k := FlowKey{Local: addr(podA), Remote: addr(world), Lport: PortOf(uint16(n)), Rport: PortOf(80), Proto: 6}
		f := Flow{Seen: seen, Flags: flags, Via: ViaStack, Ifindex: pod, Owner: pod}
		out := k
		if n%3 == 0 {
			f.Flags, f.Backend, f.Bport = f.Flags|FlowService, addr(far), PortOf(8080)
			at, _ := f.Answers(k)
			set(t, first.Maps().Flows, at, f.answersRow(k))
			out = at
		}
		set(t, first.Maps().Flows, k, f)
		port := PortOf(uint16(2000 + n))
		set(t, first.Maps().Masquerades, out, Masquerade{Addr: addr("192.0.2.1"), Port: port})
		back := out
		back.Local, back.Lport = addr("192.0.2.1"), port
		set(t, first.Maps().Masquerades, back, Masquerade{Addr: k.Local, Port: k.Lport, Answer: 1})
		return k
	}
	for n := range over {
		flow(n, 1, FlowReplied|FlowReset)
	}
	for n := over; n < over+opening; n++ {
		flow(n, now, 0)
	}
	live := map[FlowKey]bool{}
	for n := over + opening; n < over+opening+answered; n++ {
		live[flow(n, now, FlowReplied)] = true
	}
	set(t, first.Maps().Shares, pod, Share{Used: answered + opening + over})

	c.Limits.Flows = room
	second, log := restart(t, c)
	if second.Maps().MaxFlows() != room {
		t.Errorf("room for %d flows", second.Maps().MaxFlows())
	}
	rows, kept := rowsOf(t, second.Maps().Flows), 0
	for k, f := range rows {
		if f.Flags&FlowAnswers != 0 {
			if own, ok := rows[f.opposite(k)]; !ok || own.opposite(f.opposite(k)) != k {
				t.Errorf("a row for the answers of no flow: %+v", k)
			}
			continue
		}
		kept++
		delete(live, k)
		if f.Expired(k.Proto, now) {
			t.Errorf("a flow that is over takes the room of another: %+v", k)
		}
		out := k
		if at, has := f.Answers(k); has {
			if _, ok := rows[at]; !ok {
				t.Errorf("nobody finds the answers of %+v", k)
			}
			out = at
		}
		row, ok, _ := second.Maps().Masquerades.Lookup(out)
		back := out
		back.Local, back.Lport = row.Addr, row.Port
		if answer, there, _ := second.Maps().Masquerades.Lookup(back); !ok || !there || answer.Addr != k.Local || answer.Port != k.Lport {
			t.Errorf("%+v lost its port", k)
		}
	}
	if kept != room || len(live) > 0 {
		t.Errorf("%d of %d flows kept, %d answered ones lost", kept, room, len(live))
	}
	if n := len(rowsOf(t, second.Maps().Masquerades)); n != 2*room {
		t.Errorf("%d rows of masquerades for %d flows", n, room)
	}
	if s, _, _ := second.Maps().Shares.Lookup(pod); s.Used != room {
		t.Errorf("the pod holds %d flows", s.Used)
	}
	if want := "map=flows dropped=150"; !bytes.Contains([]byte(log), []byte(want)) {
		t.Errorf("the log does not say %s:\n%s", want, log)
	}
}

// What clients outside have open through node ports is kept as well, wherever the backend is.
func TestFewerFlowsKeepNodePorts(t *testing.T) {
	c := smallConfig(ownNamespaces(t))
	first := mustLoad(t, c, options{})
	masks, flows := first.Maps().Masquerades, first.Maps().Flows
	client, node, backend := addr(world), addr(outside), addr(far)
	// open writes the rows of a client with this port, and returns the key of its flow.
	open := func(sport uint16, backend Addr, elsewhere bool) (own FlowKey, keys []FlowKey) {
		front := FlowKey{Local: node, Lport: PortOf(nodePort), Remote: client, Rport: PortOf(sport), Proto: 6}
		inside := front
		inside.Local, inside.Lport = backend, PortOf(8080)
		set(t, masks, front, Masquerade{Addr: backend, Port: inside.Lport, Answer: 1, Kind: MasqueradeExposed})
		set(t, masks, inside, Masquerade{Addr: node, Port: front.Lport, Kind: MasqueradeExposed})
		if !elsewhere {
			return inside, []FlowKey{front, inside}
		}
		sends := FlowKey{Local: client, Lport: front.Rport, Remote: backend, Rport: inside.Lport, Proto: 6}
		answer := sends
		answer.Local = addr(ingress)
		set(t, masks, answer, Masquerade{Addr: client, Port: front.Rport, Answer: 1, Kind: MasqueradeClient})
		set(t, masks, sends, Masquerade{Addr: answer.Local, Port: answer.Lport, Kind: MasqueradeClient})
		return answer, []FlowKey{front, inside, sends, answer}
	}
	var kept, gone []FlowKey
	for i, elsewhere := range []bool{false, true} {
		sport := uint16(7000 + 2*i)
		at := map[bool]Addr{false: addr(podA), true: backend}[elsewhere]
		own, keys := open(sport, at, elsewhere)
		via := map[bool]Via{false: ViaStack, true: ViaTunnel}[elsewhere]
		set(t, flows, own, Flow{Seen: Now(), Flags: FlowReplied, Via: via, Owner: SharesOutside})
		kept = append(kept, keys...)
		_, keys = open(sport+1, at, elsewhere)
		gone = append(gone, keys...) // it has no flow any more
	}
	c.Limits.Flows /= 2
	second, _ := restart(t, c)
	rows := rowsOf(t, second.Maps().Masquerades)
	for _, k := range kept {
		if before, _, _ := masks.Lookup(k); rows[k] != before {
			t.Errorf("the row of %+v is %+v, was %+v", k, rows[k], before)
		}
	}
	for _, k := range gone {
		if row, there := rows[k]; there {
			t.Errorf("a row without a flow was kept: %+v %+v", k, row)
		}
	}
}

// What the previous generation writes while the programs are replaced follows, if it fits.
func TestFlowsThatComeLate(t *testing.T) {
	c := smallConfig(ownNamespaces(t))
	first := mustLoad(t, c, options{})
	key := func(n int) FlowKey {
		return FlowKey{Local: addr(podA), Remote: addr(world), Lport: PortOf(uint16(n)), Proto: 6}
	}
	early := Now() - uint64(time.Second)
	for n := range 60 {
		set(t, first.Maps().Flows, key(n), Flow{Seen: early, Flags: FlowReplied})
	}
	c.Limits.Flows = 40
	second, _ := restart(t, c)
	r := resized{old: first.maps["flows"], new: second.maps["flows"], since: early + 1}
	again := Flow{Seen: Now(), Flags: FlowReplied}
	var known FlowKey
	for known = range rowsOf(t, second.Maps().Flows) {
		break
	}
	late := []FlowKey{known, key(100), key(101)}
	for _, k := range late {
		set(t, first.Maps().Flows, k, again)
	}
	for k := range rowsOf(t, second.Maps().Flows) {
		if k != known { // one ends
			if err := second.Maps().Flows.Delete(k); err != nil {
				t.Fatal(err)
			}
			break
		}
	}
	left, err := second.catchUpFlows(r)
	rows := rowsOf(t, second.Maps().Flows)
	if left != 1 || err != nil || len(rows) != 40 {
		t.Errorf("%d left, %v, %d rows", left, err, len(rows))
	}
	if rows[known] != again {
		t.Errorf("the flow that went on is %+v", rows[known])
	}
}

// What the agent wrote is kept as a whole: the map keeps its size until the rows fit.
func TestWhatTheAgentWroteStays(t *testing.T) {
	c := smallConfig(ownNamespaces(t))
	first := mustLoad(t, c, options{})
	for n := range 20 {
		set(t, first.Maps().Policy, PolicyKey{Class: uint32(n)}, PolicyEntry{Deny: 1, Rule: 1})
		set(t, first.Maps().Prefixes, PrefixKey{Bits: 128, Addr: AddrOf(netip.AddrFrom4([4]byte{10, 9, byte(n >> 8), byte(n)}))}, IPInfo{Identity: 7})
	}
	set(t, first.Maps().Nodes, 63, Node{Path: PathAlive})
	had := [...]int{first.Maps().Policy.MaxEntries(), first.Maps().Prefixes.MaxEntries(), first.Maps().Nodes.MaxEntries()}
	c.Limits.Policy, c.Limits.Prefixes, c.Limits.Nodes = 10, 10, 32
	second, log := restart(t, c)
	if has := [...]int{second.Maps().Policy.MaxEntries(), second.Maps().Prefixes.MaxEntries(), second.Maps().Nodes.MaxEntries()}; has != had {
		t.Errorf("room for %v rows, was %v", has, had)
	}
	if len(rowsOf(t, second.Maps().Policy)) != 20 || len(rowsOf(t, second.Maps().Prefixes)) != 20 || len(rowsOf(t, second.Maps().Nodes)) != 1 {
		t.Error("rows were lost")
	}
	for _, name := range []string{"map=policy", "map=prefixes", "map=nodes"} {
		if !bytes.Contains([]byte(log), []byte("keeps its size")) || !bytes.Contains([]byte(log), []byte(name)) {
			t.Errorf("the log does not name %s:\n%s", name, log)
		}
	}
	for n := range 15 {
		if err := second.Maps().Policy.Delete(PolicyKey{Class: uint32(n)}); err != nil {
			t.Fatal(err)
		}
	}
	third, _ := restart(t, c)
	if n := third.Maps().Policy.MaxEntries(); n != 10 || len(rowsOf(t, third.Maps().Policy)) != 5 {
		t.Errorf("room for %d rows once they fit", n)
	}
}

// Of clients with a session those stay that came last.
func TestFewerSessions(t *testing.T) {
	c := smallConfig(ownNamespaces(t))
	first := mustLoad(t, c, options{})
	for n := range 200 {
		set(t, first.Maps().Affinities, AffinityKey{Client: AddrOf(netip.AddrFrom4([4]byte{10, 9, byte(n >> 8), byte(n)}))}, Affinity{Seen: uint64(1000 + n)})
	}
	c.Limits.Affinities = 50
	second, log := restart(t, c)
	rows := rowsOf(t, second.Maps().Affinities)
	if len(rows) < 25 || len(rows) > 50 {
		t.Errorf("%d clients are remembered", len(rows))
	}
	for k, row := range rows {
		if row.Seen < 1150 {
			t.Errorf("%v is remembered, who came %d", k.Client.Netip(), row.Seen)
		}
	}
	if want := "map=affinities dropped=150"; !bytes.Contains([]byte(log), []byte(want)) {
		t.Errorf("the log does not say %s:\n%s", want, log)
	}
}
