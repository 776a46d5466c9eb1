package bpf

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netns"
)

// budget makes the flow table small: four rows for a pod, two for the node, ten for
// whoever needs them. A single pod gets eight of the ten, so it may hold twelve rows
// in all.
func budget(n *node) {
	set(n, n.m.Budgets, 0, Budget{Each: 4, Node: 2, Common: 10})
}

// opens has a pod open flows to c, each from another port.
func opens(hook, pod string, from, flows int, want Reason) (steps []step) {
	for i := range flows {
		steps = append(steps, step{hook: hook, in: ip(pod, podC, udp(uint16(from+i), 53)), want: want})
	}
	return steps
}

// answered makes c answer all of pod a's flows.
func answered(from, flows int) (steps []step) {
	for i := range flows {
		steps = append(steps, step{hook: "out of tunnel", in: ip(podC, podA, udp(53, uint16(from+i))), want: ReasonDelivered})
	}
	return steps
}

func steps(all ...any) (list []step) {
	for _, s := range all {
		switch s := s.(type) {
		case step:
			list = append(list, s)
		case []step:
			list = append(list, s...)
		}
	}
	return list
}

// then checks after the last of steps.
func then(list []step, check func(*node, sent)) []step {
	list[len(list)-1].check = check
	return list
}

// holds checks an account, and that the rows agree with it.
func holds(owner func(*node) uint32, used int64, refused, evicted uint64) func(*node, sent) {
	return func(n *node, _ sent) {
		n.Helper()
		s, _, err := n.m.Shares.Lookup(owner(n))
		if err != nil {
			n.Fatal(err)
		}
		if s.Used != used || s.Refused != refused || s.Evicted != evicted {
			n.Errorf("holds %d rows, %d refused, %d evicted; want %d, %d, %d", s.Used, s.Refused, s.Evicted, used, refused, evicted)
		}
		rows, failed := n.m.Flows.All()
		count := int64(0)
		for _, f := range rows {
			if f.Owner == owner(n) && f.Flags&FlowAnswers == 0 {
				count++
			}
		}
		if err := failed(); err != nil || count != used {
			n.Errorf("%d rows, %v; want %d", count, err, used)
		}
	}
}

func isA(n *node) uint32  { return uint32(n.a) }
func isB(n *node) uint32  { return uint32(n.b) }
func itself(*node) uint32 { return SharesNode }

// has checks whether pod a has a flow from a port to c.
func has(port int, want bool) func(*node, sent) {
	return func(n *node, _ sent) {
		n.Helper()
		if _, ok := n.flow(podA, uint16(port), podC, 53, 17); ok != want {
			n.Errorf("flow from port %d is there: %v, want %v", port, ok, want)
		}
	}
}

func common(used int64) func(*node, sent) {
	return func(n *node, _ sent) {
		n.Helper()
		if s, _, err := n.m.Shares.Lookup(SharesCommon); err != nil || s.Used != used {
			n.Errorf("%d common rows taken, %v; want %d", s.Used, err, used)
		}
	}
}

