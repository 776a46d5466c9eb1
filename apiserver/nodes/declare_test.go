package nodes

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/store/storetest"
	"github.com/weft-mesh/weft/wire"
)

// of is a request for an object of Kubernetes.
func of(uid, name, ip, cidr string) api.NodeRequest {
	r := request(name, ip, cidr)
	r.UID, r.Replace = uid, true
	return r
}

// declare declares one node that is not refused.
func declare(t *testing.T, r *Registrar, confirm bool, n api.NodeRequest) {
	t.Helper()
	refused, err := r.Declare(t.Context(), []api.NodeRequest{n}, "kubernetes", func(context.Context, api.NodeRequest) (bool, error) { return confirm, nil })
	if err != nil || len(refused) > 0 {
		t.Fatal(refused, err)
	}
}

// The register is read once for all, and what is wrong with one node is no reason to leave out
// another.
func TestDeclareMany(t *testing.T) {
	r, s, users := registrar(t)
	if _, err := r.Add(t.Context(), request("mine", "172.16.9.9", "10.1.200.0/24")); err != nil {
		t.Fatal(err)
	}
	var all []api.NodeRequest
	for i := range 100 {
		all = append(all, of(fmt.Sprint("u", i), fmt.Sprintf("n%02d", i), fmt.Sprintf("172.16.1.%d", i+1), ""))
	}
	all = append(all, of("x", "twice", "172.16.1.7", ""), of("y", "mine", "172.16.9.1", ""))
	lists, commits := 0, 0
	s.Fail(func(call, key string) error {
		switch {
		case call == "list" && key == wire.RegistrationsPrefix:
			lists++
		case call == "commit":
			commits++
		}
		return nil
	})
	refused, err := r.Declare(t.Context(), all, "kubernetes", nil)
	if err != nil || len(refused) != 1 || !strings.Contains(fmt.Sprint(refused["twice"]), "belongs to node n06") {
		t.Errorf("refused %v, %v", refused, err)
	}
	if lists != 1 || commits > 3 {
		t.Errorf("%d lists of the register and %d transactions", lists, commits)
	}
	register, err := r.Register(t.Context())
	if err != nil || len(register) != 101 || register["mine"].Addresses[0].String() != "172.16.9.9" {
		t.Errorf("%d nodes, %+v, %v", len(register), register["mine"], err)
	}
	seen := map[netip.Prefix]bool{}
	for name, reg := range register {
		if seen[reg.PodCIDRs[0]] {
			t.Errorf("%s shares %s", name, reg.PodCIDRs[0])
		}
		seen[reg.PodCIDRs[0]] = true
	}
	if n := len(users.Names()); n != 101 {
		t.Errorf("%d users", n)
	}
	// What is as it was is written nowhere, and asked for alone it costs no list.
	lists, commits = 0, 0
	if refused, err := r.Declare(t.Context(), all[:100], "kubernetes", nil); err != nil || len(refused) > 0 || lists != 1 || commits != 0 {
		t.Errorf("again: %v, %v, %d lists, %d transactions", refused, err, lists, commits)
	}
	if _, err := r.AddFrom(t.Context(), all[3], "kubernetes"); err != nil || lists != 1 || commits != 0 {
		t.Errorf("a bundle: %v, %d lists, %d transactions", err, lists, commits)
	}
}

// interrupted is a store in which others do something before the n-th transaction.
type interrupted struct {
	*storetest.Store
	n      int
	before map[int]func() error
}

// Commit implements store.Store.
func (s *interrupted) Commit(ctx context.Context, txn store.Txn) (int64, bool, error) {
	s.n++
	if do := s.before[s.n]; do != nil {
		if err := do(); err != nil {
			return 0, false, err
		}
	}
	return s.Store.Commit(ctx, txn)
}

// onRemoval does something before a user is removed.
type onRemoval struct {
	store.Users
	do func() error
}

// RemoveUser implements store.Users.
func (u onRemoval) RemoveUser(ctx context.Context, name string) error {
	if err := u.do(); err != nil {
		return err
	}
	return u.Users.RemoveUser(ctx, name)
}

// beforeRights is when a user is about to be removed.
const beforeRights = -1

