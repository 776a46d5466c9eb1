package mirror

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/wire"
)

// counters is the data for Status and the metrics. The Mirror's mutex guards it.
type counters struct {
	state    string
	since    time.Time
	notUp    time.Time // since when the state is not LinkUp; zero if it is
	err      string
	heard    time.Time
	synced   map[wire.Resource]bool
	without  map[wire.Resource]bool // what is not read of the peer in its mode
	refused  map[string]refusal     // claims that are refused now, by key
	refusals map[refusalKey]uint64  // how many claims were refused since the start
	// joined says whether the peer has added us; nil if it does not say.
	joined      *bool
	joinedSince time.Time
	holding     string // why deletions are held; "" if none are
	relists     uint64
	written     uint64
	withdrawn   uint64
}

type refusalKey struct {
	resource string
	reason   Reason
}

// refusal is one refused claim.
type refusal struct {
	kind refusalKey
	text string
	at   time.Time
}

// mostRefused bounds how many refused claims are remembered, and refusalText the
// length of each text in bytes, because a peer can make any number of them.
const (
	mostRefused = 10_000
	refusalText = 300
)

// Status returns the peer's status at now.
func (m *Mirror) Status(now time.Time) api.PeerStatus {
	m.mu.Lock()
	defer m.mu.Unlock()
	p := m.conf.Peer
	s := api.PeerStatus{
		Cluster: m.conf.Own.Name, Name: p.Name, ID: uint32(p.ID),
		PodCIDRs: p.PodCIDRs, ServiceCIDR: p.ServiceCIDR, IPv6ServiceCIDR: p.IPv6ServiceCIDR, Endpoints: p.Endpoints,
		Generation: m.generation, Cilium: p.Cilium,
		Control: api.ControlStatus{State: m.count.state, Since: m.count.since, NotUpSince: m.count.notUp, Error: m.count.err, LastHeard: m.count.heard},
	}
	if !m.count.heard.IsZero() {
		s.Control.AgeSeconds = max(0, now.Sub(m.count.heard).Seconds())
	}
	held := map[string]int{}
	for key := range m.held {
		held[m.have[key].folder]++
	}
	for _, r := range wire.Resources {
		if m.count.without[r] {
			continue
		}
		s.Mirrors = append(s.Mirrors, api.MirrorStatus{Resource: string(r), Entries: m.entries[string(r)], Synced: m.count.synced[r], Held: held[string(r)]})
	}
	if n := held["weft"]; n > 0 {
		s.Mirrors = append(s.Mirrors, api.MirrorStatus{Resource: "weft", Entries: m.entries["weft"], Synced: true, Held: n})
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

// Heard returns when the peer last proved that our copy is current; zero if it never
// did.
func (m *Mirror) Heard() time.Time {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.count.heard
}

// Held returns how many deletions wait for an operator, and why; 0 and "" if none do.
func (m *Mirror) Held() (int, string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.held), m.count.holding
}

// Concerns returns what needs an operator, apart from the state of the control link.
func (m *Mirror) Concerns(now time.Time) (out []api.Concern) {
	m.mu.Lock()
	defer m.mu.Unlock()
	name := m.conf.Peer.Name
	add := func(c api.Concern) {
		c.Object, c.Message = "peer "+name, "peer "+name+": "+c.Message
		out = append(out, c)
	}
	if near, next := m.conf.Limit.near(len(m.have), m.bytes); near != "" && m.count.state != api.LinkRefused {
		add(api.Concern{Reason: "PeerNearLimit", Message: near, Next: next})
	}
	if n, since := m.queue.oldest(); n > 0 && now.Sub(since) >= lateAfter {
		late, next := m.conf.Rate.late(n)
		add(api.Concern{Reason: "PeerChangesWait", Since: since, Grace: lateAfter, Message: late, Next: next})
	}
	if n := len(m.held); n > 0 {
		add(api.Concern{
			Reason: "DeletionsHeld", Message: fmt.Sprintf("held: %d deletions (%s)", n, m.count.holding),
			Next: fmt.Sprintf("if they are intended, carry them out with `weft peer release %s`", name),
		})
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
	if m.count.state == state {
		return
	}
	m.count.state, m.count.since = state, time.Now()
	if state == api.LinkUp {
		m.count.notUp = time.Time{}
	} else if m.count.notUp.IsZero() {
		m.count.notUp = m.count.since
	}
}

func (m *Mirror) stateIs(state string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.count.state == state
}

func (m *Mirror) hear() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.count.heard = time.Now()
}

// refuseLocked records a refused claim, until pardonLocked. It logs only the first of
// each kind, because a peer could fill the log.
func (m *Mirror) refuseLocked(f folder, key string, reason Reason, err error) {
	kind := refusalKey{f.name, reason}
	text := fmt.Sprintf("%s: %v", key, err)
	text = text[:min(len(text), refusalText)]
	if old, known := m.count.refused[key]; known && old.kind == kind && old.text == text {
		return // found again by another list
	}
	if m.count.refusals[kind] == 0 {
		m.conf.Log.Warn("refused a peer's claim; later ones of this kind are only counted", "peer", m.conf.Peer.Name, "key", key, "reason", reason, "err", err)
	}
	m.count.refusals[kind]++
	if len(m.count.refused) < mostRefused {
		m.count.refused[key] = refusal{kind, text, time.Now()}
	}
}

// pardonLocked forgets the refused claim under a key: it was withdrawn or is accepted
// now.
func (m *Mirror) pardonLocked(key string) { delete(m.count.refused, key) }

// pardonOverLimit forgets that the peer was over its limit.
func (m *Mirror) pardonOverLimit() {
	m.mu.Lock()
	defer m.mu.Unlock()
	maps.DeleteFunc(m.count.refused, func(_ string, r refusal) bool { return r.kind.reason == OverLimit })
}

// refusedLocked sums up the refused claims by kind, with the lowest key as the example.
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

// Refusals calls each with how many claims were refused since the start, by resource
// and reason. each must not call the mirror.
func (m *Mirror) Refusals(each func(resource string, reason Reason, n uint64)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for kind, n := range m.count.refusals {
		each(kind.resource, kind.reason, n)
	}
}
