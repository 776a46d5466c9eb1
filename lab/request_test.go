package lab

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/weft-mesh/weft/api"
)

func TestWhatIsRequestedOfAnAgent(t *testing.T) {
	now := time.Unix(1000, 0)
	for name, c := range map[string]struct {
		known requests
		uid   string
		there bool
		gone  bool
		want  request
	}{
		"a new pod":                             {requests{}, "1", false, false, addNetwork},
		"one that is being added":               {requests{handled: true}, "1", false, false, nothing},
		"one that has failed just now":          {requests{again: now.Add(time.Millisecond)}, "1", false, false, nothing},
		"one that has failed":                   {requests{again: now}, "1", false, false, addNetwork},
		"one with a network":                    {requests{added: "1"}, "1", true, false, nothing},
		"its successor":                         {requests{added: "1"}, "2", true, false, addNetwork},
		"a network that was lost just now":      {requests{added: "1"}, "1", false, false, nothing},
		"a network that was lost":               {requests{added: "1", lost: now.Add(-lostPatience)}, "1", false, false, addNetwork},
		"a network that is back":                {requests{added: "1", lost: now.Add(-lostPatience)}, "1", true, false, nothing},
		"a pod that is gone":                    {requests{added: "1"}, "1", true, true, removeNetwork},
		"a pod that is gone while it is added":  {requests{handled: true}, "1", false, true, nothing},
		"a pod that is gone before it is added": {requests{}, "1", false, true, removeNetwork},
	} {
		t.Run(name, func(t *testing.T) {
			if got := c.known.due(now, c.uid, c.there, c.gone); got != c.want {
				t.Errorf("%q, want %q", got, c.want)
			}
		})
	}
}

// runtimeAgent is an agent's socket that notes what is requested.
type runtimeAgent struct {
	mu    sync.Mutex // guards what follows
	heard []string
	fail  *api.Error
}

func (a *runtimeAgent) serve(t *testing.T) (socket string) {
	socket = filepath.Join(t.TempDir(), "agent.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		req, err := api.ReadEndpointRequest(r.Body)
		if err != nil {
			t.Error(err)
		}
		a.mu.Lock()
		defer a.mu.Unlock()
		a.heard = append(a.heard, strings.TrimPrefix(r.URL.Path, "/v1/endpoint/")+" "+req.Key()+" "+req.UID)
		if a.fail != nil {
			w.WriteHeader(a.fail.Status)
			_ = json.NewEncoder(w).Encode(a.fail)
			return
		}
		_ = json.NewEncoder(w).Encode(api.EndpointResult{})
	})}
	served := make(chan struct{})
	go func() { defer close(served); _ = s.Serve(l) }()
	t.Cleanup(func() { s.Close(); <-served })
	return socket
}

func TestRequestsReachTheAgent(t *testing.T) {
	a := &runtimeAgent{}
	socket := a.serve(t)
	req := api.EndpointRequest{Namespace: "shop", Name: "web", UID: "1"}
	for _, what := range []request{addNetwork, removeNetwork} {
		if err := ask(t.Context(), socket, what, req); err != nil {
			t.Error(err)
		}
	}
	if want := []string{"add shop/web 1", "remove shop/web 1"}; !slices.Equal(a.heard, want) {
		t.Errorf("heard %q, want %q", a.heard, want)
	}
	a.fail = api.Conflict("", "this node's agent gives pods their networks by their objects")
	var refused *api.Error
	if err := ask(t.Context(), socket, addNetwork, req); !errors.As(err, &refused) || refused.Status != http.StatusConflict {
		t.Error(err)
	}
}

// What an answer means for a pod, and whether the lab still knows it.
func TestAnswersToRequests(t *testing.T) {
	unreachable, conflict := context.DeadlineExceeded, error(api.Conflict("", "by their objects"))
	for name, c := range map[string]struct {
		what   request
		uid    string // of the request
		gone   bool
		err    error
		added  string
		again  bool
		forgot bool
	}{
		"added":                              {addNetwork, "2", false, nil, "2", false, false},
		"not added":                          {addNetwork, "2", false, unreachable, "1", true, false},
		"added by the agent itself":          {addNetwork, "2", false, conflict, "2", false, false},
		"removed":                            {removeNetwork, "2", true, nil, "1", false, true},
		"removed by the agent itself":        {removeNetwork, "2", true, conflict, "1", false, true},
		"not removed":                        {removeNetwork, "2", true, unreachable, "1", true, false},
		"removed, but its successor exists":  {removeNetwork, "1", false, nil, "1", false, false},
		"removed, but its successor is gone": {removeNetwork, "1", true, nil, "1", false, false},
	} {
		t.Run(name, func(t *testing.T) {
			state := &podState{Pod: Pod{Cluster: "east", Namespace: "shop", Name: "web"}, uid: "2", gone: c.gone, requests: requests{handled: true, added: "1"}}
			l := &Lab{pods: map[string]*podState{state.Full(): state}, log: slog.New(slog.DiscardHandler)}
			l.answeredLocked(state, c.what, c.uid, c.err)
			_, known := l.pods[state.Full()]
			if r := state.requests; r.handled || r.added != c.added || r.again.IsZero() == c.again || known == c.forgot {
				t.Errorf("%+v, known %v", r, known)
			}
		})
	}
}
