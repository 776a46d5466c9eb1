package fabric

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sync/errgroup"
)

// Site is one cluster's place in the network.
type Site struct {
	Cluster  string
	Subnets  []netip.Prefix // of the machines, one of each IP family they have
	Gateways []netip.Addr   // one in each of Subnets
}

// Network is the fabrics of some clusters, and the wide area network between them:
//
//	bridge ─ fabric's routes ─ TUN ══ forwarder ══ TUN ─ wan's routes ─ TUN ══ …
//
// Run is the forwarder. The methods may be called concurrently.
type Network struct {
	fabrics map[string]*Fabric
	wan     *os.File
	link    *netlink.Handle
	down    map[string]*os.File // wan's devices, by cluster
	weather atomic.Pointer[Weather]

	routes sync.Map // netip.Prefix → cluster
	counts sync.Map // Pair → *Count
	close  sync.Once
}

// Count counts the packets of one direction.
type Count struct{ Passed, Dropped atomic.Uint64 }

// New makes the namespaces and devices. Nothing passes between clusters until Run.
// Close removes everything.
func New(sites []Site, weather Weather) (_ *Network, err error) {
	n := &Network{fabrics: map[string]*Fabric{}, down: map[string]*os.File{}}
	n.weather.Store(weather.Clone())
	defer func() {
		if err != nil {
			n.Close()
		}
	}()
	if n.wan, n.link, err = newRouter(); err != nil {
		return nil, fmt.Errorf("wide area network: %w", err)
	}
	for _, s := range sites {
		f, err := newFabric(s)
		if err != nil {
			return nil, err
		}
		n.fabrics[s.Cluster] = f
		if n.down[s.Cluster], err = openTun(n.wan, n.link, s.Cluster); err != nil {
			return nil, fmt.Errorf("wide area network: %w", err)
		}
		if err := routeVia(n.link, s.Cluster, s.Subnets); err != nil {
			return nil, err
		}
	}
	for _, f := range n.fabrics {
		for _, other := range n.fabrics {
			if other == f {
				continue
			}
			if err := routeVia(f.link, uplink, other.Subnets); err != nil {
				return nil, err
			}
		}
	}
	return n, nil
}

func routeVia(link *netlink.Handle, device string, to []netip.Prefix) error {
	dev, err := link.LinkByName(device)
	if err != nil {
		return fmt.Errorf("routes through %s: %w", device, err)
	}
	for _, p := range to {
		if err := link.RouteReplace(&netlink.Route{LinkIndex: dev.Attrs().Index, Dst: ipNet(p), Scope: netlink.SCOPE_LINK}); err != nil {
			return fmt.Errorf("route to %s through %s: %w", p, device, err)
		}
	}
	return nil
}

// Route sends packets for a prefix to a machine of a cluster, from everywhere.
func (n *Network) Route(p netip.Prefix, cluster string, via netip.Addr) error {
	n.routes.Store(p, cluster)
	if err := routeVia(n.link, cluster, []netip.Prefix{p}); err != nil {
		return err
	}
	for _, f := range n.fabrics {
		if f.Cluster != cluster {
			if err := routeVia(f.link, uplink, []netip.Prefix{p}); err != nil {
				return err
			}
			continue
		}
		if err := f.link.RouteReplace(&netlink.Route{LinkIndex: f.bridge, Gw: via.AsSlice(), Dst: ipNet(p)}); err != nil {
			return fmt.Errorf("route to %s via %s: %w", p, via, err)
		}
	}
	return nil
}

// Fabric returns the switch of a cluster, nil if there is no such cluster.
func (n *Network) Fabric(cluster string) *Fabric { return n.fabrics[cluster] }

// Weather returns the current state of the wide area network. It must not be
// changed.
func (n *Network) Weather() *Weather { return n.weather.Load() }

// SetWeather applies to every packet forwarded from now on.
func (n *Network) SetWeather(w *Weather) { n.weather.Store(w) }

// Count returns the counters of one direction.
func (n *Network) Count(from, to string) *Count {
	c, _ := n.counts.LoadOrStore(Pair{from, to}, &Count{})
	return c.(*Count)
}