var shareCases = []packetCase{
	{name: "a pod that has all it may have swaps its newest unanswered flows", state: budget, steps: steps(
		then(opens("from a", podA, 1000, 12, ReasonTunnelled), holds(isA, 12, 0, 0)),
		then(opens("from a", podA, 1012, 30, ReasonTunnelled), holds(isA, 12, 0, 30)),
		// Flows within its share stay, although they are unanswered too.
		then(opens("from a", podA, 1000, 4, ReasonTunnelled), has(1000, true)),
		then(opens("from a", podA, 1003, 1, ReasonTunnelled), holds(isA, 12, 0, 30)),
		then(opens("from a", podA, 1041, 1, ReasonTunnelled), has(1004, false)),
	)},
	{name: "its answered flows stay and its new ones are refused", state: budget, steps: steps(
		opens("from a", podA, 1000, 12, ReasonTunnelled),
		answered(1000, 12),
		then(opens("from a", podA, 2000, 9, ReasonFlowTableFull), holds(isA, 12, 9, 0)),
		then(opens("from a", podA, 1000, 12, ReasonTunnelled), has(1011, true)),
	)},
	{name: "others have their shares, and some of what is common", state: budget, steps: steps(
		opens("from a", podA, 1000, 40, ReasonTunnelled),
		then(opens("from b", podB, 1000, 5, ReasonTunnelled), holds(isB, 5, 0, 0)),
		then(opens("from a", podA, 2000, 40, ReasonTunnelled), holds(isB, 5, 0, 0)),
		then(opens("from b", podB, 2000, 1, ReasonTunnelled), common(10)),
		then(opens("from b", podB, 2001, 3, ReasonTunnelled), holds(isB, 6, 0, 3)),
	)},
	{name: "the node reaches a pod that has all it may have", state: budget, steps: steps(
		opens("from a", podA, 1000, 12, ReasonTunnelled),
		answered(1000, 12),
		step{hook: "to a", in: ip(nodeInternal, podA, tcp(40000, 8080, "S")), want: ReasonDelivered},
		step{hook: "from a", in: ip(podA, nodeInternal, tcp(8080, 40000, "SA")), want: ReasonToStack, check: holds(itself, 1, 0, 0)},
		step{hook: "out of tunnel", in: ip(podC, podA, tcp(7, 80, "S")), want: ReasonFlowTableFull, check: holds(isA, 12, 1, 0)},
	)},
	{name: "who asks pays for the row of who is asked next door", state: budget, steps: []step{
		{hook: "from a", in: ip(podA, podB, udp(1000, 53)), want: ReasonDelivered, check: holds(isA, 2, 0, 0)},
		{hook: "from b", in: ip(podB, podA, udp(53, 1000)), want: ReasonDelivered, check: holds(isB, 0, 0, 0)},
		{hook: "out of tunnel", in: ip(podC, podB, udp(9, 53)), want: ReasonDelivered, check: holds(isB, 1, 0, 0)},
	}},
	{name: "both rows of a packet next door find room in the place of others", state: budget, steps: steps(
		opens("from a", podA, 1000, 12, ReasonTunnelled),
		step{hook: "from a", in: ip(podA, podB, udp(5000, 53)), want: ReasonDelivered, check: holds(isA, 12, 0, 2)},
		step{hook: "from a", in: ip(podA, podB, udp(5001, 53)), want: ReasonDelivered, check: holds(isA, 12, 0, 4)},
		step{hook: "from b", in: ip(podB, podA, udp(53, 5001)), want: ReasonDelivered, check: func(n *node, _ sent) {
			for _, k := range []FlowKey{
				{Local: addr(podA), Remote: addr(podB), Lport: PortOf(5001), Rport: PortOf(53), Proto: 17},
				{Local: addr(podB), Remote: addr(podA), Lport: PortOf(53), Rport: PortOf(5001), Proto: 17},
			} {
				if f, ok, _ := n.m.Flows.Lookup(k); !ok || f.Flags&FlowReplied == 0 {
					n.Errorf("flow %+v is there: %v, %+v", k, ok, f)
				}
			}
		}},
	)},
	{name: "a flow that is over gives its row back", state: budget, steps: steps(
		then(opens("from a", podA, 1000, 12, ReasonTunnelled), common(8)),
		step{change: ages(61 * time.Second), hook: "from a", in: ip(podA, podC, udp(1000, 53)), want: ReasonTunnelled, check: holds(isA, 12, 0, 0)},
		step{change: sweeps, hook: "from a", in: ip(podA, podC, udp(1000, 53)), want: ReasonTunnelled, check: holds(isA, 1, 0, 0)},
		step{hook: "from a", in: ip(podA, podC, udp(1000, 53)), want: ReasonTunnelled, check: common(0)},
	)},
	{name: "a flow through a service gives back both rows", state: func(n *node) { budget(n); onlyC(n) }, steps: []step{
		{hook: "from a", in: ip(podA, far, udp(1000, 80)), want: ReasonTunnelled, out: ip(podA, podC, udp(1000, 8080)), check: holds(isA, 1, 0, 0)},
		{change: func(n *node) { ages(61 * time.Second)(n); sweeps(n) }, hook: "from b", in: ip(podB, podC, udp(1, 1)), want: ReasonTunnelled, check: func(n *node, s sent) {
			holds(isA, 0, 0, 0)(n, s)
			if left := n.answers(); left != 0 {
				n.Errorf("%d rows for answers are left", left)
			}
		}},
	}},
	{name: "a pod that reaches itself pays for both sides", state: budget, steps: []step{
		{hook: "from b", in: ip(podB, near, tcp(1000, 80, "S")), want: ReasonDelivered, out: ip(near, podB, tcp(1000, 8080, "S")), check: holds(isB, 2, 0, 0)},
	}},
	{name: "a pod that reaches itself needs room for both sides", state: func(n *node) {
		set(n, n.m.Budgets, 0, Budget{Each: 1, Node: 2})
	}, steps: []step{
		{hook: "from b", in: ip(podB, near, tcp(1000, 80, "S")), want: ReasonFlowTableFull, check: holds(isB, 0, 1, 0)},
		{change: budget, hook: "from b", in: ip(podB, near, tcp(1000, 80, "S")), want: ReasonDelivered, out: ip(near, podB, tcp(1000, 8080, "S"))},
	}},
	{name: "a row is made once, and a removed pod's flows and account go with it", state: budget, steps: []step{
		{hook: "from a", in: ip(podA, podC, tcp(1000, 80, "S")), want: ReasonTunnelled},
		{hook: "from a", in: ip(podA, podC, tcp(1000, 80, "S")), want: ReasonTunnelled, check: holds(isA, 1, 0, 0)},
		{hook: "out of tunnel", in: ip(podC, podA, tcp(80, 1000, "SA")), want: ReasonDelivered},
		{hook: "from a", in: ip(podA, podB, tcp(1001, 80, "S")), want: ReasonDelivered},
		{hook: "from b", in: ip(podB, podA, tcp(80, 1001, "SA")), want: ReasonDelivered, check: holds(isA, 3, 0, 0)},
		{hook: "from b", in: ip(podB, podA, tcp(1002, 80, "S")), want: ReasonDelivered},
		{hook: "from a", in: ip(podA, podB, tcp(80, 1002, "SA")), want: ReasonDelivered, check: holds(isB, 2, 0, 0)},
		{hook: "from b", in: ip(podB, podC, tcp(1003, 80, "S")), want: ReasonTunnelled},
		{change: sweeps, hook: "out of tunnel", in: ip(podC, podB, tcp(80, 1003, "SA")), want: ReasonDelivered, check: flowsAre(6)},
		{change: func(n *node) {
			unset(n, n.m.Endpoints, addr(podA))
			n.change(nil)
			sweeps(n)
			sweeps(n)
		}, hook: "from b", in: ip(podB, podC, tcp(1003, 80, "A")), want: ReasonTunnelled, check: func(n *node, s sent) {
			// Of two rows that b opened next door, its own stays until it expires.
			holds(isB, 2, 0, 0)(n, s)
			flowsAre(2)(n, s)
			if s, ok, err := n.m.Shares.Lookup(uint32(n.a)); ok || err != nil {
				n.Errorf("account of a removed pod: %+v, %v", s, err)
			}
		}},
		{hook: "from b", in: ip(podB, podA, tcp(80, 1001, "A")), want: ReasonNoEndpoint},
	}},
	{name: "another pod at a removed pod's address keeps its own flows alone", state: budget, steps: []step{
		{hook: "from a", in: ip(podA, podC, tcp(1000, 80, "S")), want: ReasonTunnelled},
		{hook: "out of tunnel", in: ip(podC, podA, tcp(80, 1000, "SA")), want: ReasonDelivered},
		{change: func(n *node) {
			ep, _, _ := n.m.Endpoints.Lookup(addr(podA))
			ep.Ifindex = uint32(n.b)
			set(n, n.m.Endpoints, addr(podA), ep)
		}, hook: "from b", in: ip(podA, podC, tcp(1001, 80, "S")), want: ReasonTunnelled, check: flowsAre(2)},
		{change: sweeps, hook: "from b", in: ip(podA, podC, tcp(1001, 80, "S")), want: ReasonTunnelled, check: func(n *node, s sent) {
			holds(isB, 1, 0, 0)(n, s)
			flowsAre(1)(n, s)
		}},
	}},
	{name: "one pod's fragments leave those of others alone", steps: steps(
		step{hook: "from b", in: ip(podB, podC, udp(1000, 53).unchecked().says("firsthalf")).piece(5, 0, true), want: ReasonTunnelled},
		step{hook: "out of tunnel", in: ip(podC, podB, udp(53, 1000).unchecked().says("firsthalf")).piece(6, 0, true), want: ReasonDelivered},
		fragmentsOf("from a", podA, podC, 1100),
		fragmentsOf("out of tunnel", podD, podA, 1100),
		step{hook: "from b", in: rest(podB, podC, 5), want: ReasonTunnelled},
		step{hook: "out of tunnel", in: rest(podC, podB, 6), want: ReasonDelivered},
	)},
}

