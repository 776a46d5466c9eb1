package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/apiserver/authority"
	"github.com/weft-mesh/weft/identity"
	"github.com/weft-mesh/weft/internal/benchmesh/peers"
	"github.com/weft-mesh/weft/lab"
	"github.com/weft-mesh/weft/lab/space"
)

// hub is a real cluster of a lab and what it needs to read generated clusters. These are
// served on the operator's machine, which reaches every cluster of the lab: one listener
// each, so that the API server has a connection and a mirror per peer, as in production.
type hub struct {
	lab     *lab.Lab
	cluster string
	world   *peers.World
	joined  int // clusters of world that were added as peers
	sent    atomic.Int64

	operator *space.Thread // in the operator machine's namespaces
	client   *http.Client
	server   string // URL of the API
	serving  *errgroup.Group
	stop     context.CancelFunc
	addr     netip.Addr // of the operator's machine, as the cluster reaches it
	ca       *authority.Authority
	reader   authority.Pair // identifies the cluster to its peers
	invites  []api.Invite
	keys     string // folder of ca
}

// newHub serves a world to one cluster of a lab. Close ends it.
func newHub(ctx context.Context, l *lab.Lab, cluster string, world *peers.World) (_ *hub, err error) {
	h := &hub{lab: l, cluster: cluster, world: world}
	ctx, h.stop = context.WithCancel(ctx)
	h.serving, ctx = errgroup.WithContext(ctx)
	defer func() {
		if err != nil {
			err = errors.Join(err, h.Close())
		}
	}()
	record, err := lab.ReadRecord(l.ID)
	if err != nil {
		return nil, err
	}
	if h.operator, err = space.NewThread(space.EnterProcess(record.Nodes["operator"].PID)); err != nil {
		return nil, err
	}
	if err := h.findAddress(); err != nil {
		return nil, err
	}
	if err := h.connect(); err != nil {
		return nil, err
	}
	if h.keys, err = os.MkdirTemp("", "benchmesh"); err != nil {
		return nil, err
	}
	if err := h.answer(ctx); err != nil {
		return nil, err
	}
	return h, h.serve(ctx)
}

// answer has the generated nodes answer handshakes and echo requests of the cluster's nodes.
func (h *hub) answer(ctx context.Context) error {
	responders := h.world.Responders()
	for _, port := range peers.LanePorts {
		var socket *peers.Socket
		if err := h.operator.Do(func() (err error) {
			socket, err = peers.NewSocket(port)
			return err
		}); err != nil {
			return fmt.Errorf("sockets of generated nodes: %w", err)
		}
		for range 2 { // readers: all nodes are called at once when they have been added
			h.serving.Go(func() error { return responders.Serve(ctx, socket) })
		}
	}
	if err := h.operator.Do(func() error {
		return route(netlink.Route{Type: unix.RTN_LOCAL, Table: unix.RT_TABLE_LOCAL, Scope: netlink.SCOPE_HOST}, "lo")
	}); err != nil {
		return fmt.Errorf("addresses of generated nodes: %w", err)
	}
	for _, n := range h.lab.Nodes() {
		if n.Cluster != nil && n.Cluster.Name == h.cluster {
			if err := h.reach(n); err != nil {
				return err
			}
		}
	}
	return nil
}

// reach leads a node that has just been powered on to the generated ones.
func (h *hub) reach(n *lab.Node) error {
	err := n.Do(func() error { return route(netlink.Route{Gw: h.addr.AsSlice()}, "eth0") })
	if err != nil {
		return fmt.Errorf("way from %s to generated nodes: %w", n.Full(), err)
	}
	return nil
}

// route adds a route to all generated nodes in this thread's network namespace.
func route(r netlink.Route, device string) error {
	link, err := netlink.LinkByName(device)
	if err != nil {
		return err
	}
	r.LinkIndex = link.Attrs().Index
	r.Dst = &net.IPNet{IP: peers.NodeRange.Addr().AsSlice(), Mask: net.CIDRMask(peers.NodeRange.Bits(), 32)}
	return netlink.RouteReplace(&r)
}

// Close ends what serves the world. Closing twice is harmless.
func (h *hub) Close() error {
	h.stop()
	err := h.serving.Wait()
	if h.client != nil {
		h.client.CloseIdleConnections()
	}
	if h.operator != nil {
		h.operator.Close()
	}
	if h.keys != "" {
		err = errors.Join(err, os.RemoveAll(h.keys))
	}
	return err
}

// findAddress finds the operator's address in the cluster's subnet.
func (h *hub) findAddress() error {
	node := h.control()
	var all []net.Addr
	err := h.operator.Do(func() (err error) {
		all, err = net.InterfaceAddrs()
		return err
	})
	if err != nil {
		return fmt.Errorf("addresses of the operator's machine: %w", err)
	}
	for _, a := range all {
		if p, err := netip.ParsePrefix(a.String()); err == nil && p.Contains(node.Addr) {
			h.addr = p.Addr()
			return nil
		}
	}
	return fmt.Errorf("the operator's machine has no address in the network of cluster %s: %v", h.cluster, all)
}

// control is the machine with the API server.
func (h *hub) control() *lab.Node { return must(h.lab.Node(h.cluster + "/n1")) }

