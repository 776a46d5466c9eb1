package members

import (
	"cmp"
	"context"
	"log/slog"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/apiserver/authority"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/store/storetest"
)

func (e *etcds) KnownMembers(context.Context) ([]store.Member, error) { return e.all, nil }

func (e *etcds) Ask(_ context.Context, endpoint string, _ time.Duration) (store.MemberStatus, error) {
	for _, one := range e.all {
		if endpoint == "" || slices.Contains(one.Clients, endpoint) {
			return store.MemberStatus{ID: cmp.Or(e.answers[one.ID], one.ID), Leader: e.leader, Bytes: e.bytes}, nil
		}
	}
	return store.MemberStatus{}, store.ErrUnavailable
}

func (e *etcds) RemoveMember(_ context.Context, id uint64) error {
	e.all = slices.DeleteFunc(e.all, func(m store.Member) bool { return m.ID == id })
	if e.leader == id && len(e.all) > 0 {
		e.leader = e.all[0].ID
	}
	return nil
}

const ours, theirs = "https://192.0.2.1:2379", "https://192.0.2.2:2379"

// newMembers returns the Members of one API server a.
func newMembers(t *testing.T) (*Members, *etcds) {
	t.Helper()
	e := &etcds{Store: storetest.New(), leader: 1, all: []store.Member{{ID: 1, Name: "a", Peer: "https://192.0.2.1:2380", Clients: []string{ours}}}}
	m, err := New(t.Context(), Config{
		Self: 1, Endpoint: ours, Store: e, Etcd: e, Port: 2380, Log: slog.New(slog.DiscardHandler),
		Secret: func() (authority.Secret, error) { return authority.Secret{}, nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	return m, e
}

// A bundle that is made right after an API server has joined names its store, too: nodes keep
// reading when the first one is gone.
func TestEndpointsAreThoseOfTheMoment(t *testing.T) {
	m, e := newMembers(t)
	e.all = append(e.all, store.Member{ID: 2, Name: "b", Clients: []string{theirs}, Learner: true})
	if got := m.Endpoints(); !slices.Equal(got, []string{ours}) {
		t.Errorf("while another one joins: %v", got)
	}
	e.all[1].Learner = false
	if got := m.Endpoints(); !slices.Equal(got, []string{ours, theirs}) {
		t.Errorf("after another one has joined: %v", got)
	}
}

// A member whose store was restored has another number. It does not count any longer.
func TestAnotherStoreIsNotAMember(t *testing.T) {
	m, e := newMembers(t)
	e.all = append(e.all, store.Member{ID: 2, Name: "b", Clients: []string{theirs}}, store.Member{ID: 3, Name: "c", Clients: []string{"https://192.0.2.3:2379"}})
	for _, test := range []struct {
		answers uint64
		another bool
		quorum  api.Quorum
	}{
		{2, false, api.Quorum{Members: 3, Up: 3, Needed: 2}},
		{9, true, api.Quorum{Members: 3, Up: 2, Needed: 2}},
		{2, false, api.Quorum{Members: 3, Up: 3, Needed: 2}},
	} {
		e.answers = map[uint64]uint64{2: test.answers}
		all, err := m.now(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if got := Quorum(all); got != test.quorum || all[1].Another != test.another || all[0].Another || all[2].Another {
			t.Errorf("%d answers: %+v, %+v", test.answers, got, all)
		}
	}
}

// Whoever adds an API server and lists them sees it, without waiting for the next look. The
// same holds once it is deleted.
func TestAddedIsListedAtOnce(t *testing.T) {
	m, _ := newMembers(t)
	if _, err := m.Add(t.Context(), api.ServerRequest{Name: "b", Address: netip.MustParseAddr("192.0.2.2")}); err != nil {
		t.Fatal(err)
	}
	all := m.List()
	if len(all) != 2 || all[0].State != Up || all[1].Name != "b" || all[1].State != Invited || all[1].Address != "192.0.2.2:2380" {
		t.Errorf("after the addition: %+v", all)
	}
	if _, err := m.Remove(t.Context(), "b"); err != nil {
		t.Fatal(err)
	}
	if all := m.List(); len(all) != 1 || all[0].Name != "a" {
		t.Errorf("after the deletion: %+v", all)
	}
}

// Whoever is left alone leads, although the other one led while there were two, and what it
// says about itself stays current.
func TestTheLastOneLeads(t *testing.T) {
	m, e := newMembers(t)
	e.all = append(e.all, store.Member{ID: 2, Name: "b", Peer: "https://192.0.2.2:2380", Clients: []string{theirs}})
	e.leader, e.bytes = 2, 1<<20
	if _, err := m.now(t.Context()); err != nil {
		t.Fatal(err)
	}
	if all := m.List(); len(all) != 2 || all[0].Leads || !all[1].Leads {
		t.Fatalf("of two: %+v", all)
	}
	e.bytes = 2 << 20
	if _, err := m.Remove(t.Context(), "b"); err != nil {
		t.Fatal(err)
	}
	if all := m.List(); len(all) != 1 || !all[0].Leads || all[0].Bytes != 2<<20 {
		t.Errorf("alone: %+v", all)
	}
}
