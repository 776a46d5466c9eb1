package apiserver

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"k8s.io/apimachinery/pkg/util/uuid"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/apiserver/authority"
	"github.com/weft-mesh/weft/apiserver/embedded"
	"github.com/weft-mesh/weft/apiserver/keeping"
	"github.com/weft-mesh/weft/statefile"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/wire"
)

// startPatience is how long a start waits for the store.
const startPatience = 30 * time.Second

// adminRenewal is how long before it expires the operator's certificate in the admin config
// is replaced at a start.
const adminRenewal = 90 * 24 * time.Hour

// foundation is what all other parts are built on. It is closed last.
type foundation struct {
	conf      Config
	authority *authority.Authority
	root      atomic.Pointer[tls.Certificate] // identifies us to the store and to agents
	etcd      *embedded.Server                // nil: an existing etcd is used
	client    *store.Etcd                     // of the embedded etcd
	store     Store
	edges     Edges
	running   bool   // other members had a quorum before we started
	fresh     bool   // the embedded etcd is a new or restored one that starts for the first time
	etcdCA    []byte // of an existing etcd, PEM
	cluster   wire.Cluster
	kept      *keeping.Kept // what Kubernetes keeps of a store that is lost; nil: nothing
	closers   []func()
}

func (f *foundation) close() {
	for _, c := range slices.Backward(f.closers) {
		c()
	}
	f.closers = nil
}

// lay starts the store, unless it is among the given edges, and checks that it belongs to
// this cluster.
func lay(ctx context.Context, conf Config, edges *Edges) (_ *foundation, err error) {
	f := &foundation{conf: conf}
	defer func() {
		if err != nil {
			f.close()
		}
	}()
	if err := f.lock(); err != nil {
		return nil, err
	}
	if err := f.checkAuthority(); err != nil {
		return nil, err
	}
	if edges == nil && !f.forms() {
		if err := checkBeginning(ctx, conf); err != nil {
			return nil, err
		}
	}
	bundle, err := f.invited()
	if err == nil && bundle == nil && f.forms() {
		bundle, err = f.form(ctx)
	}
	if err != nil {
		return nil, err
	}
	if f.authority, err = authority.Open(filepath.Join(conf.DataDir, "pki"), conf.Cluster); err != nil {
		return nil, err
	}
	switch {
	case edges != nil:
		f.store, f.edges = edges.Store, *edges
	case len(conf.EtcdEndpoints) > 0:
		err = f.connect(ctx)
	default:
		err = f.startEtcd(ctx, bundle)
	}
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, startPatience)
	defer cancel()
	// Read before anything is written: what others have seen beyond it is gone.
	_, revision, err := f.store.Count(ctx, wire.ClusterKey)
	if err != nil {
		return nil, fmt.Errorf("read the store's revision: %w", err)
	}
	if err := f.store.EnableAuth(ctx); err != nil {
		return nil, err
	}
	if f.forms() && bundle == nil {
		if err := f.refill(ctx); err != nil {
			return nil, err
		}
	}
	if f.cluster, err = agree(ctx, f.store, conf.cluster()); err != nil {
		return nil, err
	}
	if !f.running { // the others would have noticed
		if err := trace(ctx, f.store, f.etcd != nil, f.fresh, revision); err != nil {
			return nil, err
		}
	}
	if f.fresh {
		if err := api.WriteSecretFile(filepath.Join(f.etcdDir(), closedMark), []byte("authentication is on\n")); err != nil {
			return nil, err
		}
	}
	if err := f.shareAuthority(ctx); err != nil {
		return nil, err
	}
	if f.etcd != nil {
		f.etcd.Open()
	}
	return f, f.issueRoot()
}

// issueRoot issues the certificate that identifies us to the embedded etcd and to agents.
func (f *foundation) issueRoot() error {
	pair, err := f.authority.Issue(authority.Request{User: authority.Root, Client: true})
	if err != nil {
		return err
	}
	root, err := pair.TLS()
	if err != nil {
		return fmt.Errorf("own certificate: %w", err)
	}
	f.root.Store(&root)
	return nil
}

// shareAuthority keeps the authority in the store too: with it, a backup is whole, and all
// API servers on one existing etcd use the authority of the first.
func (f *foundation) shareAuthority(ctx context.Context) error {
	own, err := f.authority.Secret()
	if err != nil {
		return err
	}
	_, first, err := f.store.Commit(ctx, store.Txn{
		If:   []store.Cond{{Key: wire.AuthorityKey}},
		Then: []store.Op{store.Put(wire.AuthorityKey, wire.Marshal(own))},
	})
	if err != nil || first {
		return err
	}
	kv, err := f.store.Get(ctx, wire.AuthorityKey)
	if err != nil {
		return err
	}
	shared, err := wire.Unmarshal[authority.Secret](kv.Value)
	if err != nil || bytes.Equal(shared.Key, own.Key) {
		return err
	}
	if f.etcd != nil { // it already answers with certificates of the other one
		return fmt.Errorf("certificate authority: %s is not the one of this store, which nodes and peers trust: restore both from one backup (`weft restore`)", filepath.Join(f.conf.DataDir, "pki"))
	}
	return f.authority.Adopt(shared)
}

