package meshagent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/bpf"
	"github.com/weft-mesh/weft/flow"
	"github.com/weft-mesh/weft/meshagent/endpoint"
	"github.com/weft-mesh/weft/meshagent/reflector"
	"github.com/weft-mesh/weft/meshagent/tables"
	"github.com/weft-mesh/weft/meshagent/trace"
)

// Status answers GET /v1/status.
type Status struct {
	Cluster string `json:"cluster"`
	Node    string `json:"node"`
	// Ready is set once everything known at the start is in the kernel.
	Ready         bool    `json:"ready"`
	UptimeSeconds float64 `json:"uptimeSeconds"`
	// Store is how current all sources are together, as reported to the cluster.
	Store     Standing          `json:"store"`
	Sources   []reflector.State `json:"sources"`
	Tables    []tables.Summary  `json:"tables"`
	Clusters  []ClusterPath     `json:"clusters"`
	Paths     []NodePath        `json:"paths"`
	KeyEpoch  uint64            `json:"keyEpoch"`
	PolicyGen uint32            `json:"policyGeneration"`
	Flows     flow.Stats        `json:"events"`
	Problems  []string          `json:"problems,omitempty"`
}

// Standing is wire.StoreStanding with its units.
type Standing struct {
	Revision     int64   `json:"revision"`
	HeardSeconds float64 `json:"heardSeconds"`
	Never        bool    `json:"never,omitempty"`
	Cause        string  `json:"cause,omitempty"`
	LostSeconds  float64 `json:"lostSeconds,omitempty"`
}

// ClusterPath is the data path to a peer, as this node sees it.
type ClusterPath struct {
	Cluster string `json:"cluster"`
	Alive   bool   `json:"alive"`
	Nodes   int    `json:"nodes"`
	Down    int    `json:"down"`
}

// NodePath is the data path to one node.
type NodePath struct {
	Cluster    string    `json:"cluster"`
	Node       string    `json:"node"`
	Alive      bool      `json:"alive"`
	State      string    `json:"state"`
	Since      time.Time `json:"since"`
	RTTMicros  int64     `json:"rttMicros"`
	Lane       int       `json:"tunnel"`
	Keyed      bool      `json:"keyed"`
	GossipDead bool      `json:"gossipDead,omitempty"`
	Reason     string    `json:"reason,omitempty"`
}

// handler serves the agent's own API.
func (a *Agent) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/status", func(w http.ResponseWriter, r *http.Request) { answer(w, a.Status()) })
	mux.HandleFunc("GET /v1/tables", func(w http.ResponseWriter, r *http.Request) {
		l := api.TableList{Cluster: a.node.cluster, Node: a.node.name}
		for _, s := range a.Tables.Summaries() {
			l.Tables = append(l.Tables, api.TableSummary(s))
		}
		answer(w, l)
	})
	mux.HandleFunc("GET /v1/tables/{name}", func(w http.ResponseWriter, r *http.Request) {
		name := r.PathValue("name")
		shown, ok := a.Tables.Show(name)
		if !ok {
			refuse(w, api.NotFound("choose from "+strings.Join(a.Tables.Names(), ", "), "the agent has no table %q", name))
			return
		}
		answer(w, api.Table{Cluster: a.node.cluster, Node: a.node.name, Name: name, Columns: shown.Columns, Rows: shown.Rows})
	})
	mux.HandleFunc("GET /v1/observe", a.observe)
	mux.HandleFunc("GET /v1/trace", a.trace)
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	return mux
}

// socketHandler serves the same on the socket, and the requests for pods' networks: only who
// is root on this machine may make them.
func (a *Agent) socketHandler() http.Handler {
	var requests api.EndpointRequests = a.endpoints
	if a.cfg.PodsFrom == Objects {
		requests = byObject{requests}
	}
	mux := http.NewServeMux()
	endpoint.Serve(mux, requests)
	mux.HandleFunc("GET "+api.EndpointReadyPath, func(w http.ResponseWriter, r *http.Request) { answer(w, a.readyForPods()) })
	mux.HandleFunc("GET "+api.NamesPath, a.names.serve)
	mux.HandleFunc("GET "+api.NodeFactsPath, func(w http.ResponseWriter, r *http.Request) { answer(w, a.facts()) })
	mux.Handle("/", a.handler())
	return mux
}

// trace says what this node does with a connection.
func (a *Agent) trace(w http.ResponseWriter, r *http.Request) {
	q, err := api.ParseTraceQuestion(r.URL.Query())
	if err != nil {
		refuse(w, api.Invalid("", "%v", err))
		return
	}
	t, err := a.tracer().Follow(r.Context(), q)
	if err != nil {
		refuse(w, api.Refuse(http.StatusInternalServerError, "", "%v", err))
		return
	}
	answer(w, t)
}

