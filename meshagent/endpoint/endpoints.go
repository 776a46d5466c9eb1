package endpoint

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/bpf"
	"github.com/weft-mesh/weft/meshagent/tables"
)

// Datapath is what an endpoint needs of package bpf.
type Datapath interface {
	Maps() *bpf.Maps
	AttachPod(ifindex int) error
	Detach(ifindex int) error
}

// Config of a node's endpoints.
type Config struct {
	// CIDRs are where their addresses are from: one, or one of each IP family.
	CIDRs []netip.Prefix
	// MTU of their devices, bytes.
	MTU      int
	Tables   *tables.Tables
	Datapath Datapath
	Plumbing Plumbing
	// Sockets lets sockets in pods be given the backends of services.
	Sockets bool
	Dir     Dir
	// Spool holds removals that were requested while no agent answered; "": none is.
	Spool api.EndpointSpool
	// Tell is told why a pod has no network, or keeps one that should go; "" when that is
	// over.
	Tell func(pod, why string)
	// TellPool is told why pods get no address; "" when that is over. TellSpool is told why
	// removals that were left to the agent cannot be made. Both may be nil.
	TellPool  func(why string)
	TellSpool func(error)
	Log       *slog.Logger
}

// Endpoints are a node's pods with a network. They come and go by requests alone: those of
// one pod are handled one after the other, those of different pods at the same time. What
// was saved for a pod is brought back at start, whatever was done when the agent ended:
//
//	add:    address ─► file ─► device pair, rows (held), programs ─► up
//	remove: row ─► device pair ─► programs ─► rows in the kernel ─► file ─► address rests
//
// Each step can be repeated, and none is needed to undo an earlier one.
type Endpoints struct {
	cfg Config
	// drained is closed once the removals that were left to the agent before it started have
	// been tried: until then, none is added.
	drained chan struct{}
	// adopted is closed once the pods of the previous agent have been taken over.
	adopted chan struct{}
	// plumbers has a place for each pod that is worked on.
	plumbers chan struct{}
	// ended is closed when no more requests are taken.
	ended chan struct{}

	mu      sync.Mutex // guards what follows, and is never held while working
	pool    *Pool
	records map[string]Record // of what is on disk
	// prepared are addresses that pods will get when they are added.
	prepared map[string]Record
	turns    map[string]*turn
	working  sync.WaitGroup
	// namespaces are the cookies of the pods' network namespaces, of which the kernel has rows.
	namespaces map[string]uint64
	// failed are pods that are not as requested, and whether to try again without being
	// asked: what is on disk is brought up, but nothing is removed that way.
	failed map[string]bool
	// inherited are those of the previous agent that nobody has requested since.
	inherited map[string]bool
	// ran says whether a pod kept running while no agent did. One whose machine has
	// rebooted did not.
	ran map[string]bool
	// adds counts what was done to add each pod, and adding says how many requests for it
	// have not ended.
	adds   map[string]uint64
	adding map[string]int
	// short is when a pod last got no address; zero: never, or there are some again.
	short time.Time
}

// turn is whose turn it is to work on a pod: the holder has put an element into free.
type turn struct {
	free  chan struct{}
	users int
}

const (
	// Plumbers is how many pods are worked on at the same time. Most of that time is
	// spent waiting for the kernel and the disk.
	Plumbers = 8
	// Again is the pause before what failed is tried again.
	Again = time.Second
)

var _ api.EndpointRequests = (*Endpoints)(nil)

// New reads what the previous agent left on disk, and recovers from the kernel what is
// damaged there.
func New(cfg Config) (*Endpoints, error) {
	records, lost, err := cfg.Dir.Load()
	if err != nil {
		return nil, err
	}
	for _, r := range lost {
		if r, ok := cfg.recovered(r); ok {
			cfg.Log.Warn("a pod's record was damaged; recovered it from the kernel", "pod", r.Key(), "ip", r.addresses())
			records = append(records, r)
		} else {
			cfg.Log.Warn("a pod's record was damaged and the kernel does not know the pod: it gets a new address", "pod", r.Key())
		}
	}
	released, err := cfg.Dir.Released()
	if err != nil {
		return nil, err
	}
	if cfg.TellPool == nil {
		cfg.TellPool = func(string) {}
	}
	if cfg.TellSpool == nil {
		cfg.TellSpool = func(error) {}
	}
	e := &Endpoints{
		cfg: cfg, drained: make(chan struct{}), adopted: make(chan struct{}), plumbers: make(chan struct{}, Plumbers), ended: make(chan struct{}),
		pool: NewPool(cfg.CIDRs, records, released, time.Now()), records: map[string]Record{}, prepared: map[string]Record{},
		turns: map[string]*turn{}, namespaces: map[string]uint64{}, failed: map[string]bool{}, inherited: map[string]bool{}, ran: map[string]bool{},
		adds: map[string]uint64{}, adding: map[string]int{},
	}
	for _, r := range records {
		e.records[r.Key()], e.inherited[r.Key()] = r, true
	}
	return e, nil
}