// Issue implements nodes.Authority and peering.Authority.
func (f *foundation) Issue(r authority.Request) (authority.Pair, error) { return f.authority.Issue(r) }

// KeepRemovals implements peering.Authority.
func (f *foundation) KeepRemovals(atLeast uint64) (uint64, error) {
	return f.authority.KeepRemovals(atLeast)
}

// Bundle implements nodes.Authority and peering.Authority: the CAs that agents and peers
// trust, including an existing etcd's.
func (f *foundation) Bundle() []byte {
	merged, err := authority.MergeBundles(f.authority.Bundle(), f.etcdCA)
	if err != nil {
		return f.authority.Bundle() // cannot happen: both were parsed before
	}
	return merged
}

// lock prevents a second API server from using the same data.
func (f *foundation) lock() error {
	release, err := statefile.Lock(f.conf.DataDir, "API server")
	if err != nil {
		return err
	}
	f.closers = append(f.closers, release)
	return nil
}

// checkAuthority refuses to make a new certificate authority for an existing store: no
// node, peer or operator would trust it. The authority is written before the store exists,
// so a first start that was interrupted is not refused.
func (f *foundation) checkAuthority() error {
	pki, member := filepath.Join(f.conf.DataDir, "pki"), filepath.Join(f.conf.DataDir, "etcd", "member")
	if _, err := os.Stat(member); err != nil || len(f.conf.EtcdEndpoints) > 0 {
		return nil
	}
	for _, path := range []string{pki, filepath.Join(pki, "ca.key")} {
		if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("certificate authority: %s is gone, but %s holds a cluster: restore %s whole from a backup; without one, move it away to begin a new cluster, and give every node a new join bundle", path, member, f.conf.DataDir)
		}
	}
	return nil
}

// rootTLS looks up the certificate for each connection, because it is renewed.
func (f *foundation) rootTLS() *tls.Config {
	return &tls.Config{
		RootCAs: f.authority.Pool(), MinVersion: tls.VersionTLS13,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return f.root.Load(), nil },
	}
}

func (f *foundation) connect(ctx context.Context) error {
	ca, err := os.ReadFile(f.conf.EtcdCA)
	if err != nil {
		return fmt.Errorf("--etcd-ca: %w", err)
	}
	if _, err := authority.ParseBundle(ca); err != nil {
		return fmt.Errorf("--etcd-ca: %s: %w", f.conf.EtcdCA, err)
	}
	f.etcdCA = ca
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	cert, err := tls.LoadX509KeyPair(f.conf.EtcdCert, f.conf.EtcdKey)
	if err != nil {
		return fmt.Errorf("--etcd-cert and --etcd-key: %w", err)
	}
	s, err := f.dial(f.conf.EtcdEndpoints, &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, startPatience)
	defer cancel()
	return s.CheckVersions(ctx)
}

func (f *foundation) dial(endpoints []string, conf *tls.Config) (*store.Etcd, error) {
	s, err := store.Dial(store.DialConfig{Endpoints: endpoints, TLS: conf})
	if err != nil {
		return nil, err
	}
	f.store = s
	f.closers = append(f.closers, func() { s.Close() })
	return s, nil
}

// serverRequest is for a certificate of this process, which is reached at its advertised
// addresses and from this machine.
func (f *foundation) serverRequest(user string, names ...string) authority.Request {
	r := authority.Request{
		User: user, Client: true, Server: true,
		Names:     append([]string{"localhost", f.conf.Cluster}, names...),
		Addresses: []netip.Addr{f.conf.Advertise, netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback()},
	}
	for _, name := range f.conf.AdvertiseNames {
		if a, err := netip.ParseAddr(name); err == nil {
			r.Addresses = append(r.Addresses, a)
		} else {
			r.Names = append(r.Names, name)
		}
	}
	return r
}