func (a *Agent) tracer() *trace.Node {
	o := a.observer
	return &trace.Node{
		Cluster: a.node.cluster, Name: a.node.name, Maps: a.edges.Datapath.Maps(), Tables: a.Tables, Ring: a.ring,
		Resolver: o.resolver(), RuleOf: o.ruleInfo, Hint: o.hint, Tunnels: a.edges.Lanes.Status,
	}
}

// observe streams flows as JSON lines.
func (a *Agent) observe(w http.ResponseWriter, r *http.Request) {
	req, err := flow.ParseRequest(r.URL.Query())
	if err != nil {
		refuse(w, api.Invalid("", "%v", err))
		return
	}
	w.Header().Set("Content-Type", "application/x-ndjson")
	w.WriteHeader(http.StatusOK)
	control := http.NewResponseController(w)
	_ = control.Flush()
	lines := json.NewEncoder(w)
	if !req.Follow {
		for _, f := range a.ring.Last(req.Last, req.Match) {
			if lines.Encode(f) != nil {
				return
			}
		}
		return
	}
	_ = a.ring.Follow(r.Context(), req.Last, req.Match, func(f flow.Flow) error {
		if err := lines.Encode(f); err != nil {
			return err
		}
		return control.Flush()
	})
}

func answer(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v) // fails only if the reader is gone
}

func refuse(w http.ResponseWriter, e *api.Error) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(e.Status)
	_ = json.NewEncoder(w).Encode(e)
}

// Status sums up the agent.
func (a *Agent) Status() Status {
	txn := a.Tables.DB.ReadTxn()
	own, _, _ := a.tunnels.Own()
	s := Status{
		Cluster: a.node.cluster, Node: a.node.name, Ready: closed(a.program.Passed()), UptimeSeconds: time.Since(a.started).Seconds(),
		Store: Standing(a.standing.Standing()), Tables: a.Tables.Summaries(), KeyEpoch: own.Epoch, Flows: a.ring.Stats(),
	}
	if x := a.program.Explain(); x != nil {
		s.PolicyGen = x.Gen
	}
	for _, r := range a.reflectors {
		s.Sources = append(s.Sources, r.State())
	}
	byCluster := map[string]*ClusterPath{}
	for c := range a.Tables.Clusters.All(txn) {
		if !c.Member() || c.Own != nil {
			continue
		}
		path, known := a.rows.Cluster(c.ID())
		byCluster[c.Name] = &ClusterPath{Cluster: c.Name, Alive: path == bpf.PathAlive || !known}
	}
	for p := range a.Tables.Paths.All(txn) {
		seen := p.Seen()
		s.Paths = append(s.Paths, NodePath{
			Cluster: p.Cluster, Node: p.Node, Alive: p.Alive, State: string(seen.State), Since: seen.Since,
			RTTMicros: seen.RTT.Microseconds(), Lane: int(p.Lane), Keyed: p.Keyed, GossipDead: p.GossipDead, Reason: seen.Reason,
		})
		if c := byCluster[p.Cluster]; c != nil {
			c.Nodes++
			if !p.Alive {
				c.Down++
			}
		}
	}
	for c := range a.Tables.Clusters.All(txn) {
		if p := byCluster[c.Name]; p != nil {
			s.Clusters = append(s.Clusters, *p)
		}
	}
	for p := range a.Tables.Problems.All(txn) {
		s.Problems = append(s.Problems, fmt.Sprintf("%s %s: %s (for %v)", p.Table, p.Row, p.Error, time.Since(p.Since).Round(time.Second)))
	}
	return s
}

func closed(ch <-chan struct{}) bool {
	select {
	case <-ch:
		return true
	default:
		return false
	}
}

// serve answers on l until ctx ends, and then closes l and every connection. Errors that
// any stranger can cause, such as bad certificates, are logged at debug.
func serve(ctx context.Context, l net.Listener, h http.Handler, log *slog.Logger) error {
	s := &http.Server{
		Handler: h, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute, BaseContext: func(net.Listener) context.Context { return ctx },
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		<-ctx.Done()
		_ = s.Close()
	}()
	err := s.Serve(l)
	if ctx.Err() != nil {
		<-done
		return nil
	}
	return fmt.Errorf("serve %s: %w", l.Addr(), err)
}

// listenUnix listens on path, replacing the socket of an earlier agent.
func listenUnix(path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	if info, err := os.Lstat(path); err == nil && info.Mode().Type() != fs.ModeSocket {
		return nil, fmt.Errorf("listen on %s: it exists and is not a socket; choose another path", path)
	}
	// Created under another name and renamed, so that it is never open to others.
	private := path + ".new"
	_ = os.Remove(private)
	l, err := net.Listen("unix", private)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	if err := errors.Join(os.Chmod(private, 0o600), os.Rename(private, path)); err != nil {
		l.Close()
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	return l, nil
}

// mayAsk admits only operators and the API server: peers have certificates from the same
// CA.
func mayAsk(user string) error {
	switch user {
	case "root", "admin":
		return nil
	default:
		return fmt.Errorf("user %q may not ask an agent", user)
	}
}
