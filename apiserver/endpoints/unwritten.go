package endpoints

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/apiserver/identities"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/wire"
)

// unwritten are endpoints and slices that cannot be written, until they are written or
// no longer wanted. The Controller's mutex guards it.
type unwritten map[owner]map[string]failure // by owner and key

// owner is the pod of an endpoint or the service of slices.
type owner struct{ kind, who string }

// failure is why a key is not written.
type failure struct {
	node  string // the pod's
	cause error
	round int // of complete lists, in which it last failed
}

// nameTaken is the cause for a slice whose key holds one that was applied by hand.
type nameTaken string

func (key nameTaken) Error() string {
	_, ns, slice, _ := wire.ParseObjectKey(string(key))
	return fmt.Sprintf("endpointslice %s/%s was applied by hand under the name that weft's own needs", ns, slice)
}

func podOwner(who name) owner     { return owner{"pod", who.String()} }
func serviceOwner(who name) owner { return owner{"service", who.String()} }

func (u unwritten) fail(o owner, key string, f failure) {
	if u[o] == nil {
		u[o] = map[string]failure{}
	}
	u[o][key] = f
}

// keep forgets the failures of an owner's keys that are no longer wanted.
func (u unwritten) keep(o owner, wanted func(key string) bool) {
	maps.DeleteFunc(u[o], func(key string, _ failure) bool { return !wanted(key) })
	if len(u[o]) == 0 {
		delete(u, o)
	}
}

// settled forgets what did not fail again in this round: its owner is gone.
func (u unwritten) settled(round int) {
	for o, keys := range u {
		maps.DeleteFunc(keys, func(_ string, f failure) bool { return f.round < round })
		if len(keys) == 0 {
			delete(u, o)
		}
	}
}

// cannotWrite reports whether an error concerns this write alone or passes by itself, so
// that the other writes can go on.
func cannotWrite(err error) bool {
	return errors.Is(err, identities.ErrExhausted) || errors.Is(err, store.ErrTooLarge) || errors.Is(err, store.ErrFull)
}

// concerns returns one line for each cause and kind, with an example if it concerns
// several owners.
func (u unwritten) concerns() (out []api.Concern) {
	type group struct {
		kind   string
		reason string
	}
	groups := map[group][]owner{}
	causes := map[group]error{}
	for o, keys := range u {
		for _, f := range keys {
			g := group{o.kind, reason(f.cause)}
			if !slices.Contains(groups[g], o) {
				groups[g] = append(groups[g], o)
			}
			causes[g] = f.cause
		}
	}
	for g, owners := range groups {
		first := slices.MinFunc(owners, func(a, b owner) int { return cmp.Compare(a.who, b.who) })
		c := api.Concern{Object: first.kind + " " + first.who, Reason: g.reason}
		for _, f := range u[first] {
			c.Node = f.node
		}
		subject := c.Object
		if c.Node != "" {
			subject += " on node " + c.Node
		}
		if len(owners) > 1 {
			subject = fmt.Sprintf("%d %ss (for example %s)", len(owners), first.kind, first.who)
		}
		c.Message, c.Next = sentence(g.kind, len(owners) > 1, subject, causes[g])
		out = append(out, c)
	}
	slices.SortFunc(out, func(a, b api.Concern) int {
		return cmp.Or(cmp.Compare(a.Object, b.Object), cmp.Compare(a.Reason, b.Reason))
	})
	return out
}

func reason(cause error) string {
	switch {
	case errors.As(cause, new(nameTaken)):
		return "SliceNameTaken"
	case errors.Is(cause, identities.ErrExhausted):
		return "IdentitiesExhausted"
	case errors.Is(cause, store.ErrTooLarge):
		return "TooLargeForStore"
	}
	return "StoreFull"
}

// sentence says what is wrong with a subject (one owner or many of a kind) and what to do.
func sentence(kind string, many bool, subject string, cause error) (message, next string) {
	late, its := "so its endpoint is not up to date", "its"
	switch {
	case many && kind == "pod":
		late, its = "so their endpoints are not up to date", "their"
	case many:
		late = "so their endpoint slices are not up to date"
	case kind == "service":
		late = "so its endpoint slices are not up to date"
	}
	switch reason(cause) {
	case "SliceNameTaken":
		return fmt.Sprintf("%s: %v, %s", subject, cause, late), "apply it under another name, or delete it"
	case "IdentitiesExhausted":
		return fmt.Sprintf("%s: no identity number is left in this cluster, %s", subject, late),
			"give pods equal labels where they need not differ: such pods share an identity"
	case "TooLargeForStore":
		next = "shorten " + its + " labels"
		if kind == "service" {
			next = "spread the pods over several services"
		}
		return fmt.Sprintf("%s: too large for the store, %s", subject, late), next
	}
	return fmt.Sprintf("%s: the store is full, %s", subject, late), api.StoreFull().Hint
}
