// Package certificate renews a node's certificates: it asks the API server for new ones
// long before they expire, saves them in the join bundle, and provides the newest for
// each connection.
//
// The API server decides who gets a certificate, and the store what it permits.
package certificate

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"

	"sigs.k8s.io/yaml"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/wire"
)

// Certificates last a year. They are renewed when a third of that is left, and operators
// are told when a sixth is left, so that an API server may be away for months. Checks are
// an hour apart; after a failure, a minute at first, doubling up to an hour.
const (
	dueShare    = 1.0 / 3
	urgentShare = 1.0 / 6
	lookPause   = time.Hour
	retryPause  = time.Minute
	askPatience = 30 * time.Second
)

// Config of a Holder.
type Config struct {
	// Path is the file of the join bundle.
	Path string
	// Ask asks the API server for the node's bundle; nil means API.
	Ask func(ctx context.Context, b *api.JoinBundle, conf *tls.Config) (*api.JoinBundle, error)
	// Use makes this process reach the store at these URLs; Answers returns nil if the
	// cluster's store answers at one of them. Reach calls both.
	Use     func(urls []string)
	Answers func(ctx context.Context, urls []string) error
	// Tell is called with what an operator has to know, and with "" when that is over.
	// It may be nil.
	Tell func(problem string)
	Log  *slog.Logger
}

// Holder holds a node's certificates. Several goroutines may use it.
type Holder struct {
	conf Config

	mu     sync.RWMutex // guards what follows
	bundle api.JoinBundle
	papers
	unsaved bool // the newest are not in the file yet
	moved   bool // nor how the API servers are reached now
}

// papers are a bundle's certificates, parsed.
type papers struct {
	client, server tls.Certificate
	roots          *x509.CertPool
}

// New reads the certificates of a bundle. Expired ones are accepted: traffic does not
// depend on them.
func New(b *api.JoinBundle, conf Config) (*Holder, error) {
	p, err := parse(b)
	if err != nil {
		return nil, err
	}
	if conf.Ask == nil {
		conf.Ask = API
	}
	if conf.Tell == nil {
		conf.Tell = func(string) {}
	}
	return &Holder{conf: conf, bundle: *b, papers: p}, nil
}

// Check returns an error if the certificates of a bundle cannot be read.
func Check(b *api.JoinBundle) error {
	_, err := parse(b)
	return err
}

func parse(b *api.JoinBundle) (p papers, err error) {
	if p.client, err = tls.X509KeyPair([]byte(b.Cert), []byte(b.Key)); err != nil {
		return p, fmt.Errorf("client certificate of the join bundle: %w", err)
	}
	if p.server, err = tls.X509KeyPair([]byte(b.ServerCert), []byte(b.ServerKey)); err != nil {
		return p, fmt.Errorf("server certificate of the join bundle: %w", err)
	}
	p.roots = x509.NewCertPool()
	if !p.roots.AppendCertsFromPEM([]byte(b.CA)) {
		return p, errors.New("the join bundle holds no CA certificate")
	}
	return p, nil
}

// Client authenticates this node to the store and the API server, with the certificate
// that is newest at the time of each connection. Its roots do not change.
func (h *Holder) Client() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13, RootCAs: h.now().roots,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			client := h.now().client
			return &client, nil
		},
	}
}

// Server requires every caller to have a certificate of the cluster and a user that
// allowed accepts.
func (h *Holder) Server(allowed func(user string) error) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			p := h.now()
			return &tls.Config{
				MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{p.server},
				ClientCAs: p.roots, ClientAuth: tls.RequireAndVerifyClientCert,
				VerifyConnection: func(s tls.ConnectionState) error {
					return allowed(s.PeerCertificates[0].Subject.CommonName)
				},
			}, nil
		},
	}
}

func (h *Holder) now() papers {
	h.mu.RLock()
	defer h.mu.RUnlock()
	return h.papers
}

