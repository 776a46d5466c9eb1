package meshagent

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"iter"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weft-mesh/weft/bpf"
	"github.com/weft-mesh/weft/bpf/bpftest"
	"github.com/weft-mesh/weft/meshagent/tables"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/tunnel/gossip"
	"github.com/weft-mesh/weft/tunnel/probe"
	"github.com/weft-mesh/weft/wire"
)

// broken breaks parts of a node while it is set.
type broken struct {
	*bpftest.Datapath
	atomic.Bool
}

func (b *broken) err() error {
	if b.Load() {
		return errors.New("not permitted")
	}
	return nil
}

func (b *broken) Events(ctx context.Context, f func(bpf.Event)) error {
	if err := b.err(); err != nil {
		return err
	}
	return b.Datapath.Events(ctx, f)
}

func (b *broken) Sweep(now uint64) (bpf.Swept, error) { return bpf.Swept{}, b.err() }

func (b *broken) EndStranded() (ended, doubtful int, err error) { return 0, 0, b.err() }

func (b *broken) Holdings() ([]bpf.Holding, error) { return nil, b.err() }

// unreadable is a table of flows that cannot be read while b is set.
type unreadable struct {
	bpf.Table[bpf.FlowKey, bpf.Flow]
	b *broken
}

func (u unreadable) All() (iter.Seq2[bpf.FlowKey, bpf.Flow], func() error) {
	all, failed := u.Table.All()
	return all, func() error { return errors.Join(failed(), u.b.err()) }
}

// Whatever part of an agent fails, and keeps failing each time it is started again,
// the log says so once and the cluster is told until it works again.
func TestAPartThatKeepsFailingIsToldUntilItWorks(t *testing.T) {
	for _, test := range []struct {
		name, table, row string
		alter            func(*Edges, *broken)
	}{
		{"flow events", wire.ProblemParts, "events", func(e *Edges, b *broken) { e.Datapath = b }},
		{"sweeping", wire.ProblemParts, "flows", func(e *Edges, b *broken) { e.Datapath = b }},
		{"sockets", wire.ProblemParts, "sockets", func(e *Edges, b *broken) { e.Datapath, e.Cgroup = b, func() (string, error) { return "", nil } }},
		{"connections of pods", wire.ProblemParts, "connections", func(e *Edges, b *broken) {
			flows := &e.Datapath.Maps().Flows
			if _, already := (*flows).(unreadable); !already {
				*flows = unreadable{*flows, b}
			}
		}},
		{"shares", wire.ProblemParts, "shares", func(e *Edges, b *broken) { e.Datapath = b }},
		{"gossip", wire.ProblemParts, "gossip", func(e *Edges, b *broken) {
			e.Gossip = func(ctx context.Context, _ gossip.Config, _ []string) error {
				for b.err() == nil {
					select {
					case <-ctx.Done():
						return nil
					case <-time.After(100 * time.Millisecond):
					}
				}
				return b.err()
			}
		}},
		{"probes cannot be opened", wire.ProblemProbes, "", func(e *Edges, b *broken) {
			open := e.Transport
			e.Transport = func(a ...netip.Addr) (probe.Transport, error) {
				t, err := open(a...)
				return failing{t, b}, errors.Join(err, b.err())
			}
		}},
		{"probes cannot be sent", wire.ProblemProbes, "", func(e *Edges, b *broken) {
			open := e.Transport
			e.Transport = func(a ...netip.Addr) (probe.Transport, error) {
				t, err := open(a...)
				return failing{t, b}, err
			}
		}},
		{"probe results", wire.ProblemPaths, "", func(e *Edges, b *broken) {
			e.Datapath.Maps().Nodes.(*bpftest.Table[uint32, bpf.Node]).Fail(func(string, uint32) error { return b.err() })
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w, east, west, _ := raise(t)
				east.stop()
				log, b := &lines{}, &broken{Datapath: east.datapath}
				east.log = slog.NewTextHandler(log, nil)
				east.alter = func(e *Edges) { test.alter(e, b) }
				east.cluster.put(t, wire.GossipKey, wire.GossipKeys{LAN: [][]byte{make([]byte, 32)}})
				east.run()
				w.step()
				if n := log.count("level=WARN"); n != 0 {
					t.Fatalf("before: %s", log.text.String())
				}
				told := func() (out []wire.NodeProblem) {
					for _, p := range east.saidOf(t, test.table) {
						if p.Row == test.row {
							out = append(out, p)
						}
					}
					return out
				}
				b.Store(true)
				if test.table != wire.ProblemParts || test.row == "events" || test.row == "connections" {
					w.setCut("west", true) // so that there is something to write
					east.stop()            // what is open does not fail
					east.run()
				}
				time.Sleep(20 * time.Second)
				began := time.Now()
				time.Sleep(40 * time.Second)
				synctest.Wait()
				if got := told(); len(got) != 1 || !strings.Contains(got[0].Error, "not permitted") || got[0].Since.After(began) {
					t.Errorf("the cluster is told %+v", got)
				}
				if n := log.count("not permitted"); n == 0 || n > 3 { // flows, shares and events break together
					t.Errorf("%d log lines in a minute: %s", n, log.text.String())
				}
				b.Store(false)
				w.setCut("west", false)
				time.Sleep(15 * time.Second)
				w.step()
				if got := told(); len(got) != 0 {
					t.Errorf("when it works again the cluster is told %+v", got)
				}
				if log.count("resolved: ") == 0 {
					t.Errorf("the end is not logged: %s", log.text.String())
				}
				east.stop()
				west.stop()
			})
		})
	}
}