// fragmentsOf sends the first fragments of so many datagrams.
func fragmentsOf(hook, src, dst string, datagrams int) (list []step) {
	want := ReasonTunnelled
	if hook == "out of tunnel" {
		want = ReasonDelivered
	}
	for i := range datagrams {
		list = append(list, step{hook: hook, in: ip(src, dst, udp(9, 9).unchecked().says("firsthalf")).piece(uint16(i), 0, true), want: want})
	}
	return list
}

func sweeps(n *node) {
	n.Helper()
	if _, err := n.Sweep(Now()); err != nil {
		n.Fatal(err)
	}
	budget(n)
}

// A wrong account is corrected by two sweeps, not by one, which may have seen a packet
// half-way. Correct accounts are left alone.
func TestAccountsAreSettled(t *testing.T) {
	n := newNode(t)
	for port := range 40 {
		n.step(port, step{hook: "from a", in: ip(podA, podC, udp(uint16(port), 53)), want: ReasonTunnelled})
	}
	used := func(owner uint32) int64 {
		s, _, err := n.m.Shares.Lookup(owner)
		if err != nil {
			t.Fatal(err)
		}
		return s.Used
	}
	if got, beyond := used(isA(n)), used(SharesCommon); got != 40 || beyond != 40-int64(BudgetFor(1<<10, 3).Each) {
		t.Fatalf("holds %d rows, %d of them beyond", got, beyond)
	}
	for _, wrong := range []struct {
		owner uint32
		by    int64
	}{{isA(n), 100}, {isA(n), -100}, {SharesCommon, 30}, {SharesCommon, -30}} {
		right, beyond := used(isA(n)), used(SharesCommon)
		if err := n.add(wrong.owner, wrong.by); err != nil {
			t.Fatal(err)
		}
		was := used(wrong.owner)
		for range 4 {
			if _, err := n.Sweep(Now()); err != nil {
				t.Fatal(err)
			}
			if was != 0 && used(wrong.owner) != was && wrong.owner != SharesCommon {
				t.Errorf("corrected %+v after a single count", wrong)
			}
			was = 0
		}
		if got, common := used(isA(n)), used(SharesCommon); got != right || common != beyond {
			t.Errorf("%+v: holds %d rows, %d of them beyond; want %d and %d", wrong, got, common, right, beyond)
		}
	}
}