// Run renews until ctx ends.
func (h *Holder) Run(ctx context.Context) error {
	retry := retryPause
	for {
		pause := lookPause
		if err := h.look(ctx, time.Now()); err == nil {
			retry = retryPause
		} else if ctx.Err() == nil {
			h.conf.Log.Warn("certificates could not be renewed and saved; retrying", "error", err)
			pause, retry = retry, min(2*retry, lookPause)
		}
		// Random, because many nodes may have got their certificates at the same time.
		timer := time.NewTimer(pause/2 + rand.N(pause/2))
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-timer.C:
		}
	}
}

// look renews the certificates if that is due. New ones are used at once, and saved for
// the next start as soon as the file can be written.
func (h *Holder) look(ctx context.Context, now time.Time) error {
	p := h.now()
	left := min(share(p.client.Leaf, now), share(p.server.Leaf, now))
	if left <= dueShare {
		if err := h.renew(ctx); err != nil {
			if left <= urgentShare {
				h.conf.Tell(fmt.Sprintf("the node's certificates expire on %s and cannot be renewed (%v); issue new ones with `weft node add %s --write join.yaml`, copy that to %s and restart the agent",
					end(p), err, h.bundle.Node, h.conf.Path))
			}
			return err
		}
	}
	if err := h.save(); err != nil {
		if !h.unkept() {
			return err // Reach says it
		}
		h.conf.Tell(fmt.Sprintf("the node's certificates were renewed until %s, but cannot be kept (%v); make the file writable: until then a restart of the agent uses the old ones", end(h.now()), err))
		return err
	}
	h.conf.Tell("")
	return nil
}

// unkept reports whether the newest certificates are not in the file yet.
func (h *Holder) unkept() bool {
	h.mu.RLock()
	defer h.mu.RUnlock()
	return h.unsaved
}

// share is the share of a certificate's lifetime that is left; 0 or less if it has
// expired.
func share(c *x509.Certificate, now time.Time) float64 {
	return float64(c.NotAfter.Sub(now)) / float64(c.NotAfter.Sub(c.NotBefore))
}

// end is when the first of them expires.
func end(p papers) string {
	first := p.client.Leaf.NotAfter
	if p.server.Leaf.NotAfter.Before(first) {
		first = p.server.Leaf.NotAfter
	}
	return first.UTC().Format(time.DateOnly)
}

func (h *Holder) renew(ctx context.Context) error {
	h.mu.RLock()
	next := h.bundle
	h.mu.RUnlock()
	ctx, cancel := context.WithTimeout(ctx, askPatience)
	defer cancel()
	got, err := h.conf.Ask(ctx, &next, h.Client())
	if err != nil {
		return err
	}
	renewed(&next, got)
	p, err := parse(&next)
	if err != nil {
		return fmt.Errorf("what the API server sent: %w", err)
	}
	h.mu.Lock()
	renewed(&h.bundle, &next)
	h.papers, h.unsaved = p, true
	h.mu.Unlock()
	h.conf.Log.Info("certificates renewed", "until", p.client.Leaf.NotAfter)
	return nil
}

// Reach takes up what the cluster names as its API servers, for this process and, in the
// file, for the next one. It forgets none of the store's addresses before the store answers
// at one that stays: the list may be wrong, or from before the store was restored, and a node
// that can no longer read the store does not see it corrected.
func (h *Holder) Reach(ctx context.Context, named wire.Access) error {
	used, before := h.access()
	next := used.Follow(before, named)
	var unproven error
	if gone := used.Lacks(next); len(gone) > 0 {
		h.take(named.And(before))
		if err := h.conf.Answers(ctx, next.Etcd); err != nil {
			unproven = fmt.Errorf("the cluster names %s for its store, but none answers (%w): %s stays in use until one does; if no API server was deleted, check their advertise addresses",
				strings.Join(next.Etcd, ", "), err, strings.Join(gone, ", "))
		}
	}
	if unproven == nil {
		h.take(named)
	}
	if err := h.save(); err != nil {
		return errors.Join(unproven, fmt.Errorf("keep how the API servers are reached in %s: %w", h.conf.Path, err))
	}
	return unproven
}

