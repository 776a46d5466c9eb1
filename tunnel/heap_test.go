package tunnel

import (
	"fmt"
	"net/netip"
	"runtime"
	"testing"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// blind are devices that take every change and remember nothing but their keys.
type blind struct{ devices map[string]*wgtypes.Device }

func (b blind) ensure(name string) (int, Kind, error) { return 10, Userspace, nil }
func (b blind) received(string) (uint64, error)       { return 0, nil }
func (b blind) Device(name string, kind Kind) (*wgtypes.Device, error) {
	d := *b.devices[name]
	return &d, nil
}

func (b blind) Head(name string, kind Kind) (*wgtypes.Device, error) { return b.Device(name, kind) }

func (b blind) ConfigureDevice(name string, c wgtypes.Config) error {
	if c.PrivateKey != nil {
		b.devices[name].PrivateKey = *c.PrivateKey
	}
	if c.ListenPort != nil {
		b.devices[name].ListenPort = *c.ListenPort
	}
	return nil
}

func somePeers(n int) (all []Peer) {
	for i := range n {
		cidr := netip.PrefixFrom(netip.AddrFrom4([4]byte{20, byte(i >> 8), byte(i), 0}), 24)
		all = append(all, Peer{
			Cluster: fmt.Sprintf("gen-%03d", i/100), Node: fmt.Sprintf("n%04d", i%100), Keys: [LaneCount]Key{1: {1, byte(i >> 8), byte(i)}},
			Endpoint: [LaneCount]netip.AddrPort{1: netip.AddrPortFrom(netip.AddrFrom4([4]byte{100, 64, byte(i >> 8), byte(i)}), 51872)},
			Allowed:  []netip.Prefix{cidr},
		})
	}
	return all
}

// BenchmarkPeers measures what a look at all peers costs when nothing has changed, and the
// heap that they take.
func BenchmarkPeers(b *testing.B) {
	const peers = 25_000
	want := somePeers(peers)
	w := NewLanes(LanesConfig{StateDir: b.TempDir()})
	d := blind{map[string]*wgtypes.Device{}}
	for _, name := range w.cfg.Devices {
		d.devices[name] = &wgtypes.Device{Name: name}
	}
	w.links, w.control = d, d
	inUse := func() uint64 {
		var now runtime.MemStats
		runtime.GC()
		runtime.GC()
		runtime.ReadMemStats(&now)
		return now.HeapAlloc
	}
	before := inUse()
	set := func() {
		if _, err := w.Set(b.Context(), want, true); err != nil {
			b.Fatal(err)
		}
	}
	set()
	heap := inUse() - before
	b.ReportAllocs()
	for b.Loop() {
		set()
	}
	b.ReportMetric(float64(heap)/peers, "heap-B/peer")
	runtime.KeepAlive(w)
}
