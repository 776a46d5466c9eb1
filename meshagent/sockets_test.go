package meshagent

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"reflect"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weft-mesh/weft/bpf"
	"github.com/weft-mesh/weft/bpf/bpftest"
	"github.com/weft-mesh/weft/meshagent/tables"
)

// enders notes what it is asked to end.
type enders struct {
	asked [][]uint16 // local ports
	err   error
}

func (e *enders) EndConnections(all []bpf.FlowKey, still func(bpf.FlowKey) (bool, error)) (ended int, err error) {
	var ports []uint16
	for _, key := range all {
		if ok, err := still(key); err != nil || !ok {
			return 0, errors.Join(errors.New("not lost"), err)
		}
		ports = append(ports, key.Lport.Number())
	}
	if len(ports) > 0 {
		e.asked = append(e.asked, ports)
	}
	if e.err != nil {
		return 0, e.err
	}
	return len(all), nil
}

// Each lost connection is ended once, until that succeeds, though its flow is there for longer.
func TestLostConnectionsAreEndedOnce(t *testing.T) {
	m, pods := bpftest.New(), &enders{}
	addr := func(s string) bpf.Addr { return bpf.AddrOf(netip.MustParseAddr(s)) }
	if err := errors.Join(m.Settings.Update(0, bpf.Settings{Revision: 1, Cluster: 1}), m.Endpoints.Update(addr("10.1.1.2"), bpf.Endpoint{Ifindex: 5})); err != nil {
		t.Fatal(err)
	}
	c := &connections{maps: m, pods: pods}
	look := func(want int, ok bool, lost ...uint16) {
		t.Helper()
		all, failed := m.Flows.All()
		for k := range all {
			if err := m.Flows.Delete(k); err != nil {
				t.Fatal(err)
			}
		}
		for _, port := range lost { // its backend was a pod of this node
			k := bpf.FlowKey{Local: addr("10.1.1.2"), Remote: addr("10.1.1.3"), Lport: bpf.PortOf(port), Rport: bpf.PortOf(80), Proto: 6}
			if err := m.Flows.Update(k, bpf.Flow{Ifindex: 5, Service: 7, Via: bpf.ViaPod, Flags: bpf.FlowReplied | bpf.FlowMember}); err != nil {
				t.Fatal(err)
			}
		}
		if ended, doubtful, err := c.look(t.Context()); ended != want || doubtful != 0 || (err == nil) != ok || failed() != nil {
			t.Errorf("ended %d, %d doubtful, %v; want %d", ended, doubtful, err, want)
		}
	}
	look(0, true)
	pods.err = errors.New("no namespace")
	look(0, false, 1)
	pods.err = nil
	look(1, true, 1)
	look(1, true, 1, 2)
	look(0, true, 2)
	look(1, true, 1, 2) // another connection from the same port
	want := [][]uint16{{1}, {1}, {2}, {1}}
	if !reflect.DeepEqual(pods.asked, want) {
		t.Errorf("asked to end %v, want %v", pods.asked, want)
	}
}

// A change is looked at a tenth of a second later, or as soon as looks have taken no more than their
// share of the time.
func TestStrandedSocketsAreLookedForAfterChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		all := tables.New()
		if err := all.DB.Start(); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		written := make(chan struct{})
		begun, took := time.Now(), time.Duration(0)
		var looks []time.Duration
		s := &sockets{tables: all, written: written, log: slog.New(slog.DiscardHandler),
			trouble: partTrouble(all, "connections", "", slog.New(slog.DiscardHandler)),
			look: func(context.Context) (ended, doubtful int, err error) {
				looks = append(looks, time.Since(begun))
				time.Sleep(took)
				return 0, 0, nil
			}}
		finished := make(chan error)
		go func() { finished <- s.Run(ctx) }()
		wrote := func() {
			synctest.Wait()
			txn := all.DB.WriteTxn(all.Progress)
			tables.Put(txn, all.Progress, &tables.Progress{Table: "services", At: time.Now()})
			txn.Commit()
		}
		want := func(at ...time.Duration) {
			t.Helper()
			synctest.Wait()
			if !reflect.DeepEqual(looks, at) {
				t.Errorf("looked at %v, want %v", looks, at)
			}
			looks = nil
		}
		wrote()
		time.Sleep(time.Second)
		want()
		close(written)
		want(time.Second)
		time.Sleep(9 * time.Second)
		wrote()
		time.Sleep(50 * time.Millisecond)
		wrote()
		time.Sleep(4950 * time.Millisecond)
		want(10*time.Second + socketLook) // both changes at once
		took = 50 * time.Millisecond
		for range 2 {
			wrote()
			time.Sleep(5 * time.Second)
		}
		want(15*time.Second+socketLook, 20*time.Second+socketLook)
		wrote()
		time.Sleep(socketLook + took)
		wrote()
		time.Sleep(5 * time.Second)
		want(25*time.Second+socketLook, 25*time.Second+socketLook+took+socketRest*took)
		txn := all.DB.WriteTxn(all.Paths) // what is cut off may come back
		tables.Put(txn, all.Paths, &tables.Path{Cluster: "west", Node: "n1"})
		txn.Commit()
		time.Sleep(5 * time.Second)
		want()
		cancel()
		if err := <-finished; err != nil {
			t.Error(err)
		}
		_ = all.DB.Stop()
	})
}