// interrupt returns the registrar on a store in which others do that.
func interrupt(r *Registrar, s *storetest.Store, before map[int]func() error) *Registrar {
	conf := r.conf
	conf.Store = &interrupted{Store: s, before: before}
	if do := before[beforeRights]; do != nil {
		conf.Users = onRemoval{conf.Users, do}
	}
	return New(conf)
}

// Somebody else changes the register again and again.
func TestDeclareBesideOthers(t *testing.T) {
	r, s, _ := registrar(t)
	other := func(name, ip string) func() error {
		return func() error { _, err := r.Add(t.Context(), request(name, ip, "")); return err }
	}
	slow := interrupt(r, s, map[int]func() error{1: other("a", "172.16.2.1"), 2: other("b", "172.16.2.2"), 3: other("c", "172.16.2.3")})
	declare(t, slow, true, of("u1", "n1", "172.16.1.1", ""))
	register, err := r.Register(t.Context())
	if err != nil || len(register) != 4 || register["n1"].PodCIDRs[0].String() != "10.1.3.0/24" {
		t.Errorf("%v, %v", register, err)
	}
}

// A source that is behind does not put back what an agent has replaced.
func TestAnotherObjectIsConfirmedFirst(t *testing.T) {
	r, s, _ := registrar(t)
	declare(t, r, false, of("new", "n1", "172.16.1.1", "10.1.1.0/24")) // nothing to confirm
	if err := store.Write(t.Context(), s, store.Put(wire.NodeKey("n1"), []byte("{}"))); err != nil {
		t.Fatal(err)
	}
	before := s.Dump("")
	declare(t, r, false, of("old", "n1", "172.16.1.8", "10.1.8.0/24"))
	if after := s.Dump(""); !slices.Equal(after, before) {
		t.Errorf("it is %v, before %v", after, before)
	}
	refused, err := r.Declare(t.Context(), []api.NodeRequest{of("old", "n1", "172.16.1.8", "10.1.8.0/24")}, "kubernetes",
		func(context.Context, api.NodeRequest) (bool, error) { return false, errors.New("no answer") })
	if err != nil || fmt.Sprint(refused["n1"]) != "no answer" {
		t.Errorf("refused %v, %v", refused, err)
	}
	declare(t, r, true, of("old", "n1", "172.16.1.8", "10.1.8.0/24"))
	if register, err := r.Register(t.Context()); err != nil || register["n1"].UID != "old" {
		t.Errorf("%v, %v", register, err)
	}
	if _, err := s.Get(t.Context(), wire.NodeKey("n1")); err == nil {
		t.Error("what the other machine wrote is still there")
	}
}

// Nobody but the node that was withdrawn loses anything, whatever happens in between.
func TestWithdraw(t *testing.T) {
	ctx := t.Context()
	r, s, users := registrar(t)
	declare(t, r, true, of("u1", "n1", "172.16.1.1", "10.1.1.0/24"))
	if _, err := r.Add(ctx, request("mine", "172.16.9.9", "")); err != nil {
		t.Fatal(err)
	}
	if err := store.Write(ctx, s, store.Put(wire.NodeKey("n1"), []byte("{}"))); err != nil {
		t.Fatal(err)
	}
	before := s.Dump("")
	for node, uid := range map[string]string{"n1": "u0", "mine": "", "nobody": ""} {
		if err := r.Withdraw(ctx, node, uid, "kubernetes"); err != nil || !slices.Equal(s.Dump(""), before) {
			t.Errorf("%s of %q: %v, %v", node, uid, err, s.Dump(""))
		}
	}
	// It joins again as another object: before the removal, before its rights are gone, and
	// after that.
	join := func(uid string) func() error {
		return func() error {
			_, err := r.AddFrom(ctx, of(uid, "n1", "172.16.1.2", "10.1.2.0/24"), "kubernetes")
			return err
		}
	}
	for when, uids := range map[int][2]string{1: {"u1", "u2"}, beforeRights: {"u2", "u3"}, 2: {"u3", "u4"}} {
		if register, err := r.Register(ctx); err != nil || register["n1"].UID != uids[0] {
			declare(t, r, true, of(uids[0], "n1", "172.16.1.1", "10.1.1.0/24"))
		}
		if err := interrupt(r, s, map[int]func() error{when: join(uids[1])}).Withdraw(ctx, "n1", uids[0], "kubernetes"); err != nil {
			t.Error(err)
		}
		if register, err := r.Register(ctx); err != nil || register["n1"].UID != uids[1] {
			t.Errorf("joined before transaction %d: %v, %v", when, register, err)
		}
		if _, ok := users.User("agent-n1"); !ok {
			t.Errorf("joined before transaction %d, it has no rights", when)
		}
		if left := s.Dump(wire.WithdrawnPrefix); len(left) > 0 {
			t.Errorf("left: %v", left)
		}
	}
	// What is interrupted after the removal is finished later.
	away := errors.New("no leader")
	for how, finish := range map[string]func() error{
		"by the next attempt": func() error { return r.Withdraw(ctx, "n1", "u9", "kubernetes") },
		"by the next term":    func() error { return r.Settle(ctx) },
	} {
		declare(t, r, true, of("u9", "n1", "172.16.1.1", "10.1.1.0/24"))
		if err := interrupt(r, s, map[int]func() error{2: func() error { return away }}).Withdraw(ctx, "n1", "u9", "kubernetes"); !errors.Is(err, away) {
			t.Errorf("the store has failed: %v", err)
		}
		if err := store.Write(ctx, s, store.Put(wire.NodeKey("n1"), []byte("{}"))); err != nil {
			t.Fatal(err)
		}
		if err := users.SetUser(ctx, agentRights("n1")); err != nil {
			t.Fatal(err)
		}
		if err := finish(); err != nil {
			t.Errorf("%s: %v", how, err)
		}
		if left := append(s.Dump(wire.NodePrefix("n1")), s.Dump(wire.WithdrawnPrefix)...); len(left) > 0 {
			t.Errorf("%s: left: %v", how, left)
		}
		if _, ok := users.User("agent-n1"); ok {
			t.Errorf("%s: it still has rights", how)
		}
	}
}

