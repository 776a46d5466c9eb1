package apiserver

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/apiserver/authority"
	"github.com/weft-mesh/weft/wire"
)

// Some requests only the server that leads can answer, because the mirrors of peers run
// there: how their links are, and everything that stops or starts one. The others pass
// these on, so that it does not matter which server an operator asks.

// forUser is the header in which an API server says for whom it asks another one. It counts
// only with the certificate of an API server.
const forUser = "Weft-For-User"

const (
	// leaderPatience is how long a request waits for a server that leads: longer than
	// it takes to have a successor.
	leaderPatience = 2*wire.ServerTTL + 2*time.Second
	// lookPatience is how long one waits that can be answered here too, and
	// siblingPatience how long another server may take to answer it.
	lookPatience    = time.Second
	siblingPatience = 3 * time.Second
	leaderRetry     = 50 * time.Millisecond
)

// newSiblings reaches the other servers with this one's certificate.
func newSiblings(f *foundation) *siblings {
	if f.edges.Servers != nil {
		return &siblings{silent: map[string]silence{}, http: &http.Client{Transport: f.edges.Servers}}
	}
	return &siblings{silent: map[string]silence{}, http: &http.Client{Transport: &http.Transport{
		TLSClientConfig: f.rootTLS(), DialContext: (&net.Dialer{Timeout: siblingPatience}).DialContext,
		TLSHandshakeTimeout: siblingPatience, IdleConnTimeout: idlePatience,
	}}}
}

// passed is set in a request's context when another server answered it, and keeps the
// audit trail.
type passed struct{ on bool }

type passedKey struct{}

// byLeader has a request answered by the controllers of the server that leads. If none
// answers in time, otherwise answers it, or if that is nil, it is refused.
func (s *server) byLeader(here func(*controllers) http.Handler, otherwise http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(io.LimitReader(r.Body, maxRequest+1))
		if err != nil {
			s.fail(w, r, fmt.Errorf("read request: %w", err))
			return
		}
		patience := leaderPatience
		if otherwise != nil {
			patience = lookPatience
		}
		deadline := time.Now().Add(patience)
		for why := errors.New("none has been elected"); ; {
			r.Body = io.NopCloser(bytes.NewReader(body))
			if c := s.controllers.Load(); c != nil {
				here(c).ServeHTTP(w, r)
				return
			}
			if r.Header.Get(forUser) != "" {
				w.WriteHeader(http.StatusMisdirectedRequest)
				return
			}
			if v := s.election.View(); v.Leader != (wire.Leader{}) && v.Leader.Server.ID != s.self.ID {
				done, err := s.pass(w, r, v.Leader.Server, body, otherwise != nil)
				if done {
					return
				}
				why = err
			}
			if time.Now().After(deadline) || r.Context().Err() != nil {
				if otherwise != nil {
					otherwise(w, r)
					return
				}
				refuse(w, api.Refuse(http.StatusServiceUnavailable, "try again; `weft status` shows the API servers", "no API server leads: %v", why))
				return
			}
			timer := time.NewTimer(leaderRetry)
			select {
			case <-timer.C:
			case <-r.Context().Done():
				timer.Stop()
			}
		}
	}
}

// pass passes a request on to another server. done reports whether it was answered; if not,
// it may be passed on again, because it has changed nothing.
func (s *server) pass(w http.ResponseWriter, r *http.Request, to wire.Server, body []byte, hurry bool) (done bool, err error) {
	ctx := r.Context()
	if hurry {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, siblingPatience)
		defer cancel()
	}
	req, err := http.NewRequestWithContext(ctx, r.Method, to.URL+r.URL.RequestURI(), bytes.NewReader(body))
	if err != nil {
		return false, err
	}
	req.Header.Set(forUser, cmp.Or(callerOf(r), "nobody"))
	if channel := r.Header.Get(ofChannel); channel != "" {
		req.Header.Set(ofChannel, channel)
	}
	if t := r.Header.Get("Content-Type"); t != "" {
		req.Header.Set("Content-Type", t)
	}
	resp, err := s.siblings.http.Do(req)
	if err != nil {
		var refused *net.OpError
		if r.Method == http.MethodGet || errors.As(err, &refused) && refused.Op == "dial" {
			return false, fmt.Errorf("API server %s cannot be reached: %w", to.Name, err)
		}
		refuse(w, api.Refuse(http.StatusBadGateway, "look whether it was made, then try again", "API server %s did not answer: %v", to.Name, err))
		return true, nil
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusMisdirectedRequest {
		return false, fmt.Errorf("API server %s no longer leads", to.Name)
	}
	if p, ok := r.Context().Value(passedKey{}).(*passed); ok {
		p.on = true
	}
	w.Header().Set("Content-Type", resp.Header.Get("Content-Type"))
	w.WriteHeader(resp.StatusCode)
	_, _ = io.Copy(w, resp.Body) // the caller may have gone away
	return true, nil
}

// callerOf returns the user who asks: the common name of the client's certificate, which the
// TLS handshake has verified, or if that is an API server's, for whom that one asks.
func callerOf(r *http.Request) string {
	if r.TLS == nil || len(r.TLS.PeerCertificates) == 0 {
		return ""
	}
	user := r.TLS.PeerCertificates[0].Subject.CommonName
	if whom := r.Header.Get(forUser); user == authority.Root && whom != "" {
		return whom
	}
	return user
}
