package mirror

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/weft-mesh/weft/apiserver/api"
	"github.com/weft-mesh/weft/wire"
)

// counters is what Status and the metrics are made of. The Mirror's mutex
// guards it.
type counters struct {
	state    string
	since    time.Time
	err      string
	heard    time.Time
	synced   map[wire.Resource]bool
	refused  map[string]refusal    // claims that stand and are not believed, by key
	refusals map[refusalKey]uint64 // how often that was found, ever
	// joined says whether the peer has added us; nil: it does not say.
	joined      *bool
	joinedSince time.Time
	holding     string // why, "" if nothing is held
	relists     uint64
	written     uint64
	withdrawn   uint64
}

type refusalKey struct {
	resource string
	reason   Reason
}

// refusal is one claim that is not believed.
type refusal struct {
	kind refusalKey
	text string
	at   time.Time
}

// mostRefused bounds what is remembered of refused claims, and refusalText each
// text: a peer can make as many as its store holds.
const (
	mostRefused = 10_000
	refusalText = 300
)

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
	s.Refused = m.refusedLocked()
	if m.count.state == api.LinkUp {
		s.AddedUs, s.AddedUsSince = m.count.joined, m.count.joinedSince
	}
	slices.SortFunc(s.Refused, func(a, b api.Refusal) int {
		return cmp.Or(cmp.Compare(a.Resource, b.Resource), cmp.Compare(a.Reason, b.Reason))
	})
	return s
}

// Heard is when the peer last proved that our copy is current; zero: never.
func (m *Mirror) Heard() time.Time {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.count.heard
}

// Held says how many deletions wait for an operator, and why; 0 and "" if none.
func (m *Mirror) Held() (int, string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.held), m.count.holding
}

// Problems are sentences about what needs an operator, beyond the control link.
func (m *Mirror) Problems() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []string
	name := m.conf.Peer.Name
	if near := m.conf.Limit.near(len(m.have), m.bytes); near != "" && m.count.state != api.LinkRefused {
		out = append(out, fmt.Sprintf("peer %s: %s", name, near))
	}
	if n, since := m.queue.oldest(); n > 0 {
		if late := m.conf.Rate.late(n, time.Since(since)); late != "" {
			out = append(out, fmt.Sprintf("peer %s: %s", name, late))
		}
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

// refuseLocked notes a claim that is not believed, until pardonLocked. It logs the
// first of each kind, because a peer could fill the log.
func (m *Mirror) refuseLocked(f folder, key string, reason Reason, err error) {
	kind := refusalKey{f.name, reason}
	text := fmt.Sprintf("%s: %v", key, err)
	text = text[:min(len(text), refusalText)]
	if old, known := m.count.refused[key]; known && old.kind == kind && old.text == text {
		return // found again by another list
	}
	if m.count.refusals[kind] == 0 {
		m.conf.Log.Warn("claim of a peer is not believed", "peer", m.conf.Peer.Name, "key", key, "reason", reason, "err", err)
	}
	m.count.refusals[kind]++
	if len(m.count.refused) < mostRefused {
		m.count.refused[key] = refusal{kind, text, time.Now()}
	}
}

// pardonLocked forgets what was refused under a key: it was withdrawn, or is
// believed now.
func (m *Mirror) pardonLocked(key string) { delete(m.count.refused, key) }

// pardonOverLimit forgets that the peer was over its limit.
func (m *Mirror) pardonOverLimit() {
	m.mu.Lock()
	defer m.mu.Unlock()
	maps.DeleteFunc(m.count.refused, func(_ string, r refusal) bool { return r.kind.reason == OverLimit })
}

// refusedLocked sums up what is refused, by kind, each with its first key as the
// example.
func (m *Mirror) refusedLocked() []api.Refusal {
	kinds := map[refusalKey]*api.Refusal{}
	for _, r := range m.count.refused {
		k := kinds[r.kind]
		if k == nil {
			k = &api.Refusal{Cluster: m.conf.Peer.Name, Resource: r.kind.resource, Reason: string(r.kind.reason), Example: r.text}
			kinds[r.kind] = k
		}
		k.Count++
		k.Example = min(k.Example, r.text)
		if r.at.After(k.Last) {
			k.Last = r.at
		}
	}
	var out []api.Refusal
	for _, k := range kinds {
		out = append(out, *k)
	}
	return out
}

// Refusals counts how often each kind of claim was found not to be believed, by
// resource and reason.
func (m *Mirror) Refusals(each func(resource string, reason Reason, n uint64)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for kind, n := range m.count.refusals {
		each(kind.resource, kind.reason, n)
	}
}
