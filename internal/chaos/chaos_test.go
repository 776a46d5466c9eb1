package chaos

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	debug.SetGCPercent(1500) // a mesh is small, and makes much garbage
	// State files are synchronized; what a disk adds to that is time alone.
	dir, err := os.MkdirTemp("/dev/shm", "chaos")
	if err == nil {
		err = os.Setenv("TMPDIR", dir)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "state files will be on disk:", err)
	}
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		_ = os.RemoveAll(dir)
		os.Exit(code)
	}))
}

var (
	oneSeed  = flag.Uint64("seed", 0, "replay this seed alone, and tell its story")
	places   = flag.String("only", "", "of the replayed seed, make only the steps at these places")
	first    = flag.Uint64("first", 1, "the first seed")
	seeds    = flag.Int("seeds", ordinary, "how many seeds are simulated")
	duration = flag.Duration("for", 0, "simulate more seeds until this much time has passed, and report progress")
	length   = flag.Int("steps", 0, "how many steps each seed has; 0: a few, and one seed of eight many")
	// One attempt may take 10 s, and the seeds share their time with all other tests.
	shortening = flag.Duration("shrink", 45*time.Second, "how long the steps of seeds that fail may be shortened, in all")
)

// steps is how many steps a seed has.
func steps(seed uint64) int {
	if *length > 0 {
		return *length
	}
	return lengthOf(seed)
}

// run simulates a seed in a bubble of its own.
func run(t *testing.T, seed uint64, all []Step, say func(string)) (out Run) {
	t.Helper()
	passed := t.Run(fmt.Sprintf("seed=%d,steps=%d", seed, len(all)), func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) { out = Simulate(t, seed, all, say) })
	})
	if !passed && len(out.Broken) == 0 {
		out.Broken = []string{"a part of the mesh failed by itself, see above"}
	}
	return out
}

// The mesh keeps its promises, whatever fails.
func TestSeeds(t *testing.T) {
	if *oneSeed != 0 {
		all := Steps(*oneSeed, steps(*oneSeed))
		if *places != "" {
			all = part(all, parsePlaces(t, *places))
		}
		for _, b := range run(t, *oneSeed, all, func(line string) { fmt.Println(line) }).Broken {
			t.Error(b)
		}
		return
	}
	sum := newSummary(t)
	var working sync.WaitGroup
	for range runtime.GOMAXPROCS(0) { // a mesh keeps little more than one processor busy
		working.Go(func() {
			for seed, ok := sum.next(); ok; seed, ok = sum.next() {
				sum.add(run(t, seed, Steps(seed, steps(seed)), func(string) {}))
			}
		})
	}
	working.Wait()
	sum.end()
}

// summary is what the seeds of a test came to. Several goroutines may use it.
type summary struct {
	Runs, Steps int
	Virtual     string
	Seconds     float64
	Failed      []uint64

	mu          sync.Mutex // guards everything
	t           *testing.T
	seed        uint64
	began, told time.Time
	virtual     time.Duration
	left        time.Duration // for shortening
}

func newSummary(t *testing.T) *summary {
	return &summary{Failed: []uint64{}, t: t, seed: *first, began: time.Now(), told: time.Now(), left: *shortening}
}

// next returns the seed to simulate next, or false if there were enough.
func (s *summary) next() (seed uint64, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	seed = s.seed
	s.seed++
	return seed, seed < *first+uint64(*seeds) || time.Since(s.began) < *duration
}

// add counts a run, and tells about it if it failed.
func (s *summary) add(r Run) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.Runs, s.Steps, s.virtual = s.Runs+1, s.Steps+r.Steps, s.virtual+r.Time
	if len(r.Broken) > 0 {
		s.Failed = append(s.Failed, r.Seed)
		s.left -= tell(s.t, r, s.left)
	}
	if *duration > 0 && time.Since(s.told) >= 10*time.Second {
		s.told = time.Now()
		fmt.Printf("seed %d: %d runs, %v of the mesh's time, %d failed\n", r.Seed, s.Runs, s.virtual.Round(time.Second), len(s.Failed))
	}
}

// end prints everything if progress was wanted.
func (s *summary) end() {
	s.Virtual, s.Seconds = s.virtual.Round(time.Second).String(), time.Since(s.began).Seconds()
	if text, err := json.Marshal(s); *duration > 0 && err == nil {
		fmt.Fprintf(os.Stdout, "%s\n", text)
	}
}

