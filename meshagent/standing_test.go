package meshagent

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weft-mesh/weft/meshagent/reflector"
	"github.com/weft-mesh/weft/tunnel/gossip"
	"github.com/weft-mesh/weft/wire"
)

func TestReadingOfAllSources(t *testing.T) {
	now := time.Date(2026, 11, 28, 12, 0, 0, 0, time.UTC)
	ago := func(d time.Duration) time.Time { return now.Add(-d) }
	good := func(revision int64, heard time.Duration) reflector.State {
		return reflector.State{Synced: true, Connected: true, Revision: revision, Heard: ago(heard)}
	}
	for _, test := range []struct {
		name    string
		states  []reflector.State
		before  reading
		started time.Duration
		want    reading
	}{
		{"the furthest behind counts", []reflector.State{good(9, time.Second), good(7, 2*time.Second)}, reading{}, time.Hour, reading{revision: 7, heard: ago(2 * time.Second)}},
		{"a sign of life is late", []reflector.State{good(9, 24*time.Second)}, reading{}, time.Hour, reading{revision: 9, heard: ago(24 * time.Second)}},
		{"it has fallen silent", []reflector.State{good(9, 26*time.Second)}, reading{}, time.Hour, reading{revision: 9, heard: ago(26 * time.Second), lost: now, cause: "it does not answer"}},
		{"one is cut", []reflector.State{good(9, time.Second), {Synced: true, Revision: 8, Heard: ago(4 * time.Minute), Error: "cut"}}, reading{lost: ago(time.Minute)}, time.Hour,
			reading{revision: 8, heard: ago(4 * time.Minute), lost: ago(time.Minute), cause: "cut"}},
		{"back again", []reflector.State{good(9, 0)}, reading{lost: ago(time.Minute), cause: "cut"}, time.Hour, reading{revision: 9, heard: now}},
		{"starting", []reflector.State{good(9, 0), {}}, reading{}, time.Second, reading{}},
		{"no answer at the start", []reflector.State{{}, {}}, reading{}, 2 * time.Second, reading{lost: now, cause: "it does not answer"}},
		{"refused at the start", []reflector.State{{Error: "denied"}, {}}, reading{}, 0, reading{lost: now, cause: "denied"}},
	} {
		if got := read(test.states, test.before, ago(test.started), now); got != test.want {
			t.Errorf("%s: %+v, want %+v", test.name, got, test.want)
		}
	}
}

// A text that is cut off in the middle could not be read, and the node would be shown
// as ready.
func TestACauseFitsIntoTheAnswerToAPing(t *testing.T) {
	for _, cause := range []string{"", "short", strings.Repeat(`"<&>`, 200), strings.Repeat("ü", 300), "x" + strings.Repeat("ü", 300)} {
		s := &standing{now: reading{cause: cause, revision: 1 << 40, lost: time.Now(), heard: time.Now()}}
		text := s.say()
		said, err := wire.Unmarshal[wire.StoreStanding](text)
		if err != nil || len(text) > gossip.MaxSaid {
			t.Errorf("%.9s…: %d bytes, %v: %s", cause, len(text), err, text)
			continue
		}
		if !strings.HasPrefix(cause, said.Cause) || len(said.Cause) < min(len(cause), 60) {
			t.Errorf("%.9s… is told as %q", cause, said.Cause)
		}
	}
}

// lines counts log lines by level and message.
type lines struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *lines) count(sign string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.text.String(), sign)
}

// A store that is lost is a warning at once, and then ever more rarely; when it is
// found again, that is said too. An agent tells how far it is all the while.
func TestALostStoreIsToldAtOnceAndThenMoreRarely(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		east := w.node("east", 1)
		log := &lines{}
		diagnosed := 0
		east.alter = func(e *Edges) {
			e.Diagnose = func(context.Context) string { diagnosed++; return "the cable is out" }
		}
		east.run()
		east.agent.standing.log = slog.New(slog.NewTextHandler(log, nil)) // its loop has not run yet
		time.Sleep(time.Minute)
		synctest.Wait()
		said := east.agent.Status().Store
		if said.Cause != "" || said.Revision == 0 || said.HeardSeconds > 10.5 || diagnosed > 0 || log.count("level=") > 0 {
			t.Errorf("while all is well it says %+v after %d diagnoses: %s", said, diagnosed, log.text.String())
		}

		east.cluster.store.SetAway(true)
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if log.count("level=WARN") != 1 || log.count("the cable is out") != 1 {
			t.Errorf("at once it logs %s", log.text.String())
		}
		time.Sleep(8 * time.Minute)
		synctest.Wait()
		if n := log.count("level=WARN"); n != 4 { // at once, after 1, 3 and 7 min
			t.Errorf("%d warnings in 8 min: %s", n, log.text.String())
		}
		said = east.agent.Status().Store
		if said.Cause != "the cable is out" || said.Revision == 0 || said.HeardSeconds < 480 || said.HeardSeconds > 500 || said.LostSeconds < 480 {
			t.Errorf("cut off it says %+v", said)
		}
		if text := east.agent.standing.say(); !bytes.Contains(text, []byte("the cable is out")) || len(text) > 512 {
			t.Errorf("pings are answered with %s", text)
		}

		east.cluster.store.SetAway(false)
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if log.count("level=INFO") != 1 || log.count("can be read again") != 1 || log.count("level=WARN") != 4 {
			t.Errorf("when it is back it logs %s", log.text.String())
		}
		if said = east.agent.Status().Store; said.Cause != "" || said.LostSeconds != 0 {
			t.Errorf("when it is back it says %+v", said)
		}
		east.stop()
	})
}
