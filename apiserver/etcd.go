package apiserver

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/apiserver/authority"
	"github.com/weft-mesh/weft/apiserver/embedded"
	"github.com/weft-mesh/weft/apiserver/members"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/wire"
)

func (f *foundation) etcdDir() string { return filepath.Join(f.conf.DataDir, "etcd") }

// invited reads the join bundle of an API server that has not joined yet, and takes over its
// certificate authority; nil if there is nothing to join.
func (f *foundation) invited() (*api.ServerBundle, error) {
	if f.conf.Join == "" {
		return nil, nil
	}
	if embedded.Begun(f.etcdDir()) {
		return nil, nil // it has joined
	}
	b, err := members.ReadBundle(f.conf.Join, f.conf.Cluster, f.conf.ID, f.conf.name())
	if err != nil {
		return nil, &Misconfigured{Setting: "join", Err: err}
	}
	return &b, f.takeOver(b)
}

// takeOver takes over the certificate authority of the API servers that a bundle is for.
func (f *foundation) takeOver(b api.ServerBundle) error {
	if host, _, err := net.SplitHostPort(b.Address); err != nil || host != f.conf.Advertise.String() {
		return &Misconfigured{Setting: "join", Err: fmt.Errorf("%s is for an API server at %s, and this one advertises %s: the others would not find it", f.conf.Join, b.Address, f.conf.Advertise)}
	}
	return f.adopt(authority.Secret{Bundle: []byte(b.CA), Key: []byte(b.CAKey)}, "to join")
}

// adopt makes the authority of the cluster that of this API server, which has none yet.
func (f *foundation) adopt(of authority.Secret, why string) error {
	pki := filepath.Join(f.conf.DataDir, "pki")
	key, err := os.ReadFile(filepath.Join(pki, "ca.key"))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		_, err = authority.Write(pki, f.conf.Cluster, of)
	case err == nil && !bytes.Equal(key, of.Key):
		err = fmt.Errorf("%s is another certificate authority than that of cluster %s: move it away %s", pki, f.conf.Cluster, why)
	}
	return err
}

// startEtcd starts the embedded etcd: alone, as one of several members, or as a new one of
// those that the bundle names.
func (f *foundation) startEtcd(ctx context.Context, bundle *api.ServerBundle) error {
	conf, err := f.etcdConfig()
	if err != nil {
		return err
	}
	listed, err := embedded.Listed(conf.Dir)
	if err != nil {
		return err
	}
	alone, cancel := context.WithTimeout(ctx, startPatience)
	defer cancel()
	switch {
	case bundle != nil:
		f.running = true
		f.etcd, err = f.join(ctx, conf, *bundle)
	case len(listed) > 1: // they may take any time to answer
		if err := f.checkRestored(ctx, listed); err != nil {
			return err
		}
		f.running = f.othersRun(ctx, listed)
		f.etcd, err = embedded.Start(ctx, conf)
	default:
		if err = f.closeStore(alone, conf); err == nil {
			f.etcd, err = embedded.Start(alone, conf)
		}
	}
	if err != nil {
		return f.explainRemoved(err)
	}
	f.closers = append(f.closers, f.etcd.Close)
	if f.etcd.Learner() {
		if err := f.vote(ctx); err != nil {
			return err
		}
	}
	if f.client, err = f.dial([]string{"https://" + f.etcd.Addr()}, f.rootTLS()); err != nil {
		return err
	}
	return f.moveMember(ctx, conf.Peers)
}

func (f *foundation) etcdConfig() (c embedded.Config, err error) {
	if err := f.issueRoot(); err != nil {
		return c, err
	}
	cert, key, err := f.issueEtcd()
	if err != nil {
		return c, err
	}
	_, port, _ := net.SplitHostPort(f.conf.EtcdListen) // Validate has checked it
	c = embedded.Config{
		Dir: f.etcdDir(), Name: f.conf.name(), Listen: f.conf.EtcdListen,
		Advertise: []string{net.JoinHostPort(f.conf.Advertise.String(), port)},
		Cert:      cert, Key: key, CA: f.authority.BundlePath(),
		QuotaBytes: f.conf.EtcdQuotaBytes, Closed: true, Log: f.conf.Log,
	}
	if f.conf.EtcdPeerListen == "" {
		return c, nil
	}
	cert, key, err = f.issueMember()
	c.Peers = &embedded.Peers{
		Listen: f.conf.EtcdPeerListen, Advertise: net.JoinHostPort(f.conf.Advertise.String(), strconv.Itoa(int(f.peerPort()))),
		Cert: cert, Key: key,
	}
	return c, err
}

// peerPort is where the embedded etcd listens for other members; 0: it does not.
func (f *foundation) peerPort() uint16 {
	_, text, _ := net.SplitHostPort(f.conf.EtcdPeerListen) // Validate has checked it
	port, _ := strconv.ParseUint(text, 10, 16)
	return uint16(port)
}

// join starts an etcd that has no data among those that the bundle names.
func (f *foundation) join(ctx context.Context, conf embedded.Config, b api.ServerBundle) (etcd *embedded.Server, err error) {
	entering, cancel := context.WithTimeout(ctx, startPatience)
	defer cancel()
	for {
		if err := f.enter(entering, &conf, b); err != nil {
			return nil, err
		}
		// A server that joins at the same time changes the list.
		if etcd, err = embedded.Start(ctx, conf); !errors.Is(err, embedded.ErrListed) || entering.Err() != nil {
			return etcd, err
		}
	}
}

