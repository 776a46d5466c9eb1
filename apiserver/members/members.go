package members

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/apiserver/authority"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/wire"
)

// Timing of looks at the other members.
const (
	turn     = 3 * time.Second
	patience = 2 * time.Second
	// settling is how long a change waits until etcd considers the others connected; it
	// wants 5 s.
	settling = 8 * time.Second
)

// Etcd is the part of an etcd that tells about members and changes them.
type Etcd interface {
	KnownMembers(ctx context.Context) ([]store.Member, error)
	// Ask without an endpoint asks our own member.
	Ask(ctx context.Context, endpoint string, patience time.Duration) (store.MemberStatus, error)
	RemoveMember(ctx context.Context, id uint64) error
}

// Config of Members.
type Config struct {
	Cluster wire.Cluster
	// Self is this API server's member.
	Self uint64
	// Endpoint is the URL at which clients reach our etcd.
	Endpoint string
	Store    store.Store
	Etcd     Etcd
	// Port is where members listen for each other; 0: this one does not, so nobody can
	// join it.
	Port uint16
	// Secret returns the cluster's authority, for the bundles.
	Secret func() (authority.Secret, error)
	Log    *slog.Logger
}

// Members knows the members of the store. Safe for concurrent use.
type Members struct {
	conf Config

	looking sync.Mutex // is held during a look: an older one never overwrites a newer one

	mu    sync.Mutex // guards what follows
	list  []store.Member
	seen  map[uint64]seen
	added map[string]record // by operators; the first member is not among them
}

// seen is what a look at a member told.
type seen struct {
	up      bool
	another bool      // another store answers in its place
	since   time.Time // when up became what it is
	status  store.MemberStatus
}

// New returns Members that know what the store lists now.
func New(ctx context.Context, c Config) (*Members, error) {
	m := &Members{conf: c, seen: map[uint64]seen{}}
	return m, m.look(ctx)
}

// Run looks at the members until ctx ends.
func (m *Members) Run(ctx context.Context) error {
	tick := time.NewTicker(turn)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if err := m.look(ctx); err != nil && ctx.Err() == nil {
			m.conf.Log.Debug("cannot look at the store's members", "err", err)
		}
	}
}

// look asks every member how it is, all at once.
func (m *Members) look(ctx context.Context) error {
	m.looking.Lock()
	defer m.looking.Unlock()
	list, err := m.conf.Etcd.KnownMembers(ctx)
	if err != nil {
		return err
	}
	answers := make([]*store.MemberStatus, len(list))
	var asked sync.WaitGroup
	for i, one := range list {
		endpoint := "" // our own
		if one.ID != m.conf.Self {
			if len(one.Clients) == 0 {
				continue
			}
			endpoint = one.Clients[0]
		}
		asked.Go(func() {
			if status, err := m.conf.Etcd.Ask(ctx, endpoint, patience); err == nil {
				answers[i] = &status
			}
		})
	}
	asked.Wait()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	// Without a quorum the records cannot be read; then those from before are good.
	reading, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	added, unread := records(reading, m.conf.Store)
	m.mu.Lock()
	defer m.mu.Unlock()
	now, before := time.Now(), m.seen
	var ids []uint64
	for _, one := range list {
		ids = append(ids, one.ID)
	}
	m.list, m.seen = list, map[uint64]seen{}
	if unread == nil {
		m.added = added
	}
	for i, one := range list {
		is, known := before[one.ID]
		another := answers[i] != nil && one.ID != m.conf.Self && !slices.Contains(ids, answers[i].ID)
		if another {
			answers[i] = nil
		}
		up := answers[i] != nil || one.ID == m.conf.Self
		if !known || is.up != up {
			is = seen{up: up, since: now}
			if known {
				m.conf.Log.Info("a member of the store changed", "member", one.Name, "answers", up)
			}
		}
		is.another = another
		if answers[i] != nil {
			is.status = *answers[i]
		}
		m.seen[one.ID] = is
	}
	return nil
}

// Endpoints are the URLs at which clients reach the members, ours first. They go into bundles,
// which are not written again, so they are those of this moment unless our etcd does not answer.
func (m *Members) Endpoints() []string {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	list, err := m.conf.Etcd.KnownMembers(ctx)
	if err != nil {
		m.mu.Lock()
		list = m.list
		m.mu.Unlock()
	}
	all := []string{m.conf.Endpoint}
	for _, one := range list {
		if one.ID != m.conf.Self && !one.Learner {
			all = append(all, one.Clients...)
		}
	}
	slices.Sort(all[1:])
	return all
}

