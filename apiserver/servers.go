package apiserver

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/netip"
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
	"github.com/weft-mesh/weft/apiserver/members"
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

// serverRows describes the API servers: what the election knows about them, and what their
// members of the embedded store add; there are none with an existing etcd.
func serverRows(now time.Time, cluster, self string, v leader.View, stores []members.Member) []api.ServerStatus {
	out := make([]api.ServerStatus, 0, max(len(v.Servers), len(stores)))
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
		out = append(out, s)
	}
	for _, m := range stores {
		i := slices.IndexFunc(out, func(s api.ServerStatus) bool { return s.Name == m.Name })
		if i < 0 {
			i, out = len(out), append(out, api.ServerStatus{Cluster: cluster, Name: m.Name, State: withoutRow[m.State], Since: m.Since})
		}
		s := &out[i]
		s.StoreLeads, s.StoreAddress, s.StoreVersion, s.StoreBytes = m.Leads, m.Address, m.Version, m.Bytes
		switch m.State {
		case members.Up:
			s.Store = api.StoreUp
		case members.Down:
			s.Store = api.StoreDown
		}
	}
	for i := range out {
		out[i].AgeSeconds = max(0, now.Sub(out[i].Since).Seconds())
	}
	slices.SortFunc(out, func(a, b api.ServerStatus) int { return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.ID, b.ID)) })
	return out
}

// withoutRow is the state of an API server that takes no part in the election, by that of
// its member of the store.
var withoutRow = map[members.State]string{
	members.Up:      api.ServerMissing,
	members.Down:    api.ServerStopped,
	members.Joining: api.ServerJoining,
	members.Invited: api.ServerInvited,
}

// Grace periods of API servers. Where one that leads has died, another leads within
// wire.ServerTTL and a moment.
const (
	noLeaderGrace = 5 * time.Second
	serverGrace   = 10 * time.Second
	joiningGrace  = time.Minute
)

// serverConcerns say which API servers do not work, and what is wrong in the processes of
// the others.
func serverConcerns(self string, v leader.View, silent map[string]silence, stores []members.Member) (out []api.Concern) {
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
	margin := members.Margin(members.Quorum(stores))
	if margin != "" {
		margin = "; " + margin
	}
	for _, r := range v.Servers {
		object := "API server " + r.Name
		quiet, is := silent[r.ID]
		i := slices.IndexFunc(stores, func(m members.Member) bool { return m.Name == r.Name })
		switch {
		case r.ID == self:
			continue
		case i >= 0 && stores[i].Another:
			out = append(out, anotherStore(stores[i]))
		case !r.Alive && i < 0:
			out = append(out, api.Concern{
				Object: object, Reason: "ServerMissing", Since: r.Missing, Grace: serverGrace,
				Message: object + " has given no sign of life for {age}", Next: fmt.Sprintf("start it, or `weft server delete %s` if it is gone for good", r.Name),
			})
		case !r.Alive:
			out = append(out, api.Concern{
				Object: object, Reason: "ServerMissing", Since: r.Missing, Grace: serverGrace,
				Message: object + " has given no sign of life for {age}" + margin, Next: backNext(r.Name),
			})
		case is:
			out = append(out, api.Concern{
				Object: object, Reason: "ServerSilent", Since: quiet.since, Grace: serverGrace,
				Message: fmt.Sprintf("%s does not answer: %v", object, quiet.why), Next: "look at its log, and restart it if it hangs",
			})
		case i >= 0 && stores[i].State == members.Down:
			out = append(out, api.Concern{
				Object: object, Reason: "StoreDown", Since: stores[i].Since, Grace: serverGrace,
				Message: "the store of " + object + " does not answer" + margin, Next: "look at its log, and whether the port of its --etcd-listen is open for the other API servers",
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
	return append(out, memberConcerns(v, stores, margin)...)
}

// backNext is what to do about an API server that is down, whose member of the store is
// missed.
func backNext(name string) string {
	return fmt.Sprintf("start it; if its disk is lost, `weft server replace %s`; if it is gone for good, `weft server delete %s`", name, name)
}

// anotherStore is the concern of an API server that has left the store of this one behind:
// nodes and peers may follow either.
func anotherStore(m members.Member) api.Concern {
	object := "API server " + m.Name
	return api.Concern{
		Object: object, Reason: "AnotherStore", Since: m.Since, Grace: serverGrace,
		Message: object + " has served another store for {age}: it was restored from a backup, and this API server still serves the store from before",
		Next:    fmt.Sprintf("stop this API server and every other one that serves the old store, delete the folder etcd in their data folders, run `weft server replace NAME` on %s for each of them, then start them with join", m.Name),
	}
}

// memberConcerns are about API servers that take no part in the election.
func memberConcerns(v leader.View, stores []members.Member, margin string) (out []api.Concern) {
	for _, m := range stores {
		if slices.ContainsFunc(v.Servers, func(r leader.Row) bool { return r.Name == m.Name }) {
			continue
		}
		if m.Another {
			out = append(out, anotherStore(m))
			continue
		}
		object := "API server " + m.Name
		c := api.Concern{Object: object, Since: m.Since, Grace: serverGrace}
		switch m.State {
		case members.Up:
			c.Reason, c.Message, c.Next = "ServerMissing", object+" has a store and does not answer", "look at its log"
		case members.Down:
			c.Reason, c.Message, c.Next = "ServerStopped", object+" is stopped"+margin, backNext(m.Name)
		case members.Joining:
			c.Reason, c.Grace = "ServerJoining", joiningGrace
			c.Message, c.Next = object+" has not caught up with the others", "look at its log"
		case members.Invited:
			c.Reason, c.Grace = "ServerInvited", joiningGrace
			c.Message, c.Next = object+" was added and has never joined", fmt.Sprintf("start it with --join and its bundle, or `weft server delete %s`", m.Name)
		}
		out = append(out, c)
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

// accessTurn is how often the API servers are compared with what agents and peers are told.
const accessTurn = 2 * time.Second

// tellAccess tells agents how the API servers and the store are reached, until ctx ends, and
// calls moved when that has changed. It looks each time what agents were told: the store may
// have been restored.
func (s *server) tellAccess(ctx context.Context, st store.Store, kubernetes func() ([]netip.Addr, bool), moved func()) error {
	var before string
	tick := time.NewTicker(accessTurn)
	defer tick.Stop()
	for {
		// In one order, whichever server leads.
		sorted := func(all []string) []string { return slices.Sorted(slices.Values(all)) }
		now := wire.Access{Servers: sorted(append(s.otherURLs(), s.self.URL)), Etcd: sorted(s.etcdEndpoints()), Gossip: sorted(s.gossipSeeds())}
		if all := fmt.Sprintf("%s %q", wire.Marshal(now), s.wanGossip()); all != before {
			moved()
			before = all
		}
		kv, err := st.Get(ctx, wire.AccessKey)
		if err != nil && !errors.Is(err, store.ErrNotFound) {
			return err
		}
		if s.conf.Kubernetes {
			known := false
			if now.Kubernetes, known = kubernetes(); !known { // as it was told before
				told, _ := wire.Unmarshal[wire.Access](kv.Value)
				now.Kubernetes = told.Kubernetes
			}
		}
		if text := wire.Marshal(now); !slices.Equal(kv.Value, text) {
			if err := store.Write(ctx, st, store.Put(wire.AccessKey, text)); err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
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