type failing struct {
	probe.Transport
	b *broken
}

func (f failing) Receive() ([]probe.Answer, error) {
	if err := f.b.err(); err != nil {
		return nil, err
	}
	return f.Transport.Receive()
}

// fickle is a store that refuses writes, or makes them and then loses the answer.
type fickle struct {
	Store
	refuses, mute atomic.Bool
}

func (f *fickle) Commit(ctx context.Context, txn store.Txn) (int64, bool, error) {
	if f.refuses.Load() {
		return 0, false, errors.New("permission denied")
	}
	revision, done, err := f.Store.Commit(ctx, txn)
	if txn.Then[0].Lease != 0 && f.mute.CompareAndSwap(true, false) {
		return 0, false, errors.New("deadline exceeded")
	}
	return revision, done, err
}

func TestAStoreThatRefusesWritesIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		east, log, sink := w.node("east", 1), &lines{}, &fickle{}
		east.log = slog.NewTextHandler(log, nil)
		east.alter = func(e *Edges) { sink.Store = e.Store; e.Store = sink }
		east.run()
		w.step()
		sink.refuses.Store(true)
		east.pod("web-1", "web")
		problem := func() *tables.Problem {
			return tables.Get(east.agent.Tables.DB.ReadTxn(), east.agent.Tables.Problems, wire.ProblemParts+" publisher")
		}
		time.Sleep(publishPatience - time.Second)
		if p := problem(); p != nil {
			t.Errorf("at once: %+v", p)
		}
		time.Sleep(time.Minute)
		if p := problem(); p == nil || !strings.Contains(p.Error, "permission denied") || log.count("permission denied") != 1 {
			t.Errorf("a minute later: %+v\n%s", p, log.text.String())
		}
		sink.refuses.Store(false)
		w.step()
		w.step()
		if p := problem(); p != nil || log.count("resolved: ") != 1 {
			t.Errorf("when it is over: %+v\n%s", p, log.text.String())
		}
		east.stop()
	})
}

// A machine that has booted is open to others as soon as the store has its list, also
// if the answer to that write was lost.
func TestAnAnswerOfTheStoreThatIsLostDelaysNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		east, sink := w.node("east", 1), &fickle{}
		sink.mute.Store(true)
		east.alter = func(e *Edges) { sink.Store = e.Store; e.Store = sink }
		east.run()
		time.Sleep(toldPatience / 2)
		synctest.Wait()
		if !closed(east.agent.open) || sink.mute.Load() {
			t.Error("it waits for an answer that does not come")
		}
		east.stop()
	})
}

// A port that is taken is told until it is free, and then served.
func TestATakenPortIsTold(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	at, tab := taken.Addr().String(), tables.New()
	a := &Agent{Tables: tab, log: slog.New(slog.DiscardHandler)}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() {
		done <- a.server(at, func() (net.Listener, error) { return net.Listen("tcp", at) }, http.NotFoundHandler()).Run(ctx)
	}()
	told := func() bool {
		p := tables.Get(tab.DB.ReadTxn(), tab.Problems, wire.ProblemParts+" listen "+at)
		return p != nil && strings.Contains(p.Error, "address already in use")
	}
	await(t, "it is told", told)
	taken.Close()
	await(t, "it is no longer told", func() bool { return !told() })
	resp, err := http.Get("http://" + at)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	http.DefaultClient.CloseIdleConnections()
	if resp.StatusCode != http.StatusNotFound {
		t.Errorf("it answers %s", resp.Status)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// await waits until something holds.
func await(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !holds(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within 30 s: %s", what)
		}
	}
}

// Whoever reaches the port cannot fill the log.
func TestStrangersDoNotFillTheLog(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	log := &lines{}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() {
		done <- serve(ctx, tls.NewListener(l, &tls.Config{}), http.NotFoundHandler(), slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug})))
	}()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(c, "no TLS at all\n"); err != nil {
		t.Fatal(err)
	}
	_, _ = io.Copy(io.Discard, c) // until it hangs up
	c.Close()
	await(t, "it is in the log", func() bool { return log.count("TLS handshake error") == 1 })
	if log.count("level=DEBUG") != 1 {
		t.Errorf("log: %s", log.text.String())
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestOnlyASocketIsReplacedByASocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "agent.sock")
	if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if l, err := listenUnix(path); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("over a file: %v, %v", l, err)
	}
	if text, err := os.ReadFile(path); err != nil || string(text) != "precious" {
		t.Errorf("the file holds %q, %v", text, err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second replaces what the first left
		l, err := listenUnix(path)
		if err != nil {
			t.Fatal(err)
		}
		if c, err := net.Dial("unix", path); err != nil {
			t.Error(err)
		} else {
			c.Close()
		}
		l.Close()
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("mode %v, %v", info, err)
		}
	}
}
