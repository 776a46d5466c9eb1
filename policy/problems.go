package policy

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// path is a place in a manifest, such as spec.ingress[0].toPorts.
type path string

func (p path) field(name string) path {
	if p == "" {
		return path(name)
	}
	return p + "." + path(name)
}

func (p path) index(i int) path    { return p + path("["+strconv.Itoa(i)+"]") }
func (p path) key(key string) path { return p + path("["+strconv.Quote(key)+"]") }

// problems collects everything that is wrong, so that an operator sees it all at once.
type problems struct {
	list   []error
	stored bool // see ParseStored
	// unknown are the fields that do not exist. They are the first in list.
	unknown []string
}

// leaveOutEchoes drops what may only be said because a field was misspelt: that the field
// meant is missing, and what follows for those around it.
func (ps *problems) leaveOutEchoes() {
	n := len(ps.unknown)
	rest := slices.DeleteFunc(slices.Clone(ps.list[n:]), func(err error) bool {
		at, what, _ := strings.Cut(err.Error(), ": ")
		return slices.ContainsFunc(ps.unknown, func(field string) bool {
			parent := field[:max(0, strings.LastIndex(field, "."))]
			beside := parent == "" || strings.HasPrefix(at, parent+".")
			around := strings.HasPrefix(field, at+".") || strings.HasPrefix(field, at+"[")
			return around || beside && strings.HasPrefix(what, "is missing")
		})
	})
	ps.list = append(ps.list[:n:n], rest...)
}

func (ps *problems) add(at path, format string, args ...any) {
	ps.list = append(ps.list, fmt.Errorf("%s: "+format, append([]any{at}, args...)...))
}

// addNew reports what is refused in new manifests only. In stored ones it does no harm:
// it merely has no effect.
func (ps *problems) addNew(at path, format string, args ...any) {
	if !ps.stored {
		ps.add(at, format, args...)
	}
}
