package apiserver

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"k8s.io/apimachinery/pkg/util/uuid"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/apiserver/leader"
	"github.com/weft-mesh/weft/statefile"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/wire"
)

// serverID returns the ID of the server at a URL. It is made of a name that stays in the
// data folder, and of the URL: a folder that was copied to make a second server makes
// another one.
func serverID(dir, url string) (string, error) {
	path := filepath.Join(dir, "server-id")
	text, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("read the ID of this API server: %w", err)
	}
	name := strings.TrimSpace(string(text))
	if name == "" {
		name = string(uuid.NewUUID())
		if err := statefile.Write(path, []byte(name+"\n")); err != nil {
			return "", fmt.Errorf("keep the ID of this API server: %w", err)
		}
	}
	sum := sha256.Sum256([]byte(name + " " + url))
	return hex.EncodeToString(sum[:8]), nil
}

// serverRows describes the API servers.
func serverRows(now time.Time, cluster, self string, v leader.View) []api.ServerStatus {
	out := make([]api.ServerStatus, 0, len(v.Servers))
	for _, r := range v.Servers {
		s := api.ServerStatus{
			Cluster: cluster, Name: r.Name, ID: r.ID, URL: r.URL, Version: r.Version,
			State: api.ServerReady, Since: r.Started, Answers: r.ID == self,
		}
		switch {
		case r.ID == v.Leader.Server.ID:
			s.State, s.Since = api.ServerLeads, v.Leader.Since
		case !r.Alive:
			s.State, s.Since = api.ServerMissing, r.Missing
		}
		s.AgeSeconds = max(0, now.Sub(s.Since).Seconds())
		out = append(out, s)
	}
	return out
}

// Grace periods of API servers. Where one that leads has died, another leads within
// wire.ServerTTL and a moment.
const (
	noLeaderGrace = 5 * time.Second
	serverGrace   = 10 * time.Second
)

// serverConcerns say which API servers do not work, and what is wrong in the processes of
// the others.
func serverConcerns(self string, v leader.View, silent map[string]silence) (out []api.Concern) {
	if v.Leader == (wire.Leader{}) {
		c := api.Concern{
			Object: "API server", Reason: "NoLeader", Since: v.Vacant, Grace: noLeaderGrace,
			Message: "no API server leads: endpoints, the export and the mirrors of peers are not kept up to date",
			Next:    "look at the API servers' logs",
		}
		if v.Failed != nil {
			c.Message += fmt.Sprintf(" (%v)", v.Failed)
		}
		out = append(out, c)
	} else if v.Failed != nil {
		out = append(out, api.Concern{
			Object: "API server", Reason: "CannotLead", Grace: noLeaderGrace,
			Message: fmt.Sprintf("this API server could not succeed %s, which leads: %v", v.Leader.Server.Name, v.Failed), Next: "look at its log",
		})
	}
	for _, r := range v.Servers {
		object := "API server " + r.Name
		quiet, is := silent[r.ID]
		switch {
		case r.ID == self:
			continue
		case !r.Alive:
			out = append(out, api.Concern{
				Object: object, Reason: "ServerMissing", Since: r.Missing, Grace: serverGrace,
				Message: object + " has given no sign of life for {age}", Next: fmt.Sprintf("start it, or `weft server delete %s` if it is gone for good", r.Name),
			})
		case is:
			out = append(out, api.Concern{
				Object: object, Reason: "ServerSilent", Since: quiet.since, Grace: serverGrace,
				Message: fmt.Sprintf("%s does not answer: %v", object, quiet.why), Next: "look at its log, and restart it if it hangs",
			})
		}
		theirs, err := wire.Unmarshal[[]api.Concern](r.Problems)
		if err != nil {
			continue // it has none
		}
		for _, c := range theirs {
			if c.Object == "API server" {
				c.Object = object
			}
			c.Message = object + ": " + c.Message
			out = append(out, c)
		}
	}
	return out
}

// reported are the concerns of this process that other servers show. They do not see how
// long each may last, so only those that have lasted are reported.
func reported(now time.Time, all []api.Concern) []byte {
	var out []api.Concern
	for _, c := range all {
		about := strings.HasPrefix(c.Object, "API server") || c.Object == "store"
		if about && (c.Since.IsZero() || now.Sub(c.Since) >= max(c.Grace, api.ConcernGrace)) {
			out = append(out, c)
		}
	}
	if len(out) == 0 {
		return nil
	}
	return wire.Marshal(out)
}

// silence is since when an API server does not answer, and why.
type silence struct {
	since time.Time
	why   error
}

// siblings are the cluster's other API servers, as this one reaches them.
type siblings struct {
	http *http.Client

	mu     sync.Mutex // guards silent
	silent map[string]silence
}

