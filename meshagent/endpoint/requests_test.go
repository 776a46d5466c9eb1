package endpoint_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/bpf"
	"github.com/weft-mesh/weft/bpf/bpftest"
	"github.com/weft-mesh/weft/meshagent/endpoint"
	"github.com/weft-mesh/weft/meshagent/endpoint/endpointtest"
	"github.com/weft-mesh/weft/meshagent/tables"
)

// machine is what outlives an agent: its kernel and its disk.
type machine struct {
	t        *testing.T
	dir      endpoint.Dir
	datapath *bpftest.Datapath
	plumbing *endpointtest.Plumbing
	cidrs    []netip.Prefix
	spool    api.EndpointSpool
	sockets  bool // sockets of pods are given backends

	mu sync.Mutex // guards step
	// step is called before each act on the kernel, which fails with its error.
	step func(act, pod string) error
}

// onStep sets step; nil lets all acts succeed.
func (m *machine) onStep(step func(act, pod string) error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.step = step
}

func newMachine(t *testing.T) *machine {
	return &machine{t: t, dir: endpoint.Dir(filepath.Join(t.TempDir(), "endpoints")), spool: api.EndpointSpool(filepath.Join(t.TempDir(), "spool")), datapath: bpftest.NewDatapath(), plumbing: &endpointtest.Plumbing{}, cidrs: []netip.Prefix{netip.MustParsePrefix("10.1.1.0/24")}}
}

// life is one agent's endpoints.
type life struct {
	*endpoint.Endpoints
	m   *machine
	tab *tables.Tables
	// why is what operators are told.
	mu  sync.Mutex // guards why
	why map[string]string
}

// start is a new life, which has taken over what the last one left.
func (m *machine) start() *life {
	m.t.Helper()
	l := &life{m: m, tab: tables.New(), why: map[string]string{}}
	var err error
	l.Endpoints, err = endpoint.New(endpoint.Config{
		CIDRs: m.cidrs, MTU: 1420, Tables: l.tab, Datapath: stepping{m.datapath, m}, Plumbing: acting{m.plumbing, m}, Dir: m.dir, Sockets: m.sockets,
		Tell: l.tell, TellPool: func(why string) { l.tell("addresses", why) }, Spool: m.spool, TellSpool: l.tellSpool, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		m.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- l.Run(ctx) }()
	m.t.Cleanup(func() { cancel(); <-done })
	<-l.Adopted()
	return l
}

// told is what operators have been told of each pod.
func (l *life) told() map[string]string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return maps.Clone(l.why)
}

func (m *machine) act(name, pod string) error {
	m.mu.Lock()
	step := m.step
	m.mu.Unlock()
	if step != nil {
		return step(name, pod)
	}
	return nil
}

type stepping struct {
	*bpftest.Datapath
	m *machine
}

func (s stepping) Maps() *bpf.Maps {
	maps := *s.Datapath.Maps()
	maps.Endpoints = rows{maps.Endpoints, s.m}
	return &maps
}

func (s stepping) AttachPod(ifindex int) error {
	if err := s.m.act("attach", ""); err != nil {
		return err
	}
	return s.Datapath.AttachPod(ifindex)
}

func (s stepping) Detach(ifindex int) error {
	if err := s.m.act("detach", ""); err != nil {
		return err
	}
	return s.Datapath.Detach(ifindex)
}

type rows struct {
	bpf.Table[bpf.Addr, bpf.Endpoint]
	m *machine
}

func (r rows) Update(k bpf.Addr, v bpf.Endpoint) error {
	if err := r.m.act("write the row", ""); err != nil {
		return err
	}
	return r.Table.Update(k, v)
}

func (r rows) Delete(k bpf.Addr) error {
	if err := r.m.act("delete the row", ""); err != nil {
		return err
	}
	return r.Table.Delete(k)
}

type acting struct {
	*endpointtest.Plumbing
	m *machine
}

func (a acting) Create(r endpoint.Record) (endpoint.Link, error) {
	if err := a.m.act("create", r.Key()); err != nil {
		return endpoint.Link{}, err
	}
	return a.Plumbing.Create(r)
}

