package endpoints

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/wire"
)

// What the store does not take is one line of the status that names the pod or the
// service and the node, until it is written or no longer wanted.
func TestWhatCannotBeWrittenIsAConcern(t *testing.T) {
	run(t, func(e *east) {
		var refuse error
		e.store.Fail(func(call, key string) error {
			if call != "commit" || strings.HasPrefix(key, wire.ObjectsPrefix) || strings.HasPrefix(key, wire.NodesPrefix) {
				return nil
			}
			return refuse // of an endpoint, with its identity
		})
		lines := func() string {
			var out []string
			for _, c := range e.Status().Concerns {
				if c.Object == "" || c.Reason == "" || c.Next == "" {
					e.t.Errorf("parts of %+v", c)
				}
				out = append(out, c.Object+"@"+c.Node+" "+c.String())
			}
			return strings.Join(out, "\n")
		}
		refuse = store.ErrTooLarge
		e.pod("web-1", "n1", "web")
		e.claim("n1", "web-1", "10.1.1.2", true)
		e.want("one pod", lines(), "pod shop/web-1@n1 pod shop/web-1 on node n1: too large for the store, so its endpoint is not up to date; shorten its labels")
		e.pod("web-2", "n2", "web")
		e.claim("n2", "web-2", "10.1.2.2", true)
		e.want("two pods", lines(), "pod shop/web-1@n1 2 pods (for example shop/web-1): too large for the store, so their endpoints are not up to date; shorten their labels")
		e.delete("pods", "shop", "web-1")
		e.want("the other is gone", lines(), "pod shop/web-2@n2 pod shop/web-2 on node n2: too large for the store, so its endpoint is not up to date; shorten its labels")
		refuse = nil
		time.Sleep(retryAfter)
		e.register(2) // any event
		synctest.Wait()
		e.want("it fits", lines(), "")

		refuse = store.ErrFull
		e.pod("web-3", "n1", "web")
		e.claim("n1", "web-3", "10.1.1.3", true)
		if !strings.Contains(lines(), "the store is full, so its endpoint is not up to date; make space") {
			e.t.Errorf("full: %q", lines())
		}
	})
}
