package leader

import (
	"cmp"
	"maps"
	"slices"
	"time"

	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/wire"
)

// View is what a server knows about all of them.
type View struct {
	// Leader is zero if nobody leads who lives; then Vacant is since when that is known.
	Leader wire.Leader
	Vacant time.Time
	// Leads says that this server's controllers run.
	Leads bool
	// Failed is why this server cannot take part; nil if it does.
	Failed error
	// Servers are ordered by name.
	Servers []Row
}

// Row is one API server.
type Row struct {
	wire.Server
	// Alive says that it has a lease, and Missing since when it is known to have none.
	Alive   bool
	Missing time.Time
	// Problems are those of its process, as it reported them; nil if there are none.
	Problems []byte

	known bool
}

// servers is what the store says about the API servers.
type servers struct {
	held   wire.Leader // who took the leadership last
	leader wire.Leader // held, if that server lives
	vacant time.Time
	rows   map[string]Row // by ID
}

// View returns what is known now.
func (e *Election) View() View {
	e.mu.Lock()
	defer e.mu.Unlock()
	v := View{Leader: e.servers.leader, Vacant: e.servers.vacant, Leads: e.term != nil, Failed: e.failed}
	for _, r := range e.servers.rows {
		v.Servers = append(v.Servers, r)
	}
	slices.SortFunc(v.Servers, func(a, b Row) int { return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.ID, b.ID)) })
	return v
}

// see takes in what changed, and wakes the session if the leadership may be free, or no
// longer ours.
func (e *Election) see(b store.Batch) {
	e.mu.Lock()
	e.servers.apply(b, time.Now())
	free := !e.servers.vacant.IsZero() || e.term != nil && e.servers.leader.Server.ID != e.conf.Self.ID
	e.mu.Unlock()
	e.listed.Do(func() { close(e.known) }) // the first batch is the list
	if free {
		select {
		case e.changed <- struct{}{}:
		default:
		}
	}
}

// apply takes in what changed. What cannot be read counts as absent.
func (s *servers) apply(b store.Batch, now time.Time) {
	before := s.rows
	if b.Complete {
		s.held, s.rows = wire.Leader{}, map[string]Row{}
	}
	for _, ev := range b.Events {
		id, entry, ok := wire.ParseServersKey(ev.Key)
		if !ok {
			continue
		}
		if entry == wire.ServersEntryLeader {
			// The zero value if it was deleted.
			s.held, _ = wire.Unmarshal[wire.Leader](ev.Value)
			continue
		}
		r := s.rows[id]
		switch entry {
		case wire.ServersEntryKnown, wire.ServersEntryAlive:
			v, err := wire.Unmarshal[wire.Server](ev.Value)
			if err == nil && !ev.Deleted {
				r.Server = v
			}
			if entry == wire.ServersEntryAlive {
				r.Alive = !ev.Deleted
			} else {
				r.known = !ev.Deleted
			}
		case wire.ServersEntryProblems:
			if r.Problems = ev.Value; ev.Deleted {
				r.Problems = nil
			}
		}
		s.rows[id] = r
	}
	maps.DeleteFunc(s.rows, func(_ string, r Row) bool { return !r.known && !r.Alive })
	for id, r := range s.rows {
		switch {
		case r.Alive:
			r.Missing = time.Time{}
		case r.Missing.IsZero() && !before[id].Missing.IsZero():
			r.Missing = before[id].Missing // listed again
		case r.Missing.IsZero():
			r.Missing = now
		}
		s.rows[id] = r
	}
	if s.leader = s.held; !s.rows[s.held.Server.ID].Alive {
		s.leader = wire.Leader{}
	}
	switch {
	case s.leader != (wire.Leader{}):
		s.vacant = time.Time{}
	case s.vacant.IsZero():
		s.vacant = now
	}
}

// succeeded returns the IDs of servers whose place a server takes: they had the address
// at which it answers now, so they have ended, and their data folder was lost or replaced.
// Their leases may say otherwise for a while.
func succeeded(kvs []store.KV, self wire.Server) (ids []string) {
	all := servers{}
	all.apply(store.Batch{Complete: true, Events: puts(kvs)}, time.Time{})
	for _, id := range slices.Sorted(maps.Keys(all.rows)) {
		if id != self.ID && all.rows[id].URL == self.URL {
			ids = append(ids, id)
		}
	}
	return ids
}

func puts(kvs []store.KV) []store.Event {
	events := make([]store.Event, len(kvs))
	for i, kv := range kvs {
		events[i].KV = kv
	}
	return events
}
