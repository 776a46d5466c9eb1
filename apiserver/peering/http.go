package peering

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"

	"sigs.k8s.io/yaml"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/apiserver/leader"
	"github.com/weft-mesh/weft/store"
)

// maxBody bounds a request; an invite is a few kilobytes.
const maxBody = 1 << 20

// Mount adds the handlers of /v1/peers to mux. They do not check the caller: the API
// server has done so.
func (p *Peering) Mount(mux *http.ServeMux) {
	mux.HandleFunc("GET /v1/peers", handle(p.getPeers))
	mux.HandleFunc("GET /v1/peers/{name}", handle(p.getPeer))
	mux.HandleFunc("POST /v1/peers", handle(p.postPeer))
	mux.HandleFunc("POST /v1/peers/cilium", handle(p.postCiliumPeer))
	mux.HandleFunc("POST /v1/peers/invite", handle(p.postInvite))
	mux.HandleFunc("POST /v1/peers/{name}/release", handle(p.postRelease))
	mux.HandleFunc("POST /v1/peers/{name}/forget", handle(p.postForget))
	mux.HandleFunc("DELETE /v1/peers/{name}", handle(p.deletePeer))
}

func (p *Peering) getPeers(r *http.Request) (any, error) {
	former, err := p.Former(r.Context())
	return api.PeerList{Cluster: p.conf.Cluster.Name, Peers: p.Status(), Former: former}, err
}

func (p *Peering) getPeer(r *http.Request) (any, error) {
	for _, s := range p.Status() {
		if s.Name == r.PathValue("name") {
			return s, nil
		}
	}
	return nil, api.NotFound("`weft peer list` lists the peers", "cluster %q has no peer %q", p.conf.Cluster.Name, r.PathValue("name"))
}

func (p *Peering) postPeer(r *http.Request) (any, error) {
	in, err := body[api.Invite](r)
	if err != nil {
		return nil, err
	}
	r.SetPathValue(api.Added, in.Cluster)
	return p.Add(r.Context(), in)
}

func (p *Peering) postCiliumPeer(r *http.Request) (any, error) {
	in, err := body[api.CiliumPeer](r)
	if err != nil {
		return nil, err
	}
	r.SetPathValue(api.Added, in.Cluster)
	return p.AddCilium(r.Context(), in)
}

func (p *Peering) postInvite(r *http.Request) (any, error) {
	in, err := body[api.InviteRequest](r)
	if err != nil {
		return nil, err
	}
	r.SetPathValue(api.Added, in.Peer)
	if in.Cilium {
		return p.InviteCilium(r.Context(), in.Peer)
	}
	return p.Invite(r.Context(), in.Peer)
}

func (p *Peering) postRelease(r *http.Request) (any, error) {
	return p.Release(r.Context(), r.PathValue("name"))
}

func (p *Peering) postForget(r *http.Request) (any, error) {
	return p.Forget(r.Context(), r.PathValue("name"))
}

func (p *Peering) deletePeer(r *http.Request) (any, error) {
	return struct{}{}, p.Remove(r.Context(), r.PathValue("name"))
}

// body reads a request in JSON or YAML and refuses unknown fields.
func body[T any](r *http.Request) (*T, error) {
	text, err := io.ReadAll(io.LimitReader(r.Body, maxBody+1))
	if err != nil {
		return nil, fmt.Errorf("read request: %w", err)
	}
	if len(text) > maxBody {
		return nil, api.Invalid("", "the request is larger than %d bytes", maxBody)
	}
	in := new(T)
	if err := yaml.UnmarshalStrict(text, in); err != nil {
		return nil, api.Invalid("create an invite with `weft peer invite` and pass it on unchanged", "the request cannot be parsed: %v", err)
	}
	return in, nil
}

// handle turns a function into a handler that answers in JSON.
func handle(f func(*http.Request) (any, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		answer, err := f(r)
		status := http.StatusOK
		if err != nil {
			var refusal *api.Error
			switch {
			case errors.As(err, &refusal):
			case errors.Is(err, store.ErrFull):
				refusal = api.StoreFull()
			case errors.Is(err, leader.ErrDeposed):
				refusal = api.Refuse(http.StatusServiceUnavailable, "see `weft peer list`, then try again", "%v", err)
			case errors.Is(err, store.ErrUnavailable):
				refusal = api.Refuse(http.StatusServiceUnavailable, "see the API server's log", "the store cannot be reached: %v", err)
			default:
				refusal = api.Refuse(http.StatusInternalServerError, "see the API server's log", "%v", err)
			}
			answer, status = refusal, refusal.Status
		}
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		// If this fails, the caller is gone.
		_ = json.NewEncoder(w).Encode(answer)
	}
}
