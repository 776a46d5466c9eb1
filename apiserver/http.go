package apiserver

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/pprof"
	"strings"
	"time"

	"sigs.k8s.io/yaml"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/apiserver/admission"
	"github.com/weft-mesh/weft/apiserver/authority"
	"github.com/weft-mesh/weft/apiserver/leader"
	"github.com/weft-mesh/weft/apiserver/registry"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/wire"
)

// maxRequest is the largest request that is not a manifest.
const maxRequest = 1 << 20

// handler serves the API. Every caller has a certificate from the cluster's authority, except
// for those that open lists; admit decides what it allows.
func (s *server) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/apply", s.changing(s.postApply))
	mux.HandleFunc("POST /v1/delete", s.changing(s.postDelete))
	mux.HandleFunc("GET /v1/objects/{plural}", s.answer(func(r *http.Request) (any, error) {
		return s.registry.List(r.Context(), r.PathValue("plural"), r.URL.Query().Get("namespace"))
	}))
	mux.HandleFunc("GET /v1/objects/{plural}/{namespace}/{name}", s.answer(func(r *http.Request) (any, error) {
		return s.registry.Get(r.Context(), r.PathValue("plural"), r.PathValue("namespace"), r.PathValue("name"))
	}))
	mux.HandleFunc("DELETE /v1/objects/{plural}/{namespace}/{name}", s.changing(func(r *http.Request) (any, error) {
		opts, err := api.ReadManifestOptions(r.URL.Query())
		if err != nil {
			return nil, err
		}
		return s.registry.Delete(r.Context(), r.PathValue("plural"), r.PathValue("namespace"), r.PathValue("name"), opts)
	}))
	mux.HandleFunc("GET /v1/watch/{plural}", s.watch)
	status := s.answer(func(r *http.Request) (any, error) { return s.status(r.Context()) })
	mux.HandleFunc("GET /v1/status", s.byLeader(func(*controllers) http.Handler { return status }, status))
	s.mountServers(mux)
	mux.HandleFunc("GET /v1/nodes", s.answer(func(r *http.Request) (any, error) {
		nodes, err := s.nodeStatus(r.Context())
		return api.NodeList{Cluster: s.cluster.Name, Nodes: nodes}, err
	}))
	mux.HandleFunc("POST /v1/nodes", s.answer(s.postNode))
	mux.HandleFunc("DELETE /v1/nodes/{name}", s.answer(s.deleteNode))
	mux.HandleFunc("POST /v1/enroll", func(w http.ResponseWriter, r *http.Request) {
		// Whoever asks has no certificate, and may be slow on purpose.
		_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(enrollPatience))
		s.answer(s.postEnroll)(w, r)
	})
	mux.HandleFunc("POST "+admission.Path, s.postReview)
	mux.HandleFunc("POST "+joinPath, s.postJoin)
	mux.HandleFunc("GET /v1/nodes/{name}/status", s.proxy(func(r *http.Request) string { return "/v1/status" }))
	mux.HandleFunc("GET /v1/nodes/{name}/tables", s.proxy(func(r *http.Request) string { return "/v1/tables" }))
	mux.HandleFunc("GET /v1/nodes/{name}/trace", s.proxy(func(r *http.Request) string { return "/v1/trace" }))
	mux.HandleFunc("GET /v1/nodes/{name}/tables/{table}", s.proxy(func(r *http.Request) string { return "/v1/tables/" + r.PathValue("table") }))
	mux.HandleFunc("POST /v1/rotate", s.answer(s.postRotate))
	mux.HandleFunc("POST /v1/release", s.answer(s.postRelease))
	mux.HandleFunc("GET /v1/identities", s.answer(func(r *http.Request) (any, error) { return s.identities(r.Context()) }))
	mux.HandleFunc("GET /v1/services", s.answer(func(r *http.Request) (any, error) { return s.services(r.Context()) }))
	mux.HandleFunc("GET /v1/observe", s.observe)
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /v1/backup", s.getBackup)
	peers := s.byLeader(func(c *controllers) http.Handler { return c.peers }, nil)
	mux.HandleFunc("/v1/peers", peers)
	mux.HandleFunc("/v1/peers/", peers)
	mux.HandleFunc("/", unknownPath)
	return s.metrics.count(s.admit(s.audited(mux)))
}

func unknownPath(w http.ResponseWriter, r *http.Request) {
	refuse(w, api.NotFound("client and server may have different versions: compare `weft version` with `weft status`", "the API has no %s %s", r.Method, r.URL.Path))
}

