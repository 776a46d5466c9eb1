package peering

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/url"
	"time"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/apiserver/authority"
	"github.com/weft-mesh/weft/apiserver/mirror"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/wire"
)

// Dialer reaches peers' stores.
type Dialer interface {
	// Probe makes one TLS connection to any of the endpoints. ErrUnreachable
	// means that none answered; any other error means that one answered but
	// refused us or is not the server it should be.
	Probe(ctx context.Context, endpoints []string, conf *tls.Config) error
	// Open opens a peer's store for one session.
	Open(endpoints []string, conf *tls.Config) (mirror.Source, error)
}

// ErrUnreachable: none of the peer's endpoints answers.
var ErrUnreachable = errors.New("none of its endpoints answers")

// Timing of links to peers. A peer that gives no sign of life for silence is
// considered down.
const (
	probeTimeout = 3 * time.Second
	signOfLife   = 2 * time.Second
	silence      = 6 * time.Second
)

// Etcd reaches real peers. Limit bounds how much it reads of one folder at a time.
type Etcd struct{ Limit mirror.Limit }

// Open implements Dialer.
func (d Etcd) Open(endpoints []string, conf *tls.Config) (mirror.Source, error) {
	most := d.Limit.Read()
	e, err := store.Dial(store.DialConfig{Endpoints: endpoints, TLS: conf, SignOfLife: signOfLife, Lineage: wire.ExportLineageKey, MostKeys: most.Entries, MostBytes: most.Bytes, MostAnswer: store.MostAnswer})
	if err != nil {
		return nil, err
	}
	return watched{e}, nil
}

// watched ends a watch after silence. The store's own check cannot do this in time,
// because the etcd client blocks while it looks for a server that is gone.
type watched struct{ *store.Etcd }

func (w watched) Watch(ctx context.Context, prefix string, after store.Point, each func(store.Batch) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	timer := time.AfterFunc(silence, func() { cancel(store.ErrSilent) })
	defer timer.Stop()
	err := w.Etcd.Watch(ctx, prefix, after, func(b store.Batch) error {
		// The time we spend on a batch does not count as the peer's silence.
		timer.Stop()
		defer timer.Reset(silence)
		return each(b)
	})
	if errors.Is(context.Cause(ctx), store.ErrSilent) {
		return store.ErrSilent
	}
	return err
}

// Probe implements Dialer. The etcd client would hide the reason for a failed
// handshake behind a timeout.
func (Etcd) Probe(ctx context.Context, endpoints []string, conf *tls.Config) error {
	var last error
	for _, e := range endpoints {
		u, err := url.Parse(e)
		if err != nil {
			return fmt.Errorf("endpoint %q: %w", e, err)
		}
		if last = probe(ctx, u.Host, conf); !errors.Is(last, ErrUnreachable) {
			return last
		}
	}
	return last
}

func probe(ctx context.Context, host string, conf *tls.Config) error {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	conf = conf.Clone()
	conf.NextProtos = []string{"h2"}
	conn, err := (&tls.Dialer{Config: conf}).DialContext(ctx, "tcp", host)
	if err != nil {
		return explain(host, err)
	}
	defer conn.Close()
	// In TLS 1.3 the server checks the client's certificate after the handshake. A
	// server that accepts it sends first: its HTTP/2 settings.
	deadline, _ := ctx.Deadline()
	if err := conn.SetReadDeadline(deadline); err != nil {
		return explain(host, err)
	}
	if _, err := conn.Read(make([]byte, 1)); err != nil {
		return explain(host, err)
	}
	return nil
}

// explain says what a failed connection means to an operator.
func explain(host string, err error) error {
	var unknown x509.UnknownAuthorityError
	var invalid x509.CertificateInvalidError
	var name x509.HostnameError
	var alert *net.OpError
	switch {
	case errors.As(err, &unknown):
		return fmt.Errorf("the certificate of the server at %s is not signed by the CA in the file; ask for a new file, or check which server answers there: %w", host, err)
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return fmt.Errorf("the certificate of the server at %s has expired or is not valid yet; restart its API server, or check the clocks: %w", host, err)
	case errors.As(err, &name):
		return fmt.Errorf("the certificate of the server at %s is for other names; set advertise or advertiseNames there and invite again, or for Cilium give an endpoint that it names: %w", host, err)
	case errors.As(err, &alert) && alert.Op == "remote error": // crypto/tls: we received an alert
		return fmt.Errorf("the server at %s does not accept the certificate in the file; ask for a new one: %w", host, err)
	}
	return fmt.Errorf("%w: %w", ErrUnreachable, err)
}

// tlsOf returns the TLS configuration to reach a peer: its CA, our certificate.
func tlsOf(p wire.Peer, s wire.PeerSecret) (*tls.Config, error) {
	pair, err := authority.Pair{Cert: []byte(s.Cert), Key: []byte(s.Key)}.TLS()
	if err != nil {
		return nil, fmt.Errorf("peer %q: our certificate for it is not usable: %w", p.Name, err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM([]byte(p.CA)) {
		return nil, fmt.Errorf("peer %q: its CA contains no certificate", p.Name)
	}
	return &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS13, ServerName: p.ServerName}, nil
}

// endingSoon is how long before its expiry an operator is warned about a certificate
// that only the peer's operator can replace.
const endingSoon = 60 * 24 * time.Hour

// endOf returns when the certificate a peer gave us expires; zero if it cannot be read.
func endOf(s wire.PeerSecret) time.Time {
	pair, err := authority.Pair{Cert: []byte(s.Cert), Key: []byte(s.Key)}.TLS()
	if err != nil {
		return time.Time{}
	}
	return pair.Leaf.NotAfter
}

// ending warns that the certificate a peer gave us expires soon or has expired; false
// if neither. If it cannot be read, end is zero, and the mirror says so.
func ending(own string, peer wire.Peer, end, now time.Time) (api.Concern, bool) {
	if end.IsZero() || end.Sub(now) > endingSoon {
		return api.Concern{}, false
	}
	c := api.Concern{
		Object: "peer " + peer.Name, Reason: "CertificateEnds", Since: end.Add(-endingSoon), Dated: true,
		Message: fmt.Sprintf("peer %s: the certificate with which we read it expires on %s", peer.Name, end.UTC().Format(time.DateOnly)),
		Next:    fmt.Sprintf("ask its operator for a new invite (`weft peer invite %s`), then `weft peer add` it", own),
	}
	if peer.Declared {
		c.Next = fmt.Sprintf("it is renewed once cluster %s accepts its Peer object: `kubectl describe peers.weft.io %s` says what it lacks", peer.Name, peer.Name)
	}
	if peer.Cilium {
		c.Next = fmt.Sprintf("renew it there, then `weft peer add %s --cilium` its new secret", peer.Name)
	}
	if now.After(end) {
		c.Since, c.Dated = end, false
		c.Message = fmt.Sprintf("peer %s: the certificate with which we read it has expired", peer.Name)
	}
	return c, true
}
