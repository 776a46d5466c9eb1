package gossip

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"time"

	"github.com/hashicorp/memberlist"
)

// delegate is a Pool as memberlist sees it.
type delegate struct{ *Pool }

// meta is sent along with a member, at most 512 bytes.
type meta struct {
	Cluster string `json:"cluster"`
	Role    Role   `json:"role"`
	Name    string `json:"name"`
	// Leaving is set when the member is about to end on purpose.
	Leaving bool `json:"leaving,omitempty"`
}

// NodeMeta implements memberlist.Delegate.
func (d *delegate) NodeMeta(limit int) []byte {
	self := d.cfg.Self
	text, err := json.Marshal(meta{self.Cluster, self.Role, self.Name, d.leaving.Load()})
	if err != nil || len(text) > limit {
		return nil // cannot be: names are bounded by Validate
	}
	return text
}

// member reads a member of the pool. Its meta must agree with its name.
func member(n *memberlist.Node) (Member, error) {
	m, err := readMeta(n)
	if err != nil {
		return Member{}, err
	}
	addr, ok := netip.AddrFromSlice(n.Addr)
	if !ok {
		return Member{}, fmt.Errorf("member %q has no address", n.Name)
	}
	is := Member{Cluster: m.Cluster, Name: m.Name, Role: m.Role, Addr: netip.AddrPortFrom(addr.Unmap(), n.Port)}
	if err := is.validate(); err != nil {
		return Member{}, err
	}
	if is.String() != n.Name {
		return Member{}, fmt.Errorf("member %q claims to be %q", n.Name, is)
	}
	return is, nil
}

func readMeta(n *memberlist.Node) (m meta, err error) {
	if err := json.Unmarshal(n.Meta, &m); err != nil {
		return meta{}, fmt.Errorf("member %q has no readable metadata: %w", n.Name, err)
	}
	return m, nil
}

// NotifyAlive implements memberlist.AliveDelegate: it decides who is let in.
func (d *delegate) NotifyAlive(n *memberlist.Node) error {
	m, err := member(n)
	if err == nil && !d.admits(m.Cluster) {
		err = fmt.Errorf("member %q is from cluster %q, which is not a peer", n.Name, m.Cluster)
	}
	if err != nil {
		d.refused.Add(1)
		return err
	}
	return nil
}

func (d *delegate) admits(cluster string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.clusters[cluster]
}

// NotifyJoin implements memberlist.EventDelegate.
func (d *delegate) NotifyJoin(n *memberlist.Node) {
	m, err := member(n)
	if err != nil || m.String() == d.cfg.Self.String() {
		return
	}
	d.mu.Lock()
	d.members[m.String()] = m
	d.alive.Store(int64(len(d.members)))
	d.mu.Unlock()
	d.tell(Alive, m)
}

// NotifyLeave implements memberlist.EventDelegate.
func (d *delegate) NotifyLeave(n *memberlist.Node) {
	m, err := member(n)
	if err != nil || m.String() == d.cfg.Self.String() {
		return
	}
	d.mu.Lock()
	delete(d.members, m.String())
	delete(d.rtt, m.String())
	d.alive.Store(int64(len(d.members)))
	d.mu.Unlock()
	if said, err := readMeta(n); err == nil && said.Leaving {
		d.tell(Left, m)
		return
	}
	d.tell(Dead, m)
}

// NotifyUpdate implements memberlist.EventDelegate.
func (d *delegate) NotifyUpdate(n *memberlist.Node) {
	if m, err := member(n); err == nil && m.String() != d.cfg.Self.String() {
		d.mu.Lock()
		d.members[m.String()] = m
		d.mu.Unlock()
	}
}

func (d *delegate) tell(kind Kind, m Member) {
	d.cfg.Log.Debug("member changed", "member", m, "kind", kind)
	if d.cfg.OnEvent != nil && d.admits(m.Cluster) {
		d.cfg.OnEvent(Event{Kind: kind, Member: m, At: time.Now()})
	}
}

// NotifyConflict implements memberlist.ConflictDelegate.
func (d *delegate) NotifyConflict(existing, other *memberlist.Node) {
	d.refused.Add(1)
	d.cfg.Log.Warn("two members have the same name; the second is not let in",
		"member", existing.Name, "address", existing.Address(), "second", other.Address())
}

// AckPayload implements memberlist.PingDelegate.
func (d *delegate) AckPayload() []byte {
	if d.cfg.Say == nil {
		return nil
	}
	said := d.cfg.Say()
	return said[:min(len(said), MaxSaid)]
}