// admit allows operators everything, agents what concerns their own node, and everyone
// else, such as peers, nothing.
func (s *server) admit(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch user := callerOf(r); {
		case s.open(r): // what is asked for is proven otherwise, or changes nothing
		case user == "":
			refuse(w, api.Refuse(http.StatusUnauthorized, "use the context of an operator of cluster "+s.cluster.Name, "%s %s needs a certificate of the cluster", r.Method, r.URL.Path))
			return
		case user == authority.Admin, user == authority.Root:
		case isAgent(user) && (r.Method == http.MethodGet && r.URL.Path == "/v1/status" || r.Method == http.MethodPost && r.URL.Path == "/v1/nodes"):
			// postNode checks that it is the agent's own node.
		default:
			refuse(w, api.Refuse(http.StatusForbidden, "use the context of an operator of cluster "+s.cluster.Name, "user %q may not %s %s", user, r.Method, r.URL.Path))
			return
		}
		next.ServeHTTP(w, r)
	})
}

func isAgent(user string) bool {
	_, ok := authority.ParseAgentUser(user)
	return ok
}

// answer turns a function into a handler that responds in JSON.
func (s *server) answer(f func(*http.Request) (any, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		v, err := f(r)
		if err != nil {
			s.fail(w, r, err)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(v) // the caller may have gone away
	}
}

// fail responds with an error. One that was not made for callers is the server's own
// failure, and is logged.
func (s *server) fail(w http.ResponseWriter, r *http.Request, err error) {
	var refusal *api.Error
	switch {
	case errors.As(err, &refusal):
	case errors.Is(err, store.ErrFull):
		refusal = api.StoreFull()
	case errors.Is(err, leader.ErrDeposed):
		refusal = api.Refuse(http.StatusServiceUnavailable, "try again", "nothing was changed: %v", err)
	case errors.Is(err, store.ErrUnavailable):
		refusal = s.unavailable(err)
	default:
		if !errors.Is(err, context.Canceled) {
			s.log.Error("a request failed", "method", r.Method, "path", r.URL.Path, "user", callerOf(r), "err", err)
		}
		refusal = api.Refuse(http.StatusInternalServerError, "look at the API server's log", "%v", err)
	}
	refuse(w, refusal)
}

// unavailable says why the store cannot be used, and what brings it back.
func (s *server) unavailable(err error) *api.Error {
	if q := s.quorum(); q != nil && q.Up < q.Needed {
		return api.Refuse(http.StatusServiceUnavailable, "`weft server list` shows which API servers are down: start them; if most of them are lost, restore a backup (`weft restore`)",
			"the store cannot be used: %d of its %d members answer, and %d are needed", q.Up, q.Members, q.Needed)
	}
	return api.Refuse(http.StatusServiceUnavailable, "look at the API server's log", "the store cannot be reached: %v", err)
}

func refuse(w http.ResponseWriter, e *api.Error) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(e.Status)
	_ = json.NewEncoder(w).Encode(e) // the caller may have gone away
}

func (s *server) postNode(r *http.Request) (any, error) {
	var request api.NodeRequest
	text, err := io.ReadAll(io.LimitReader(r.Body, maxRequest))
	if err != nil {
		return nil, fmt.Errorf("read request: %w", err)
	}
	if err := yaml.UnmarshalStrict(text, &request); err != nil {
		return nil, api.Invalid("", "the request cannot be read: %v", err)
	}
	if node, ok := authority.ParseAgentUser(callerOf(r)); ok {
		// An agent may renew its own bundle, but not change its registration.
		if node != request.Name || len(request.Addresses) > 0 || len(request.PodCIDRs) > 0 || request.Labels != nil || request.Replace || request.UID != "" {
			return nil, api.Refuse(http.StatusForbidden, "", "the agent of node %s may ask for its own bundle only, as it is registered", node)
		}
	}
	if err := s.space.refusal(); err != nil {
		return nil, err
	}
	r.SetPathValue(api.Added, request.Name)
	return s.registrar.Add(r.Context(), request)
}

func (s *server) deleteNode(r *http.Request) (any, error) {
	name := r.PathValue("name")
	if r.URL.Query().Get("force") != "true" {
		if err := s.mayRemove(r.Context(), name); err != nil {
			return nil, err
		}
	}
	pods, refused := s.registrar.Remove(r.Context(), name)
	var answer *api.Error
	absent := errors.As(refused, &answer) && answer.Status == http.StatusNotFound
	if refused != nil && !absent {
		return nil, refused
	}
	lost, err := s.memory.forget(r.Context(), name)
	if err != nil {
		return nil, err
	}
	// A node that an emptied store lost is not registered.
	if absent && !lost {
		return nil, refused
	}
	s.census.forget(name)
	result := &api.ApplyResult{Cluster: s.cluster.Name, Objects: []api.AppliedObject{{Cluster: s.cluster.Name, Kind: "Node", Name: name, Action: api.Deleted}}}
	for _, pod := range pods {
		result.Objects = append(result.Objects, api.AppliedObject{Cluster: s.cluster.Name, Kind: "Pod", Namespace: pod.Namespace, Name: pod.Name, Action: api.Deleted})
	}
	return result, nil
}

