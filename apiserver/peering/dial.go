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

	"github.com/weft-mesh/weft/apiserver/authority"
	"github.com/weft-mesh/weft/apiserver/mirror"
	"github.com/weft-mesh/weft/apiserver/store"
	"github.com/weft-mesh/weft/wire"
)

// Dialer reaches peers' stores.
type Dialer interface {
	// Probe makes one TLS connection to any of the endpoints. errUnreachable
	// means that none answered; any other error, that one did and refused us or
	// is not who it should be.
	Probe(ctx context.Context, endpoints []string, conf *tls.Config) error
	// Open opens a peer's store for one session.
	Open(endpoints []string, conf *tls.Config) (mirror.Source, error)
}

// errUnreachable: no endpoint of the peer answers.
var errUnreachable = errors.New("none of its endpoints answers")

// Timing of links to peers: a peer that gives no sign of life for silence counts
// as down.
const (
	probeTimeout = 3 * time.Second
	signOfLife   = 2 * time.Second
	silence      = 6 * time.Second
)

// Etcd reaches real peers, and reads no more of one at a time than is read of a
// peer under Limit.
type Etcd struct{ Limit mirror.Limit }

// Open implements Dialer.
func (d Etcd) Open(endpoints []string, conf *tls.Config) (mirror.Source, error) {
	most := d.Limit.Read()
	e, err := store.Dial(store.DialConfig{Endpoints: endpoints, TLS: conf, SignOfLife: signOfLife, Lineage: wire.ExportLineageKey, MostKeys: most.Entries, MostBytes: most.Bytes})
	if err != nil {
		return nil, err
	}
	return watched{e}, nil
}

// watched ends a watch that hears nothing for too long. The store's own check
// cannot: while its client looks for a server that is gone, it blocks.
type watched struct{ *store.Etcd }

func (w watched) Watch(ctx context.Context, prefix string, after store.Point, each func(store.Batch) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	timer := time.AfterFunc(silence, func() { cancel(store.ErrSilent) })
	defer timer.Stop()
	err := w.Etcd.Watch(ctx, prefix, after, func(b store.Batch) error {
		// What we do with a batch is not the peer's silence.
		timer.Stop()
		defer timer.Reset(silence)
		return each(b)
	})
	if errors.Is(context.Cause(ctx), store.ErrSilent) {
		return store.ErrSilent
	}
	return err
}

// Probe implements Dialer. The store's own client would hide the reason of a
// failed handshake behind a timeout.
func (Etcd) Probe(ctx context.Context, endpoints []string, conf *tls.Config) error {
	var last error
	for _, e := range endpoints {
		u, err := url.Parse(e)
		if err != nil {
			return fmt.Errorf("endpoint %q: %w", e, err)
		}
		if last = probe(ctx, u.Host, conf); !errors.Is(last, errUnreachable) {
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
	// Since TLS 1.3 the client's certificate is judged after the handshake. A
	// store that believes it speaks first, with its HTTP/2 settings.
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
		return fmt.Errorf("the server at %s is not certified by the ca in the invite; ask for a new invite, or check who answers there: %w", host, err)
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return fmt.Errorf("the certificate of the server at %s has expired or is not valid yet; restart its API server, or check the clocks: %w", host, err)
	case errors.As(err, &name):
		return fmt.Errorf("the server at %s is certified for other names; set advertise or advertiseNames there and invite again: %w", host, err)
	case errors.As(err, &alert) && alert.Op == "remote error": // crypto/tls: an alert came in
		return fmt.Errorf("the server at %s does not accept the certificate in the invite; ask for a new one: %w", host, err)
	}
	return fmt.Errorf("%w: %w", errUnreachable, err)
}

// tlsOf is how a peer is reached: its roots, our certificate.
func tlsOf(p wire.Peer, s wire.PeerSecret) (*tls.Config, error) {
	pair, err := authority.Pair{Cert: []byte(s.Cert), Key: []byte(s.Key)}.TLS()
	if err != nil {
		return nil, fmt.Errorf("peer %q: our certificate for it cannot be used: %w", p.Name, err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM([]byte(p.CA)) {
		return nil, fmt.Errorf("peer %q: its ca holds no certificate", p.Name)
	}
	return &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS13}, nil
}

// endingSoon is how long before its end an operator is told of a certificate that
// only another operator can replace.
const endingSoon = 60 * 24 * time.Hour

// ending says that the certificate which a peer gave us ends; "" while there is
// time.
func ending(own, peer string, s wire.PeerSecret, now time.Time) string {
	pair, err := authority.Pair{Cert: []byte(s.Cert), Key: []byte(s.Key)}.TLS()
	if err != nil {
		return "" // the mirror says so
	}
	end := pair.Leaf.NotAfter
	if end.Sub(now) > endingSoon {
		return ""
	}
	return fmt.Sprintf("peer %s: the certificate that it lets us read with ends on %s: ask its operator for a new invite, `weft peer invite %s`, and `weft peer add` it",
		peer, end.UTC().Format(time.DateOnly), own)
}
