package meshagent

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/cilium/statedb"
	corev1 "k8s.io/api/core/v1"

	"github.com/weft-mesh/weft/meshagent/endpoint"
	"github.com/weft-mesh/weft/meshagent/paths"
	"github.com/weft-mesh/weft/meshagent/tables"
	"github.com/weft-mesh/weft/meshagent/trust"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/wire"
)

// publisher writes to the store what only this node knows: its own state, its pods, its
// problems and its impaired paths. An agent writes nothing else.
//
// Node and pods stay as last reported. Only the mark that the list is complete is under
// a lease, so that a silent agent is noticed without losing anything.
type publisher struct {
	node    node
	edges   *Edges
	tables  *tables.Tables
	tunnels *paths.Tunnels
	paths   *paths.Liveness
	trust   *trust.Trust
	// settled is closed once the table of endpoints holds exactly the wanted pods.
	settled <-chan struct{}
	// told is closed once the store has the complete list.
	told    chan struct{}
	trouble *trouble

	mu   sync.Mutex        // guards have and news
	have map[string][]byte // what the store has, or will once a write is done; nil: not known
	news bool              // an event arrived while have was nil
	lost chan struct{}     // has one element when the store differs from have

	// Of the loop alone.
	start string // identifies this start of the agent
	// holding is trust.Holding as last reported.
	holding string
	held    bool // the lease exists, as far as is known
}

const (
	// leaseTurn is how often the lease is renewed: a third of its lifetime, so that
	// two renewals may fail.
	leaseTurn = 5 * time.Minute
	// firstPause and lastPause bound the wait after a write that failed.
	firstPause = 50 * time.Millisecond
	lastPause  = 2 * time.Second
	// publishPatience is how long writes may fail before operators are told. Shorter
	// failures are ordinary: another member of the store becomes its leader.
	publishPatience = 10 * time.Second
)

// Run works until ctx ends. What was written stays.
func (p *publisher) Run(ctx context.Context) error {
	p.start = startID()
	pause, renewed := firstPause, time.Now()
	var failing time.Time // since when writing fails; zero: it does not
	for ctx.Err() == nil {
		settled := closed(p.settled) // before the snapshot, so that it is true of it
		settling := p.settled
		if settled {
			settling = nil
		}
		txn := p.tables.DB.ReadTxn()
		_, endpoints := p.tables.Endpoints.AllWatch(txn)
		_, pods := p.tables.Pods.AllWatch(txn)
		_, newProblems := p.tables.Problems.AllWatch(txn)
		_, known, own := p.tunnels.Own()
		holding, changed := p.trust.Holding()
		if holding != p.holding {
			p.forget() // another store, which has none of this
			p.holding = holding
		}
		unwell, pathsChanged := p.paths.Unwell()
		problems, due := lasting(p.tables.Problems.All(txn), time.Now())
		err := p.turn(ctx, txn, settled, known, problems, unwell)
		wait := min(leaseTurn, due)
		switch {
		case ctx.Err() != nil:
			return nil
		case err == nil:
			pause, failing = firstPause, time.Time{}
			p.trouble.tell(nil)
		default:
			wait, pause = pause, min(2*pause, lastPause)
			if failing.IsZero() {
				failing = time.Now()
			}
			if time.Since(failing) >= publishPatience {
				p.trouble.tell(err)
			}
		}
		if time.Since(renewed) >= leaseTurn {
			if lost, err := p.renew(ctx); err == nil {
				renewed = time.Now()
				if lost {
					p.note(store.Delete(wire.NodeSyncedKey(p.node.name)))
					wait = 0
				}
			}
		}
		select {
		case <-ctx.Done():
		case <-endpoints:
		case <-pods:
		case <-newProblems:
		case <-pathsChanged:
		case <-own:
		case <-changed:
		case <-p.lost:
		case <-settling:
		case <-time.After(wait):
		}
	}
	return nil
}

