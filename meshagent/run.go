package meshagent

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/vishvananda/netlink"

	"github.com/weft-mesh/weft/bpf"
	"github.com/weft-mesh/weft/meshagent/certificate"
	"github.com/weft-mesh/weft/meshagent/endpoint"
	"github.com/weft-mesh/weft/meshagent/tables"
	"github.com/weft-mesh/weft/statefile"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/tunnel"
	"github.com/weft-mesh/weft/tunnel/gossip"
	"github.com/weft-mesh/weft/tunnel/probe"
	"github.com/weft-mesh/weft/wire"
)

// Run is the agent of this machine. It works until ctx ends or a part fails, and leaves
// everything in the kernel as it is.
func Run(ctx context.Context, cfg Config) error {
	cfg.Log = cmp.Or(cfg.Log, slog.Default())
	if err := cfg.Validate(); err != nil {
		return err
	}
	// Before touching anything that may be another agent's.
	unlock, err := lock(cfg)
	if err != nil {
		return err
	}
	defer unlock()
	for {
		if err := runOnce(ctx, cfg); !errors.Is(err, errRejoined) {
			return err
		}
	}
}

// runOnce is Run from one join bundle. It returns errRejoined once there is another one: an
// agent that starts again in its process is as one that was restarted.
func runOnce(ctx context.Context, cfg Config) (err error) {
	enrollment := cfg.enrollment()
	if enrollment != nil {
		if err := enrollment.await(ctx); ctx.Err() != nil {
			return nil // it was told to stop before it joined
		} else if err != nil {
			return err
		}
	}
	n, err := join(cfg.Join, cfg.StateDir, cfg.Log, func(path string) (node, error) {
		cfg := cfg
		cfg.Join = path
		return readJoin(cfg)
	})
	if err != nil {
		return err
	}
	device, err := findDevice(cfg.Device, n.ip)
	if err != nil {
		return err
	}
	inner, err := mtu(device.Attrs().MTU)
	if err != nil {
		return err
	}
	datapath, err := bpf.Load(cfg.datapath())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, datapath.Close()) }()
	var a *Agent
	var etcd *store.Etcd
	var certificates *certificate.Holder
	answers := func(ctx context.Context, urls []string) string {
		return diagnose(ctx, n.cluster, agentUser+n.name, urls, certificates.Client())
	}
	certificates, err = certificate.New(n.bundle, certificate.Config{
		Path: cfg.Join, Ask: enrollment.renew, Log: cfg.Log,
		Tell: func(problem string) { a.tellOfCertificates(problem) },
		Use:  func(urls []string) { etcd.SetEndpoints(urls) },
		Answers: func(ctx context.Context, urls []string) error {
			if why := answers(ctx, urls); why != "" {
				return errors.New(why)
			}
			return nil
		},
	})
	if err != nil {
		return err
	}
	etcd, err = dialStore(n, certificates.Client())
	if err != nil {
		return err
	}
	defer etcd.Close()

	tables := tables.New()
	files := newFiles(tables, cfg.StateDir, cfg.CNISpoolDir, cfg.Log)
	a, err = newAgent(cfg, n, tables, files, &Edges{
		Store: etcd, Datapath: datapath,
		Lanes:    tunnel.NewLanes(tunnel.LanesConfig{StateDir: filepath.Join(cfg.StateDir, "lanes"), Tell: files.tell, Log: cfg.Log}),
		Host:     tunnel.NewHost([tunnel.LaneCount]string{}, cfg.Log),
		Plumbing: endpoint.Kernel{MTU: inner, NetnsDir: cfg.NetnsDir},
		Device: func() (int, error) {
			now, err := findDevice(device.Attrs().Name, n.ip)
			if err != nil {
				return 0, err
			}
			return now.Attrs().Index, nil
		},
		Outside: func() (Outside, error) {
			now, err := findDevice(device.Attrs().Name, n.ip)
			if err != nil {
				return Outside{}, err
			}
			return outsideOf(now)
		},
		Cgroup: cfg.cgroup(),
		HealthCheck: func(port uint16) (net.Listener, error) {
			return net.Listen("tcp", fmt.Sprintf(":%d", port))
		},
		Transport: func(sources ...netip.Addr) (probe.Transport, error) { return probe.NewICMP(sources...) },
		Gossip:    joinPool,
		Reach:     certificates.Reach,
		Diagnose:  func(ctx context.Context) string { return answers(ctx, certificates.Endpoints()) },
		MTU:       inner,
		BootID:    bootID(),
	})
	if err != nil {
		return err
	}
	// Before programs are attached, so that nothing leaves unencrypted.
	if err := a.guard(); err != nil {
		return err
	}
	if err := datapath.AttachDevice(device.Attrs().Index); err != nil {
		return fmt.Errorf("attach programs to %s: %w", device.Attrs().Name, err)
	}
	servers, err := a.servers(certificates.Server(mayAsk))
	if err != nil {
		return err
	}
	a.log.Info("agent starts", "address", n.ip, "podCIDRs", n.cidrs, "device", device.Attrs().Name, "mtu", inner)
	return a.run(ctx, append(servers, certificates, heap{a.program.Passed()}, a.rejoin(enrollment))...)
}

