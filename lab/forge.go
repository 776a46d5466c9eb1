package lab

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"sigs.k8s.io/yaml"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/apiserver/authority"
)

// This file is for scripts about lies, mistakes and curiosity: the lab owns every
// disk, so it can sign any certificate and write anything into any store.

// etcdPort is where an API server's store listens.
const etcdPort = "2379"

// authority opens the certificate authority on a control node's disk.
func (l *Lab) authority(c *Cluster) (*authority.Authority, error) {
	dir := ""
	root := l.control(c).path("/var/lib/weft/apiserver")
	err := filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		if err == nil && filepath.Base(path) == "ca.key" {
			dir = filepath.Dir(path)
			return fs.SkipAll
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	if dir == "" {
		return nil, fmt.Errorf("cluster %s has no certificate authority on its disk yet", c.Name)
	}
	return authority.Open(dir, c.Name)
}

// Forgery describes a context or certificate that nobody was issued.
type Forgery struct {
	Name     string // of the context
	Cluster  string // whose API server the context points to
	SignedBy string // cluster whose authority signs the certificate
	User     string // in the certificate
	Expired  bool
}

// ForgeContext adds a context to the lab's file.
func (l *Lab) ForgeContext(f Forgery) error {
	c, err := l.Cluster(f.SignedBy)
	if err != nil {
		return err
	}
	pair, err := l.issue(c, f.User, f.Expired)
	if err != nil {
		return err
	}
	config, err := api.LoadConfig(l.ConfigPath())
	if err != nil {
		return err
	}
	x, err := config.Context(f.Cluster)
	if err != nil {
		return err
	}
	x.Name, x.Cert, x.Key = f.Name, string(pair.Cert), string(pair.Key)
	config.Set(x)
	return config.Save(l.ConfigPath())
}

// ForgeCertificate replaces the client certificate in an invite or a join bundle.
// SignedBy defaults to the cluster that the file belongs to, User to the one in its
// certificate.
func (l *Lab) ForgeCertificate(path string, f Forgery) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	fields := map[string]any{}
	if err := yaml.Unmarshal(text, &fields); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	part := func(name string) string { s, _ := fields[name].(string); return s }
	c, err := l.Cluster(cmp.Or(f.SignedBy, part("cluster")))
	if err != nil {
		return err
	}
	genuine, err := tls.X509KeyPair([]byte(part("cert")), []byte(part("key")))
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	pair, err := l.issue(c, cmp.Or(f.User, genuine.Leaf.Subject.CommonName), f.Expired)
	if err != nil {
		return err
	}
	fields["cert"], fields["key"] = string(pair.Cert), string(pair.Key)
	if text, err = yaml.Marshal(fields); err != nil {
		return err
	}
	return os.WriteFile(path, text, 0o600)
}

func (l *Lab) issue(c *Cluster, user string, expired bool) (authority.Pair, error) {
	a, err := l.authority(c)
	if err != nil {
		return authority.Pair{}, err
	}
	r := authority.Request{User: user, Client: true, Lifetime: time.Hour}
	if expired {
		r.Lifetime = -time.Second
	}
	return a.Issue(r)
}

// etcdRequest tells an etcd helper what to do.
type etcdRequest struct {
	Endpoint      string
	CA, Cert, Key string   // PEM
	Args          []string // see EtcdUsage
}

// EtcdUsage describes the arguments of Etcd.
const EtcdUsage = "get [--prefix] [--keys|--births] KEY | put KEY VALUE | del [--prefix] KEY | compact"

// Etcd asks a cluster's store as one of its users, bypassing the API server.
func (l *Lab) Etcd(ctx context.Context, cluster, user string, stdout, stderr io.Writer, args ...string) error {
	c, err := l.Cluster(cluster)
	if err != nil {
		return err
	}
	a, err := l.authority(c)
	if err != nil {
		return err
	}
	pair, err := l.issue(c, user, false)
	if err != nil {
		return err
	}
	request, err := json.Marshal(etcdRequest{
		Endpoint: net.JoinHostPort(l.control(c).Addr.String(), etcdPort),
		CA:       string(a.Bundle()), Cert: string(pair.Cert), Key: string(pair.Key), Args: args,
	})
	if err != nil {
		return err
	}
	file, err := os.CreateTemp(l.Dir, "etcd-")
	if err != nil {
		return err
	}
	defer os.Remove(file.Name())
	_, err = file.Write(request)
	if err := errors.Join(err, file.Close()); err != nil {
		return err
	}
	return l.Run(ctx, l.Dir, stdout, stderr, "weft", "lab", "etcd", file.Name())
}

// askEtcd is what an etcd helper runs.
func askEtcd(ctx context.Context, file string, out io.Writer) error {
	data, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	var r etcdRequest
	if err := json.Unmarshal(data, &r); err != nil {
		return err
	}
	roots, err := authority.ParseBundle([]byte(r.CA))
	if err != nil {
		return err
	}
	pair, err := tls.X509KeyPair([]byte(r.Cert), []byte(r.Key))
	if err != nil {
		return err
	}
	trusted := x509.NewCertPool()
	for _, root := range roots {
		trusted.AddCert(root)
	}
	conf := &tls.Config{Certificates: []tls.Certificate{pair}, RootCAs: trusted, MinVersion: tls.VersionTLS13}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{"https://" + r.Endpoint}, TLS: conf, DialTimeout: 5 * time.Second, Context: ctx})
	if err != nil {
		return err
	}
	defer client.Close()
	return etcdCommand(ctx, client, r.Args, out)
}

func etcdCommand(ctx context.Context, client *clientv3.Client, args []string, out io.Writer) error {
	var options []clientv3.OpOption
	var words []string
	births := false
	for _, arg := range args {
		switch arg {
		case "--prefix":
			options = append(options, clientv3.WithPrefix())
		case "--keys":
			options = append(options, clientv3.WithKeysOnly())
		case "--births": // a key that was deleted and written again has a new one
			options = append(options, clientv3.WithKeysOnly())
			births = true
		default:
			words = append(words, arg)
		}
	}
	switch {
	case len(words) == 2 && words[0] == "get":
		got, err := client.Get(ctx, words[1], options...)
		if err != nil {
			return err
		}
		for _, kv := range got.Kvs {
			if births {
				fmt.Fprintln(out, string(kv.Key), kv.CreateRevision)
				continue
			}
			fmt.Fprintln(out, strings.TrimSpace(string(kv.Key)+" "+string(kv.Value)))
		}
		return nil
	case len(words) == 3 && words[0] == "put":
		_, err := client.Put(ctx, words[1], words[2])
		return err
	case len(words) == 2 && words[0] == "del":
		_, err := client.Delete(ctx, words[1], options...)
		return err
	case len(words) == 1 && words[0] == "compact": // up to now
		got, err := client.Get(ctx, "any")
		if err != nil {
			return err
		}
		_, err = client.Compact(ctx, got.Header.Revision, clientv3.WithCompactPhysical())
		return err
	}
	return errors.New("usage: " + EtcdUsage)
}