// turn writes what differs. It reports no pods before the table is settled: a pod that
// was just taken over is not known to be ready yet, and reporting that would take it
// out of its services.
func (p *publisher) turn(ctx context.Context, txn statedb.ReadTxn, settled, lanesKnown bool, problems []wire.NodeProblem, unwell []wire.NodePath) error {
	have, err := p.recall(ctx)
	if err != nil {
		return err
	}
	want := map[string][]byte{}
	if lanesKnown {
		want[wire.NodeKey(p.node.name)] = wire.Marshal(p.state())
	}
	if len(problems) > 0 {
		want[wire.NodeProblemsKey(p.node.name)] = wire.Marshal(wire.NodeProblems{Problems: problems})
	}
	if len(unwell) > 0 {
		want[wire.NodePathsKey(p.node.name)] = wire.Marshal(wire.NodePaths{Paths: unwell})
	}
	for e := range p.tables.Endpoints.All(txn) {
		if !settled || !e.IP.IsValid() || e.Phase == tables.Removing {
			continue
		}
		pod := tables.Get(txn, p.tables.Pods, e.Key())
		want[wire.NodeEndpointKey(p.node.name, e.Namespace, e.Pod)] = wire.Marshal(endpointState(e, pod))
	}
	var changes []store.Op
	for _, key := range slices.Sorted(maps.Keys(want)) {
		if !bytes.Equal(have[key], want[key]) {
			changes = append(changes, store.Put(key, want[key]))
		}
	}
	if settled {
		changes = append(changes, p.gone(have, want)...)
	}
	if err := p.say(changes, func() error { return store.Write(ctx, p.edges.Store, changes...) }); err != nil {
		return err
	}
	if !settled {
		return nil
	}
	return p.complete(ctx, have)
}

// gone are the deletions of keys that are no longer wanted.
func (p *publisher) gone(have, want map[string][]byte) (changes []store.Op) {
	for _, key := range slices.Sorted(maps.Keys(have)) {
		if want[key] == nil && key != wire.NodeSyncedKey(p.node.name) && key != wire.NodeKey(p.node.name) {
			changes = append(changes, store.Delete(key))
		}
	}
	return changes
}

// complete marks the list as complete.
func (p *publisher) complete(ctx context.Context, have map[string][]byte) error {
	mark := store.Put(wire.NodeSyncedKey(p.node.name), []byte(p.start))
	// It may be there already: a write that timed out was made all the same.
	if !bytes.Equal(have[mark.Key], mark.Value) {
		err := p.say([]store.Op{mark}, func() error { return p.putLeased(ctx, mark) })
		if err != nil {
			return err
		}
	}
	if !closed(p.told) {
		close(p.told)
	}
	return nil
}

// putLeased writes a key under the agent's lease, which it obtains when there is none.
func (p *publisher) putLeased(ctx context.Context, op store.Op) error {
	op.Lease = p.lease()
	if p.held {
		_, _, err := p.edges.Store.Commit(ctx, store.Txn{Then: []store.Op{op}})
		if !errors.Is(err, store.ErrLeaseEnded) {
			return err
		}
		p.held = false
	}
	if err := p.edges.Store.Hold(ctx, op.Lease, wire.AgentLeaseTTL); err != nil {
		return fmt.Errorf("obtain a lease: %w", err)
	}
	p.held = true
	_, _, err := p.edges.Store.Commit(ctx, store.Txn{Then: []store.Op{op}})
	return err
}

// renew keeps the lease. It reports lost when the lease has ended, and with it everything
// that was written under it.
func (p *publisher) renew(ctx context.Context) (lost bool, err error) {
	if !p.held {
		return false, nil
	}
	err = p.edges.Store.Renew(ctx, p.lease())
	if errors.Is(err, store.ErrLeaseEnded) {
		p.held = false
		return true, nil
	}
	return false, err
}

func (p *publisher) lease() store.Lease { return store.Lease(wire.AgentLease(p.node.name)) }

