package endpoint_test

import (
	"errors"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/meshagent/endpoint"
	"github.com/weft-mesh/weft/meshagent/tables"
)

// tell notes what operators are told.
func (l *life) tell(what, why string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.why[what] = why; why == "" {
		delete(l.why, what)
	}
}

func (l *life) tellSpool(err error) {
	why := ""
	if err != nil {
		why = err.Error()
	}
	l.tell("removals", why)
}

// attached is a pod as a runtime adds it.
func attached(name, container string) api.EndpointRequest {
	return api.EndpointRequest{Namespace: "shop", Name: name, UID: name, Container: container, Network: "weft"}
}

func remaining(containers ...string) api.EndpointRetention {
	out := api.EndpointRetention{Network: "weft", Attachments: []api.EndpointAttachment{}}
	for _, c := range containers {
		out.Attachments = append(out.Attachments, api.EndpointAttachment{Container: c, Interface: "eth0"})
	}
	return out
}

// there are the pods with a network.
func (l *life) there() string {
	var names []string
	for _, r := range l.Records() {
		names = append(names, r.Pod)
	}
	return strings.Join(names, " ")
}

// What the runtime no longer has goes. What it never had is not its to name.
func TestWhatHasNotRemainedGoes(t *testing.T) {
	m := newMachine(t)
	l := m.start()
	other := attached("in-another-network", "c3")
	other.Network = "other"
	renamed := attached("other-device", "c4")
	renamed.Interface = "net1"
	for _, r := range []api.EndpointRequest{attached("kept", "c1"), attached("lost", "c2"), other, renamed, {Namespace: "shop", Name: "own"}} {
		l.add(r)
	}
	for _, wrong := range []api.EndpointRetention{{Network: "weft"}, {Attachments: []api.EndpointAttachment{}}, {Network: "weft", Attachments: []api.EndpointAttachment{{Container: ""}}}} {
		if err := l.Retain(t.Context(), wrong); status(err) != http.StatusUnprocessableEntity {
			t.Errorf("%+v: %v", wrong, err)
		}
	}
	for range 2 {
		if err := l.Retain(t.Context(), remaining("c1", "c4", "never-there")); err != nil {
			t.Error(err)
		}
		if got := l.there(); got != "in-another-network kept own" {
			t.Errorf("remaining are %s", got)
		}
	}
	// One that cannot be removed does not keep the others, and is tried the next time.
	l.add(attached("stuck", "c5"))
	l.add(attached("lost", "c6"))
	m.onStep(func(act, pod string) error {
		if act == "remove" && pod == "shop/stuck" {
			return errors.New("no memory")
		}
		return nil
	})
	if err := l.Retain(t.Context(), remaining("c1")); err == nil || !strings.Contains(err.Error(), "shop/stuck: no memory") || l.there() != "in-another-network kept own stuck" {
		t.Errorf("%v; remaining are %s", err, l.there())
	}
	m.onStep(nil)
	// The next agent knows as much.
	l = m.start()
	if err := l.Retain(t.Context(), remaining()); err != nil || l.there() != "in-another-network own" {
		t.Errorf("%v; remaining are %s", err, l.there())
	}
}

// A pod that is added while the runtime's list is worked off may be younger than the list.
func TestAPodThatIsAddedMeanwhileRemains(t *testing.T) {
	m := newMachine(t)
	l := m.start()
	l.add(attached("web", "c1"))
	inside, goOn := make(chan struct{}), make(chan struct{})
	m.onStep(func(act, _ string) error {
		if act == "create" {
			close(inside)
			<-goOn
		}
		return nil
	})
	added := make(chan error)
	go func() {
		_, err := l.Add(t.Context(), attached("web", "c2"))
		added <- err
	}()
	<-inside
	m.onStep(nil)
	if err := l.Retain(t.Context(), remaining()); err != nil {
		t.Error(err)
	}
	close(goOn)
	if err := <-added; err != nil {
		t.Error(err)
	}
	if _, err := l.Look(t.Context(), attached("web", "c2")); err != nil {
		t.Errorf("look: %v", err)
	}
	if err := l.Retain(t.Context(), remaining()); err != nil {
		t.Error(err)
	}
	l.empty("once it is not being added")
}