// List returns the members in order of name.
func (m *Members) List() (out []Member) {
	m.mu.Lock()
	defer m.mu.Unlock()
	leader := m.seen[m.conf.Self].status.Leader
	listed := map[string]bool{}
	for _, one := range m.list {
		is := m.seen[one.ID]
		row := Member{
			Name: one.Name, Address: hostOf(one.Peer), State: Up, Leads: leader != 0 && leader == one.ID,
			Since: is.since, Version: is.status.Version, Bytes: is.status.Bytes, id: one.ID,
		}
		switch {
		case one.Name == "":
			row.Name, row.State = m.namedLocked(row.Address), Joining
		case one.Learner:
			row.State = Joining
		case !is.up:
			row.State, row.Another, row.Version, row.Bytes = Down, is.another, "", 0
		}
		listed[row.Name] = true
		out = append(out, row)
	}
	for name, r := range m.added {
		if !listed[name] {
			out = append(out, Member{Name: name, Address: r.Address, State: Invited, Since: r.Added})
		}
	}
	slices.SortFunc(out, func(a, b Member) int { return cmp.Compare(a.Name, b.Name) })
	return out
}

// namedLocked is the name that the member at an address was added with.
func (m *Members) namedLocked(address string) string {
	for name, r := range m.added {
		if r.Address == address {
			return name
		}
	}
	return address
}

// Add admits another API server and returns its bundle. It becomes a member when it joins.
func (m *Members) Add(ctx context.Context, request api.ServerRequest) (*api.ServerBundle, error) {
	if err := CheckName(request.Name); err != nil {
		return nil, api.Invalid("", "%v", err)
	}
	if !request.Address.IsValid() || request.Address.IsUnspecified() {
		return nil, api.Invalid("give it with --address", "the address of API server %s is missing", request.Name)
	}
	if m.conf.Port == 0 {
		return nil, api.Conflict("set etcdPeerListen in its configuration and restart it", "this API server does not listen for the etcds of others")
	}
	all, err := m.now(ctx)
	if err != nil {
		return nil, err
	}
	port := cmp.Or(request.Port, m.conf.Port)
	if err := mayAdd(all, request.Name, hostPort(request.Address.String(), port)); err != nil {
		return nil, err
	}
	b, err := m.add(ctx, request.Name, request.Address, port)
	if err == nil {
		_ = m.look(ctx) // so that the next List has it; if this fails, another look follows soon
	}
	return b, err
}

// Remove removes an API server's member for good: it does not come back by a restart. What
// else goes with it is deleted in the same transaction as its record.
func (m *Members) Remove(ctx context.Context, name string, also ...store.Op) (api.Quorum, error) {
	return m.change(ctx, name, mayRemove, func() error {
		return store.Write(ctx, m.conf.Store, append(also, store.Delete(wire.AddedServerKey(name)))...)
	})
}

// Replace lets an API server whose disk is lost join again, with the bundle that it has.
func (m *Members) Replace(ctx context.Context, name string) (api.Quorum, error) {
	kv, err := m.conf.Store.Get(ctx, wire.AddedServerKey(name))
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return api.Quorum{}, err
	}
	r, bad := wire.Unmarshal[record](kv.Value)
	has := err == nil && bad == nil
	return m.change(ctx, name, func(all []Member, name string) error {
		if err := mayReplace(all, name); err != nil || has {
			return err
		}
		return api.Conflict("delete it and add it again: `weft server delete "+name+"`, then `weft server add "+name+" …`",
			"API server %s has no join bundle, because it was the first", name)
	}, func() error {
		r.Expires = time.Now().UTC().Truncate(time.Second).Add(bundleLifetime)
		return store.Write(ctx, m.conf.Store, store.Put(wire.AddedServerKey(name), wire.Marshal(r)))
	})
}

// change removes a member from the store if it may, then does what else is to be done. It
// may be repeated if it fails in between.
func (m *Members) change(ctx context.Context, name string, may func([]Member, string) error, then func() error) (q api.Quorum, err error) {
	all, err := m.now(ctx)
	if err != nil {
		return q, err
	}
	if err := may(all, name); err != nil {
		return q, err
	}
	one, err := find(all, name)
	if err != nil {
		return q, err
	}
	if one.id != 0 {
		err := m.remove(ctx, one.id)
		if errors.Is(err, store.ErrNoQuorum) {
			return q, api.Conflict("wait until `weft server list` shows all others up, then try again", "%s cannot go now: %v", name, err)
		}
		if err != nil {
			return q, err
		}
	}
	if err := then(); err != nil {
		return q, err
	}
	after, err := m.now(ctx)
	return Quorum(after), err
}

// remove removes a member. etcd may refuse until the others have been connected for a while.
func (m *Members) remove(ctx context.Context, id uint64) error {
	for began := time.Now(); ; {
		err := m.conf.Etcd.RemoveMember(ctx, id)
		again := errors.Is(err, store.ErrNoQuorum) || errors.Is(err, store.ErrUnavailable)
		if !again || time.Since(began) > settling || pause(ctx) != nil {
			return err
		}
	}
}

// now is List after a look.
func (m *Members) now(ctx context.Context) ([]Member, error) {
	if err := m.look(ctx); err != nil {
		return nil, err
	}
	return m.List(), nil
}

func hostPort(host string, port uint16) string {
	return net.JoinHostPort(host, strconv.Itoa(int(port)))
}

func hostOf(peer string) string {
	u, err := url.Parse(peer)
	if err != nil {
		return strings.TrimPrefix(peer, "https://")
	}
	return u.Host
}