// agree writes the cluster record into an empty store, and compares it with the one in any
// other. Name, ID, split and service CIDRs can never change in a store, because identities
// and addresses everywhere depend on them. Pod CIDRs may be added, and an IPv6 service CIDR
// where there is none.
func agree(ctx context.Context, s store.Store, want wire.Cluster) (wire.Cluster, error) {
	for {
		kv, err := s.Get(ctx, wire.ClusterKey)
		if err != nil && !errors.Is(err, store.ErrNotFound) {
			return want, fmt.Errorf("read the cluster record: %w", err)
		}
		next := want
		if err == nil {
			is, err := wire.Unmarshal[wire.Cluster](kv.Value)
			if err != nil {
				return want, fmt.Errorf("read the cluster record: %w", err)
			}
			if err := compatible(is, want); err != nil {
				return want, err
			}
			next.Generation, next.Released = is.Generation, is.Released
			if slices.Equal(is.PodCIDRs, want.PodCIDRs) && is.IPv6ServiceCIDR == want.IPv6ServiceCIDR {
				return is, nil
			}
			if err := besidePeers(ctx, s, want.IPv6ServiceCIDR); err != nil {
				return want, err
			}
		} else {
			next.Generation = string(uuid.NewUUID())
		}
		_, done, err := s.Commit(ctx, store.Txn{
			If:   []store.Cond{{Key: wire.ClusterKey, Modified: kv.Modified}},
			Then: []store.Op{store.Put(wire.ClusterKey, wire.Marshal(next))},
		})
		if err != nil {
			return want, fmt.Errorf("write the cluster record: %w", err)
		}
		if done {
			return next, nil
		}
	}
}

// trace adds this start to the store's lineage: everything up to the revision existed
// before it. It runs before anyone else can connect, so that nobody mistakes a store that
// was restored from an older copy for the one they knew. An existing etcd starts without us
// and has no lineage: clients that reconnect to it list again.
//
// In a store that may have been restored, nothing is known to be complete: it has an old
// copy of what every peer exports, and an old export. Canaries are raised again once the
// peers have been read and the export compared; until then nobody deletes what they lack.
func trace(ctx context.Context, s store.Store, ours, restored bool, revision int64) error {
	kv, err := s.Get(ctx, wire.LineageKey)
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return fmt.Errorf("read the store's lineage: %w", err)
	}
	ops := []store.Op{store.Delete(wire.LineageKey), store.Delete(wire.ExportLineageKey)}
	if ours {
		// An unreadable lineage proves nothing.
		lineage, _ := wire.Unmarshal[wire.Lineage](kv.Value)
		value := wire.Marshal(lineage.With(wire.Start{ID: string(uuid.NewUUID()), After: revision}))
		ops = []store.Op{store.Put(wire.LineageKey, value), store.Put(wire.ExportLineageKey, value)}
	}
	if restored {
		ops = append(ops, store.DeletePrefix(wire.CiliumSyncedPrefix))
	}
	if _, _, err := s.Commit(ctx, store.Txn{Then: ops}); err != nil {
		return fmt.Errorf("write the store's lineage: %w", err)
	}
	return nil
}

func compatible(is, want wire.Cluster) error {
	var errs []error
	fixed := func(name string, was, now any) {
		if was != now {
			errs = append(errs, fmt.Errorf("%s is %v in this store and cannot become %v: start with the old value, or with an empty data folder", name, was, now))
		}
	}
	fixed("cluster", is.Name, want.Name)
	fixed("id", is.ID, want.ID)
	fixed("max-connected-clusters", is.MaxConnectedClusters, want.MaxConnectedClusters)
	fixed("service-cidr", is.ServiceCIDR, want.ServiceCIDR)
	if is.IPv6ServiceCIDR.IsValid() {
		fixed("ipv6-service-cidr", is.IPv6ServiceCIDR, want.IPv6ServiceCIDR)
	}
	for _, p := range is.PodCIDRs {
		if !slices.Contains(want.PodCIDRs, p) {
			errs = append(errs, fmt.Errorf("pod-cidrs lacks %s, which this cluster has: CIDRs can be added but not removed", p))
		}
	}
	return errors.Join(errs...)
}

// besidePeers refuses a service CIDR that overlaps a peer's pods, as adding the peer would
// have been refused.
func besidePeers(ctx context.Context, s store.Store, cidr netip.Prefix) error {
	if !cidr.IsValid() {
		return nil
	}
	kvs, _, err := s.List(ctx, wire.PeersPrefix)
	if err != nil {
		return fmt.Errorf("read the peers: %w", err)
	}
	var errs []error
	for _, kv := range kvs {
		peer, err := wire.Unmarshal[wire.Peer](kv.Value)
		if err != nil {
			continue // its own error is shown by whoever uses it
		}
		for _, p := range peer.PodCIDRs {
			if peer.Connected && p.Overlaps(cidr) {
				errs = append(errs, fmt.Errorf("ipv6-service-cidr %s overlaps pod CIDR %s of peer %s: choose another one", cidr, p, peer.Name))
			}
		}
	}
	return errors.Join(errs...)
}

