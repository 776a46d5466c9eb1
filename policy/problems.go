package policy

import (
	"fmt"
	"strconv"
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