// recovered rebuilds the lost record of a pod from what the kernel has. It returns false
// if the kernel has nothing.
func (c Config) recovered(lost Record) (Record, bool) {
	ifindex, ok := c.Plumbing.Find(lost)
	if !ok {
		return lost, false
	}
	rows, _ := c.Datapath.Maps().Endpoints.All()
	for addr, row := range rows {
		if row.Ifindex != uint32(ifindex) || row.ID == 0 {
			continue
		}
		lost.ID = row.ID
		if ip := addr.Netip(); !lost.IP.IsValid() {
			lost.IP = ip
		} else {
			lost.Second = ip
		}
	}
	if lost.Second.IsValid() && lost.Second.BitLen() == c.CIDRs[0].Addr().BitLen() {
		lost.IP, lost.Second = lost.Second, lost.IP
	}
	return lost, lost.IP.IsValid()
}

// Run makes the removals that were left to the agent, takes over the pods of the previous
// one, and tries again what could not be brought up. It works until ctx ends, and then waits
// for what is worked on. Pods keep their network.
func (e *Endpoints) Run(ctx context.Context) error {
	defer e.end()
	e.drain(ctx)
	close(e.drained)
	e.bringAll(ctx, e.Records())
	if ctx.Err() != nil {
		return nil
	}
	e.pruneNamespaces()
	close(e.adopted)
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(Again):
		}
		e.drain(ctx)
		e.lookForRoom(time.Now())
		e.bringAll(ctx, e.unwell())
	}
}

// end takes no more requests and waits for those that are worked on.
func (e *Endpoints) end() {
	e.mu.Lock()
	close(e.ended)
	e.mu.Unlock()
	e.working.Wait()
}

// Adopted is closed once the pods of the previous agent have been taken over.
func (e *Endpoints) Adopted() <-chan struct{} { return e.adopted }

// Records are the pods that have an address, in order of name.
func (e *Endpoints) Records() []Record {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.SortedFunc(maps.Values(e.records), func(a, b Record) int { return cmp.Compare(a.Key(), b.Key()) })
}

// Ran says whether a pod kept running while no agent did.
func (e *Endpoints) Ran(pod string) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.ran[pod]
}

// Inherited says whether a pod was added while another agent ran, and not again since.
func (e *Endpoints) Inherited(pod string) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.inherited[pod]
}

// unwell are those to bring up again.
func (e *Endpoints) unwell() (all []Record) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for key, again := range e.failed {
		if again && e.turns[key] == nil { // otherwise somebody is at it
			all = append(all, e.records[key])
		}
	}
	return all
}

// bringAll brings up pods that have a record.
func (e *Endpoints) bringAll(ctx context.Context, all []Record) {
	var wg sync.WaitGroup
	for _, r := range all {
		wg.Go(func() {
			leave, err := e.enter(ctx, r.Key())
			if err != nil {
				return
			}
			defer leave()
			now, ok := e.record(r.Key())
			if !ok || now != r {
				return // changed meanwhile, by request
			}
			if leave, err = e.plumber(ctx); err != nil {
				return
			}
			defer leave()
			_, _ = e.bring(r) // told
		})
	}
	wg.Wait()
}

// errEnding means that the agent takes no more requests.
var errEnding = api.Refuse(503, "repeat the request once the agent runs again", "the agent is stopping")

// enter waits until it is the caller's turn to work on a pod.
func (e *Endpoints) enter(ctx context.Context, pod string) (leave func(), err error) {
	e.mu.Lock()
	select {
	case <-e.ended:
		e.mu.Unlock()
		return nil, errEnding
	default:
	}
	e.working.Add(1)
	t := e.turns[pod]
	if t == nil {
		t = &turn{free: make(chan struct{}, 1)}
		e.turns[pod] = t
	}
	t.users++
	e.mu.Unlock()
	away := func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		if t.users--; t.users == 0 {
			delete(e.turns, pod)
		}
		e.working.Done()
	}
	select {
	case t.free <- struct{}{}:
		return func() { <-t.free; away() }, nil
	case <-ctx.Done():
		away()
		return nil, ctx.Err()
	case <-e.ended:
		away()
		return nil, errEnding
	}
}

// plumber waits until a plumber is free.
func (e *Endpoints) plumber(ctx context.Context) (leave func(), err error) {
	select {
	case e.plumbers <- struct{}{}:
		return func() { <-e.plumbers }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-e.ended:
		return nil, errEnding
	}
}

func (e *Endpoints) record(pod string) (Record, bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	r, ok := e.records[pod]
	return r, ok
}