// The indexes say what looking through all nodes does.
func TestRosterIsTheRegister(t *testing.T) {
	draw := rand.New(rand.NewPCG(1, 2))
	o := newRoster(nil)
	whole := []netip.Prefix{netip.MustParsePrefix("10.1.0.0/21"), netip.MustParsePrefix("fd00:1::/60")}
	cidr := func() netip.Prefix {
		if draw.IntN(2) == 0 {
			return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 1, byte(draw.IntN(8)), byte(draw.IntN(4) * 64)}), 22+draw.IntN(5)).Masked()
		}
		return netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfd, 0, 0, 1, 0, 0, 0, byte(draw.IntN(16))}), 62+draw.IntN(4)).Masked()
	}
	overlaps := func(p netip.Prefix) bool {
		for _, reg := range o.nodes {
			if slices.ContainsFunc(reg.PodCIDRs, p.Overlaps) {
				return true
			}
		}
		return false
	}
	for range 3000 {
		node := fmt.Sprint("n", draw.IntN(8))
		p := cidr()
		if o.remove(node); draw.IntN(3) > 0 && !overlaps(p) {
			o.put(wire.Registration{Name: node, PodCIDRs: []netip.Prefix{p}, Addresses: []netip.Addr{netip.AddrFrom4([4]byte{172, 16, 0, byte(draw.IntN(200))})}})
		}
		p = cidr()
		_, other, found := o.overlapping(p)
		if found != overlaps(p) || o.taken(p) != found || found && !slices.ContainsFunc(o.nodes[other].PodCIDRs, p.Overlaps) {
			t.Fatalf("%s overlaps: %v (%s), want %v, among %v", p, found, other, overlaps(p), o.nodes)
		}
		for _, w := range whole {
			free, ok := o.freeCIDR([]netip.Prefix{w})
			want, wanted := firstFree(w, overlaps)
			if ok != wanted || ok && free != want {
				t.Fatalf("free in %s: %v, %v; want %v, %v", w, free, ok, want, wanted)
			}
		}
	}
}

// firstFree looks at each part of a CIDR.
func firstFree(w netip.Prefix, taken func(netip.Prefix) bool) (netip.Prefix, bool) {
	bits := max(w.Bits(), defaultBits(w))
	for a := w.Addr(); w.Contains(a); a = wire.LastAddr(netip.PrefixFrom(a, bits)).Next() {
		if p := netip.PrefixFrom(a, bits); !taken(p) {
			return p, true
		}
	}
	return netip.Prefix{}, false
}