// must is for names that are in our own topology.
func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func (h *hub) connect() error {
	config, err := api.LoadConfig(h.lab.ConfigPath())
	if err != nil {
		return err
	}
	x, err := config.Context(h.cluster)
	if err != nil {
		return err
	}
	pair, err := tls.X509KeyPair([]byte(x.Cert), []byte(x.Key))
	if err != nil {
		return err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM([]byte(x.CA))
	h.server = x.Server
	h.client = &http.Client{Transport: &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS13},
		// A socket belongs to the namespace it was made in.
		DialContext: func(ctx context.Context, network, addr string) (conn net.Conn, err error) {
			err = h.operator.Do(func() error {
				conn, err = (&net.Dialer{Timeout: 2 * time.Second}).DialContext(ctx, network, addr)
				return err
			})
			return conn, err
		},
	}}
	return nil
}

// call makes a request to the API server; out may be nil.
func (h *hub) call(ctx context.Context, method, path string, body []byte, out any) error {
	req, err := http.NewRequestWithContext(ctx, method, h.server+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	resp, err := h.client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	switch {
	case err != nil:
		return err
	case resp.StatusCode >= 400:
		return fmt.Errorf("%s %s: %s: %s", method, path, resp.Status, bytes.TrimSpace(text))
	case out != nil:
		return json.Unmarshal(text, out)
	}
	return nil
}

// serve starts a listener for each generated cluster and makes its invite.
func (h *hub) serve(ctx context.Context) (err error) {
	if h.ca, err = authority.Open(filepath.Join(h.keys, "pki"), "generated"); err != nil {
		return err
	}
	own, err := h.ca.Issue(authority.Request{User: "etcd", Server: true, Addresses: []netip.Addr{h.addr}})
	if err != nil {
		return err
	}
	cert, err := own.TLS()
	if err != nil {
		return err
	}
	if h.reader, err = h.ca.Issue(authority.Request{User: authority.RemoteUser(h.cluster, 0), Client: true}); err != nil {
		return err
	}
	conf := &tls.Config{
		Certificates: []tls.Certificate{cert}, ClientCAs: h.ca.Pool(), ClientAuth: tls.RequireAndVerifyClientCert,
		MinVersion: tls.VersionTLS13, NextProtos: []string{"h2"},
	}
	for _, c := range h.world.Clusters {
		var l net.Listener
		if err := h.operator.Do(func() (err error) {
			l, err = net.Listen("tcp", netip.AddrPortFrom(h.addr, 0).String())
			return err
		}); err != nil {
			return err
		}
		h.serving.Go(func() error { return peers.Serve(ctx, l, conf, c.Store, &h.sent) })
		h.invites = append(h.invites, api.Invite{
			Kind: api.InviteKind, For: h.cluster, Expires: time.Now().Add(time.Hour),
			Cluster: c.Name(), ID: uint32(c.ID()), PodCIDRs: []netip.Prefix{c.PodCIDR()},
			MaxConnectedClusters: uint32(h.world.Shape.Split), Generation: "generated",
			EtcdEndpoints: []string{"https://" + l.Addr().String()},
			CA:            string(h.ca.Bundle()), Cert: string(h.reader.Cert), Key: string(h.reader.Key),
		})
	}
	return nil
}

// joining is how many peers are added at the same time.
const joining = 4

// join adds generated clusters as peers until there are n.
func (h *hub) join(ctx context.Context, n int) error {
	began, added := time.Now(), atomic.Int64{}
	from := h.joined
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(joining)
	var say sync.Mutex
	for _, invite := range h.invites[from:n] {
		g.Go(func() error {
			if err := h.add(ctx, invite); err != nil {
				return fmt.Errorf("add peer %s: %w", invite.Cluster, err)
			}
			if done := added.Add(1); done%50 == 0 {
				say.Lock()
				defer say.Unlock()
				progress("added %d of %d peers after %v", done, n-from, time.Since(began).Round(time.Second))
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	h.joined = n
	return nil
}

// attempts is how often a peer is added until the API server has taken it: its store may
// be busy with the peers before.
const attempts = 5

func (h *hub) add(ctx context.Context, invite api.Invite) (err error) {
	body := must(json.Marshal(invite))
	for n := range attempts {
		if err = h.call(ctx, http.MethodPost, "/v1/peers", body, nil); err == nil || ctx.Err() != nil {
			return err
		}
		progress("add peer %s again: %v", invite.Cluster, err)
		if err := sleep(ctx, time.Duration(n+1)*time.Second); err != nil {
			return err
		}
	}
	return err
}

// up counts the peers whose control links are up.
func (h *hub) up(ctx context.Context) (n int, err error) {
	var list api.PeerList
	if err := h.call(ctx, http.MethodGet, "/v1/peers", nil, &list); err != nil {
		return 0, err
	}
	for _, p := range list.Peers {
		if p.Control.State == api.LinkUp {
			n++
		}
	}
	return n, nil
}

// known is the part of the world that has been added.
func (h *hub) known() *peers.World { return h.world.First(h.joined) }

// splitOf is the split of a mesh with so many clusters.
func splitOf(clusters int) identity.Split {
	if clusters > int(identity.Split255) {
		return identity.Split511
	}
	return identity.Split255
}

// progress tells on stderr what is going on.
func progress(format string, args ...any) { slog.Info(fmt.Sprintf(format, args...)) }
