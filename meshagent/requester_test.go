package meshagent

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/bpf"
	"github.com/weft-mesh/weft/bpf/bpftest"
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
		time.Sleep(100*pods/(endpoint.Plumbers-1)*time.Millisecond + 10*time.Millisecond)
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

// A pod that was replaced under its name while no agent ran is another pod: it gets its own
// network as soon as that of its predecessor is gone.
func TestAPodReplacedWhileTheAgentWasDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		east := w.node("east", 1)
		east.run()
		east.podOf("web-1", "uid-1")
		w.step()
		east.stop()
		east.podOf("web-1", "uid-2")
		east.run()
		w.step()
		e := east.endpoint("web-1")
		if e.UID != "uid-2" || e.IP.String() != "10.1.1.3" || e.Phase != tables.Live || !e.Ready || east.plumbing.Links() != 1 {
			t.Errorf("it has %+v, on %d links", e, east.plumbing.Links())
		}
		east.stop()
	})
}

// A pod whose removal failed, and that a restored store lists again, gets its network back.
func TestAPodComesBackBeforeItsRemovalCameToAnEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		east := w.node("east", 1)
		east.run()
		east.podOf("web-1", "uid-1")
		w.step()
		before := east.endpoint("web-1")
		var failing atomic.Bool
		failing.Store(true)
		east.maps().Endpoints.(*bpftest.Table[bpf.Addr, bpf.Endpoint]).Fail(func(string, bpf.Addr) error {
			if failing.Load() {
				return errors.New("no memory")
			}
			return nil
		})
		_ = east.cluster.store.Delete(t.Context(), wire.ObjectKey("pods", "shop", "web-1"))
		w.step()
		if e := east.endpoint("web-1"); e.Phase != tables.Removing {
			t.Fatalf("its removal did not fail: %+v", e)
		}
		east.podOf("web-1", "uid-1")
		w.step()
		failing.Store(false)
		time.Sleep(30 * time.Second)
		w.step()
		if e := east.endpoint("web-1"); e.Phase != tables.Live || !e.Ready || e.IP != before.IP || e.Why != "" {
			t.Errorf("it has %+v, before %+v", e, before)
		}
		east.stop()
	})
}

// Where the pods are requested, a pod's object alone brings no network, and a list that
// does not have the pod yet takes none away: neither at once nor after a restart.
func TestPodsByRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		east := w.node("east", 1)
		east.podsFrom = Requests
		east.run()
		east.podOf("web-1", "uid-1")
		w.step()
		if n := east.plumbing.Links(); n != 0 {
			t.Errorf("%d pods got a network without a request", n)
		}
		add := func(name, uid string) {
			t.Helper()
			if _, err := east.agent.endpoints.Add(t.Context(), api.EndpointRequest{Namespace: "shop", Name: name, UID: uid}); err != nil {
				t.Fatal(err)
			}
		}
		add("web-1", "uid-1")
		add("web-2", "uid-2") // its object comes later
		w.step()
		file := filepath.Join(east.dir, "endpoints", "shop_web-1.json")
		for range 2 {
			if one, two := east.endpoint("web-1"), east.endpoint("web-2"); one.Phase != tables.Live || two.Phase != tables.Held {
				t.Errorf("with an object %+v, without %+v", one, two)
			}
			east.stop()
			if err := os.WriteFile(file, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			east.run()
			w.step()
			// Its runtime does not request it again: the agent does, with what the list has.
			if text, err := os.ReadFile(file); err != nil || !strings.Contains(string(text), `"uid":"uid-1"`) {
				t.Errorf("a damaged record is written again as %q, %v", text, err)
			}
		}
		east.podOf("web-2", "uid-2")
		w.step()
		if e := east.endpoint("web-2"); e.Phase != tables.Live || !e.Ready {
			t.Errorf("once its object has come: %+v", e)
		}
		for _, name := range []string{"web-1", "web-2"} {
			_ = east.cluster.store.Delete(t.Context(), wire.ObjectKey("pods", "shop", name))
			w.step()
			if e := east.endpoint(name); e.Phase != "" {
				t.Errorf("%s is gone from the list: %+v", name, e)
			}
			east.stop() // the second one is gone from the list of the next agent
			east.run()
		}
		w.step()
		if n := east.plumbing.Links(); n != 0 {
			t.Errorf("%d pods are left", n)
		}
		east.stop()
	})
}

func TestGone(t *testing.T) {
	for name, c := range map[string]struct {
		evidence
		want bool
	}{
		"listed":                              {evidence{listed: true, ours: true, seen: true, ran: true, dead: true}, false},
		"never listed, requested by others":   {evidence{}, false},
		"never listed, requested by objects":  {evidence{ours: true}, true},
		"listed before":                       {evidence{seen: true}, true},
		"it had an identity":                  {evidence{ran: true}, true},
		"requested before the machine booted": {evidence{dead: true}, true},
	} {
		if got := gone(c.evidence); got != c.want {
			t.Errorf("%s: gone %v", name, got)
		}
	}
}

// The socket takes requests where pods come by request, and says what to do where they
// come by their objects. The port for operators takes none.
func TestWhoMayRequestPodsNetworks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		east := w.node("east", 1)
		ask := func(h http.Handler, path string) *httptest.ResponseRecorder {
			answer := httptest.NewRecorder()
			h.ServeHTTP(answer, httptest.NewRequest(http.MethodPost, path, strings.NewReader(`{"namespace":"shop","name":"web-1"}`)))
			return answer
		}
		for _, from := range []PodsFrom{Objects, Requests} {
			east.podsFrom = from
			east.run()
			w.step()
			added := ask(east.agent.socketHandler(), api.EndpointAddPath)
			want := map[PodsFrom]int{Objects: http.StatusConflict, Requests: http.StatusOK}[from]
			if added.Code != want || from == Objects && !strings.Contains(added.Body.String(), "--pods-from requests") {
				t.Errorf("pods from %s: add answered %d %s", from, added.Code, added.Body)
			}
			if removed := ask(east.agent.socketHandler(), api.EndpointRemovePath); removed.Code != want {
				t.Errorf("pods from %s: remove answered %d %s", from, removed.Code, removed.Body)
			}
			if looked := ask(east.agent.socketHandler(), api.EndpointLookPath); looked.Code != http.StatusNotFound {
				t.Errorf("pods from %s: look answered %d", from, looked.Code)
			}
			if port := ask(east.agent.handler(), api.EndpointAddPath); port.Code != http.StatusNotFound {
				t.Errorf("the port answered %d", port.Code)
			}
			east.stop()
		}
	})
}
