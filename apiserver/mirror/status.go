package mirror

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/weft-mesh/weft/apiserver/api"
	"github.com/weft-mesh/weft/wire"
)

// counters is what Status and the metrics are made of. The Mirror's mutex
// guards it.
type counters struct {
	state     string
	since     time.Time
	err       string
	heard     time.Time
	synced    map[wire.Resource]bool
	refused   map[refusalKey]*api.Refusal
	holding   string // why, "" if nothing is held
	relists   uint64
	written   uint64
	withdrawn uint64
}

type refusalKey struct {
	resource string
	reason   Reason
}

// Status is the peer as the mirror knows it, at now.
func (m *Mirror) Status(now time.Time) api.PeerStatus {
	m.mu.Lock()
	defer m.mu.Unlock()
	p := m.conf.Peer
	s := api.PeerStatus{
		Cluster: m.conf.Own.Name, Name: p.Name, ID: uint32(p.ID),
		PodCIDRs: p.PodCIDRs, ServiceCIDR: p.ServiceCIDR, Endpoints: p.Endpoints,
		Generation: m.generation,
		Control:    api.ControlStatus{State: m.count.state, Since: m.count.since, Error: m.count.err, LastHeard: m.count.heard},
	}
	if !m.count.heard.IsZero() {
		s.Control.AgeSeconds = max(0, now.Sub(m.count.heard).Seconds())
	}
	entries, held := map[string]int{}, map[string]int{}
	for _, e := range m.have {
		entries[e.folder]++
	}
	for key := range m.held {
		held[m.have[key].folder]++
	}
	for _, r := range wire.Resources {
		s.Mirrors = append(s.Mirrors, api.MirrorStatus{Resource: string(r), Entries: entries[string(r)], Synced: m.count.synced[r], Held: held[string(r)]})
	}
	if n := held["weft"]; n > 0 {
		s.Mirrors = append(s.Mirrors, api.MirrorStatus{Resource: "weft", Entries: entries["weft"], Synced: true, Held: n})
	}
	for _, r := range m.count.refused {
		s.Refused = append(s.Refused, *r)
	}
	slices.SortFunc(s.Refused, func(a, b api.Refusal) int {
		return cmp.Or(cmp.Compare(a.Resource, b.Resource), cmp.Compare(a.Reason, b.Reason))
	})
	return s
}

// Held says how many deletions wait for an operator, and why; 0 and "" if none.
func (m *Mirror) Held() (int, string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.held), m.count.holding
}

// Problems are sentences about what needs an operator.
func (m *Mirror) Problems() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []string
	name := m.conf.Peer.Name
	if m.count.state == api.LinkRefused {
		out = append(out, fmt.Sprintf("peer %s: nothing is imported: %s", name, m.count.err))
	}
	if near := m.conf.Limit.near(len(m.have), m.bytes); near != "" && m.count.state != api.LinkRefused {
		out = append(out, fmt.Sprintf("peer %s: %s", name, near))
	}
	if n := len(m.held); n > 0 {
		out = append(out, fmt.Sprintf("peer %s: held: %d deletions (%s); if they are meant, `weft peer release %s` lets them through", name, n, m.count.holding, name))
	}
	return out
}

func (m *Mirror) setState(state string, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.count.err = ""
	if err != nil {
		m.count.err = err.Error()
	}
	if m.count.state != state {
		m.count.state, m.count.since = state, time.Now()
	}
}

func (m *Mirror) hear() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.count.heard = time.Now()
}

// refuseLocked counts a claim that was not believed. It logs the first of each
// kind, because a peer could fill the log.
func (m *Mirror) refuseLocked(f folder, key string, reason Reason, err error) {
	k := refusalKey{f.name, reason}
	r := m.count.refused[k]
	if r == nil {
		r = &api.Refusal{Cluster: m.conf.Peer.Name, Resource: f.name, Reason: string(reason)}
		m.count.refused[k] = r
		m.conf.Log.Warn("claim of a peer is not believed", "peer", m.conf.Peer.Name, "key", key, "reason", reason, "err", err)
	}
	r.Count++
	r.Last = time.Now()
	r.Example = fmt.Sprintf("%s: %v", key, err)
}
