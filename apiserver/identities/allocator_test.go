package identities_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"strings"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"github.com/weft-mesh/weft/apiserver/identities"
	"github.com/weft-mesh/weft/identity"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const first, last = 65536, 131071

func allocator(t testing.TB, s store.Store, first, last identity.Number) *identities.Allocator {
	t.Helper()
	a, err := identities.NewAllocator(s, first, last)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func app(i int) identity.Labels {
	return identity.NewLabels(identity.Label{Source: "k8s", Key: "app.kubernetes.io/name", Value: fmt.Sprint("a", i)})
}

// sound fails if a number has two meanings, labels have two numbers, or a number in
// use is not taken or means something else.
func sound(t testing.TB, rows map[string]string) {
	t.Helper()
	numbers := map[string]string{}
	for key, value := range rows {
		n, ok := strings.CutPrefix(key, wire.IdentityIDPrefix)
		if !ok {
			continue
		}
		if other, twice := numbers[value]; twice {
			t.Errorf("%s has numbers %s and %s", value, n, other)
		}
		numbers[value] = n
		if got := rows[wire.IdentityTextPrefix+value]; got != n {
			t.Errorf("number %s is %s, which has number %q", n, value, got)
		}
	}
	for key, value := range rows {
		if text, ok := strings.CutPrefix(key, wire.IdentityTextPrefix); ok {
			labels, _, _ := strings.Cut(text, ";/")
			if numbers[strings.TrimSuffix(labels, ";")+";"] != value {
				t.Errorf("%s uses number %s, which means something else", text, value)
			}
		}
		if pod, ok := strings.CutPrefix(key, "pods/"); ok {
			n, labels, _ := strings.Cut(value, " ")
			if numbers[labels] != n {
				t.Errorf("pod %s runs as %s, whose number is %q and not %s", pod, labels, numbers[labels], n)
			}
		}
	}
}

// run records a pod in the transaction that allocates its identity.
func run(pod string, labels identity.Labels) identities.Also {
	return func(n identity.Number) store.Txn {
		return store.Txn{Then: []store.Op{store.Put("pods/"+pod, fmt.Appendf(nil, "%d %s", uint32(n), labels))}}
	}
}

func TestEqualLabelsHaveOneNumber(t *testing.T) {
	s, ctx := newTwin(), t.Context()
	a := allocator(t, s, first, last)
	x, err := a.Acquire(ctx, app(1), "pod-1", nil)
	if err != nil {
		t.Fatal(err)
	}
	if x < first || x > last {
		t.Errorf("%d is outside of the range", uint32(x))
	}
	for _, other := range []*identities.Allocator{a, allocator(t, s, first, last)} {
		if y, err := other.Acquire(ctx, app(1), "pod-2", nil); err != nil || y != x {
			t.Errorf("got %v, %v; want %v", y, err, x)
		}
		if y, err := other.Acquire(ctx, app(2), "pod-3", nil); err != nil || y == x {
			t.Errorf("other labels got %v, %v", y, err)
		}
	}
	all, err := a.All(ctx)
	if err != nil || len(all) != 2 || !all[x].Equal(app(1)) {
		t.Errorf("all: %v, %v", all, err)
	}
	sound(t, s.dump())
}

func TestManyAllocatorsAtOnce(t *testing.T) {
	s := newTwin()
	s.before = func(string) error {
		if rand.IntN(2) == 0 {
			runtime.Gosched()
		}
		return nil
	}
	const kinds, allocators = 40, 8
	numbers := make([][kinds]identity.Number, allocators)
	var wg sync.WaitGroup
	for i := range allocators {
		// A range hardly larger than needed, so that they collide.
		a := allocator(t, s, first, first+kinds+4)
		for _, part := range [][2]int{{0, kinds / 2}, {kinds / 2, kinds}} {
			wg.Go(func() {
				for _, k := range rand.Perm(part[1] - part[0]) {
					k += part[0]
					n, err := a.Acquire(context.Background(), app(k), fmt.Sprint("pod-", i), nil)
					if err != nil {
						t.Error(err)
					}
					numbers[i][k] = n
				}
			})
		}
	}
	wg.Wait()
	for i := range numbers {
		if numbers[i] != numbers[0] {
			t.Errorf("allocator %d has other numbers:\n%v\n%v", i, numbers[i], numbers[0])
		}
	}
	sound(t, s.dump())
}

// Each allocator last listed the numbers before another took nearly all of them: it
// lists them again instead of trying one by one until its attempts run out.
func TestNumbersThatOthersTookInARow(t *testing.T) {
	s, ctx := newTwin(), t.Context()
	const size, late = 200, 8
	var behind [late]*identities.Allocator
	for i := range behind {
		behind[i] = allocator(t, s, first, first+size-1)
		if _, err := behind[i].Acquire(ctx, app(i), "early", nil); err != nil {
			t.Fatal(err)
		}
	}
	other := allocator(t, s, first, first+size-1)
	for i := range size - 2*late {
		if _, err := other.Acquire(ctx, app(late+i), "other", nil); err != nil {
			t.Fatal(err)
		}
	}
	for i, a := range behind {
		if _, err := a.Acquire(ctx, app(size+i), "late", nil); err != nil {
			t.Error(err)
		}
	}
	sound(t, s.dump())
}

func TestCrashAtEveryStep(t *testing.T) {
	for _, side := range []string{"before", "after"} {
		for step := range 8 {
			t.Run(fmt.Sprintf("%s step %d", side, step), func(t *testing.T) {
				s, ctx := newTwin(), t.Context()
				n := 0
				crash := func(string) error {
					n++
					if n > step {
						return errInjected
					}
					return nil
				}
				if side == "before" {
					s.before = crash
				} else {
					s.after = crash
				}
				_, err := allocator(t, s, first, last).Acquire(ctx, app(1), "pod", run("pod", app(1)))
				sound(t, s.dump())
				crashed := n > step
				if crashed != errors.Is(err, errInjected) {
					t.Errorf("crashed: %v, error: %v", crashed, err)
				}
				s.before, s.after = nil, nil
				if _, err := allocator(t, s, first, last).Acquire(ctx, app(1), "pod", run("pod", app(1))); err != nil {
					t.Error(err)
				}
				sound(t, s.dump())
				if got := len(s.dump()); got != 4 {
					t.Errorf("%d keys, want number, value, owner and pod: %v", got, s.dump())
				}
			})
		}
	}
}

func TestExhausted(t *testing.T) {
	s, ctx := newTwin(), t.Context()
	a := allocator(t, s, first, first+2)
	for i := range 3 {
		if _, err := a.Acquire(ctx, app(i), "pod", nil); err != nil {
			t.Fatal(err)
		}
	}
	_, err := a.Acquire(ctx, app(3), "pod", nil)
	if !errors.Is(err, identities.ErrExhausted) || !strings.Contains(err.Error(), "all 3 from 65536 to 65538 are taken") {
		t.Errorf("got %v", err)
	}
	if _, err := a.Acquire(ctx, app(1), "another", nil); err != nil {
		t.Errorf("labels that have a number still get it: %v", err)
	}
}

func TestBadRange(t *testing.T) {
	for name, r := range map[string][2]identity.Number{
		"reserved": {1, 300}, "backwards": {300, 299}, "node-local": {identity.LocalNumber(1), identity.LocalNumber(9)},
	} {
		if _, err := identities.NewAllocator(newTwin(), r[0], r[1]); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestConditionsOfTheCaller(t *testing.T) {
	s, ctx := newTwin(), t.Context()
	a := allocator(t, s, first, last)
	also := func(identity.Number) store.Txn {
		return store.Txn{If: []store.Cond{{Key: "pods/web"}}, Then: []store.Op{store.Put("pods/web", nil)}}
	}
	s.put("pods/web", "")
	if _, err := a.Acquire(ctx, app(1), "web", also); !errors.Is(err, identities.ErrStale) {
		t.Errorf("got %v", err)
	}
	if got := len(s.dump()); got != 1 {
		t.Errorf("something was written: %v", s.dump())
	}
	if err := a.Release(ctx, app(1), "web", store.Txn{If: []store.Cond{{Key: "pods/web"}}}); !errors.Is(err, identities.ErrStale) {
		t.Errorf("got %v", err)
	}
	if _, err := a.Acquire(ctx, nil, "web", nil); err == nil {
		t.Error("allocated for no labels")
	}
}

// A stale request cannot succeed by retrying: it costs one transaction more and does not
// hold up the others of its batch.
func TestAStaleConditionEndsTheTry(t *testing.T) {
	s, ctx := newTwin(), t.Context()
	commits := 0
	s.before = func(call string) error {
		if call == "commit" {
			commits++
		}
		return nil
	}
	a := allocator(t, s, first, last)
	s.put("pods/b", "newer")
	absent := func(pod string) identities.Also {
		return func(n identity.Number) store.Txn {
			txn := run(pod, app(1))(n)
			txn.If = append(txn.If, store.Cond{Key: "pods/" + pod})
			return txn
		}
	}
	results := a.AcquireAll(ctx, []identities.Request{
		{app(1), "a", absent("a")}, {app(1), "b", absent("b")}, {nil, "nobody", nil}, {app(1), "c", absent("c")}, {app(2), "d", nil},
	})
	if !errors.Is(results[1].Err, identities.ErrStale) || results[2].Err == nil {
		t.Errorf("b: %v, nobody: %v", results[1].Err, results[2].Err)
	}
	for _, i := range []int{0, 3, 4} {
		if results[i].Err != nil || results[i].Number == 0 || results[i].Revision == 0 {
			t.Errorf("request %d: %+v", i, results[i])
		}
	}
	if results[0].Number != results[3].Number || results[0].Number == results[4].Number {
		t.Errorf("numbers: %+v", results)
	}
	// a and d; b and c together in vain; c.
	if commits != 3 {
		t.Errorf("%d transactions were tried for four requests", commits)
	}
	rows := s.dump()
	if rows["pods/b"] != "newer" || rows[wire.IdentityOwnerKey(app(1).String(), "b")] != "" {
		t.Errorf("b was written: %v", rows)
	}
	delete(rows, "pods/b")
	sound(t, rows)

	// The remembered number is gone from the store: it is looked up again.
	s.lose(func(key string) bool { return strings.HasPrefix(key, wire.IdentitiesPrefix) })
	if _, err := a.Acquire(ctx, app(1), "e", run("e", app(1))); err != nil {
		t.Error(err)
	}
}

func TestOwnersThatAreGone(t *testing.T) {
	s, ctx := newTwin(), t.Context()
	a := allocator(t, s, first, last)
	for _, owner := range []string{"default/web-1", "default/web-2", "other/db"} {
		if _, err := a.Acquire(ctx, app(1), owner, nil); err != nil {
			t.Fatal(err)
		}
	}
	n, err := a.ReleaseOthers(ctx, func(owner string) bool { return strings.HasPrefix(owner, "default/") })
	if err != nil || n != 1 {
		t.Errorf("released %d, %v", n, err)
	}
	rows := s.dump()
	if _, there := rows[wire.IdentityOwnerKey(app(1).String(), "other/db")]; there {
		t.Error("other/db is still there")
	}
	if _, there := rows[wire.IdentityOwnerKey(app(1).String(), "default/web-1")]; !there {
		t.Error("default/web-1 is gone")
	}
}

// A store that was tampered with heals instead of giving a number twice.
func TestHalfOfThePairIsGone(t *testing.T) {
	s, ctx := newTwin(), t.Context()
	a := allocator(t, s, first, last)
	n, err := a.Acquire(ctx, app(1), "pod", nil)
	if err != nil {
		t.Fatal(err)
	}
	s.lose(func(key string) bool { return key == wire.IdentityIDKey(n) })
	if again, err := a.Acquire(ctx, app(1), "pod", nil); err != nil || again != n {
		t.Errorf("got %v, %v; want %v", again, err, n)
	}
	sound(t, s.dump())

	s.put(wire.IdentityIDKey(n), app(2).String())
	if again, err := a.Acquire(ctx, app(1), "pod", nil); err != nil || again == n {
		t.Errorf("number %v means something else now; got %v, %v", n, again, err)
	}
}