func (a acting) Up(l endpoint.Link, r endpoint.Record) error {
	if err := a.m.act("up", r.Key()); err != nil {
		return err
	}
	return a.Plumbing.Up(l, r)
}

func (a acting) Remove(r endpoint.Record) error {
	if err := a.m.act("remove", r.Key()); err != nil {
		return err
	}
	return a.Plumbing.Remove(r)
}

var web = api.EndpointRequest{Namespace: "shop", Name: "web-1", UID: "one"}

func (l *life) add(r api.EndpointRequest) *api.EndpointResult {
	l.m.t.Helper()
	got, err := l.Add(l.m.t.Context(), r)
	if err != nil {
		l.m.t.Fatalf("add %s: %v", r.Key(), err)
	}
	return got
}

func (l *life) address(r api.EndpointRequest) string {
	l.m.t.Helper()
	return l.add(r).Addresses[0].String()
}

// empty fails the test unless nothing of any pod is left.
func (l *life) empty(when string) {
	l.m.t.Helper()
	rows, _ := l.m.datapath.Maps().Endpoints.Len()
	attached, _ := l.m.datapath.Attached()
	records, _, err := l.m.dir.Load()
	txn := l.tab.DB.ReadTxn()
	if l.m.plumbing.Links() != 0 || rows != 0 || len(attached) != 0 || len(records) != 0 || err != nil || len(l.Records()) != 0 || l.tab.Endpoints.NumObjects(txn) != 0 || len(l.told()) != 0 {
		l.m.t.Errorf("%s: left over are %d links, %d rows, programs at %v, records %v (%v), %d endpoints, %v",
			when, l.m.plumbing.Links(), rows, attached, records, err, l.tab.Endpoints.NumObjects(txn), l.told())
	}
}

// An agent that is killed before any act of an addition or a removal leaves what the next
// one completes: the pod has one network with one address, or none at all.
func TestAKillBetweenAnyTwoStepsIsMended(t *testing.T) {
	for _, removing := range []bool{false, true} {
		for at := 0; ; at++ {
			name := fmt.Sprintf("add, before step %d", at)
			if removing {
				name = fmt.Sprintf("remove, before step %d", at)
			}
			killed := false
			t.Run(name, func(t *testing.T) {
				m := newMachine(t)
				first := m.start()
				want := "10.1.1.2/32"
				if removing {
					want = first.address(web)
				}
				left := at
				m.onStep(func(string, string) error {
					if left--; left < 0 {
						killed = true
						runtime.Goexit() // nothing of the request happens any more
					}
					return nil
				})
				var wg sync.WaitGroup
				wg.Go(func() {
					if removing {
						_ = first.Remove(t.Context(), web)
					} else {
						_, _ = first.Add(t.Context(), web)
					}
				})
				wg.Wait()
				m.onStep(nil)

				next := m.start()
				if !removing {
					if got := next.address(web); got != want || m.plumbing.Links() != 1 {
						t.Errorf("added again: %s on %d links, want %s on one", got, m.plumbing.Links(), want)
					}
					if _, err := next.Look(t.Context(), web); err != nil {
						t.Errorf("look: %v", err)
					}
				}
				if err := next.Remove(t.Context(), web); err != nil {
					t.Error(err)
				}
				next.empty("removed again")
				if got := next.address(api.EndpointRequest{Namespace: "shop", Name: "other"}); got == want {
					t.Errorf("another pod got %s at once", got)
				}
			})
			if !killed {
				if at < 3 {
					t.Errorf("%s: only %d acts", name, at)
				}
				break
			}
		}
	}
}

