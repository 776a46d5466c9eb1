package registry

import (
	"context"
	"slices"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/apiserver/journal"
)

// Unit is a part of a source that is accepted whole or not at all, whatever is wrong with
// the rest: a file with its objects, or a single object.
type Unit struct {
	Name     string // unique in its source; messages begin with it
	Manifest []byte // YAML or JSON; it may hold no object
	// Object is one object in JSON, instead of Manifest. The registry of Kubernetes' objects
	// keeps its UID and its creation time.
	Object []byte
}

// Set is what a source has.
type Set struct {
	Units []Unit
	// Complete says that the source has nothing else, and is sure of it: what else it owns
	// in the registry is deleted. A source that could not read everything sets it to false.
	Complete bool
}

// Outcome is what became of a Set.
type Outcome struct {
	// Changed are the objects that were created, changed or deleted, or became the source's.
	Changed []api.AppliedObject
	// Refused are the mistakes, with their units as files. What the store has of a unit
	// with a mistake stays as it is.
	Refused  []api.Problem
	Warnings []api.Problem
	// Kept is how many objects the source owns that are not in the set. They are not
	// deleted if it is not complete, or if a unit cannot be read.
	Kept int
}

// Owned is the registry for a source of objects: all that it writes belongs to the source.
type Owned struct {
	registry *Registry
	owner    string
}

// Owned returns the registry for the source that owns objects under a name.
func (r *Registry) Owned(owner string) *Owned { return &Owned{r, owner} }

// Sync makes the source's objects what it has. Objects of other owners stay: a unit that
// would overwrite one is refused. It may be repeated at any time.
func (s *Owned) Sync(ctx context.Context, set Set) (*Outcome, error) {
	if callerOf(ctx).User == "" {
		ctx = By(ctx, Caller{User: "source " + s.owner})
	}
	keep, readable := s.named(set.Units)
	out, err := s.make(ctx, func(out *Outcome) ([]change, error) {
		return s.plan(ctx, set, keep, readable && set.Complete, out)
	})
	if err == nil {
		out.Refused = tellable(out.Refused, "there are more mistakes than these")
	}
	return out, err
}

// make makes what plan returns, again if somebody else changed the same objects meanwhile.
func (s *Owned) make(ctx context.Context, plan func(*Outcome) ([]change, error)) (*Outcome, error) {
	for range attempts {
		out := &Outcome{}
		result, done, err := s.registry.change(ctx, false, func() ([]change, error) { return plan(out) })
		if err != nil {
			return nil, err
		}
		if !done {
			continue
		}
		out.Warnings = result.Warnings
		for _, o := range result.Objects {
			if o.Action != api.Unchanged {
				out.Changed = append(out.Changed, o)
			}
		}
		return out, nil
	}
	return nil, busy()
}

// Turn returns a mark that differs once the objects of the cluster, or the nodes that they
// need, have changed: by whomever, so Sync may have something to do.
func (s *Owned) Turn(ctx context.Context) (journal.Turn, error) {
	turn, err := s.registry.journal.Turn(ctx)
	if err != nil {
		return nil, storeError(err)
	}
	return turn, nil
}

// named returns the keys of all objects in the units, also of those with mistakes. It is
// false if a unit cannot be read that far.
func (s *Owned) named(units []Unit) (keys map[string]bool, readable bool) {
	keys, readable = map[string]bool{}, true
	for _, u := range units {
		objects, problems := s.readUnit(u, true)
		readable = readable && len(problems) == 0
		for _, o := range objects {
			keys[o.key()] = true
		}
	}
	return keys, readable
}

// plan compares the set with the store and returns what to write.
func (s *Owned) plan(ctx context.Context, set Set, keep map[string]bool, complete bool, out *Outcome) ([]change, error) {
	*out = Outcome{}
	by := writer{owner: s.owner}
	changes, err := s.planUnits(ctx, set.Units, by, out)
	if err != nil {
		return nil, err
	}
	gone, err := s.registry.heldBy(ctx, s.owner, keep)
	if err != nil {
		return nil, err
	}
	if !complete {
		out.Kept = len(gone)
		return changes, nil
	}
	deletions, problems, err := s.registry.planDeletion(ctx, gone, by)
	out.Refused = append(out.Refused, problems...)
	return append(changes, deletions...), err
}

// planUnits plans the units without mistakes. Each round leaves out those in which the one
// before found some; a plan completes the objects, so they are read again.
func (s *Owned) planUnits(ctx context.Context, units []Unit, by writer, out *Outcome) ([]change, error) {
	bad := map[string]bool{}
	for {
		units = slices.DeleteFunc(slices.Clone(units), func(u Unit) bool { return bad[u.Name] })
		objects, problems := s.readUnits(units)
		var changes []change
		if len(problems) == 0 {
			var err error
			if changes, problems, err = s.registry.plan(ctx, objects, by); err != nil {
				return nil, err
			}
		}
		if len(problems) == 0 {
			return changes, nil
		}
		for _, p := range problems {
			bad[p.File] = true
		}
		out.Refused = append(out.Refused, problems...)
	}
}

// readUnits reads all objects of the units. An object belongs to the first unit that has it.
func (s *Owned) readUnits(units []Unit) (all []object, problems []api.Problem) {
	holder := map[string]string{}
	for _, u := range units {
		objects, found := s.readUnit(u, false)
		for i := range objects {
			o := &objects[i]
			o.unit = u.Name
			for j := range o.warnings {
				o.warnings[j].File = u.Name
			}
			if first, twice := holder[o.key()]; twice {
				found = append(found, o.problem("is in %s too; keep one of them", first))
			} else {
				holder[o.key()] = u.Name
			}
		}
		for i := range found {
			found[i].File = u.Name
		}
		all, problems = append(all, objects...), append(problems, found...)
	}
	return all, problems
}

// readUnit reads the objects of a unit.
func (s *Owned) readUnit(u Unit, headOnly bool) ([]object, []api.Problem) {
	if u.Object == nil {
		return readDocuments(u.Manifest, api.ManifestOptions{}, headOnly)
	}
	o, problems := readObject(0, 0, u.Object, api.ManifestOptions{}, headOnly, writer{owner: s.owner}.native())
	if o == nil || len(problems) > 0 {
		return nil, problems
	}
	return []object{*o}, nil
}