// Run forwards packets until ctx ends.
func (n *Network) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		<-ctx.Done()
		n.interrupt()
		return nil
	})
	for cluster, f := range n.fabrics {
		down := n.down[cluster]
		g.Go(func() error { return n.ascend(ctx, f, down) })
		g.Go(func() error { return n.descend(ctx, f, down) })
	}
	if err := g.Wait(); !errors.Is(err, os.ErrDeadlineExceeded) && !errors.Is(err, os.ErrClosed) {
		return err
	}
	return nil
}

// interrupt ends all reads that are waiting for a packet.
func (n *Network) interrupt() {
	now := time.Now()
	for cluster, f := range n.fabrics {
		f.tun.SetReadDeadline(now)
		n.down[cluster].SetReadDeadline(now)
	}
}

// ascend carries packets from a fabric to the wide area network. The weather is
// applied here, once per packet and direction.
func (n *Network) ascend(ctx context.Context, f *Fabric, up *os.File) error {
	late := newDelayLine(up)
	defer late.close()
	pkt := make([]byte, 65536)
	for {
		size, err := f.tun.Read(pkt)
		if err != nil {
			return ended(ctx, err)
		}
		to := n.clusterOf(destination(pkt[:size]))
		q := n.weather.Load().Between(f.Cluster, to)
		count := n.Count(f.Cluster, to)
		if !q.passes(pkt[:size]) || q.Loss > 0 && rand.Float64() < q.Loss {
			count.Dropped.Add(1)
			continue
		}
		count.Passed.Add(1)
		if q.Delay > 0 {
			late.add(pkt[:size], q.Delay)
		} else {
			send(up, pkt[:size])
		}
	}
}

// descend carries packets from the wide area network to a fabric. Packets in flight
// when the uplink is cut are lost here.
func (n *Network) descend(ctx context.Context, f *Fabric, down *os.File) error {
	pkt := make([]byte, 65536)
	for {
		size, err := down.Read(pkt)
		if err != nil {
			return ended(ctx, err)
		}
		if !n.weather.Load().Off[f.Cluster] {
			send(f.tun, pkt[:size])
		}
	}
}

func ended(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return fmt.Errorf("forward packets: %w", err)
}

// send ignores errors: the device refuses packets of other protocols, and any packet
// while it is going away. A network may lose what it cannot deliver.
func send(tun *os.File, pkt []byte) { _, _ = tun.Write(pkt) }

func (n *Network) clusterOf(a netip.Addr) string {
	for _, f := range n.fabrics {
		if slices.ContainsFunc(f.Subnets, func(p netip.Prefix) bool { return p.Contains(a) }) {
			return f.Cluster
		}
	}
	to := ""
	n.routes.Range(func(p, cluster any) bool {
		if p.(netip.Prefix).Contains(a) {
			to = cluster.(string)
		}
		return to == ""
	})
	return to
}

// Close removes everything. Run must have returned. It may be called twice.
func (n *Network) Close() {
	n.close.Do(func() {
		for _, f := range n.fabrics {
			f.close()
		}
		for _, tun := range n.down {
			tun.Close()
		}
		if n.link != nil {
			n.link.Close()
		}
		if n.wan != nil {
			n.wan.Close()
		}
	})
}

// delayLine sends packets after a delay, in the order in which they were added.
type delayLine struct {
	in   chan delayed
	done chan struct{}
}

type delayed struct {
	due time.Time
	pkt []byte
}

func newDelayLine(to *os.File) *delayLine {
	l := &delayLine{in: make(chan delayed, queueLen), done: make(chan struct{})}
	go func() {
		defer close(l.done)
		for d := range l.in {
			if wait := time.Until(d.due); wait > 0 {
				time.Sleep(wait)
			}
			send(to, d.pkt)
		}
	}()
	return l
}

// add copies the packet. A full line drops it, as a network would.
func (l *delayLine) add(pkt []byte, by time.Duration) {
	select {
	case l.in <- delayed{time.Now().Add(by), append([]byte(nil), pkt...)}:
	default:
	}
}

func (l *delayLine) close() {
	close(l.in)
	<-l.done
}
