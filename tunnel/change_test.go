package tunnel

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// Changing some peers leaves the devices as setting all of them does, whoever contradicts
// whom, and reads no device.
func TestChangeIsAsSet(t *testing.T) {
	for seed := range uint64(8) {
		// In a bubble, so that no question falls due on a slow machine.
		synctest.Test(t, func(t *testing.T) { changeIsAsSet(t, rand.New(rand.NewPCG(seed, 7))) })
	}
}

func changeIsAsSet(t *testing.T, random *rand.Rand) {
	whole, parts := newMachine(), newMachine()
	v, w := whole.lanes(t.TempDir()), parts.lanes(t.TempDir())
	mustSet(t, w, true)
	reads := parts.reads
	wanted := map[string]Peer{}
	refused := map[string]string{}
	for round := range 100 {
		var changed []Peer
		var gone []string
		for range 1 + random.IntN(3) {
			name := fmt.Sprint(random.IntN(8))
			changed = slices.DeleteFunc(changed, func(p Peer) bool { return p.Node == name })
			gone = slices.DeleteFunc(gone, func(other string) bool { return other == "w/"+name })
			if random.IntN(4) == 0 {
				delete(wanted, "w/"+name)
				gone = append(gone, "w/"+name)
				continue
			}
			p := somebody(name, byte('a'+random.IntN(9)), fmt.Sprintf("10.2.%d.0/24", random.IntN(9)))
			if random.IntN(3) == 0 {
				p.Allowed = append(p.Allowed, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 2, byte(random.IntN(9)), 128}), 25+random.IntN(8)))
			}
			if random.IntN(8) == 0 {
				p.Allowed[0] = netip.MustParsePrefix("10.2.0.0/22")
			}
			p.Keys[random.IntN(2)][2] = byte(random.IntN(3))
			wanted[p.Name()] = p
			changed = append(changed, p)
		}
		complete := random.IntN(4) > 0
		all, err := v.Set(t.Context(), slices.Collect(maps.Values(wanted)), complete)
		if err != nil {
			t.Fatal(err)
		}
		if complete { // also those that went while it was not
			for name := range w.held.peers {
				if _, is := wanted[name]; !is && !slices.Contains(gone, name) {
					gone = append(gone, name)
				}
			}
		}
		verdicts, err := w.Change(t.Context(), changed, gone, complete)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range gone {
			delete(refused, name)
		}
		maps.Copy(refused, verdicts)
		maps.DeleteFunc(refused, func(_, why string) bool { return why == "" })
		want := map[string]string{}
		for _, r := range all.Refused {
			want[r.Cluster+"/"+r.Node] = r.Reason
		}
		if !maps.Equal(refused, want) {
			t.Fatalf("round %d: refused %v, all at once %v", round, refused, want)
		}
		for _, device := range DefaultDevices {
			if got, want := parts.holds(device), whole.holds(device); got != want {
				t.Fatalf("round %d: %s holds\n%s\nall at once\n%s", round, device, got, want)
			}
		}
	}
	if parts.reads != reads {
		t.Errorf("%d reads of a device", parts.reads-reads)
	}
}

// One more peer costs the same however many there are.
func TestOneMorePeerDoesNotGrow(t *testing.T) {
	cost := func(known int) float64 {
		w := newMachine().lanes(t.TempDir())
		w.control = deaf{w.control}
		var all []Peer
		for i := range known {
			all = append(all, numbered(i))
		}
		mustSet(t, w, true, all...)
		i := 0
		return testing.AllocsPerRun(20, func() {
			i++
			p := numbered(known / 2)
			p.Endpoint[0] = netip.AddrPortFrom(p.Endpoint[0].Addr(), uint16(1000+i))
			if _, err := w.Change(t.Context(), []Peer{p, numbered(known + 1)}, nil, true); err != nil {
				t.Fatal(err)
			}
			if _, err := w.Change(t.Context(), nil, []string{numbered(known + 1).Name()}, true); err != nil {
				t.Fatal(err)
			}
		})
	}
	if few, many := cost(100), cost(10_000); many > 1.5*few {
		t.Errorf("%.0f allocations with 100 peers, %.0f with 10,000", few, many)
	}
}

// deaf takes changes of peers without a look at them.
type deaf struct{ control }

func (d deaf) ConfigureDevice(string, wgtypes.Config) error { return nil }

func numbered(i int) Peer {
	p := somebody(fmt.Sprint("n", i), 0, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 0}), 24).String())
	p.Keys = [2]Key{{1, byte(i >> 8), byte(i)}, {2, byte(i >> 8), byte(i)}}
	return p
}