// What a kill between two writes to disk leaves is read as one state.
func TestAKillBetweenTwoFilesIsMended(t *testing.T) {
	m := newMachine(t)
	first := m.start()
	want := first.address(web)
	// Released but still recorded: the removal had not ended. Taken again, but still
	// noted as released: the addition had not.
	if err := os.WriteFile(filepath.Join(string(m.dir), "10.1.1.2.released"), []byte(time.Now().Format(time.RFC3339Nano)), 0o600); err != nil {
		t.Fatal(err)
	}
	next := m.start()
	if got := next.address(web); got != want {
		t.Errorf("it has %s, not %s", got, want)
	}
	if err := next.Remove(t.Context(), web); err != nil {
		t.Error(err)
	}
	next.empty("removed")
}

// Requests for one pod never overlap, whoever makes them, and the last one counts.
func TestRequestsForOnePodFollowOneAnother(t *testing.T) {
	m := newMachine(t)
	l := m.start()
	var mu sync.Mutex // guards inside
	inside := map[string]bool{}
	m.onStep(func(_, pod string) error {
		if pod == "" {
			return nil
		}
		mu.Lock()
		overlap := inside[pod]
		inside[pod] = true
		mu.Unlock()
		if overlap {
			t.Errorf("two requests work on %s at once", pod)
		}
		runtime.Gosched()
		mu.Lock()
		inside[pod] = false
		mu.Unlock()
		return nil
	})
	pods := []api.EndpointRequest{web, {Namespace: "shop", Name: "web-1", UID: "two"}, {Namespace: "shop", Name: "web-2"}}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 8 {
				r := pods[rand.IntN(len(pods))]
				var err error
				if rand.IntN(2) == 0 {
					_, err = l.Add(t.Context(), r)
				} else {
					err = l.Remove(t.Context(), r)
				}
				// Addresses rest after each removal, and there are 253.
				if err != nil && !errors.Is(err, endpoint.ErrResting) {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	for _, r := range pods {
		if err := l.Remove(t.Context(), r); err != nil {
			t.Error(err)
		}
	}
	l.empty("after all")
}

func TestAddTwiceIsAddOnce(t *testing.T) {
	m := newMachine(t)
	l := m.start()
	first := l.add(web)
	if second := l.add(web); !reflect.DeepEqual(first, second) {
		t.Errorf("the second time %+v, the first %+v", second, first)
	}
	want := &api.EndpointResult{
		Namespace: "shop", Name: "web-1", UID: "one", Netns: "/run/netns/shop_web-1", Interface: "eth0", MAC: "02:00:00:00:00:01", Device: first.Device, DeviceMAC: "02:00:00:00:01:01",
		MTU: 1420, Addresses: []netip.Prefix{netip.MustParsePrefix("10.1.1.2/32")}, Held: true,
		Routes: []api.EndpointRoute{{Destination: netip.MustParsePrefix("169.254.1.1/32")}, {Destination: netip.MustParsePrefix("0.0.0.0/0"), Gateway: netip.MustParseAddr("169.254.1.1")}},
	}
	if !reflect.DeepEqual(first, want) {
		t.Errorf("it has %+v, want %+v", first, want)
	}
	if m.plumbing.Links() != 1 {
		t.Errorf("%d links", m.plumbing.Links())
	}
}

// A removal that comes late is about the pod or container that it names, and no other.
func TestRemoveIsAboutThePodItNames(t *testing.T) {
	l := newMachine(t).start()
	for _, r := range []api.EndpointRequest{web, {Namespace: "shop", Name: "never-was"}} {
		if err := l.Remove(t.Context(), r); err != nil {
			t.Errorf("remove %s, which is not there: %v", r.Key(), err)
		}
	}
	l.empty("before")
	now := web
	now.UID, now.Container = "two", "c2"
	address := l.address(now)
	for _, late := range []api.EndpointRequest{web, {Namespace: "shop", Name: "web-1", UID: "two", Container: "c1"}} {
		if err := l.Remove(t.Context(), late); err != nil {
			t.Error(err)
		}
		if _, err := l.Look(t.Context(), late); status(err) != http.StatusNotFound {
			t.Errorf("look at %+v: %v", late, err)
		}
	}
	if _, err := l.Look(t.Context(), now); err != nil || l.address(now) != address {
		t.Errorf("a late removal took another pod's network: %v", err)
	}
	if err := l.Remove(t.Context(), api.EndpointRequest{Namespace: "shop", Name: "web-1"}); err != nil {
		t.Error(err)
	}
	l.empty("removed")
}

// A pod of the same name is another pod: it gets another address. A pod whose sandbox is
// replaced keeps its own, and passes nothing until that is confirmed.
func TestAnotherPodOfTheNameAndAnotherSandboxOfThePod(t *testing.T) {
	m := newMachine(t)
	l := m.start()
	first := l.address(web)
	two := web
	two.UID, two.Container, two.Netns = "two", "c1", "/run/netns/a"
	second := l.address(two)
	if second == first || m.plumbing.Links() != 1 {
		t.Errorf("another pod of the name has %s after %s, on %d links", second, first, m.plumbing.Links())
	}
	addr := bpf.AddrOf(netip.MustParsePrefix(second).Addr())
	row, _, _ := m.datapath.Maps().Endpoints.Lookup(addr)
	row.Held = 0
	if err := m.datapath.Maps().Endpoints.Update(addr, row); err != nil {
		t.Fatal(err)
	}
	if l.add(two).Held {
		t.Error("added again, it is held")
	}
	two.Container, two.Netns = "c2", "/run/netns/b"
	moved := l.add(two)
	if moved.Addresses[0].String() != second || moved.Netns != "/run/netns/b" || !moved.Held || m.plumbing.Links() != 1 {
		t.Errorf("in another sandbox: %+v, on %d links", moved, m.plumbing.Links())
	}
	l = m.start()
	if got, err := l.Look(t.Context(), two); err != nil || got.Netns != "/run/netns/b" || got.Container != "c2" {
		t.Errorf("after a restart: %+v, %v", got, err)
	}
}

// What is damaged is named, and adding the pod again mends it.
func TestLookNamesWhatIsDamaged(t *testing.T) {
	m := newMachine(t)
	l := m.start()
	if _, err := l.Look(t.Context(), web); status(err) != http.StatusNotFound {
		t.Errorf("before it is added: %v", err)
	}
	address := l.address(web)
	for want, damage := range map[string]func(){
		"is gone": m.plumbing.Reboot,
		"is not in the table of this node's pods": func() {
			_ = m.datapath.Maps().Endpoints.Delete(bpf.AddrOf(netip.MustParsePrefix(address).Addr()))
		},
	} {
		damage()
		if _, err := l.Look(t.Context(), web); status(err) != http.StatusConflict || !strings.Contains(err.Error(), want) {
			t.Errorf("look: %v, want %q", err, want)
		}
		if got := l.address(web); got != address {
			t.Errorf("added again, it has %s", got)
		}
		if _, err := l.Look(t.Context(), web); err != nil {
			t.Errorf("added again: %v", err)
		}
	}
}

func TestARequestedAddress(t *testing.T) {
	l := newMachine(t).start()
	with := func(name, address string) api.EndpointRequest {
		return api.EndpointRequest{Namespace: "shop", Name: name, Addresses: []netip.Addr{netip.MustParseAddr(address)}}
	}
	if got := l.address(with("a", "10.1.1.77")); got != "10.1.1.77/32" {
		t.Errorf("it got %s", got)
	}
	if err := l.Remove(t.Context(), with("a", "10.1.1.77")); err != nil {
		t.Fatal(err)
	}
	l.add(with("b", "10.1.1.78"))
	for name, r := range map[string]api.EndpointRequest{
		"that rests": with("c", "10.1.1.77"), "of another pod": with("c", "10.1.1.78"), "of the node": with("c", "10.1.1.1"), "of another node": with("c", "10.1.2.2"),
		"for broadcast": with("c", "10.1.1.255"), "other than the pod's": with("b", "10.1.1.79"),
	} {
		var refusal *api.Error
		if _, err := l.Add(t.Context(), r); status(err) != http.StatusConflict || !errors.As(err, &refusal) || refusal.Hint == "" {
			t.Errorf("an address %s: %v", name, err)
		}
	}
	if got := l.address(api.EndpointRequest{Namespace: "shop", Name: "d"}); got != "10.1.1.2/32" {
		t.Errorf("without a wish it got %s", got)
	}
}

// A request that cannot be met is told to operators, and tried again by itself once the
// pod is on disk.
func TestWhatFailsIsToldAndTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t)
		l := m.start()
		refused := errors.New("no memory")
		m.onStep(func(string, string) error { return refused })
		_, err := l.Add(t.Context(), web)
		row := func() tables.Endpoint {
			if e := tables.Get(l.tab.DB.ReadTxn(), l.tab.Endpoints, "shop/web-1"); e != nil {
				return *e
			}
			return tables.Endpoint{}
		}
		if !errors.Is(err, refused) || !strings.Contains(l.told()["shop/web-1"], "no memory") || !strings.Contains(row().Why, "no memory") {
			t.Errorf("answered %v, told %v, shown %q", err, l.told(), row().Why)
		}
		m.onStep(nil)
		time.Sleep(2 * endpoint.Again)
		synctest.Wait()
		if e := row(); len(l.told()) != 0 || e.Why != "" || e.Phase != tables.Held {
			t.Errorf("once that is over: told %v, shown %+v", l.told(), e)
		}
	})
}

