package apiserver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/store/storetest"
	"github.com/weft-mesh/weft/tunnel/gossip"
	"github.com/weft-mesh/weft/wire"
)

// A certificate that cannot be renewed is tried again within the hour, not a month later;
// meanwhile the status says so, and the log once.
func TestARenewalThatFailsIsTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log strings.Builder
		var f failing
		tries, broken := 0, errors.New("no space left")
		var shared baton
		shared.Lock()
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() {
			done <- renew(ctx, slog.New(slog.NewTextHandler(&log, nil)), &f, func() error {
				shared.Lock()
				defer shared.Unlock()
				tries++
				return broken
			})
		}()
		after := func(d time.Duration, want int, line string) {
			t.Helper()
			shared.sleep(d)
			if tries != want {
				t.Errorf("%d tries, want %d", tries, want)
			}
			if got := strings.Join(concernLines(renewalConcerns(&f)), "\n"); got != line {
				t.Errorf("status: %q", got)
			}
			tries = 0
		}
		const line = "its certificates cannot be renewed: no space left; correct that, or restart it: they expire a year after they were issued"
		after(certificateRenewal-time.Second, 0, "")
		after(2*time.Second, 1, line)
		after(5*time.Hour, 5, line)
		broken = nil
		after(time.Hour, 1, "")
		after(certificateRenewal, 1, "")
		if n := strings.Count(log.String(), "no space left"); n != 1 {
			t.Errorf("logged %d times:\n%s", n, &log)
		}
		shared.Unlock()
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// A store that does not answer, or does not drop its history, is in the status, and is not
// logged at every look.
func TestHistoryThatStaysIsAConcern(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log strings.Builder
		broken := errors.New("no leader")
		var shared baton
		shared.Lock()
		revision := int64(0)
		h := &history{
			turn: historyTurn, quota: 160, log: slog.New(slog.NewTextHandler(&log, nil)),
			usage: func(context.Context) (int64, int64, error) { revision++; return revision, 101, nil },
			compact: func(context.Context, int64) error {
				shared.Lock()
				defer shared.Unlock()
				return broken
			},
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- h.Run(ctx) }()
		shared.sleep(time.Hour)
		if c := h.concerns(); len(c) != 1 || !strings.Contains(c[0].Message, "no leader") || time.Since(c[0].Since) < time.Hour {
			t.Errorf("%+v", c)
		}
		if n := strings.Count(log.String(), "level=WARN"); n > 1 {
			t.Errorf("logged %d times", n)
		}
		broken = nil
		shared.sleep(historyTurn)
		if c := h.concerns(); len(c) != 0 {
			t.Errorf("it works again: %v", c)
		}
		shared.Unlock()
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// That ages are not kept is a concern itself, until they are written: also if nothing else
// changes.
func TestAgesThatAreNotKeptAreAConcern(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log strings.Builder
		st := storetest.New()
		s := newSightings(func() bool { return true }, slog.New(slog.NewTextHandler(&log, nil)))
		st.Fail(func(call, key string) error {
			if call == "commit" {
				return store.ErrUnavailable
			}
			return nil
		})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- s.write(ctx, st) }()
		for i := range 5 {
			s.date(time.Now(), append(s.concerns(), api.Concern{Object: fmt.Sprint("node ", i)}))
			time.Sleep(time.Second)
		}
		if c := s.concerns(); len(c) != 1 || c[0].Reason != "SightingsNotWritten" || c[0].Since.IsZero() {
			t.Errorf("%+v", c)
		}
		st.Fail(nil)
		time.Sleep(time.Second)
		synctest.Wait()
		if c := s.concerns(); len(c) != 0 {
			t.Errorf("written, and still: %v", c)
		}
		cancel()
		<-done
		if n := strings.Count(log.String(), "level=WARN"); n != 1 {
			t.Errorf("logged %d times:\n%s", n, &log)
		}
	})
}

// Whoever has a certificate of the cluster's, peers too, can make up methods.
func TestInventedMethodsShareASeries(t *testing.T) {
	m := &metrics{requests: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "x"}, []string{"method", "status"})}
	h := m.count(http.NotFoundHandler())
	for i := range 100 {
		h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest(fmt.Sprint("METHOD", i), "/", nil))
	}
	h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, "/", nil))
	registry := prometheus.NewRegistry()
	registry.MustRegister(m.requests)
	families, err := registry.Gather()
	if err != nil || len(families) != 1 || len(families[0].Metric) != 2 {
		t.Errorf("%v, %v", families, err)
	}
}

// A death of somebody who is not registered is not reported to peers.
func TestInventedDeathsAreNotReported(t *testing.T) {
	c := newCensus(nil, slog.New(slog.DiscardHandler))
	register := map[string]wire.Registration{"n1": {Name: "n1"}}
	c.strangers(time.Now(), register)
	c.heard("n1", gossip.Dead, time.Now())
	for i := range 10_000 {
		c.heard(fmt.Sprint("made-up-", i), gossip.Dead, time.Now())
	}
	if dead := c.dead(); len(dead) != 1 || dead["n1"].IsZero() {
		t.Errorf("%d dead nodes", len(dead))
	}
	<-c.unstored
	// One that was registered just before it died is reported with the next look.
	register["made-up-7"] = wire.Registration{Name: "made-up-7"}
	c.strangers(time.Now(), register)
	select {
	case <-c.unstored:
	default:
		t.Error("nobody looks again")
	}
	if dead := c.dead(); len(dead) != 2 {
		t.Errorf("%d dead nodes", len(dead))
	}
}

// Clients of agents go with their nodes, and with their addresses.
func TestClientsOfAgentsGo(t *testing.T) {
	at := func(addr string) map[string]wire.Registration {
		return map[string]wire.Registration{"n1": {Name: "n1", Addresses: []netip.Addr{netip.MustParseAddr(addr)}}}
	}
	a := &agents{clients: map[agentAt]*api.Client{}, port: 1}
	first, err := a.client(at("10.0.0.1")["n1"])
	if err != nil {
		t.Fatal(err)
	}
	a.keep(at("10.0.0.1"))
	if same, _ := a.client(at("10.0.0.1")["n1"]); same != first {
		t.Error("another client")
	}
	a.keep(at("10.0.0.2"))
	if len(a.clients) != 0 {
		t.Errorf("%d clients after it moved", len(a.clients))
	}
	if _, err := a.client(at("10.0.0.2")["n1"]); err != nil {
		t.Fatal(err)
	}
	if a.keep(nil); len(a.clients) != 0 {
		t.Errorf("%d clients after it was removed", len(a.clients))
	}
}