// serversTurn is how often the other API servers are asked whether they answer, and this
// one's problems are looked at.
const serversTurn = 5 * time.Second

// otherURLs are those of the cluster's other API servers. A missing one is among them: it
// may be back when it is needed.
func (s *server) otherURLs() []string {
	return s.ofServers(func(r wire.Server) string {
		if r.URL == s.self.URL {
			return ""
		}
		return r.URL
	})
}

// gossipSeeds and wanGossip are the host:port of all API servers in the two pools.
func (s *server) gossipSeeds() []string {
	return s.ofServers(func(r wire.Server) string { return r.Gossip })
}

func (s *server) wanGossip() []string {
	return s.ofServers(func(r wire.Server) string { return r.WANGossip })
}

// ofServers returns what the API servers have, this one's first, without what is empty.
func (s *server) ofServers(what func(wire.Server) string) (out []string) {
	all := []wire.Server{s.self}
	for _, r := range s.election.View().Servers {
		all = append(all, r.Server)
	}
	for _, r := range all {
		if text := what(r); text != "" && !slices.Contains(out, text) {
			out = append(out, text)
		}
	}
	return out
}

// attend keeps in touch with the other API servers until ctx ends: it tells them what is
// wrong with this process, asks them whether they answer, and keeps the operator's context
// naming them.
func (s *server) attend(ctx context.Context) error {
	defer s.siblings.http.CloseIdleConnections()
	tick := time.NewTicker(serversTurn)
	defer tick.Stop()
	var before []byte
	var listed []string
	for {
		if others := s.otherURLs(); !slices.Equal(listed, others) {
			if err := s.writeAdmin(s.self.URL, append([]string{}, others...)); err != nil {
				s.log.Warn("cannot tell the operator's context about the other API servers; retrying", "err", err)
			} else {
				listed = others
			}
		}
		if now := reported(time.Now(), s.processConcerns()); !slices.Equal(before, now) {
			err := s.election.Report(ctx, now)
			if err == nil {
				before = now
			} else if ctx.Err() == nil {
				s.log.Debug("reporting the problems of this process", "err", err)
			}
		}
		s.siblings.ask(ctx, s.election.View(), s.self.ID)
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// ask asks every other server that has a lease whether it answers.
func (o *siblings) ask(ctx context.Context, v leader.View, self string) {
	ctx, cancel := context.WithTimeout(ctx, siblingPatience)
	defer cancel()
	var g errgroup.Group
	alive := map[string]bool{}
	for _, r := range v.Servers {
		if r.ID == self || !r.Alive {
			continue
		}
		alive[r.ID] = true
		g.Go(func() error {
			o.note(ctx, r.ID, o.ping(ctx, r.URL))
			return nil
		})
	}
	_ = g.Wait() // each has noted its own
	o.mu.Lock()
	defer o.mu.Unlock()
	for id := range o.silent {
		if !alive[id] {
			delete(o.silent, id)
		}
	}
}

func (o *siblings) ping(ctx context.Context, url string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url+"/v1/servers", nil)
	if err != nil {
		return err
	}
	resp, err := o.http.Do(req)
	if err != nil {
		return err
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return errors.New(resp.Status)
	}
	return nil
}

func (o *siblings) note(ctx context.Context, id string, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if err == nil {
		delete(o.silent, id)
		return
	}
	if errors.Is(ctx.Err(), context.Canceled) {
		return // we end
	}
	if errors.Is(err, context.DeadlineExceeded) {
		err = errors.New("no answer in time")
	}
	since := o.silent[id].since
	if since.IsZero() {
		since = time.Now()
	}
	o.silent[id] = silence{since, err}
}

func (o *siblings) now() map[string]silence {
	o.mu.Lock()
	defer o.mu.Unlock()
	out := make(map[string]silence, len(o.silent))
	for id, q := range o.silent {
		out[id] = q
	}
	return out
}

// getServers lists the API servers.
func (s *server) getServers(*http.Request) (any, error) {
	return api.ServerList{Cluster: s.cluster.Name, Servers: serverRows(time.Now(), s.cluster.Name, s.self.ID, s.election.View())}, nil
}

// deleteServer forgets an API server that is gone for good.
func (s *server) deleteServer(r *http.Request) (any, error) {
	name := r.PathValue("name")
	var ops []store.Op
	for _, row := range s.election.View().Servers {
		switch {
		case row.Name != name && row.ID != name:
		case row.Alive:
			return nil, api.Conflict("stop it first; then it goes by itself", "API server %s is running", name)
		default:
			ops = append(ops, store.Delete(wire.ServerKnownKey(row.ID)))
		}
	}
	if len(ops) == 0 {
		return nil, api.NotFound("`weft server list` lists them", "cluster %s has no API server %q", s.cluster.Name, name)
	}
	return struct{}{}, store.Write(r.Context(), s.store, ops...)
}