// On a node with pod CIDRs of both families a pod has rows, addresses and routes of both,
// which it keeps whatever happens to the agent and to its file, and which go with it. One
// from before keeps the one that it has.
func TestAPodOfBothFamiliesHasTwoOfAll(t *testing.T) {
	m := newMachine(t)
	before := m.start().add(api.EndpointRequest{Namespace: "shop", Name: "old"})
	m.cidrs = append(m.cidrs, netip.MustParsePrefix("fd00:10:1:1::/64"))
	l := m.start()
	if again := l.add(api.EndpointRequest{Namespace: "shop", Name: "old"}); !reflect.DeepEqual(again.Addresses, before.Addresses) {
		t.Errorf("one from before has %v, then %v", before.Addresses, again.Addresses)
	}
	got := l.add(web)
	if text := fmt.Sprint(got.Addresses, got.Routes); text != "[10.1.1.3/32 fd00:10:1:1::3/128] [{169.254.1.1/32 invalid IP} {0.0.0.0/0 169.254.1.1} {fe80::1/128 invalid IP} {::/0 fe80::1}]" {
		t.Errorf("it has %s", text)
	}
	all, _ := m.datapath.Maps().Endpoints.All()
	rows := maps.Collect(all)
	four, six := rows[bpf.AddrOf(netip.MustParseAddr("10.1.1.3"))], rows[bpf.AddrOf(netip.MustParseAddr("fd00:10:1:1::3"))]
	if len(rows) != 3 || four != six || four.ID == 0 || four.Held == 0 {
		t.Errorf("rows %v", rows)
	}
	if e := tables.Get(l.tab.DB.ReadTxn(), l.tab.Endpoints, web.Key()); e == nil || len(e.IPs()) != 2 {
		t.Errorf("table %+v", e)
	}
	for _, when := range []string{"restarted", "its file damaged"} {
		if when == "its file damaged" {
			if err := os.WriteFile(filepath.Join(string(m.dir), "shop_web-1.json"), []byte("{"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		l = m.start()
		if again := l.add(web); !reflect.DeepEqual(again, got) {
			t.Errorf("%s, it has %+v, want %+v", when, again, got)
		}
	}
	conflict := web
	conflict.Addresses = []netip.Addr{netip.MustParseAddr("fd00:10:1:1::3"), netip.MustParseAddr("10.1.1.4")}
	if _, err := l.Add(t.Context(), conflict); status(err) != http.StatusConflict || !strings.Contains(err.Error(), "has the address 10.1.1.3 and fd00:10:1:1::3") {
		t.Errorf("another address: %v", err)
	}
	for _, pod := range []api.EndpointRequest{web, {Namespace: "shop", Name: "old"}} {
		if err := l.Remove(t.Context(), pod); err != nil {
			t.Fatal(err)
		}
	}
	l.empty("after all")
}