// The accounts stay exact under packets on all CPUs, sweeps, and ending flows.
func TestAccountsUnderConcurrency(t *testing.T) {
	n := newNode(t)
	var wg sync.WaitGroup
	run := func(f func(i int)) {
		wg.Go(func() {
			runtime.LockOSThread() // and so the thread ends here
			if err := netns.Set(n.network); err != nil {
				t.Error(err)
				return
			}
			for i := range 3000 {
				f(i)
			}
		})
	}
	send := func(in []byte, device int, program string) {
		if _, err := n.progs[program].Run(&ebpf.RunOptions{
			Data: in, DataOut: make([]byte, len(in)+256), Context: skb{Ifindex: uint32(device)}, Repeat: 1,
		}); err != nil {
			t.Error(err)
		}
	}
	for range 4 { // the same flows from several CPUs
		run(func(i int) { send(packet(ip(podA, podC, udp(uint16(i%50), 53))), n.a, "from_pod") })
	}
	run(func(i int) { send(packet(ip(podB, podA, udp(uint16(i%20), 53))), n.b, "from_pod") })
	run(func(i int) {
		if i%10 == 0 {
			n.age(61 * time.Second)
			if _, err := n.Sweep(Now()); err != nil {
				t.Error(err)
			}
		}
	})
	wg.Wait()
	held := map[uint32]int64{}
	rows, failed := n.m.Flows.All()
	for _, f := range rows {
		held[f.Owner]++
	}
	if err := failed(); err != nil {
		t.Fatal(err)
	}
	for _, owner := range []uint32{isA(n), isB(n), SharesNode} {
		if s, _, _ := n.m.Shares.Lookup(owner); s.Used != held[owner] {
			t.Errorf("account %d says %d rows, there are %d", owner, s.Used, held[owner])
		}
	}
	b, accounts, err := readShares(n.m)
	if err != nil || accounts[SharesCommon].Used != beyond(b, accounts) {
		t.Errorf("account of what is common says %d rows, there are %d, %v", accounts[SharesCommon].Used, beyond(b, accounts), err)
	}
}