// secretKey returns a random key of 32 bytes that only API servers can read in the store,
// and makes it if there is none.
func secretKey(ctx context.Context, s store.Store, at string) ([]byte, error) {
	for {
		kv, err := s.Get(ctx, at)
		if err == nil {
			return kv.Value, nil
		}
		if !errors.Is(err, store.ErrNotFound) {
			return nil, fmt.Errorf("key %s: %w", at, err)
		}
		key := make([]byte, 32)
		rand.Read(key) // does not fail
		_, _, err = s.Commit(ctx, store.Txn{If: []store.Cond{{Key: at}}, Then: []store.Op{store.Put(at, key)}})
		if err != nil {
			return nil, fmt.Errorf("key %s: %w", at, err)
		}
	}
}

// writeAdmin writes the first operator's context, unless there is one that is valid for
// long enough. Other contexts in the file are kept. others are the cluster's other API
// servers; nil if they are not known yet.
func (f *foundation) writeAdmin(server string, others []string) error {
	path := f.conf.AdminConfig
	file := &api.Config{}
	old, err := api.LoadConfig(path)
	if errors.As(err, new(*api.ConfigSyntax)) {
		d, err := statefile.PutAside(path)
		if err != nil {
			return fmt.Errorf("write the operator's context: %w", err)
		}
		f.conf.Log.Error("a damaged file was put aside; copy other contexts back from it", "file", path, "as", d.Aside)
	}
	if err == nil {
		file = old
		if x, err := old.Context(f.conf.Cluster); err == nil && !signed(x.Cert, f.authority.Pool()) {
			f.conf.Log.Warn("the operator's context was issued by another certificate authority: if this cluster's data folder was lost, restore it from a backup, or give every node, peer and operator new certificates", "path", path, "dataDir", f.conf.DataDir)
		}
		x, err := old.Context(f.conf.Cluster)
		if others == nil {
			others = x.Servers
		}
		if err == nil && x.CA == string(f.authority.Bundle()) && lasts(x.Cert) {
			if x.Server == server && slices.Equal(x.Servers, others) {
				return nil
			}
			x.Server, x.Servers = server, others
			file.Set(x)
			return f.saveAdmin(file)
		}
	}
	pair, err := f.authority.Issue(authority.Request{User: authority.Admin, Client: true})
	if err != nil {
		return err
	}
	file.Set(api.Context{Name: f.conf.Cluster, Server: server, Servers: others, CA: string(f.authority.Bundle()), Cert: string(pair.Cert), Key: string(pair.Key)})
	return f.saveAdmin(file)
}

func (f *foundation) saveAdmin(file *api.Config) error {
	if err := file.Save(f.conf.AdminConfig); err != nil {
		return fmt.Errorf("write the operator's context: %w", err)
	}
	f.conf.Log.Info("wrote the operator's context", "path", f.conf.AdminConfig)
	return nil
}

func lasts(cert string) bool {
	leaf, err := leafOf(cert)
	return err == nil && time.Until(leaf.NotAfter) > adminRenewal
}

// signed reports whether one of the authorities signed a certificate, expired or not.
func signed(cert string, by *x509.CertPool) bool {
	leaf, err := leafOf(cert)
	if err != nil {
		return false
	}
	_, err = leaf.Verify(x509.VerifyOptions{Roots: by, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}, CurrentTime: leaf.NotBefore})
	return err == nil
}

func leafOf(cert string) (*x509.Certificate, error) {
	block, _ := pem.Decode([]byte(cert))
	if block == nil {
		return nil, errors.New("not a PEM certificate")
	}
	return x509.ParseCertificate(block.Bytes)
}

// at returns the host:port at which others reach one of this process's ports; "" for port
// 0.
func (f *foundation) at(port uint16) string {
	if port == 0 {
		return ""
	}
	return net.JoinHostPort(f.conf.Advertise.String(), strconv.Itoa(int(port)))
}

// advertised returns the host:port at which others reach this API server.
func (f *foundation) advertised(listener net.Addr) string {
	_, port, err := net.SplitHostPort(listener.String())
	if err != nil {
		port = strconv.Itoa(api.ServerPort)
	}
	return net.JoinHostPort(f.conf.Advertise.String(), port)
}

// listenError says what an operator can do about a port that is in use.
func listenError(flag, addr string, err error) error {
	if strings.Contains(err.Error(), "address already in use") {
		return fmt.Errorf("%s is in use: stop what listens there, or choose another --%s: %w", addr, flag, err)
	}
	return fmt.Errorf("listen on --%s %s: %w", flag, addr, err)
}
