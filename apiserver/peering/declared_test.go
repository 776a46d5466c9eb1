package peering

import (
	"errors"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/wire"
)

// Who joined a peer alone changes it: a command, or an object of Kubernetes.
func TestWhoseAPeerIs(t *testing.T) {
	there := store.Cond{Key: wire.PeerKey("west"), Modified: 7}
	for name, c := range map[string]struct {
		peer    wire.Peer
		cond    store.Cond
		by      way
		follows bool
		refused bool
	}{
		"nobody's, by command":         {wire.Peer{}, store.Cond{}, byCommand, true, false},
		"nobody's, by object":          {wire.Peer{}, store.Cond{}, byObject, true, false},
		"a command's, by command":      {wire.Peer{Name: "west"}, there, byCommand, true, false},
		"a command's, by object":       {wire.Peer{Name: "west"}, there, byObject, true, true},
		"an object's, by object":       {wire.Peer{Name: "west", Declared: true}, there, byObject, true, false},
		"an object's, by command":      {wire.Peer{Name: "west", Declared: true}, there, byCommand, true, true},
		"an object's, as Cilium":       {wire.Peer{Name: "west", Declared: true}, there, asCilium, true, true},
		"an object's that nobody sees": {wire.Peer{Name: "west", Declared: true}, there, byCommand, false, false},
		"being removed":                {wire.Peer{Name: "west", Removing: true}, there, byObject, true, false},
	} {
		p := New(Config{Declares: c.follows})
		err := p.mine(c.peer, c.cond, c.by)
		var refusal *api.Error
		if (err != nil) != c.refused || err != nil && (!errors.As(err, &refusal) || refusal.Status != http.StatusConflict || refusal.Hint == "") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// What an object has joined is parted without a trace by the object's end, and by nothing else.
func TestDeclared(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		east, west := w.cluster(t, "east", 1), w.cluster(t, "west", 2)
		defer func() { east.stop(); west.stop() }()
		east.p.conf.Declares, west.p.conf.Declares = true, true
		blank := east.left()
		for range 2 {
			in, err := west.p.InviteDeclared(t.Context(), "east")
			if err != nil {
				t.Fatal(err)
			}
			if err := east.p.AddDeclared(t.Context(), in); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
			names, err := east.p.Declared(t.Context())
			if records, known := east.p.Records(); err != nil || !known || len(records) != 1 || !slices.Equal(names, []string{"west"}) {
				t.Errorf("declared are %v of %v, %v, %v", names, records, known, err)
			}
			if _, err := east.p.Add(t.Context(), in); !refusal(err, http.StatusConflict) {
				t.Errorf("added by command: %v", err)
			}
			if _, err := east.p.Invite(t.Context(), "west"); !refusal(err, http.StatusConflict) {
				t.Errorf("invited by command: %v", err)
			}
			if err := east.p.Remove(t.Context(), "west"); !refusal(err, http.StatusConflict) {
				t.Errorf("removed by command: %v", err)
			}
			if err := east.p.RemoveDeclared(t.Context(), "west"); err != nil {
				t.Fatal(err)
			}
			left := slices.DeleteFunc(east.left(), func(line string) bool { return strings.HasPrefix(line, wire.FormerKey("west")) }) // it stays blocked
			if diff := cmp.Diff(blank, left); diff != "" {
				t.Errorf("left behind:\n%s", diff)
			}
		}
		in, err := west.p.InviteDeclared(t.Context(), "east")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := east.p.Add(t.Context(), in); err != nil {
			t.Fatal(err)
		}
		if err := east.p.AddDeclared(t.Context(), in); !refusal(err, http.StatusConflict) {
			t.Errorf("an object takes over what a command has joined: %v", err)
		}
		if err := east.p.RemoveDeclared(t.Context(), "west"); err != nil {
			t.Fatal(err)
		}
		names, err := east.p.Declared(t.Context())
		_, is, failed := east.p.peer(t.Context(), "west")
		if err != nil || failed != nil || len(names) != 0 || is.Modified == 0 {
			t.Errorf("an object's end has parted what a command has joined: %v, %v, %v", names, err, failed)
		}
	})
}
