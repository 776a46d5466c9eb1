package members

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/store/storetest"
	"github.com/weft-mesh/weft/wire"
)

// etcds are the members of a store. Each change of them first meets the next of the faults.
type etcds struct {
	*storetest.Store
	all    []store.Member
	leader uint64
	bytes  int64 // of each one's database
	faults []fault
	// answers are the numbers that members answer with, where these are not theirs.
	answers map[uint64]uint64
}

// fault is what becomes of a change: the error it ends with, and whether it is made
// nevertheless.
type fault struct {
	err  error
	made bool
}

func (e *etcds) change(do func()) error {
	var f fault
	if len(e.faults) > 0 {
		f, e.faults = e.faults[0], e.faults[1:]
	}
	if f.err == nil || f.made {
		do()
	}
	return f.err
}

func (e *etcds) Members(context.Context) ([]store.Member, error) { return e.all, nil }

func (e *etcds) AddLearner(_ context.Context, peer string) ([]store.Member, error) {
	err := e.change(func() { e.all = append(e.all, store.Member{ID: uint64(len(e.all) + 1), Peer: peer, Learner: true}) })
	return e.all, err
}

func (e *etcds) Promote(_ context.Context, id uint64) error {
	return e.change(func() { e.all[id-1].Learner = false })
}

// newEtcds returns a store of one member a, to which b was added.
func newEtcds(t *testing.T, expires time.Time) *etcds {
	t.Helper()
	e := &etcds{Store: storetest.New(), all: []store.Member{{ID: 1, Name: "a", Peer: "https://a:2380"}}}
	if err := store.Write(t.Context(), e, store.Put(wire.AddedServerKey("b"), wire.Marshal(record{Name: "b", Address: "b:2380", Token: "T", Expires: expires}))); err != nil {
		t.Fatal(err)
	}
	return e
}

var forB = api.ServerBundle{Cluster: "east", Name: "b", Token: "T"}

func enter(t *testing.T, e *etcds, b api.ServerBundle) (map[string]string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	return Enter(ctx, e, b, "https://b:2380", slog.New(slog.DiscardHandler))
}

// Raft drops one of two changes that are made at the same time, and an answer may be lost
// after a change was made. Neither keeps a server from joining, and it joins once.
func TestJoiningOutlastsLostChanges(t *testing.T) {
	for name, faults := range map[string][]fault{
		"none":                     nil,
		"the addition is dropped":  {{err: store.ErrUnavailable}},
		"its answer is lost":       {{err: store.ErrUnavailable, made: true}},
		"too many join":            {{err: store.ErrJoining}, {err: store.ErrJoining}},
		"others are not connected": {{err: store.ErrNoQuorum}},
		"the vote is dropped":      {{}, {err: store.ErrUnavailable}},
		"it is behind":             {{}, {err: store.ErrBehind}, {err: store.ErrBehind}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				e := newEtcds(t, time.Now().Add(time.Hour))
				e.faults = faults
				urls, err := enter(t, e, forB)
				if want := map[string]string{"a": "https://a:2380", "b": "https://b:2380"}; err != nil || !maps.Equal(urls, want) {
					t.Fatalf("%v, %v, want %v", urls, err, want)
				}
				if err := Vote(t.Context(), e, 2, slog.New(slog.DiscardHandler)); err != nil {
					t.Fatal(err)
				}
				if len(e.all) != 2 || e.all[1].Learner {
					t.Errorf("%+v", e.all)
				}
			})
		})
	}
}

// What may not join is told why, and nothing is changed.
func TestJoiningIsRefused(t *testing.T) {
	for name, test := range map[string]struct {
		change func(*etcds, *api.ServerBundle)
		want   string
	}{
		"another token": {func(_ *etcds, b *api.ServerBundle) { b.Token = "old" }, "no longer good"},
		"another name":  {func(_ *etcds, b *api.ServerBundle) { b.Name = "c" }, "no longer good"},
		"its disk was lost": {func(e *etcds, _ *api.ServerBundle) {
			e.all = append(e.all, store.Member{ID: 2, Name: "b", Peer: "https://b:2380"})
		}, "weft server replace b"},
		"expired": {func(*etcds, *api.ServerBundle) { time.Sleep(time.Hour + time.Second) }, "expired on"},
		"denied":  {func(e *etcds, _ *api.ServerBundle) { e.faults = []fault{{err: store.ErrDenied}} }, store.ErrDenied.Error()},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				e, b := newEtcds(t, time.Now().Add(time.Hour)), forB
				test.change(e, &b)
				before := fmt.Sprint(e.all)
				if _, err := enter(t, e, b); err == nil || !strings.Contains(err.Error(), test.want) {
					t.Errorf("%v, want %q", err, test.want)
				}
				if after := fmt.Sprint(e.all); after != before {
					t.Errorf("members are %s, were %s", after, before)
				}
			})
		})
	}
}

// Who was deleted while it joined stops asking for a vote.
func TestNoVoteForADeletedOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := newEtcds(t, time.Now().Add(time.Hour))
		e.faults = []fault{{err: store.ErrBehind}, {err: store.ErrNotFound}}
		if err := Vote(t.Context(), e, 2, slog.New(slog.DiscardHandler)); !errors.Is(err, store.ErrNotFound) {
			t.Error(err)
		}
	})
}
