package policy

import (
	"fmt"
	"strconv"
)

// path is where in a manifest something stands, as spec.ingress[0].toPorts.
type path string

func (p path) field(name string) path {
	if p == "" {
		return path(name)
	}
	return p + "." + path(name)
}

func (p path) index(i int) path    { return p + path("["+strconv.Itoa(i)+"]") }
func (p path) key(key string) path { return p + path("["+strconv.Quote(key)+"]") }

// problems collects everything that is wrong, so that an operator sees it at
// once.
type problems struct {
	list []error
}

func (ps *problems) add(at path, format string, args ...any) {
	ps.list = append(ps.list, fmt.Errorf("%s: "+format, append([]any{at}, args...)...))
}
