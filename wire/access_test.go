package wire

import (
	"slices"
	"strings"
	"testing"
)

func TestAccessFollows(t *testing.T) {
	for name, test := range map[string]struct{ used, before, now, want string }{
		"one more":                           {"a", "", "a b", "a b"},
		"another one":                        {"a b", "a b", "a b c", "a b c"},
		"one less":                           {"a b", "a b", "b", "b"},
		"all replaced, one by one":           {"a b", "a b", "b c", "b c"},
		"all replaced at once":               {"a b", "a b", "c", "c"},
		"one that was deleted before":        {"a b", "", "b c", "b c a"},
		"one added by hand stays":            {"a hand", "a", "b", "b hand"},
		"one added by hand is named, too":    {"a b", "a", "a b", "a b"},
		"and is then deleted":                {"a b", "a b", "a", "a"},
		"a load balancer stays alone":        {"lb", "", "a b", "lb"},
		"also when the servers change":       {"lb", "a b", "b c", "lb"},
		"nothing was used":                   {"", "", "a", "a"},
		"nothing is named":                   {"a", "a", "", "a"},
		"nothing is new, in the same order":  {"b a", "b a", "b a", "b a"},
		"nothing is new, in the named order": {"b a", "b a", "a b", "a b"},
	} {
		list := strings.Fields
		access := func(text string) Access { return Access{Servers: list(text), Etcd: list(text), Gossip: list(text)} }
		got := access(test.used).Follow(access(test.before), access(test.now))
		if !got.Equal(access(test.want)) {
			t.Errorf("%s: %v, want %q", name, got, test.want)
		}
		if again := got.Follow(access(test.now), access(test.now)); !again.Equal(got) {
			t.Errorf("%s: told the same again: %v, was %v", name, again, got)
		}
	}
	// An address that may be forgotten later is one that the cluster has named.
	a, b := Access{Etcd: []string{"a", "x"}}, Access{Etcd: []string{"b", "x"}, Gossip: []string{"g"}}
	both := Access{Etcd: []string{"b", "x", "a"}, Gossip: []string{"g"}}
	if got := b.And(a); !got.Equal(both) {
		t.Errorf("both: %v", got)
	}
	if got := a.Follow(a, both).Follow(both, b); !got.Equal(b) {
		t.Errorf("by way of both: %v", got)
	}
	if gone := a.Lacks(b); !slices.Equal(gone, []string{"a"}) {
		t.Errorf("gone: %v", gone)
	}
	// The lists are followed each on its own.
	got := Access{Servers: []string{"lb"}, Etcd: []string{"a"}}.Follow(Access{}, Access{Servers: []string{"a"}, Etcd: []string{"a", "b"}})
	if !slices.Equal(got.Servers, []string{"lb"}) || !slices.Equal(got.Etcd, []string{"a", "b"}) || got.Gossip != nil {
		t.Errorf("a load balancer before the API alone: %v", got)
	}
}