// take makes this process use what the cluster names, and remembers to save it.
func (h *Holder) take(named wire.Access) {
	h.mu.Lock()
	defer h.mu.Unlock()
	used, before := AccessOf(&h.bundle)
	follow(&h.bundle, named)
	if now, _ := AccessOf(&h.bundle); !now.Equal(used) || !before.Equal(named) {
		h.moved = true
		h.conf.Use(h.bundle.EtcdEndpoints)
	}
}

func (h *Holder) access() (used, named wire.Access) {
	h.mu.RLock()
	defer h.mu.RUnlock()
	return AccessOf(&h.bundle)
}

// Endpoints returns the URLs of the store.
func (h *Holder) Endpoints() []string {
	h.mu.RLock()
	defer h.mu.RUnlock()
	return h.bundle.EtcdEndpoints
}

// AccessOf is how a join bundle says that the API servers are reached, and which of these
// addresses the cluster named.
func AccessOf(b *api.JoinBundle) (used, named wire.Access) {
	return wire.Access{Servers: append([]string{b.Server}, b.Servers...), Etcd: b.EtcdEndpoints, Gossip: b.GossipSeeds},
		wire.Access{Servers: b.Named.Servers, Etcd: b.Named.EtcdEndpoints, Gossip: b.Named.GossipSeeds}
}

// follow makes a bundle use what the cluster names now.
func follow(b *api.JoinBundle, now wire.Access) {
	used, before := AccessOf(b)
	used = used.Follow(before, now)
	b.Server, b.Servers, b.EtcdEndpoints, b.GossipSeeds = used.Servers[0], used.Servers[1:], used.Etcd, used.Gossip
	b.Named = api.NamedServers{Servers: now.Servers, EtcdEndpoints: now.Etcd, GossipSeeds: now.Gossip}
}

// renewed copies the certificates of one bundle into another.
func renewed(b, by *api.JoinBundle) {
	b.CA, b.Cert, b.Key, b.ServerCert, b.ServerKey = by.CA, by.Cert, by.Key, by.ServerCert, by.ServerKey
}

// save writes what is new into the file as it is now: an operator may have replaced it since
// it was read.
func (h *Holder) save() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.unsaved && !h.moved {
		return nil
	}
	b, err := read(h.conf.Path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		b = h.bundle
	case err != nil:
		return err
	case b.Cluster != h.bundle.Cluster || b.Node != h.bundle.Node:
		return nil // from its next start on, this machine is another node
	case issued(&b).After(h.client.Leaf.NotBefore):
		h.unsaved, h.moved = false, false // the file is newer, perhaps from a rebuilt cluster
		return nil
	}
	if h.unsaved {
		renewed(&b, &h.bundle)
	}
	if h.moved {
		_, named := AccessOf(&h.bundle)
		follow(&b, named)
	}
	text, err := yaml.Marshal(b)
	if err != nil {
		return err
	}
	if err := api.WriteSecretFile(h.conf.Path, text); err != nil {
		return err
	}
	h.unsaved, h.moved = false, false
	return nil
}

// issued is when a bundle's certificates were; zero if that cannot be read.
func issued(b *api.JoinBundle) time.Time {
	p, err := parse(b)
	if err != nil {
		return time.Time{}
	}
	return p.client.Leaf.NotBefore
}

func read(path string) (b api.JoinBundle, err error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return b, err
	}
	if err := yaml.UnmarshalStrict(text, &b); err != nil {
		return b, fmt.Errorf("join bundle %s: %w", path, err)
	}
	return b, nil
}

// API asks a real API server, whichever of the cluster's answers.
func API(ctx context.Context, b *api.JoinBundle, conf *tls.Config) (*api.JoinBundle, error) {
	var bases []*url.URL
	for _, server := range append([]string{b.Server}, b.Servers...) {
		base, err := url.Parse(server)
		if err != nil {
			return nil, fmt.Errorf("API server of the join bundle: %w", err)
		}
		bases = append(bases, base)
	}
	c := api.NewClientTLS(b.Cluster, bases, conf)
	defer c.Close()
	return c.AddNode(ctx, api.NodeRequest{Name: b.Node})
}
