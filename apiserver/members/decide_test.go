package members

import (
	"errors"
	"strings"
	"testing"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/store"
)

// members are written as "a:up b:down c:joining".
func listed(text string) (all []Member) {
	for _, word := range strings.Fields(text) {
		name, state, _ := strings.Cut(word, ":")
		all = append(all, Member{Name: name, State: State(state), Address: name + ":2380"})
	}
	return all
}

func TestQuorum(t *testing.T) {
	for text, want := range map[string]api.Quorum{
		"a:up":                           {Members: 1, Up: 1, Needed: 1},
		"a:up b:up":                      {Members: 2, Up: 2, Needed: 2},
		"a:up b:down c:up":               {Members: 3, Up: 2, Needed: 2},
		"a:up b:joining c:invited":       {Members: 1, Up: 1, Needed: 1},
		"a:down b:down c:up d:up e:up":   {Members: 5, Up: 3, Needed: 3},
		"a:down b:down c:up d:up":        {Members: 4, Up: 2, Needed: 3},
		"a:down b:down c:down e:joining": {Members: 3, Up: 0, Needed: 2},
	} {
		if got := Quorum(listed(text)); got != want {
			t.Errorf("%s: %+v, want %+v", text, got, want)
		}
	}
}

// Nothing is done that leaves fewer members up than are needed to write.
func TestQuorumIsNeverGivenAway(t *testing.T) {
	for _, test := range []struct {
		name, all, verb, member string
		want                    string // part of the refusal; "": allowed
	}{
		{"the only one", "a:up", "remove", "a", "is the only API server"},
		{"one of two", "a:up b:up", "remove", "b", ""},
		{"the dead one of two leaves no quorum to decide it", "a:up b:down", "remove", "b", "1 of 2 members of the store answer, and 2 are needed"},
		{"one of three", "a:up b:up c:up", "remove", "c", ""},
		{"the dead one of three", "a:up b:up c:down", "remove", "c", ""},
		{"a live one of three while one is dead", "a:up b:up c:down", "remove", "b", "without b, 1 of 2 members of the store would answer, and 2 are needed"},
		{"one of three without a quorum", "a:up b:down c:down", "remove", "c", "1 of 3 members of the store answer"},
		{"a live one of five while two are dead", "a:up b:up c:up d:down e:down", "remove", "a", "without a, 2 of 4 members of the store would answer, and 3 are needed"},
		{"a dead one of five while two are dead", "a:up b:up c:up d:down e:down", "remove", "e", ""},
		{"a learner needs no quorum", "a:up b:down c:down d:joining", "remove", "d", ""},
		{"one that never came", "a:up b:invited", "remove", "b", ""},
		{"a stranger", "a:up", "remove", "x", `there is no API server "x"`},

		{"a live one", "a:up b:up c:up", "replace", "c", "API server c is running"},
		{"a dead one of three", "a:up b:up c:down", "replace", "c", ""},
		{"a dead one of two", "a:up b:down", "replace", "b", "1 of 2 members of the store answer"},
		{"one whose learner never caught up", "a:up b:up c:joining", "replace", "c", ""},
		{"while another joins", "a:up b:up c:down d:joining", "replace", "c", ""},

		{"the second", "a:up", "add", "b", ""},
		{"the third", "a:up b:up", "add", "c", ""},
		{"one by the name of another", "a:up b:up", "add", "b", "there is an API server b already"},
		{"a new bundle for one that is invited", "a:up b:invited", "add", "b", ""},
		{"two at a time", "a:up b:invited", "add", "c", ""},
		{"without a quorum", "a:up b:down c:down", "add", "d", "1 of 3 members of the store answer"},
		{"while one of three is dead", "a:up b:up c:down", "add", "d", "2 of 3 members of the store answer; of 4, 3 would have to"},
		{"while one of five is dead", "a:up b:up c:up d:up e:down", "add", "f", ""},
		{"the eighth", "a:up b:up c:up d:up e:up f:up g:up", "add", "h", "there are 7 API servers already"},
	} {
		t.Run(test.verb+" "+test.name, func(t *testing.T) {
			all := listed(test.all)
			var err error
			switch test.verb {
			case "add":
				err = mayAdd(all, test.member, test.member+":2380")
			case "remove":
				err = mayRemove(all, test.member)
			case "replace":
				err = mayReplace(all, test.member)
			}
			var refusal *api.Error
			switch {
			case test.want == "" && err != nil, test.want != "" && !errors.As(err, &refusal):
				t.Errorf("%v, want %q", err, test.want)
			case test.want != "" && !strings.Contains(refusal.Message, test.want):
				t.Errorf("%q, want %q", refusal.Message, test.want)
			}
		})
	}
	if err := mayAdd(listed("a:up b:up"), "c", "b:2380"); err == nil || !strings.Contains(err.Error(), "API server b has the address b:2380") {
		t.Error("two at one address:", err)
	}
}

func TestAnotherStore(t *testing.T) {
	list := func(ids ...uint64) (all []store.Member) {
		for _, id := range ids {
			all = append(all, store.Member{ID: id})
		}
		return all
	}
	for name, test := range map[string]struct {
		answers uint64
		theirs  []store.Member
		want    bool
	}{
		"a member":                          {2, list(1, 2, 3), false},
		"restored alone":                    {9, list(9), true},
		"restored, and joined by the third": {9, list(9, 8), true},
		"replaced since":                    {9, list(1, 9, 3), false},
		"by which this one was removed":     {2, list(2, 3), false}, // its etcd says that
	} {
		if got := AnotherStore(1, []uint64{1, 2, 3}, test.answers, test.theirs); got != test.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

func TestMargin(t *testing.T) {
	for text, want := range map[string]string{
		"a:up b:up c:up":                 "",
		"a:up b:up":                      "if another one fails, nothing can be written",
		"a:up b:up c:down":               "if another one fails, nothing can be written",
		"a:up b:down c:down":             "1 of 3 answer, so nothing can be written",
		"a:up b:up c:up d:up e:down":     "",
		"a:down b:down c:down d:invited": "none of 3 answer, so nothing can be written",
	} {
		if got := Margin(Quorum(listed(text))); got != want {
			t.Errorf("%s: %q, want %q", text, got, want)
		}
	}
}

func TestNames(t *testing.T) {
	for name, good := range map[string]bool{"n1": true, "rack-1.example.com": true, "": false, "N1": false, "-a": false, "a/b": false, "a=b": false, "a,b": false, strings.Repeat("a", 64): false} {
		if err := CheckName(name); (err == nil) != good {
			t.Errorf("%q: %v", name, err)
		}
	}
}