// mayRemove refuses to remove a node whose agent runs: its pods would keep running, cut
// off from the network. Kubernetes decides about its own, which would be back at once.
func (s *server) mayRemove(ctx context.Context, name string) error {
	kv, err := s.store.Get(ctx, wire.RegistrationKey(name))
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return err
	}
	if reg, err := wire.Unmarshal[wire.Registration](kv.Value); s.conf.Kubernetes && err == nil && reg.Source == api.OwnerKubernetes {
		return api.Conflict("delete it there, with `kubectl delete node "+name+"`; with --force it is removed here, and is back if Kubernetes still has it",
			"node %s comes from Kubernetes", name)
	}
	nodes, err := s.nodeStatus(ctx)
	if err != nil {
		return err
	}
	for _, n := range nodes {
		if n.Name != name || n.Alive == nil || !*n.Alive {
			continue
		}
		pods := ""
		if n.Endpoints > 0 {
			pods = fmt.Sprintf(", and the %s on it would be deleted with it", api.Count(n.Endpoints, "pod"))
		}
		return api.Conflict("stop its agent first, or repeat with --force", "the agent of node %s is running%s", name, pods)
	}
	return nil
}

// postRotate requests the key epoch after the newest one.
func (s *server) postRotate(r *http.Request) (any, error) {
	for {
		kv, err := s.store.Get(r.Context(), wire.RotationKey)
		if err != nil && !errors.Is(err, store.ErrNotFound) {
			return nil, err
		}
		var wanted wire.Rotation
		if err == nil {
			if wanted, err = wire.Unmarshal[wire.Rotation](kv.Value); err != nil {
				return nil, err
			}
		}
		// A second request during a rotation asks for the same epoch.
		next := max(s.census.epoch()+1, wanted.Epoch)
		_, done, err := s.store.Commit(r.Context(), store.Txn{
			If:   []store.Cond{{Key: wire.RotationKey, Modified: kv.Modified}},
			Then: []store.Op{store.Put(wire.RotationKey, wire.Marshal(wire.Rotation{Epoch: next}))},
		})
		if err != nil {
			return nil, err
		}
		if done {
			return api.RotateResult{Cluster: s.cluster.Name, Epoch: next}, nil
		}
	}
}

// postRelease declares this store complete: nodes that still keep what they have from a
// lost store use it from now on. If it were accepted too early, it would count for the next
// loss, or remove what lost nodes still have.
func (s *server) postRelease(r *http.Request) (any, error) {
	rebuilt, lost := s.memory.rebuilt()
	if len(lost) > 0 {
		return nil, api.Conflict("add them again, or delete those that are gone; `weft status` shows how",
			"nothing was released: nodes %s of the earlier store are not registered in this one and would lose what they have", strings.Join(lost, ", "))
	}
	if !rebuilt && len(s.census.holding()) == 0 {
		return nil, api.Conflict("", "nothing to release: no store of cluster %s was lost, and its nodes use this one", s.cluster.Name)
	}
	c, err := release(r.Context(), s.store, store.Delete(wire.RebuildingKey))
	if err != nil {
		return nil, err
	}
	return api.ReleaseResult{Cluster: s.cluster.Name, Generation: c.Generation, Nodes: s.census.holding()}, nil
}

// watch streams objects as JSON lines.
func (s *server) watch(w http.ResponseWriter, r *http.Request) {
	plural := r.PathValue("plural")
	if _, ok := registry.FindKind(plural); !ok {
		_, err := s.registry.List(r.Context(), plural, "") // says what kinds there are
		s.fail(w, r, err)
		return
	}
	w.Header().Set("Content-Type", "application/x-ndjson")
	w.WriteHeader(http.StatusOK)
	control, lines := http.NewResponseController(w), json.NewEncoder(w)
	err := s.registry.Watch(r.Context(), plural, r.URL.Query().Get("namespace"), func(ev api.WatchEvent) error {
		if err := lines.Encode(ev); err != nil {
			return err
		}
		return control.Flush()
	})
	// The status line is already sent: if the store fails, the stream ends and the
	// watcher starts again.
	if err != nil && r.Context().Err() == nil {
		s.log.Warn("a watch ended", "kind", plural, "err", err)
	}
}

// How long the API waits for its clients.
const (
	headerPatience = 10 * time.Second
	idlePatience   = 2 * time.Minute
	closePatience  = 2 * time.Second
)
