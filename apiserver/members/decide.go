// Package members forms one store of the embedded etcds of several API servers: it admits
// them, replaces and removes them, and watches whether they answer.
//
// Package embedded runs each of them; which of the API servers leads is decided in package
// leader.
package members

import (
	"fmt"
	"slices"
	"time"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/store"
)

// A store of n members can be written while more than half of them answer. What is decided
// here never trades that for anything.

// most is the largest number of members. Each write goes to all of them.
const most = 7

// State is what is known about a member.
type State string

// States of a member.
const (
	Up      State = "up"
	Down    State = "down"
	Joining State = "joining" // it has no vote yet
	Invited State = "invited" // it was added, and has never joined
)

// Member is one API server's part of the store.
type Member struct {
	Name    string
	Address string // where the other members reach it, host:port
	State   State
	Since   time.Time // when the state began, as far as this API server knows
	Leads   bool      // the others follow it
	Another bool      // it is down because another store answers in its place
	Version string    // of its etcd; empty if it does not answer
	Bytes   int64

	id uint64 // 0: the store does not list it
}

// AnotherStore reports whether a member that answers belongs to another store than self, which
// lists the members listed: neither knows the other. A member that was only replaced has
// another number too, but knows self; one by which self was removed is known.
func AnotherStore(self uint64, listed []uint64, answers uint64, theirs []store.Member) bool {
	return !slices.Contains(listed, answers) && !slices.ContainsFunc(theirs, func(m store.Member) bool { return m.ID == self })
}

// Quorum counts votes. Whoever joins or is invited has none.
func Quorum(all []Member) (q api.Quorum) {
	for _, m := range all {
		switch m.State {
		case Up:
			q.Members, q.Up = q.Members+1, q.Up+1
		case Down:
			q.Members++
		}
	}
	q.Needed = needed(q.Members)
	return q
}

// needed is how many of n members have to answer.
func needed(n int) int { return n/2 + 1 }

// mayAdd says why no further member may be added now; nil if it may.
func mayAdd(all []Member, name, address string) error {
	for _, m := range all {
		switch {
		case m.Name == name && m.State != Invited:
			return api.Conflict("choose another name; if that one has lost its disk, use `weft server replace "+name+"`", "there is an API server %s already", name)
		case m.Name != name && m.Address == address:
			return api.Conflict("give the address of the new machine", "API server %s has the address %s", m.Name, address)
		}
	}
	q := Quorum(all)
	switch {
	case len(all) >= most && !slices.ContainsFunc(all, func(m Member) bool { return m.Name == name }):
		return api.Conflict("three or five are enough: each change is written by all of them", "there are %d API servers already", len(all))
	case q.Up < q.Needed:
		return noQuorum(q)
	case q.Members > 1 && q.Up < needed(q.Members+1):
		return api.Conflict("start those that are down first, or delete or replace them (`weft server list`)",
			"%s of %d members of the store answer; of %d, %d would have to", count(q.Up), q.Members, q.Members+1, needed(q.Members+1))
	}
	return nil
}

// mayRemove says why a member may not be removed; nil if it may.
func mayRemove(all []Member, name string) error {
	m, err := find(all, name)
	if err != nil {
		return err
	}
	q := Quorum(all)
	if m.State == Joining || m.State == Invited {
		return nil // it has no vote
	}
	if q.Members == 1 {
		return api.Conflict("to end the cluster, stop it and erase its data folder", "%s is the only API server: without it there is no store", name)
	}
	if q.Up < q.Needed {
		return noQuorum(q)
	}
	left := q
	left.Members--
	left.Needed = needed(left.Members)
	if m.State == Up {
		left.Up--
	}
	if left.Up < left.Needed {
		return api.Conflict("start those that are down first, or delete one of them instead (`weft server list`)",
			"without %s, %s of %d members of the store would answer, and %d are needed: nothing could be written any longer", name, count(left.Up), left.Members, left.Needed)
	}
	return nil
}

// mayReplace says why a member may not come back with an empty disk; nil if it may.
func mayReplace(all []Member, name string) error {
	m, err := find(all, name)
	switch {
	case err != nil:
		return err
	case m.State == Up:
		return api.Conflict("stop it first", "API server %s is running", name)
	}
	return mayRemove(all, name)
}

func find(all []Member, name string) (Member, error) {
	i := slices.IndexFunc(all, func(m Member) bool { return m.Name == name })
	if i < 0 {
		return Member{}, api.NotFound("`weft server list` lists them", "there is no API server %q", name)
	}
	return all[i], nil
}

func noQuorum(q api.Quorum) error {
	return api.Conflict("start the API servers that are down; if most of them are lost, restore a backup (`weft restore`)",
		"%s of %d members of the store answer, and %d are needed", count(q.Up), q.Members, q.Needed)
}

func count(n int) string {
	if n == 0 {
		return "none"
	}
	return fmt.Sprint(n)
}

// Margin says how near the store is to standing still; empty while it may lose a member, and
// if there are no others to lose.
func Margin(q api.Quorum) string {
	switch {
	case q.Members < 2:
		return ""
	case q.Up < q.Needed:
		return fmt.Sprintf("%s of %d answer, so nothing can be written", count(q.Up), q.Members)
	case q.Up == q.Needed:
		return "if another one fails, nothing can be written"
	}
	return ""
}