// Prepare chooses the addresses of pods that are about to be added, in this order: those
// of pods that are added at the same time would follow no order. What cannot be chosen
// now, Add chooses or explains.
func (e *Endpoints) Prepare(pods []api.EndpointRequest) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, p := range pods {
		_, has := e.records[p.Key()]
		_, prepared := e.prepared[p.Key()]
		if has || prepared || len(p.Addresses) > 0 {
			continue
		}
		r, err := e.pool.Take(time.Now())
		if err != nil {
			return
		}
		e.prepared[p.Key()] = r
	}
}

// address returns the addresses and number of a new pod.
func (e *Endpoints) address(r api.EndpointRequest) (Record, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if p, ok := e.prepared[r.Key()]; ok {
		delete(e.prepared, r.Key())
		return p, nil
	}
	if len(r.Addresses) == 0 {
		got, err := e.pool.Take(time.Now())
		e.noteRoomLocked(err)
		return got, err
	}
	claimed, err := e.pool.Claim(r.Addresses, time.Now())
	if errors.Is(err, ErrClaim) {
		err = api.Conflict("request another, or none", "%v", err)
	}
	return claimed, err
}

// unprepare gives back what Prepare has chosen for a pod that is not added.
func (e *Endpoints) unprepare(pod string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if p, ok := e.prepared[pod]; ok {
		delete(e.prepared, pod)
		e.pool.Return(p)
	}
}

// Add implements api.EndpointRequests.
func (e *Endpoints) Add(ctx context.Context, req api.EndpointRequest) (*api.EndpointResult, error) {
	defer e.unprepare(req.Key())
	if err := req.Validate(); err != nil {
		return nil, err
	}
	defer e.startAdd(req.Key())()
	got, err := e.add(ctx, req)
	if err != nil {
		return nil, err
	}
	return e.awaitIdentity(ctx, req, got)
}

func (e *Endpoints) add(ctx context.Context, req api.EndpointRequest) (*api.EndpointResult, error) {
	select {
	case <-e.drained:
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-e.ended:
		return nil, errEnding
	}
	leave, err := e.enter(ctx, req.Key())
	if err != nil {
		return nil, err
	}
	defer leave()
	free, err := e.plumber(ctx)
	if err != nil {
		return nil, err
	}
	defer free()
	e.mu.Lock()
	r, has := e.records[req.Key()]
	delete(e.inherited, req.Key())
	e.mu.Unlock()
	if has && r.UID != "" && req.UID != "" && r.UID != req.UID {
		if err := e.remove(r); err != nil {
			return nil, fmt.Errorf("remove the pod that had the name %s before: %w", r.Key(), err)
		}
		has = false
	}
	if has && req.Container != "" && req.Container == r.Container && cmp.Or(req.Interface, podDevice) != r.Device() {
		return nil, api.Conflict("attach it to this network once", "pod %s has its network at %s already", r.Key(), r.Device())
	}
	for _, a := range req.Addresses {
		if has && !slices.Contains(r.IPs(), a) {
			return nil, api.Conflict("remove the pod first, or request no address", "pod %s has the address %s", r.Key(), r.addresses())
		}
	}
	next, err := e.save(req, r, has)
	if err != nil {
		return nil, e.fail(next, err, false)
	}
	return e.bring(next)
}

// save puts what is requested on disk before anything is created in the kernel, so that
// whatever is created can be found and removed.
func (e *Endpoints) save(req api.EndpointRequest, before Record, has bool) (Record, error) {
	next := Record{IP: before.IP, Second: before.Second, ID: before.ID}
	if !has {
		var err error
		if next, err = e.address(req); err != nil {
			return Record{Namespace: req.Namespace, Pod: req.Name, UID: req.UID}, err
		}
	}
	next.Namespace, next.Pod, next.UID = req.Namespace, req.Name, req.UID
	next.Container, next.Netns, next.Interface, next.Network = req.Container, req.Netns, req.Interface, req.Network
	if has {
		next.UID, next.Container = cmp.Or(next.UID, before.UID), cmp.Or(next.Container, before.Container)
		next.Netns, next.Interface = cmp.Or(next.Netns, before.Netns), cmp.Or(next.Interface, before.Interface)
		next.Network = cmp.Or(next.Network, before.Network)
		if next == before && before.UID != "" { // without a UID, it may be recovered and not on disk
			return next, nil
		}
		if next.Netns != before.Netns || next.Interface != before.Interface {
			// The pod has moved: where it was, nothing is left, and where it is, nothing ran.
			if err := e.unplumb(before); err != nil {
				return next, err
			}
			e.mu.Lock()
			e.ran[next.Key()] = false
			e.mu.Unlock()
		}
	}
	err := e.cfg.Dir.Save(next)
	saved := err == nil
	if saved {
		err = e.cfg.Dir.Taken(next.IP)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	switch {
	case saved:
		e.records[next.Key()] = next
	case !has:
		e.pool.Return(next)
	}
	return next, err
}