// tell says what is broken, and the shortest story that breaks something and is found
// within some time. It returns how long that took.
func tell(t *testing.T, r Run, within time.Duration) time.Duration {
	t.Helper()
	began := time.Now()
	t.Errorf("seed %d, after %d steps: %s", r.Seed, r.At, strings.Join(r.Broken, "\n\t"))
	t.Errorf("replay: go test ./internal/chaos -run TestSeeds -seed %d -steps %d -v", r.Seed, steps(r.Seed))
	all := Steps(r.Seed, steps(r.Seed))
	short := shrink(len(all), func() bool { return time.Since(began) < within }, func(places []int) bool {
		return len(run(t, r.Seed, part(all, places), func(string) {}).Broken) > 0
	})
	var story, at []string
	for _, i := range short {
		story, at = append(story, all[i].String()), append(at, strconv.Itoa(i))
	}
	t.Errorf("shortened to %d steps:\n\t%s\n-only %s", len(short), strings.Join(story, "\n\t"), strings.Join(at, ","))
	return time.Since(began)
}

func parsePlaces(t *testing.T, text string) (out []int) {
	t.Helper()
	for _, word := range strings.Split(text, ",") {
		i, err := strconv.Atoi(word)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, i)
	}
	return out
}

func TestTheSameSeedHasTheSameSteps(t *testing.T) {
	for seed := range uint64(50) {
		a, b := Steps(seed, 200), Steps(seed, 200)
		if !slices.Equal(a, b) {
			t.Fatalf("seed %d differs", seed)
		}
		if c := Steps(seed+1000, 200); slices.Equal(a, c) {
			t.Errorf("seeds %d and %d are the same", seed, seed+1000)
		}
	}
}

// Every kind of step is drawn, and each makes sense when it is.
func TestEveryKindOfStepIsDrawn(t *testing.T) {
	drawn := map[Verb]int{}
	for seed := range uint64(100) {
		m := newModel(random(seed))
		for _, s := range Steps(seed, 100) {
			if !m.allows(s) {
				t.Fatalf("seed %d: %v makes no sense", seed, s)
			}
			m.apply(s)
			drawn[s.Do]++
		}
		for _, s := range m.mending() {
			if m.allows(s) {
				m.apply(s)
			}
		}
		for _, c := range m.clusters {
			if c.answers() == nil || len(m.control) > 0 || len(m.data) > 0 {
				t.Errorf("seed %d: not all of %s is mended", seed, c.name)
			}
			for _, other := range m.clusters {
				if other != c && !c.joined(other) {
					t.Errorf("seed %d: %s and %s are no peers in the end", seed, c.name, other.name)
				}
			}
		}
	}
	for _, w := range weights {
		if drawn[w.do] == 0 {
			t.Errorf("never drawn: %s", w.do)
		}
	}
	for _, do := range []Verb{Wait, LoseIdentities} {
		if drawn[do] == 0 {
			t.Errorf("no story has: %s", do)
		}
	}
}

// Each story, alone in a few meshes.
func TestStories(t *testing.T) {
	for _, s := range stories {
		for seed := range uint64(3) {
			if r := run(t, seed, s.steps(seed), func(string) {}); len(r.Broken) > 0 {
				t.Errorf("%s, seed %d: %s", s.name, seed, strings.Join(r.Broken, "\n\t"))
			}
		}
	}
}

func TestShrink(t *testing.T) {
	always := func() bool { return true }
	for _, c := range []struct {
		name  string
		needs []int
	}{
		{"one step", []int{17}},
		{"two far apart", []int{3, 40}},
		{"the first and the last", []int{0, 59}},
		{"nothing", nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := shrink(60, always, func(places []int) bool {
				return !slices.ContainsFunc(c.needs, func(n int) bool { return !slices.Contains(places, n) })
			})
			if !slices.Equal(got, c.needs) && len(got)+len(c.needs) > 0 {
				t.Errorf("shrunk to %v, want %v", got, c.needs)
			}
		})
	}
	tried := 0
	if got := shrink(60, func() bool { return tried < 5 }, func([]int) bool { tried++; return false }); tried != 5 || len(got) != 60 {
		t.Errorf("%d tries, %d steps left", tried, len(got))
	}
}