// lock keeps out a second agent, on this machine and in the same folders.
func lock(cfg Config) (unlock func(), err error) {
	machine, err := statefile.LockMachine("agent")
	if err != nil {
		return nil, err
	}
	folder, err := statefile.Lock(cfg.StateDir, "agent")
	if err != nil {
		machine()
		return nil, err
	}
	return func() { folder(); machine() }, nil
}

// tellOfCertificates shows operators why certificates cannot be renewed, "" if they can.
func (a *Agent) tellOfCertificates(problem string) {
	now := map[string]string{}
	if problem != "" {
		now[""] = problem // of no row
	}
	tables.SetProblems(a.Tables, wire.ProblemCertificates, now)
}

// server is one of the agent's listeners.
type server struct {
	trouble *trouble
	listen  func() (net.Listener, error)
	http    http.Handler
	log     *slog.Logger
}

// Run serves until ctx ends. It listens as soon as it can: a node may get its address
// after its agent has started.
func (s server) Run(ctx context.Context) error {
	s.trouble.retry(ctx, func(ctx context.Context) error {
		l, err := s.listen()
		if err != nil {
			return err
		}
		return serve(ctx, l, s.http, s.log)
	})
	return nil
}

func (a *Agent) server(at string, listen func() (net.Listener, error), h http.Handler) server {
	return server{partTrouble(a.Tables, "listen "+at, "no connections are accepted at "+at, a.log), listen, h, a.log}
}

// servers are the socket, the port for operators and the one for metrics.
func (a *Agent) servers(conf *tls.Config) ([]part, error) {
	api := a.handler()
	parts := []part{
		a.server(a.cfg.Socket, func() (net.Listener, error) { return listenUnix(a.cfg.Socket) }, a.socketHandler()),
	}
	if a.cfg.Listen != "" {
		host, port, err := net.SplitHostPort(a.cfg.Listen)
		if err != nil {
			return nil, fmt.Errorf("listen %q: %w", a.cfg.Listen, err)
		}
		at := net.JoinHostPort(cmp.Or(host, a.node.ip.String()), port)
		parts = append(parts, a.server(at, func() (net.Listener, error) {
			l, err := net.Listen("tcp", at)
			if err != nil {
				return nil, err
			}
			return tls.NewListener(l, conf), nil
		}, api))
	}
	if a.cfg.MetricsAddress != "" {
		registry := prometheus.NewRegistry()
		registry.MustRegister(collector{a}, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
		mux := http.NewServeMux()
		mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
		parts = append(parts, a.server(a.cfg.MetricsAddress, func() (net.Listener, error) { return net.Listen("tcp", a.cfg.MetricsAddress) }, mux))
	}
	return parts, nil
}

// findDevice returns the named interface, or the one with the address.
func findDevice(name string, ip netip.Addr) (netlink.Link, error) {
	if name != "" {
		link, err := netlink.LinkByName(name)
		if err != nil {
			return nil, fmt.Errorf("find device %s: %w", name, err)
		}
		return link, nil
	}
	links, err := whole(netlink.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list devices: %w", err)
	}
	for _, link := range links {
		addrs, err := whole(func() ([]netlink.Addr, error) { return netlink.AddrList(link, netlink.FAMILY_ALL) })
		if err != nil {
			return nil, fmt.Errorf("list addresses of %s: %w", link.Attrs().Name, err)
		}
		for _, a := range addrs {
			if have, ok := netip.AddrFromSlice(a.IP); ok && have.Unmap() == ip {
				return link, nil
			}
		}
	}
	return nil, fmt.Errorf("no device has the node's address %v: give --node-ip or --device", ip)
}

// whole lists again if the kernel's list changed meanwhile, which is likely at start,
// when devices come and go.
func whole[T any](list func() (T, error)) (all T, err error) {
	for range 50 {
		if all, err = list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return all, err
}

const (
	// callPatience bounds one request. A store that takes longer counts as away.
	callPatience = 5 * time.Second
	// signOfLife is the pause between two requests that prove a watch alive. One
	// that has fallen silent is renewed after 40 s, at worst 80 s; a thousand agents
	// send 600 requests a second.
	signOfLife = 10 * time.Second
	// pingPause is how soon a dead connection is noticed.
	pingPause = 5 * time.Second
)

// dialStore connects in the background, so that an agent starts without its etcd.
func dialStore(n node, conf *tls.Config) (*store.Etcd, error) {
	return store.Dial(store.DialConfig{
		Endpoints: n.bundle.EtcdEndpoints, TLS: conf,
		SignOfLife: signOfLife, Ping: pingPause, Patience: callPatience, MostAnswer: store.MostAnswer,
	})
}

// agentUser begins the common name of an agent's certificate.
const agentUser = "agent-"

// joinPool is Edges.Gossip of this machine.
func joinPool(ctx context.Context, cfg gossip.Config, seeds []string) error {
	pool, err := gossip.New(cfg)
	if err != nil {
		return err
	}
	var addrs []netip.AddrPort
	for _, s := range seeds {
		a, err := netip.ParseAddrPort(s)
		if err != nil {
			return fmt.Errorf("gossip seed %q is not address:port", s)
		}
		addrs = append(addrs, a)
	}
	pool.SetSeeds(addrs)
	return pool.Run(ctx)
}

func bootID() string {
	text, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "" // only reported
	}
	return strings.TrimSpace(string(text))
}
