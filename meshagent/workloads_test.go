package meshagent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weft-mesh/weft/bpf"
	"github.com/weft-mesh/weft/meshagent/endpoint"
	"github.com/weft-mesh/weft/meshagent/tables"
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
				text, _ := east.cluster.store.Value(wire.NodeEndpointKey(east.name, "shop", fmt.Sprint("web-", i)))
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

// Where every free address was left a moment ago, a new pod says so and waits.
func TestAPodWaitsForAnAddressToRest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		east := w.node("east", 1)
		dir := filepath.Join(east.dir, "endpoints")
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		for ip := east.internal().Next(); east.cidr().Contains(ip.Next()); ip = ip.Next() {
			if err := os.WriteFile(filepath.Join(dir, ip.String()+".released"), []byte(time.Now().Format(time.RFC3339Nano)), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		east.run()
		east.pod("web-1", "web")
		row := func() tables.Endpoint {
			synctest.Wait()
			e := tables.Get(east.agent.Tables.DB.ReadTxn(), east.agent.Tables.Endpoints, "shop/web-1")
			if e == nil {
				t.Fatal("there is no such endpoint")
			}
			return *e
		}
		time.Sleep(endpoint.Grace - 2*time.Second)
		if e := row(); e.IP.IsValid() || !strings.Contains(e.Why, "253 of 10.1.1.0/24 rest for 1m0s") {
			t.Errorf("while all rest: %v, %q", e.IP, e.Why)
		}
		time.Sleep(4 * time.Second)
		if e := row(); e.IP.String() != "10.1.1.2" || e.Why != "" {
			t.Errorf("after that: %v, %q", e.IP, e.Why)
		}
		if _, err := os.Stat(filepath.Join(dir, "10.1.1.2.released")); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the file of the address that is used: %v", err)
		}
		east.stop()
	})
}