// NotifyPingComplete implements memberlist.PingDelegate.
func (d *delegate) NotifyPingComplete(n *memberlist.Node, rtt time.Duration, said []byte) {
	d.mu.Lock()
	if _, alive := d.members[n.Name]; alive {
		d.rtt[n.Name] = rtt
	}
	d.mu.Unlock()
	if m, err := member(n); err == nil && d.cfg.OnSaid != nil && len(said) > 0 && d.admits(m.Cluster) {
		d.cfg.OnSaid(m, said)
	}
}

// NotifyMsg implements memberlist.Delegate: it takes a report that a member passes on.
func (d *delegate) NotifyMsg(text []byte) {
	var r Report
	if err := json.Unmarshal(text, &r); err != nil {
		d.refused.Add(1)
		return
	}
	d.accept(r)
}

// accept keeps a report and passes it on if it is newer and signed by the cluster that
// it is about.
func (d *delegate) accept(r Report) {
	if r.Cluster == d.cfg.Self.Cluster && r.Reporter == d.cfg.Self.Name {
		return // our own, come back
	}
	d.mu.Lock()
	news, err := d.keepLocked(r)
	level := slog.LevelDebug
	if now := time.Now(); err != nil && d.clusters[r.Cluster] && now.Sub(d.warned[r.Cluster]) >= warnAgain {
		level, d.warned[r.Cluster] = slog.LevelWarn, now
	}
	d.mu.Unlock()
	if err != nil {
		d.refused.Add(1)
		d.cfg.Log.Log(context.Background(), level, "report of dead nodes ignored", "cluster", r.Cluster, "reporter", fmt.Sprintf("%.64s", r.Reporter), "err", err)
	}
	if news && d.cfg.OnReport != nil {
		d.cfg.OnReport(r)
	}
}

func (d *delegate) keepLocked(r Report) (news bool, err error) {
	if !d.clusters[r.Cluster] {
		return false, errors.New("its cluster is not a peer")
	}
	key, now := r.Cluster+"/"+r.Reporter, time.Now()
	known, again := d.reports[key]
	if news, err := judge(known, r, now); !news {
		return false, err
	}
	if d.cfg.Verify == nil {
		return false, errors.New("its signature cannot be verified")
	}
	if err := d.cfg.Verify(r.Cluster, r.text(), r.Signature); err != nil {
		return false, err
	}
	d.forgetLocked(now)
	if !again && d.reportersLocked(r.Cluster) >= maxReporters {
		return false, fmt.Errorf("its cluster has %d other reporters", maxReporters)
	}
	r.Dead = slices.Clone(r.Dead)
	d.reports[key] = r
	d.spread(r)
	return true, nil
}

// maxBroadcast is how much fits into one packet beside what memberlist adds, in bytes.
// A longer report is sent with the next exchange of full state.
const maxBroadcast = 1000

// spread sends a report to everybody, along with other gossip.
func (p *Pool) spread(r Report) {
	text, err := json.Marshal(r)
	if err != nil || len(text) > maxBroadcast {
		return
	}
	p.queue.QueueBroadcast(broadcast{r.Cluster + "/" + r.Reporter, text})
}

// GetBroadcasts implements memberlist.Delegate.
func (d *delegate) GetBroadcasts(overhead, limit int) [][]byte {
	return d.queue.GetBroadcasts(overhead, limit)
}

// LocalState implements memberlist.Delegate: it returns everything, for an exchange of
// full state.
func (d *delegate) LocalState(bool) []byte {
	all := d.Reports()
	d.mu.Lock()
	if d.own.Sequence != 0 {
		all = append(all, d.own)
	}
	d.mu.Unlock()
	text, err := json.Marshal(all)
	if err != nil {
		return nil // cannot be: strings and numbers
	}
	return text
}

// MergeRemoteState implements memberlist.Delegate.
func (d *delegate) MergeRemoteState(text []byte, _ bool) {
	var all []Report
	if err := json.Unmarshal(text, &all); err != nil {
		d.refused.Add(1)
		return
	}
	for _, r := range all {
		d.accept(r)
	}
}

// broadcast is a report to be sent; a newer one of the same reporter replaces it.
type broadcast struct {
	about string
	text  []byte
}

func (b broadcast) Name() string { return b.about }
func (b broadcast) Invalidates(other memberlist.Broadcast) bool {
	o, ok := other.(broadcast)
	return ok && o.about == b.about
}
func (b broadcast) Message() []byte { return b.text }
func (b broadcast) Finished()       {}