// enter lists this API server among the members, so that its etcd can start.
func (f *foundation) enter(ctx context.Context, conf *embedded.Config, b api.ServerBundle) error {
	s, err := store.Dial(store.DialConfig{Endpoints: b.EtcdEndpoints, TLS: f.rootTLS()})
	if err != nil {
		return err
	}
	defer s.Close()
	if conf.Peers.Join, err = members.Enter(ctx, s, b, conf.Peers.URL(), f.conf.Log); err != nil {
		return fmt.Errorf("join cluster %s at %v: %w", b.Cluster, b.EtcdEndpoints, err)
	}
	f.conf.Log.Info("joining the other API servers", "cluster", b.Cluster, "members", len(conf.Peers.Join))
	// They have authentication on; see closeStore.
	return api.WriteSecretFile(filepath.Join(conf.Dir, closedMark), nil)
}

// vote gets this member its vote.
func (f *foundation) vote(ctx context.Context) error {
	s, err := store.Dial(store.DialConfig{Endpoints: f.etcd.Others(), TLS: f.rootTLS()})
	if err != nil {
		return err
	}
	defer s.Close()
	if err := members.Vote(ctx, s, f.etcd.ID(), f.conf.Log); err != nil {
		return fmt.Errorf("join the other API servers: %w", err)
	}
	// Until it has heard of its vote itself, it answers nobody.
	heard := time.NewTicker(20 * time.Millisecond)
	defer heard.Stop()
	for f.etcd.Learner() {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-heard.C:
		}
	}
	f.conf.Log.Info("joined the other API servers")
	return nil
}

// othersRun reports whether other members have a quorum without us. If they do, they know
// the store's history; if not, ours may be from a copy.
func (f *foundation) othersRun(ctx context.Context, listed []embedded.Listing) bool {
	var endpoints []string
	for _, one := range listed {
		if one.Name != f.conf.name() {
			endpoints = append(endpoints, one.Clients...)
		}
	}
	s, err := store.Dial(store.DialConfig{Endpoints: endpoints, TLS: f.rootTLS()})
	if err != nil {
		return false
	}
	defer s.Close()
	ctx, cancel := context.WithTimeout(ctx, othersPatience)
	defer cancel()
	_, err = s.Get(ctx, wire.LineageKey)
	return err == nil
}

// moveMember tells the store where other members reach this one, if that has changed. A
// store that was restored, or is from before there could be others, does not know.
func (f *foundation) moveMember(ctx context.Context, peers *embedded.Peers) error {
	ctx, cancel := context.WithTimeout(ctx, startPatience)
	defer cancel()
	all, err := f.client.KnownMembers(ctx)
	if err != nil || peers == nil {
		return err
	}
	for _, m := range all {
		if m.ID == f.etcd.ID() && m.Peer != peers.URL() {
			return f.client.MoveMember(ctx, m.ID, peers.URL())
		}
	}
	return nil
}

// explainRemoved adds what an operator can do about a member that was removed.
func (f *foundation) explainRemoved(err error) error {
	if !errors.Is(err, embedded.ErrRemoved) {
		return err
	}
	return fmt.Errorf("%w (`weft server delete` or `replace`): to bring this API server back, move %s away, and unless it is being replaced, start it with --join and a new bundle from `weft server add %s …`", err, f.etcdDir(), f.conf.name())
}

// closedMark is a file in the etcd's folder: its authentication is on.
const closedMark = "closed"

// closeStore turns on authentication in a new or restored store while it listens on a port
// that nobody knows. Otherwise, for a moment every certificate would open everything, and the agents of
// a cluster that lost its store would read a complete and trusted list of nothing.
func (f *foundation) closeStore(ctx context.Context, conf embedded.Config) error {
	closed := filepath.Join(conf.Dir, closedMark)
	if _, err := os.Stat(closed); err == nil {
		return nil
	}
	conf.Listen, conf.Peers = "127.0.0.1:0", nil
	etcd, err := embedded.Start(ctx, conf)
	if err != nil {
		return err
	}
	defer etcd.Close()
	s, err := store.Dial(store.DialConfig{Endpoints: []string{"https://" + etcd.Addr()}, TLS: f.rootTLS()})
	if err != nil {
		return err
	}
	defer s.Close()
	if err := s.EnableAuth(ctx); err != nil {
		return err
	}
	f.fresh = true
	return nil
}

// issueEtcd writes the embedded etcd's certificate. Cilium's readers check for these names.
func (f *foundation) issueEtcd() (cert, key string, err error) {
	return f.authority.IssueFile("etcd", f.serverRequest("etcd", "clustermesh-apiserver.cilium.io", f.conf.Cluster+".mesh.cilium.io"))
}

// issueMember writes the certificate with which the embedded etcd meets other members.
func (f *foundation) issueMember() (cert, key string, err error) {
	return f.authority.IssueFile("member", f.serverRequest(authority.Member))
}

// etcdEndpoint returns the URL at which agents and peers reach our etcd.
func (f *foundation) etcdEndpoint() string {
	_, port, err := net.SplitHostPort(f.etcd.Addr())
	if err != nil {
		return ""
	}
	return "https://" + net.JoinHostPort(f.conf.Advertise.String(), port)
}

func (f *foundation) openMembers(ctx context.Context) (*members.Members, error) {
	return members.New(ctx, members.Config{
		Cluster: f.cluster, Self: f.etcd.ID(), Endpoint: f.etcdEndpoint(),
		Store: f.store, Etcd: f.client, Port: f.peerPort(), Secret: f.authority.Secret, Log: f.conf.Log,
	})
}

// etcdEndpoints returns the URLs at which agents and peers reach the store.
func (s *server) etcdEndpoints() []string {
	switch {
	case s.edges.Store != nil:
		return s.edges.Endpoints
	case s.members == nil:
		return s.conf.EtcdEndpoints
	}
	return s.members.Endpoints()
}
