package apiserver

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/weft-mesh/weft/apiserver/leader"
	"github.com/weft-mesh/weft/apiserver/members"
	"github.com/weft-mesh/weft/wire"
)

// An API server is one row and one concern, whatever the election and the store say of it.
func TestAnAPIServerIsShownOnce(t *testing.T) {
	now := time.Now()
	past := now.Add(-time.Minute)
	row := func(name string, alive bool) leader.Row {
		r := leader.Row{Server: wire.Server{ID: "id-" + name, Name: name, Started: past}, Alive: alive}
		if !alive {
			r.Missing = past
		}
		return r
	}
	leads := wire.Leader{Server: wire.Server{ID: "id-a", Name: "a"}, Since: past}
	member := func(name string, s members.State) members.Member {
		return members.Member{Name: name, State: s, Since: past}
	}
	for _, test := range []struct {
		name   string
		rows   []leader.Row
		stores []members.Member
		want   string
		say    []string // by concern
	}{
		{"an existing etcd", []leader.Row{row("a", true), row("b", false)}, nil, "a leads -, b missing -",
			[]string{"API server b has given no sign of life for {age}: start it, or `weft server delete b` if it is gone for good"}},
		{"all well", []leader.Row{row("a", true), row("b", true), row("c", true)},
			[]members.Member{member("a", members.Up), member("b", members.Up), member("c", members.Up)}, "a leads up, b ready up, c ready up", nil},
		{"one was killed", []leader.Row{row("a", true), row("b", true), row("c", false)},
			[]members.Member{member("a", members.Up), member("b", members.Up), member("c", members.Down)}, "a leads up, b ready up, c missing down",
			[]string{"API server c has given no sign of life for {age}; if another one fails, nothing can be written: start it; if its disk is lost, `weft server replace c`; if it is gone for good, `weft server delete c`"}},
		{"one was stopped", []leader.Row{row("a", true), row("b", true)},
			[]members.Member{member("a", members.Up), member("b", members.Up), member("c", members.Down)}, "a leads up, b ready up, c stopped down",
			[]string{"API server c is stopped; if another one fails, nothing can be written: start it; if its disk is lost, `weft server replace c`; if it is gone for good, `weft server delete c`"}},
		{"its store alone does not answer", []leader.Row{row("a", true), row("b", true)},
			[]members.Member{member("a", members.Up), member("b", members.Down)}, "a leads up, b ready down",
			[]string{"the store of API server b does not answer; 1 of 2 answer, so nothing can be written: look at its log, and whether the port of its --etcd-listen is open for the other API servers"}},
		{"some have not joined", []leader.Row{row("a", true)},
			[]members.Member{member("a", members.Up), member("b", members.Joining), member("c", members.Invited)}, "a leads up, b joining -, c invited -",
			[]string{"API server b has not caught up with the others: look at its log", "API server c was added and has never joined: start it with --join and its bundle, or `weft server delete c`"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			v := leader.View{Leader: leads, Servers: test.rows}
			var got []string
			for _, s := range serverRows(now, "east", "id-a", v, test.stores) {
				if s.AgeSeconds < 59 || s.AgeSeconds > 61 {
					t.Errorf("%s: age %v", s.Name, s.AgeSeconds)
				}
				store := s.Store
				if store == "" {
					store = "-"
				}
				got = append(got, s.Name+" "+s.State+" "+store)
			}
			if got := strings.Join(got, ", "); got != test.want {
				t.Errorf("%s, want %s", got, test.want)
			}
			var said []string
			for _, c := range serverConcerns("id-a", v, nil, test.stores) {
				said = append(said, c.Message+": "+c.Next)
				if c.Grace < serverGrace {
					t.Errorf("%s: grace %v", c.Message, c.Grace)
				}
			}
			if fmt.Sprintf("%q", said) != fmt.Sprintf("%q", test.say) {
				t.Errorf("concerns\n%q\nwant\n%q", said, test.say)
			}
		})
	}
}