// Removals that were left to the agent are made before anything is added, and later within a
// second. They are about the sandbox that they name.
func TestRemovalsLeftToTheAgent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t)
		spool := m.spool
		m.spool = "" // the first agent must not find them: it goes on in this process
		l := m.start()
		m.spool = spool
		before := l.address(attached("web", "c1"))
		l.add(attached("replaced", "c2"))
		leave := func(r api.EndpointRequest) {
			t.Helper()
			if err := m.spool.Put(r); err != nil {
				t.Fatal(err)
			}
		}
		waiting := func() int {
			files, err := os.ReadDir(string(m.spool))
			if err != nil {
				t.Fatal(err)
			}
			return len(files)
		}
		leave(attached("web", "c1"))
		leave(attached("web", "c1"))
		leave(attached("replaced", "of-before"))
		leave(attached("never-there", "c9"))
		if waiting() != 3 {
			t.Errorf("%d removals wait", waiting())
		}
		l = m.start()
		if got := l.there(); got != "replaced" || waiting() != 0 {
			t.Errorf("there are %s, and %d removals wait", got, waiting())
		}
		if got := l.address(attached("web", "c3")); got == before {
			t.Errorf("another sandbox got %s at once", got)
		}
		// While the agent runs, but did not answer in time; and the kernel refuses at first.
		m.onStep(func(act, _ string) error {
			if act == "remove" {
				return errors.New("no memory")
			}
			return nil
		})
		leave(attached("web", "c3"))
		time.Sleep(2 * endpoint.Again)
		synctest.Wait()
		if why := l.told()["removals"]; !strings.Contains(why, "shop/web") || !strings.Contains(why, "no memory") || waiting() != 1 {
			t.Errorf("told %q, %d removals wait", why, waiting())
		}
		m.onStep(nil)
		time.Sleep(2 * endpoint.Again)
		synctest.Wait()
		if l.there() != "replaced" || waiting() != 0 || l.told()["removals"] != "" {
			t.Errorf("there are %s, %d removals wait, told %v", l.there(), waiting(), l.told())
		}
		// What is no removal is put aside, where status tells of it.
		if err := os.WriteFile(filepath.Join(string(m.spool), "x.json"), []byte("{"), 0o600); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * endpoint.Again)
		synctest.Wait()
		if aside, err := os.ReadDir(filepath.Join(string(m.spool), "damaged")); err != nil || len(aside) != 1 || len(l.told()) != 0 {
			t.Errorf("put aside %v, %v, told %v", aside, err, l.told())
		}
	})
}

// A node without addresses is told, also while pods are added and given up all the time, until
// there is one again; after the agent's restart, they rest as before.
func TestALackOfAddressesIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t)
		m.cidrs = []netip.Prefix{netip.MustParsePrefix("10.1.1.0/30")} // room for one pod
		l := m.start()
		l.add(attached("first", "c1"))
		refused := func(want error) {
			t.Helper()
			if _, err := l.Add(t.Context(), attached("second", "c2")); !errors.Is(err, want) {
				t.Errorf("added: %v, want %v", err, want)
			}
			if err := l.Remove(t.Context(), attached("second", "c2")); err != nil {
				t.Error(err)
			}
			if why := l.told(); len(why) != 1 || !strings.Contains(why["addresses"], want.Error()) {
				t.Errorf("told %v, want %v", why, want)
			}
		}
		refused(endpoint.ErrNoAddress)
		time.Sleep(5 * endpoint.Again)
		synctest.Wait()
		if l.told()["addresses"] == "" {
			t.Error("it is told no longer")
		}
		if err := l.Remove(t.Context(), attached("first", "c1")); err != nil {
			t.Fatal(err)
		}
		refused(endpoint.ErrResting)
		l = m.start()
		refused(endpoint.ErrResting)
		time.Sleep(endpoint.Grace)
		synctest.Wait()
		if why := l.told(); len(why) != 0 {
			t.Errorf("once it has rested, told %v", why)
		}
		l.add(attached("second", "c2"))
		refusedOnce := attached("third", "c3")
		if _, err := l.Add(t.Context(), refusedOnce); !errors.Is(err, endpoint.ErrNoAddress) {
			t.Error(err)
		}
		if err := l.Remove(t.Context(), refusedOnce); err != nil {
			t.Error(err)
		}
		time.Sleep(time.Hour)
		synctest.Wait()
		if why := l.told(); len(why) != 0 {
			t.Errorf("an hour after the last that asked, told %v", why)
		}
	})
}

// A requester may wait for a pod's identity, for as long as it says.
func TestAPodMayWaitForItsIdentity(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newMachine(t).start()
		phase := func(after time.Duration, phase tables.Phase) {
			time.Sleep(after)
			txn := l.tab.DB.WriteTxn(l.tab.Endpoints)
			tables.Edit(txn, l.tab.Endpoints, "shop/web", func(e *tables.Endpoint) { e.Phase = phase })
			txn.Commit()
		}
		r := attached("web", "c1")
		r.WaitSeconds = 2
		start := time.Now()
		if got := l.add(r); !got.Held || time.Since(start) != 2*time.Second {
			t.Errorf("without an identity: held %v after %v", got.Held, time.Since(start))
		}
		go phase(300*time.Millisecond, tables.Live)
		start = time.Now()
		if got := l.add(r); got.Held || time.Since(start) != 300*time.Millisecond {
			t.Errorf("with one after 300 ms: held %v after %v", got.Held, time.Since(start))
		}
		phase(0, tables.Held)
		go func() {
			time.Sleep(time.Second)
			if err := l.Remove(t.Context(), r); err != nil {
				t.Error(err)
			}
		}()
		if _, err := l.Add(t.Context(), r); status(err) != http.StatusServiceUnavailable {
			t.Errorf("removed meanwhile: %v", err)
		}
		synctest.Wait()
		l.empty("removed meanwhile")
		r.WaitSeconds = 61
		if _, err := l.Add(t.Context(), r); status(err) != http.StatusUnprocessableEntity {
			t.Errorf("a minute and more: %v", err)
		}
	})
}
