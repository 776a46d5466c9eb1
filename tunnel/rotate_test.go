package tunnel_test

import (
	"bytes"
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/weft-mesh/weft/tunnel"
)

// mesh stands for the agents and the etcd between two nodes: each learns what the other
// published a while ago, and moves its stream when Choose says so.
type mesh struct {
	nodes   [2]*node
	streams [2]*stream // from nodes[i]
	own     [2]tunnel.Own
	told    [2]tunnel.Own // what nodes[i] knows of the other
	used    [2]int
}

// tell tells node i what the other node published.
func (m *mesh) tell(i int) {
	m.told[i] = m.own[1-i]
	m.nodes[i].set(m.nodes[1-i].peer(m.told[i]))
}

// steer moves node i's stream and reports whether it is on the lane that the epochs
// name.
func (m *mesh) steer(i int) bool {
	st := m.nodes[i].status()
	m.used[i] = tunnel.Choose(m.own[i].Epoch, m.told[i].Epoch, m.used[i], st.Peers[0].Settled(time.Now()))
	m.streams[i].lane.Store(int32(m.used[i]))
	return m.used[i] == tunnel.Lane(m.own[i].Epoch, m.told[i].Epoch)
}

func (m *mesh) rotate(t *testing.T, i int) {
	t.Helper()
	n := m.nodes[i]
	n.do(func() (err error) {
		m.own[i], err = n.lanes.Rotate(context.Background(), m.own[i].Epoch+1)
		return err
	})
}

// newMesh lets both send to each other.
func newMesh(t *testing.T, a, b *node, perSecond int) *mesh {
	return &mesh{
		nodes: [2]*node{a, b},
		streams: [2]*stream{
			newStream(t, a, b, 7000, perSecond, 120*time.Second),
			newStream(t, b, a, 7001, perSecond, 120*time.Second),
		},
		own:  [2]tunnel.Own{a.ready(), b.ready()},
		told: [2]tunnel.Own{b.ready(), a.ready()},
	}
}

// round rotates both: one rotates, the other learns of it and follows. Between the steps
// each side works with what it knows.
func (m *mesh) round(t *testing.T, round int) {
	t.Helper()
	first := round % 2
	for _, i := range []int{first, 1 - first} {
		m.rotate(t, i)
		m.steer(i)
		m.tell(1 - i)
		m.steer(1 - i)
		m.streams[0].flowing(t)
		m.streams[1].flowing(t)
	}
	eventually(t, 30*time.Second, func() error {
		for i := range m.nodes {
			m.nodes[i].look()
			if !m.steer(i) {
				return fmt.Errorf("round %d: %s is still on lane %d", round, m.nodes[i].name, m.used[i])
			}
		}
		return nil
	})
}

func TestRotationLosesNoPacket(t *testing.T) {
	needRoot(t)
	const rotations, perSecond = 6, 1000
	a, b := pair(t)
	seen := a.capture("wire")
	m := newMesh(t, a, b, perSecond)
	keys := map[tunnel.Key]bool{}
	for round := range rotations {
		for i := range m.nodes {
			m.steer(i)
			m.streams[i].flowing(t)
		}
		m.round(t, round)
		for i := range m.nodes {
			keys[m.own[i].Lanes[m.own[i].Epoch%tunnel.LaneCount].PublicKey] = true
		}
	}
	if len(keys) != 2*rotations {
		t.Errorf("%d different keys in %d rotations of 2 nodes", len(keys), rotations)
	}
	var sent, lost uint64
	for _, s := range m.streams {
		s.flowing(t)
		n, l := s.finish(t)
		sent, lost = sent+n, lost+l
	}
	t.Logf("%d rotations of both nodes under 2 × %d packets/s: %d sent, %d lost", rotations, perSecond, sent, lost)
	if lost > 0 {
		t.Errorf("lost %d of %d packets in %d rotations", lost, sent, rotations)
	}
	for _, frame := range seen.drain() {
		if bytes.Contains(frame, []byte(marker)) {
			t.Fatalf("payload in the clear on the wire: %x", frame)
		}
	}
}

// Two nodes that rotate at the same moment learn each other's key at the same moment, and
// their handshakes must not cross.
func TestRotationAtOnceLosesNoPacket(t *testing.T) {
	needRoot(t)
	const rotations, perSecond = 20, 1000
	a, b := pair(t)
	m := newMesh(t, a, b, perSecond)
	both := func(f func(i int)) {
		var all sync.WaitGroup
		for i := range m.nodes {
			all.Go(func() { f(i) })
		}
		all.Wait()
	}
	for round := range rotations {
		for i := range m.nodes {
			m.steer(i)
			m.streams[i].flowing(t)
		}
		both(func(i int) { m.rotate(t, i) })
		both(m.tell)
		eventually(t, 30*time.Second, func() error {
			for i := range m.nodes {
				m.nodes[i].look()
				if !m.steer(i) {
					return fmt.Errorf("round %d: %s is still on lane %d", round, m.nodes[i].name, m.used[i])
				}
			}
			return nil
		})
	}
	for _, s := range m.streams {
		s.flowing(t)
		if sent, lost := s.finish(t); lost > 0 {
			t.Errorf("lost %d of %d packets in %d rotations of both nodes at once", lost, sent, rotations)
		}
	}
}

func TestRestartedAgentKeepsSessions(t *testing.T) {
	needRoot(t)
	a, b := pair(t)
	s := newStream(t, a, b, 7000, 1000, 120*time.Second)
	s.flowing(t)
	before := a.status()
	last, renewed := before.Peers[0].Lanes, 0
	const restarts = 10
	for range restarts {
		// A new process with the same directory: everything comes from disk
		// and devices.
		a.reopen()
		own := a.ready()
		if own != before.Own && (own.Epoch != before.Own.Epoch || own.Lanes != before.Own.Lanes) {
			t.Fatalf("restarted agent publishes something else:\n%+v\n%+v", own, before.Own)
		}
		a.set(b.peer(b.ready()))
		s.flowing(t)
		lanes := a.status().Peers[0].Lanes
		for i := range lanes {
			if !lanes[i].Handshake.Equal(last[i].Handshake) {
				renewed++
			}
		}
		last = lanes
	}
	// On a busy machine a first handshake of 5 s ago may be repeated meanwhile, without
	// any restart; a restart that ends sessions shows every time.
	if renewed > restarts/2 {
		t.Errorf("%d handshakes in %d restarts, sessions should have gone on", renewed, restarts)
	}
	if sent, lost := s.finish(t); lost > 0 {
		t.Errorf("lost %d of %d packets over agent restarts", lost, sent)
	}
}
