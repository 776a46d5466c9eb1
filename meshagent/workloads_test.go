package meshagent

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weft-mesh/weft/bpf"
	"github.com/weft-mesh/weft/meshagent/endpoint"
	"github.com/weft-mesh/weft/wire"
)

// slowPlumbing takes 100 ms for each step, and forever for one pod.
type slowPlumbing struct {
	endpoint.Plumbing
	stuck string
	ctx   context.Context
}

func (s slowPlumbing) Create(r endpoint.Record) (endpoint.Link, error) {
	if r.Pod == s.stuck {
		<-s.ctx.Done()
		return endpoint.Link{}, s.ctx.Err()
	}
	time.Sleep(100 * time.Millisecond)
	return s.Plumbing.Create(r)
}

func (s slowPlumbing) Remove(r endpoint.Record) error {
	time.Sleep(100 * time.Millisecond)
	return s.Plumbing.Remove(r)
}

// Many pods get their network at the same time, one that is stuck keeps neither
// the others nor their readiness, and what is deleted is taken back at once.
func TestPodsDoNotWaitForOneAnother(t *testing.T) {
	const pods = 28
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		east := w.node("east", 1)
		stuck, release := context.WithCancel(t.Context())
		east.alter = func(e *Edges) { e.Plumbing = slowPlumbing{e.Plumbing, "stuck", stuck} }
		east.run()
		w.step()
		east.pod("stuck", "web")
		for i := range pods {
			east.pod(fmt.Sprint("web-", i), "web")
		}
		ready := func() (n int) {
			for i := range pods {
				text, _ := east.cluster.store.Get(wire.NodeEndpointKey(east.name, "shop", fmt.Sprint("web-", i)))
				if e, err := wire.Unmarshal[wire.EndpointState](text); err == nil && e.Ready {
					n++
				}
			}
			return n
		}
		time.Sleep(100*pods/(plumbers-1)*time.Millisecond + 10*time.Millisecond)
		synctest.Wait()
		if got := len(rowsOf(t, east.maps().Endpoints)); got != pods {
			t.Errorf("%d of %d pods have their network", got, pods)
		}
		w.step()
		if got := ready(); got != pods {
			t.Errorf("%d of %d pods are ready", got, pods)
		}

		for i := range pods {
			_ = east.cluster.store.Delete(t.Context(), wire.ObjectKey("pods", "shop", fmt.Sprint("web-", i)))
		}
		time.Sleep(10 * time.Millisecond)
		synctest.Wait()
		if got := ready(); got != 0 {
			t.Errorf("the node still speaks of %d deleted pods", got)
		}
		if got := len(rowsOf(t, east.maps().Endpoints)); got != 0 {
			t.Errorf("%d deleted pods are still open", got)
		}
		time.Sleep(time.Second)
		synctest.Wait()
		if got := len(rowsOf(t, east.maps().Endpoints)); got != 0 {
			t.Errorf("%d rows are left", got)
		}
		attached, _ := east.datapath.Attached()
		for _, a := range attached {
			if a.Role == bpf.RolePod {
				t.Errorf("device %d still has programs", a.Ifindex)
			}
		}
		release()
		east.stop()
	})
}
