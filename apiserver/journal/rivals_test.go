package journal

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/store/storetest"
	"github.com/weft-mesh/weft/wire"
)

// set is a change of one object, conditional on what it is now.
func set(t *testing.T, j *Journal, key, value string) Change {
	t.Helper()
	kvs, err := j.conf.Store.GetMany(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	return Change{User: "other", If: []store.Cond{{Key: key, Modified: kvs[0].Modified}}, Then: []wire.Write{{Key: key, Value: []byte(value)}}}
}

// TestAnotherChangeAtEveryMoment has another server change something before every call of
// a large change. If it is an object of the large change, exactly one of the two is made:
// the one that is committed first. (The other's caller looks again.)
func TestAnotherChangeAtEveryMoment(t *testing.T) {
	for limitName, limit := range limits {
		for key, name := range map[string]string{object(3): "of the same object", objects + "other": "of another object"} {
			t.Run(limitName+"/"+name, func(t *testing.T) {
				outcomes := map[string]int{}
				for k, acted := 1, true; acted && !t.Failed(); k++ {
					synctest.Test(t, func(t *testing.T) { acted = rival(t, k, limit, key, outcomes) })
				}
				if key == object(3) && limit.Ops < writes && (outcomes["false true"] == 0 || outcomes["true false"] == 0) || key != object(3) && len(outcomes) != 1 {
					t.Errorf("outcomes of both: %v", outcomes)
				}
			})
		}
	}
}

func rival(t *testing.T, k int, limit Limit, key string, outcomes map[string]int) (acted bool) {
	twin := storetest.New()
	seed(t, twin, writes)
	s := &limited{Store: twin, limit: limit}
	j, other := New(Config{Store: s}), New(Config{Store: &limited{Store: twin, limit: limit}})
	c := rewrite(t, j, writes)
	calls, otherDone := 0, false
	s.before = func(string) error {
		if calls++; calls == k {
			acted = true
			var err error
			if otherDone, err = other.Make(t.Context(), set(t, other, key, "other's")); err != nil {
				t.Errorf("call %d: the other change: %v", k, err)
			}
		}
		return nil
	}
	done, err := j.Make(t.Context(), c)
	if err != nil {
		t.Errorf("call %d: %v", k, err)
	}
	if !acted {
		return false
	}
	outcomes[fmt.Sprint(done, otherDone)]++
	dump := twin.Dump(objects)
	if otherDone != slices.Contains(dump, key+"=other's") {
		t.Errorf("call %d: the other change is made: %v, and the objects are %v", k, otherDone, dump)
	}
	// Without the other's, the objects are all old or all new.
	others := store.Op{Key: key, Delete: true}
	if key == object(3) && done {
		others = store.Put(key, []byte(strings.Repeat("new", 13)))
	}
	if otherDone {
		if err := store.Write(t.Context(), twin, others); err != nil {
			t.Fatal(err)
		}
	}
	if got := state(twin, writes); done != (got == "new") || !done && got != "old" || !done && !otherDone {
		t.Errorf("call %d: made %v, the other %v, and the objects are %s", k, done, otherDone, got)
	}
	if l := left(twin); len(l) > 0 {
		t.Errorf("call %d: left %q", k, l)
	}
	return true
}

// TestConditionsReadAtEveryMoment has another server read objects before every call of a
// large change, and change them on the ground of what it has read when that is over. It
// may only if nothing has changed since.
func TestConditionsReadAtEveryMoment(t *testing.T) {
	for limitName, limit := range limits {
		t.Run(limitName, func(t *testing.T) {
			outcomes := map[bool]int{}
			for k, acted := 1, true; acted && !t.Failed(); k++ {
				synctest.Test(t, func(t *testing.T) {
					twin := storetest.New()
					seed(t, twin, writes)
					s := &limited{Store: twin, limit: limit}
					j, other := New(Config{Store: s}), New(Config{Store: &limited{Store: twin, limit: limit}})
					c := rewrite(t, j, writes)
					var later Change
					calls := 0
					acted = false
					s.before = func(string) error {
						if calls++; calls == k {
							later, acted = rewrite(t, other, writes), true
						}
						return nil
					}
					if done, err := j.Make(t.Context(), c); !done || err != nil {
						t.Fatal(done, err)
					}
					if !acted {
						later = rewrite(t, other, writes)
					}
					holds, err := other.holds(t.Context(), later.If)
					if err != nil {
						t.Fatal(err)
					}
					done, err := other.Make(t.Context(), later)
					if done != holds || err != nil {
						t.Errorf("call %d: the conditions hold: %v, but made: %v, %v", k, holds, done, err)
					}
					outcomes[done]++
				})
			}
			if outcomes[false] == 0 || outcomes[true] == 0 {
				t.Errorf("%v", outcomes)
			}
		})
	}
}

// TestServersCount has several servers add one to every object at the same time, over a
// store that often fails. Each change that was made counts in every object, and nothing
// else does.
func TestServersCount(t *testing.T) {
	const servers, rounds, counters = 3, 6, 30
	for seed := range uint64(20) {
		synctest.Test(t, func(t *testing.T) {
			twin := storetest.New()
			var mu sync.Mutex // guards random and calm
			calm, random := false, rand.New(rand.NewPCG(seed, 1))
			unreliable := func(string) error {
				mu.Lock()
				defer mu.Unlock()
				if !calm && random.IntN(12) == 0 {
					return store.ErrUnavailable
				}
				return nil
			}
			ctx, stop := context.WithCancel(t.Context())
			var running, adding sync.WaitGroup
			made := make([]int, servers)
			for i := range servers {
				j := New(Config{Store: &limited{Store: twin, limit: Limit{8, 1 << 20}, before: unreliable, after: unreliable}})
				j.learn(Limit{8, 1 << 20}) // a single transaction may leave it open whether it was made
				running.Go(func() { _ = j.Run(ctx) })
				adding.Go(func() {
					for range rounds {
						for !addOne(t, j, twin, counters, &made[i]) {
							_ = pause(ctx, time.Second)
						}
					}
				})
			}
			adding.Wait()
			mu.Lock()
			calm = true
			mu.Unlock()
			time.Sleep(2*sweep + time.Minute)
			stop()
			running.Wait()
			want := 0
			for _, n := range made {
				want += n
			}
			for _, line := range twin.Dump(objects) {
				if !strings.HasSuffix(line, "="+strconv.Itoa(want)) {
					t.Errorf("seed %d: %d changes were made, and %s", seed, want, line)
				}
			}
			if l := left(twin); len(l) > 0 || want != servers*rounds {
				t.Errorf("seed %d: %d changes were made; left %q", seed, want, l)
			}
		})
		if t.Failed() {
			return
		}
	}
}

// addOne adds one to every counter and reports whether it is known to be made.
func addOne(t *testing.T, j *Journal, twin *storetest.Store, counters int, made *int) bool {
	c := Change{User: "admin"}
	c.Since, _ = j.Turn(t.Context()) // nil if the store fails
	for i := range counters {
		kvs, err := twin.GetMany(t.Context(), object(i))
		if err != nil {
			t.Error(err)
			return true
		}
		n, _ := strconv.Atoi(string(kvs[0].Value))
		c.If = append(c.If, store.Cond{Key: object(i), Modified: kvs[0].Modified})
		c.Then = append(c.Then, wire.Write{Key: object(i), Value: []byte(strconv.Itoa(n + 1))})
	}
	done, err := j.Make(t.Context(), c)
	switch outcomeOf(done, err) {
	case "made":
		*made++
		return true
	case "open":
		t.Errorf("the outcome is open: %v", err)
		return true
	}
	return false
}

// A full store refuses everything but deletions, and these make space.
func TestDeletionsFromAFullStore(t *testing.T) {
	s := &limited{Store: storetest.New(), limit: Largest}
	seed(t, s.Store, 10)
	j := New(Config{Store: full{s}})
	c := Change{User: "admin"}
	for i := 0; i < 10; i += 2 {
		c.Then = append(c.Then, wire.Write{Key: object(i), Delete: true})
	}
	if done, err := j.Make(t.Context(), c); !done || err != nil || len(s.Dump(objects)) > 0 {
		t.Errorf("%v, %v: %v", done, err, s.Dump(objects))
	}
	if done, err := j.Make(t.Context(), Change{Then: []wire.Write{{Key: object(1)}}}); done || !errors.Is(err, store.ErrFull) {
		t.Errorf("a write: %v, %v", done, err)
	}
}

type full struct{ *limited }

func (f full) Commit(ctx context.Context, txn store.Txn) (int64, bool, error) {
	for _, op := range txn.Then {
		if !op.Delete {
			return 0, false, store.ErrFull
		}
	}
	return f.limited.Commit(ctx, txn)
}

// What was committed by a release with another format, or damaged, is left alone, said,
// and blocks other changes: half of it may have been made.
func TestAChangeThatCannotBeRead(t *testing.T) {
	good := wire.Change{Format: wire.ChangeFormat, ID: "a1", User: "admin", Parts: 1, Writes: 2}
	another := good
	another.Format = 2
	more := good
	more.Writes = 3
	part := wire.MarshalWrites([]wire.Write{{Key: object(1), Value: []byte("x")}, {Key: object(2), Value: []byte("y")}})
	for name, c := range map[string]struct {
		committed []byte
		part      []byte
		want      string
	}{
		"another format": {wire.Marshal(another), part, "a change of format 2"},
		"no change":      {[]byte("{"), part, "unexpected end"},
		"no part":        {wire.Marshal(good), nil, "not found"},
		"a damaged part": {wire.Marshal(good), part[:len(part)-1], "the part ends within a write"},
		"too few writes": {wire.Marshal(more), part, "its parts have others"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := storetest.New()
				ops := []store.Op{store.Put(wire.ChangeKey, c.committed)}
				if c.part != nil {
					ops = append(ops, store.Put(wire.ChangePartKey("a1", 0), c.part))
				}
				if err := store.Write(t.Context(), s, ops...); err != nil {
					t.Fatal(err)
				}
				before := s.Dump("")
				j := New(Config{Store: s})
				if done, err := j.Make(t.Context(), set(t, j, object(3), "z")); done || err == nil || !strings.Contains(err.Error(), c.want) {
					t.Errorf("another change: %v, %v", done, err)
				}
				ctx, stop := context.WithCancel(t.Context())
				ended := make(chan error, 1)
				go func() { ended <- j.Run(ctx) }()
				time.Sleep(time.Minute)
				if concerns := j.Concerns("east"); len(concerns) != 1 || !strings.Contains(concerns[0].Message, c.want) {
					t.Errorf("concerns: %+v", concerns)
				}
				if after := s.Dump(""); !slices.Equal(before, after) {
					t.Errorf("altered: %q", after)
				}
				// Once it is gone, nothing is left to be concerned about.
				if err := store.Write(t.Context(), s, store.Delete(wire.ChangeKey)); err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Minute)
				if concerns := j.Concerns("east"); len(concerns) > 0 {
					t.Errorf("concerns: %+v", concerns)
				}
				stop()
				if err := <-ended; err != nil {
					t.Error(err)
				}
			})
		})
	}
}