// Two CPUs that open the same flow when there is room for one more row leave it with
// its row for answers, or those would not be translated.
func TestTheLastRowKeepsItsReply(t *testing.T) {
	n := newNode(t)
	set(t, n.m.Budgets, 0, Budget{Each: 1, Node: 2})
	onlyC(n)
	ready := [2]chan uint16{make(chan uint16), make(chan uint16)}
	done := make(chan error)
	for _, ports := range ready {
		go func() {
			runtime.LockOSThread() // and so the thread ends here
			if err := netns.Set(n.network); err != nil {
				done <- err
				return
			}
			for port := range ports {
				in := packet(ip(podA, far, udp(port, 80)))
				_, err := n.progs["from_pod"].Run(&ebpf.RunOptions{
					Data: in, DataOut: make([]byte, len(in)+256), Context: skb{Ifindex: uint32(n.a)}, Repeat: 1,
				})
				done <- err
			}
		}()
	}
	defer close(ready[0])
	defer close(ready[1])
	for i := range 5000 {
		port := uint16(1000 + i)
		ready[0] <- port
		ready[1] <- port
		if err := errors.Join(<-done, <-done); err != nil {
			t.Fatal(err)
		}
		f, ok := n.flow(podA, port, far, 80, 17)
		if !ok {
			t.Fatalf("round %d: no flow", i)
		}
		k := FlowKey{Local: addr(podA), Remote: addr(far), Lport: PortOf(port), Rport: PortOf(80), Proto: 17}
		answers, _ := f.Answers(k)
		if row, ok, _ := n.m.Flows.Lookup(answers); !ok || !row.Answered(answers, k) {
			t.Fatalf("round %d: the flow has no row for answers", i)
		}
		n.age(61 * time.Second)
		if gone, err := n.forget([]FlowKey{k}, Now()); gone != 1 || err != nil {
			t.Fatalf("round %d: %d flows forgotten, %v", i, gone, err)
		}
	}
}

// Once the buffer is half full, events of a pod that causes too many are suppressed;
// those of others are sent, and the pod's next one says how many are missing.
func TestEventsHaveShares(t *testing.T) {
	n := newNode(t)
	n.policy(podA, Egress)
	deny := packet(ip(podA, podC, udp(1, 53)))
	run := func(pod int, in []byte) {
		if _, err := n.progs["from_pod"].Run(&ebpf.RunOptions{Data: in, DataOut: make([]byte, 256), Context: skb{Ifindex: uint32(pod)}, Repeat: 1}); err != nil {
			t.Fatal(err)
		}
	}
	total := int(n.config.EventBytes / eventRecord * 2)
	for range total {
		run(n.a, deny)
	}
	spoofed := packet(ip(podC, podA, udp(1, 53)))
	for range 10 {
		run(n.b, spoofed)
	}
	if lost, err := n.Lost(); err != nil || lost != 0 {
		t.Errorf("%d events found no room, %v", lost, err)
	}
	run(n.a, deny)
	suppressed, told, quiet := n.suppressed(podA)
	s, _, err := n.m.Shares.Lookup(isA(n))
	if err != nil || s.Suppressed == 0 || s.Suppressed+uint64(told) != uint64(total)+1 {
		t.Errorf("%d events told and %d suppressed of %d, %v", told, s.Suppressed, total+1, err)
	}
	if quiet != 10 {
		t.Errorf("%d of 10 events of the quiet pod told", quiet)
	}
	run(n.a, deny) // the buffer is empty again
	more, _, _ := n.suppressed(podA)
	if suppressed += more; suppressed != s.Suppressed || s.Suppressed < uint64(total)/4 {
		t.Errorf("events say that %d were suppressed, the account %d", suppressed, s.Suppressed)
	}
	run(n.a, deny)
	if more, _, _ := n.suppressed(podA); more != 0 {
		t.Errorf("%d events suppressed while the buffer was empty", more)
	}
	if s, _, _ := n.m.Shares.Lookup(isB(n)); s.Suppressed != 0 {
		t.Errorf("%d events of the quiet pod suppressed", s.Suppressed)
	}
}

