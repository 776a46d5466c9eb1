package apiserver

import (
	"cmp"
	"fmt"
	"io"
	"net/http"
	"slices"
	"time"

	"sigs.k8s.io/yaml"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/apiserver/leader"
	"github.com/weft-mesh/weft/apiserver/members"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/wire"
)

// mountServers adds what the API says about API servers.
func (s *server) mountServers(mux *http.ServeMux) {
	mux.HandleFunc("GET /v1/servers", s.answer(s.getServers))
	mux.HandleFunc("POST /v1/servers", s.answer(s.postServer))
	mux.HandleFunc("DELETE /v1/servers/{name}", s.byAnother(s.answer(s.deleteServer)))
	mux.HandleFunc("POST /v1/servers/{name}/replace", s.answer(s.replaceServer))
}

// stores are the API servers' members of the embedded store; none with an existing etcd.
func (s *server) stores() []members.Member {
	if s.members == nil {
		return nil
	}
	return s.members.List()
}

// quorum is that of the embedded store; nil with an existing etcd.
func (s *server) quorum() *api.Quorum {
	if s.members == nil {
		return nil
	}
	q := members.Quorum(s.members.List())
	return &q
}

// getServers lists the API servers. It needs nothing of the store, which may have no quorum.
func (s *server) getServers(*http.Request) (any, error) {
	return api.ServerList{
		Cluster: s.cluster.Name, Quorum: s.quorum(),
		Servers: serverRows(time.Now(), s.cluster.Name, s.self.ID, s.election.View(), s.stores()),
	}, nil
}

// external refuses what is only for the embedded store.
func (s *server) external() error {
	if s.members != nil {
		return nil
	}
	return api.Conflict("start another API server with the same --etcd-endpoints, and change etcd's members with etcd's own tools",
		"cluster %s uses an existing etcd, to which API servers need not be added", s.cluster.Name)
}

func (s *server) postServer(r *http.Request) (any, error) {
	var request api.ServerRequest
	text, err := io.ReadAll(io.LimitReader(r.Body, maxRequest))
	if err != nil {
		return nil, fmt.Errorf("read request: %w", err)
	}
	if err := yaml.UnmarshalStrict(text, &request); err != nil {
		return nil, api.Invalid("", "the request cannot be read: %v", err)
	}
	r.SetPathValue(api.Added, request.Name)
	if err := s.external(); err != nil {
		return nil, err
	}
	if slices.ContainsFunc(s.election.View().Servers, func(row leader.Row) bool { return row.Name == request.Name && row.Alive }) {
		return nil, api.Conflict("choose another name", "there is an API server %s already", request.Name)
	}
	return s.members.Add(r.Context(), request)
}

func (s *server) replaceServer(r *http.Request) (any, error) {
	if err := s.external(); err != nil {
		return nil, err
	}
	name := r.PathValue("name")
	q, err := s.members.Replace(r.Context(), name)
	if err != nil {
		return nil, err
	}
	return api.ServerChange{Cluster: s.cluster.Name, Name: name, Action: "replaced", Quorum: &q}, nil
}

// deleteServer removes an API server for good, with its member of the store.
func (s *server) deleteServer(r *http.Request) (any, error) {
	name := r.PathValue("name")
	var rows []leader.Row
	for _, row := range s.election.View().Servers {
		if row.Name == name || row.ID == name {
			rows = append(rows, row)
		}
	}
	var ops []store.Op
	for _, row := range rows {
		name = row.Name
		ops = append(ops, store.Delete(wire.ServerKnownKey(row.ID)))
	}
	change := api.ServerChange{Cluster: s.cluster.Name, Name: name, Action: string(api.Deleted)}
	if slices.ContainsFunc(s.stores(), func(m members.Member) bool { return m.Name == name }) {
		if name == s.self.Name && len(s.stores()) > 1 {
			return nil, api.Conflict("start another one", "%s is the only API server that answers", name)
		}
		q, err := s.members.Remove(r.Context(), name, ops...)
		change.Quorum = &q
		return change, err
	}
	switch {
	case len(rows) == 0:
		return nil, api.NotFound("`weft server list` lists them", "cluster %s has no API server %q", s.cluster.Name, name)
	case slices.ContainsFunc(rows, func(row leader.Row) bool { return row.Alive }):
		return nil, api.Conflict("stop it first; then it goes by itself", "API server %s is running", name)
	}
	return change, store.Write(r.Context(), s.store, ops...)
}

// byAnother has a request about this API server itself answered by another one: afterwards
// this one can no longer write to the store.
func (s *server) byAnother(here http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		name := r.PathValue("name")
		if s.members == nil || r.Header.Get(forUser) != "" || name != s.self.Name && name != s.self.ID {
			here(w, r)
			return
		}
		for _, row := range s.election.View().Servers {
			if row.ID == s.self.ID || !row.Alive {
				continue
			}
			if done, err := s.pass(w, r, row.Server, nil, false); done {
				return
			} else if err != nil {
				s.log.Debug("passing a request on", "to", cmp.Or(row.Name, row.ID), "err", err)
			}
		}
		here(w, r)
	}
}