// recall returns what the store has under this node's prefix, reading it if necessary.
func (p *publisher) recall(ctx context.Context) (map[string][]byte, error) {
	p.mu.Lock()
	have := maps.Clone(p.have)
	p.news = false
	p.mu.Unlock()
	if have != nil {
		return have, nil
	}
	kvs, _, err := p.edges.Store.List(ctx, wire.NodePrefix(p.node.name))
	if err != nil {
		return nil, err
	}
	have = map[string][]byte{}
	for _, kv := range kvs {
		have[kv.Key] = kv.Value
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.news { // the list may be older than that event
		return nil, errors.New("the store changed while it was read")
	}
	p.have = maps.Clone(have)
	return have, nil
}

// say makes changes. They are noted first, so that the store's own events about them
// are recognized.
func (p *publisher) say(changes []store.Op, write func() error) error {
	p.note(changes...)
	if err := write(); err != nil {
		p.forget() // some may have been made
		return err
	}
	return nil
}

// note records changes in have.
func (p *publisher) note(changes ...store.Op) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range changes {
		switch {
		case p.have == nil:
		case c.Delete:
			delete(p.have, c.Key)
		default:
			p.have[c.Key] = c.Value
		}
	}
}

func (p *publisher) forget() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.have = nil
}

// heard handles events of the store. If a key is not what was written, because an older
// copy was restored or somebody deleted it, it is written again.
func (p *publisher) heard(events []store.Event) {
	p.mu.Lock()
	defer p.mu.Unlock()
	own := wire.NodePrefix(p.node.name)
	for _, e := range events {
		if !strings.HasPrefix(e.Key, own) {
			continue
		}
		if p.have == nil {
			p.news = true
			continue
		}
		value, there := p.have[e.Key]
		if e.Deleted && !there || !e.Deleted && there && bytes.Equal(value, e.Value) {
			continue
		}
		p.have = nil
		select {
		case p.lost <- struct{}{}:
		default:
		}
	}
}

func (p *publisher) state() wire.NodeState {
	own, _, _ := p.tunnels.Own()
	s := wire.NodeState{
		Name: p.node.name, Addresses: p.node.addrs, Internal: endpoint.Internal(p.node.cidrs[0]),
		PodCIDRs: p.node.cidrs, Epoch: own.Epoch, BootID: p.edges.BootID,
		Holding: p.holding,
	}
	for i, lane := range own.Lanes {
		s.Lanes[i] = wire.Lane{PublicKey: lane.PublicKey.String(), Port: lane.Port}
	}
	return s
}

// endpointState is what is reported of a pod. A pod without its object is about to be
// removed, and only its address is reported.
func endpointState(e *tables.Endpoint, pod *tables.Pod) wire.EndpointState {
	s := wire.EndpointState{Namespace: e.Namespace, Pod: e.Pod, UID: e.UID, IP: e.IP, Second: e.Second, State: wire.EndpointCreating}
	if !e.Ready {
		s.Why = e.Why
	}
	if e.Phase == tables.Live {
		s.State, s.Ready = wire.EndpointNotReady, e.Ready
		if e.Ready {
			s.State = wire.EndpointReady
		}
	}
	if pod == nil || pod.Object == nil {
		return s
	}
	if pod.Object.DeletionTimestamp != nil {
		s.State = wire.EndpointTerminating
	}
	for _, c := range pod.Object.Spec.Containers {
		for _, port := range c.Ports {
			if port.Name == "" || port.ContainerPort < 1 || port.ContainerPort > 65535 {
				continue
			}
			protocol := port.Protocol
			if protocol == "" {
				protocol = corev1.ProtocolTCP
			}
			s.NamedPorts = append(s.NamedPorts, wire.NamedPort{Name: port.Name, Port: uint16(port.ContainerPort), Protocol: string(protocol)})
		}
	}
	return s
}

func startID() string {
	var id [8]byte
	_, _ = rand.Read(id[:]) // never fails
	return hex.EncodeToString(id[:])
}
