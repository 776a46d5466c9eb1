package problems_test

import (
	"context"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/apiserver/problems"
	"github.com/weft-mesh/weft/store/storetest"
	"github.com/weft-mesh/weft/wire"
)

// controller is a source whose problems are set by hand.
type controller struct {
	changed chan struct{}

	mu   sync.Mutex // guards what follows
	rows problems.Rows
	done bool
}

func newController() *controller { return &controller{changed: make(chan struct{}, 1)} }

func (c *controller) Changed() <-chan struct{} { return c.changed }

func (c *controller) Problems() (problems.Rows, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.rows, c.done
}

func (c *controller) find(rows problems.Rows) {
	c.mu.Lock()
	c.rows, c.done = rows, true
	c.mu.Unlock()
	select {
	case c.changed <- struct{}{}:
	default:
	}
}

func TestProblemsOutliveTheirFinder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := storetest.New()
		serve := func() (c *controller, stop func()) {
			ctx, cancel := context.WithCancel(t.Context())
			c = newController()
			done := make(chan error)
			go func() { done <- problems.Publish(ctx, s, c, wire.RefusedPrefix, wire.TroublePrefix, wire.UnwrittenKey) }()
			return c, func() { cancel(); <-done }
		}
		board := problems.NewBoard(s, slog.New(slog.DiscardHandler))
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- board.Run(ctx) }()
		shown := func() string {
			time.Sleep(time.Second)
			synctest.Wait()
			var out []string
			for _, r := range board.Rows().Refused() {
				out = append(out, r.Node+" "+r.Reason)
			}
			for _, c := range board.Rows().Unwritten() {
				out = append(out, c.Object)
			}
			if c := board.Rows().Pod("shop", "web"); c != nil {
				out = append(out, c.Message)
			}
			for key, problem := range board.Rows().NotExported() {
				out = append(out, key+": "+problem)
			}
			return strings.Join(out, ", ")
		}
		want := func(name, text string) {
			t.Helper()
			if got := shown(); got != text {
				t.Errorf("%s: %q, want %q", name, got, text)
			}
		}
		refused := func(node string) []byte {
			return wire.Marshal([]api.Refusal{{Node: node, Reason: "lies", Count: 1}})
		}

		first, stop := serve()
		want("before the first look", "")
		first.find(problems.Rows{
			wire.RefusedKey("n2"): refused("n2"), wire.RefusedKey("n1"): refused("n1"),
			wire.UnwrittenKey:              wire.Marshal([]api.Concern{{Object: "pod shop/web"}}),
			wire.TroubleKey("shop", "web"): wire.Marshal(api.Concern{Message: "no number is left"}),
		})
		want("found", "n1 lies, n2 lies, pod shop/web, no number is left")
		stop()
		want("nobody leads", "n1 lies, n2 lies, pod shop/web, no number is left")
		second, stop := serve()
		want("the successor has not looked yet", "n1 lies, n2 lies, pod shop/web, no number is left")
		before := s.Revision()
		second.find(problems.Rows{wire.RefusedKey("n1"): refused("n1")})
		want("the rest is over", "n1 lies")
		if writes := s.Revision() - before; writes != 1 {
			t.Errorf("%d writes", writes)
		}
		if merged := board.Rows().With(problems.Rows{wire.RefusedKey("n7"): refused("n7")}, wire.RefusedPrefix); len(merged) != 1 || merged.Refused()[0].Node != "n7" {
			t.Errorf("%v", merged)
		}
		// Another controller's rows are left alone.
		export := newController()
		exporting, end := context.WithCancel(t.Context())
		exported := make(chan error)
		go func() { exported <- problems.Publish(exporting, s, export, wire.NotExportedPrefix) }()
		export.find(problems.Rows{wire.NotExportedKey("weft/state/x/y"): []byte("too large")})
		want("two controllers", "n1 lies, weft/state/x/y: too large")
		export.find(nil)
		want("corrected", "n1 lies")
		end()
		<-exported

		// Many changes are few writes.
		before = s.Revision()
		for i := range 100 {
			second.find(problems.Rows{wire.RefusedKey("n1"): refused("n1"), wire.UnwrittenKey: wire.Marshal([]api.Concern{{Object: "pod", AgeSeconds: float64(i)}})})
			time.Sleep(10 * time.Millisecond)
		}
		if writes := s.Revision() - before; writes > 6 {
			t.Errorf("%d writes in a second", writes)
		}
		stop()
		cancel()
		<-ended
	})
}
