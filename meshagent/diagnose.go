package meshagent

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"strings"
	"syscall"
	"time"
)

// diagnosePatience bounds the check of one address of the store. In TLS 1.3, a server
// rejects a client's certificate only after the handshake; alertPatience is the wait for
// that.
const (
	diagnosePatience = 2 * time.Second
	alertPatience    = 300 * time.Millisecond
)

// diagnose says in a few words why a store cannot be read. It checks this node's
// certificate and then connects to the store's addresses as etcd's client does, which
// itself only reports a timeout. "" means that it found nothing wrong.
func diagnose(ctx context.Context, cluster, user string, endpoints []string, conf *tls.Config) string {
	if conf.GetClientCertificate != nil {
		if c, err := conf.GetClientCertificate(nil); err == nil {
			if text := misfit(c, conf.RootCAs, cluster, user, time.Now()); text != "" {
				return text
			}
		}
	}
	var causes []string
	for _, e := range endpoints {
		u, err := url.Parse(e)
		if err != nil || u.Host == "" {
			causes = append(causes, fmt.Sprintf("%q in the join bundle is not a URL", e))
			continue
		}
		err = connect(ctx, u.Host, conf)
		if err == nil {
			return "" // this one accepts us, so the connection is not the problem
		}
		causes = append(causes, causeOf(u.Host, cluster, err))
	}
	if len(causes) == 0 {
		return "the join bundle names no etcd endpoint"
	}
	return strings.Join(causes, "; ")
}

// misfit says why the store of a cluster cannot accept a certificate; "" if it looks
// good.
func misfit(c *tls.Certificate, roots *x509.CertPool, cluster, user string, now time.Time) string {
	leaf := c.Leaf
	if leaf == nil {
		return ""
	}
	switch of := strings.Join(leaf.Subject.Organization, " "); {
	case of != "" && of != cluster:
		return "certificate of cluster " + of
	case leaf.Subject.CommonName != user:
		return fmt.Sprintf("certificate of user %q, this node is %q", leaf.Subject.CommonName, user)
	case now.After(leaf.NotAfter):
		return "certificate expired on " + leaf.NotAfter.UTC().Format(time.DateOnly)
	case now.Before(leaf.NotBefore):
		return fmt.Sprintf("certificate is not valid before %s: is this machine's clock right?", leaf.NotBefore.UTC().Format(time.DateTime))
	}
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}); err != nil {
		return "certificate is not signed by the CA in the join bundle"
	}
	return ""
}

// connect makes one connection and waits to see whether it is rejected.
func connect(ctx context.Context, host string, conf *tls.Config) error {
	ctx, cancel := context.WithTimeout(ctx, diagnosePatience)
	defer cancel()
	raw, err := new(net.Dialer).DialContext(ctx, "tcp", host)
	if err != nil {
		return err
	}
	defer raw.Close()
	conf = conf.Clone()
	conf.ServerName, _, _ = net.SplitHostPort(host)
	conf.NextProtos = []string{"h2"}
	conn := tls.Client(raw, conf)
	if err := conn.HandshakeContext(ctx); err != nil {
		return err
	}
	_ = conn.SetReadDeadline(time.Now().Add(alertPatience))
	// An HTTP/2 server may send first, but a rejection comes before that.
	if _, err := conn.Read(make([]byte, 1)); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		return err
	}
	return nil
}

// causeOf turns the error of a connection into a cause for people.
func causeOf(host, cluster string, err error) string {
	var alert tls.AlertError
	var unknown x509.UnknownAuthorityError
	var invalid x509.CertificateInvalidError
	var name x509.HostnameError
	var record tls.RecordHeaderError
	switch {
	case errors.As(err, &unknown):
		of := "another authority"
		if unknown.Cert != nil && len(unknown.Cert.Subject.Organization) > 0 && unknown.Cert.Subject.Organization[0] != cluster {
			of = "cluster " + unknown.Cert.Subject.Organization[0]
		}
		return fmt.Sprintf("%s shows a certificate of %s", host, of)
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return fmt.Sprintf("%s shows a certificate that expired on %s", host, invalid.Cert.NotAfter.UTC().Format(time.DateOnly))
	case errors.As(err, &name):
		return fmt.Sprintf("the certificate of %s is not for that address", host)
	case errors.As(err, &record):
		return host + " does not speak TLS: is the port right?"
	case errors.As(err, &alert), strings.Contains(err.Error(), "remote error: tls"):
		return host + " does not accept this node's certificate"
	case errors.Is(err, syscall.ECONNREFUSED):
		return host + " refuses connections"
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded), isTimeout(err):
		return host + " does not answer"
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH):
		return "no route to " + host
	case errors.Is(err, io.EOF), errors.Is(err, syscall.ECONNRESET):
		return host + " closes the connection"
	}
	return fmt.Sprintf("%s: %v", host, err)
}

func isTimeout(err error) bool {
	var t net.Error
	return errors.As(err, &t) && t.Timeout()
}
