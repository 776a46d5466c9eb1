package program

import (
	"errors"
	"testing"

	"github.com/weft-mesh/weft/bpf"
	"github.com/weft-mesh/weft/bpf/bpftest"
)

// When members do not fit, not each of them is tried, those that are there change nevertheless,
// and only those that something may have led to are said to have left. Once there is room, all
// are there.
func TestMembersThatDoNotFit(t *testing.T) {
	const room, many = 20, 1000
	writes, broken := 0, false
	tp := &tap{before: func() error {
		if writes++; broken {
			return errors.New("injected")
		}
		return nil
	}}
	m := *bpftest.New()
	members := bpftest.NewTable[bpf.MemberKey, bpf.Member]("members", room)
	m.Members = tapped[bpf.MemberKey, bpf.Member]{members, tp}
	left := map[bpf.Addr]bool{}
	b, err := newBalancer(&m, func(a bpf.Addr) { left[a] = true })
	if err != nil {
		t.Fatal(err)
	}
	backends := func(n int) (all []bpf.Backend) {
		for i := range n {
			all = append(all, backendAt(i))
		}
		return all
	}
	wanted := func(n, closing int) *frontend {
		f := frontendWith(map[uint16][]bpf.Backend{1: backends(n)})
		for _, backend := range backends(closing) {
			f.members[bpf.MemberKey{Addr: backend.Addr, Port: backend.Port}] = bpf.Member{Terminating: 1}
		}
		return f
	}
	if _, err := b.put(wanted(10, 0)); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		writes = 0
		if _, err := b.put(wanted(many, 5)); !errors.Is(err, bpf.ErrFull) {
			t.Fatalf("%d members in room for %d: %v", many, room, err)
		}
		if writes > room+2 {
			t.Errorf("%d writes where %d fit", writes, room)
		}
		closing := 0
		for _, member := range rowsIn(members) {
			closing += int(member.Terminating)
		}
		if closing != 5 {
			t.Errorf("%d members are terminating, want 5", closing)
		}
	}
	broken = true // what was there is still there, whatever becomes of a change
	if _, err := b.put(wanted(many, 0)); err == nil {
		t.Error("nothing failed")
	}
	broken = false
	if _, err := b.put(wanted(room, 0)); err != nil {
		t.Fatal(err)
	}
	for k, member := range rowsIn(members) {
		if member != (bpf.Member{}) {
			t.Errorf("member %v is %+v", k, member)
		}
	}
	if err := usable(&m); err != nil || len(rowsIn(members)) != room || len(left) > room {
		t.Errorf("%v: %d members, %d have left", err, len(rowsIn(members)), len(left))
	}
	clear(left)
	if _, err := b.drop(wanted(0, 0).key); err != nil || len(rowsIn(members)) > 0 {
		t.Errorf("%v: %v remain", err, rowsIn(members))
	}
	for _, backend := range backends(room) {
		if !left[backend.Addr] {
			t.Errorf("%v has left, and nobody says so", backend.Addr)
		}
	}
}