// suppressed reads all events and counts those of the pod, those that they say are
// missing, and those of others.
func (n *node) suppressed(pod string) (missing uint64, told, others int) {
	n.Helper()
	for {
		n.events.SetDeadline(time.Unix(1, 0))
		record, err := n.events.Read()
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return missing, told, others
		}
		if err != nil {
			n.Fatal(err)
		}
		e, ok := decode(record.RawSample)
		switch {
		case !ok:
			n.Fatalf("event of %d bytes", len(record.RawSample))
		case e.Src == addr(pod):
			told++
			missing += uint64(e.Suppressed)
		default:
			others++
			if e.Suppressed != 0 {
				n.Errorf("%d events of another pod suppressed", e.Suppressed)
			}
		}
	}
}

func TestBudget(t *testing.T) {
	for _, c := range []struct {
		flows uint32
		pods  int
		want  Budget
	}{
		{1 << 19, 0, Budget{Each: 8192, Node: 16384, Common: 376832}},
		{1 << 19, 16, Budget{Each: 8192, Node: 16384, Common: 376832}},
		{1 << 19, 17, Budget{Each: 4096, Node: 16384, Common: 376832}},
		{1 << 19, 110, Budget{Each: 1024, Node: 16384, Common: 376832}},
		{1 << 19, 4096, Budget{Each: 32, Node: 16384, Common: 376832}},
		{1000, 3, Budget{Each: 15, Node: 31, Common: 729}},
	} {
		t.Run(fmt.Sprintf("%d flows, %d pods", c.flows, c.pods), func(t *testing.T) {
			if got := BudgetFor(c.flows, c.pods); got != c.want {
				t.Errorf("got %+v, want %+v", got, c.want)
			}
		})
	}
}

func TestDrift(t *testing.T) {
	at := func(used int64, opened uint64) Share { return Share{Used: used, Opened: opened} }
	for _, c := range []struct {
		name          string
		before, after Share
		counted, want int64
	}{
		{"quiet and right", at(10, 50), at(10, 50), 10, 0},
		{"quiet, one too many rows", at(10, 50), at(10, 50), 11, 1},
		{"quiet, rows are missing", at(10, 50), at(10, 50), 7, -3},
		{"opened meanwhile, all counted", at(10, 50), at(15, 55), 15, 0},
		{"opened meanwhile, none counted", at(10, 50), at(15, 55), 10, 0},
		{"opened meanwhile, and more than that", at(10, 50), at(15, 55), 17, 2},
		{"deleted meanwhile, not counted", at(10, 50), at(6, 50), 6, 0},
		{"deleted meanwhile, counted before", at(10, 50), at(6, 50), 10, 0},
		{"deleted meanwhile, and fewer than that", at(10, 50), at(6, 50), 5, -1},
		{"as many opened as deleted", at(10, 50), at(10, 58), 3, 0},
		{"as many opened as deleted, and fewer than that", at(10, 50), at(10, 58), 1, -1},
		{"an account that began meanwhile", Share{}, at(3, 3), 2, 0},
		{"below nothing", at(-5, 50), at(-5, 50), 0, 5},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := drift(c.before, c.after, c.counted); got != c.want {
				t.Errorf("got %d, want %d", got, c.want)
			}
		})
	}
}
