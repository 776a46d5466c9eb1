// Package clustermesh reads and writes the files with which Cilium clusters reach each
// other's etcd: a client configuration for each cluster, and certificates beside it.
//
// It checks only their form; what to trust is decided in package peering.
package clustermesh

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/yaml"
)

// Access is what is needed to read a cluster's etcd.
type Access struct {
	Endpoints []string // https://host:port
	// ServerName is the name in the servers' certificates, if it is not the host of
	// the endpoints.
	ServerName    string
	CA, Cert, Key string // PEM
}

// String hides the secrets.
func (Access) String() string { return "[access]" }

// GoString hides the secrets.
func (Access) GoString() string { return "[access]" }

// Files are the content of Cilium's folder of client configurations, by file name: for
// each cluster one of its name, with the certificates that it refers to.
type Files map[string][]byte

// folder is where Cilium mounts the files.
const folder = "/var/lib/cilium/clustermesh/"

// Ends of the names of certificate files, after the name of a cluster, "common-" or "local-".
const (
	caEnd   = "etcd-client-ca.crt"
	certEnd = "etcd-client.crt"
	keyEnd  = "etcd-client.key"
)

// Secrets that hold client configurations: that of the agents, and that of a KVStoreMesh,
// which is read instead if both are there, because it has the way to the other cluster.
const (
	agentSecret = "cilium-clustermesh"
	meshSecret  = "cilium-kvstoremesh"
)

// shared lists the Secrets with certificates that are used for every cluster, by the end of
// their names, with the names of files that Cilium mounts them under.
var shared = map[string]string{"-remote-cert": "common-", "-local-cert": "local-"}

// mostBytes bounds a file. A Secret has at most 1 MiB, and a manifest may have several.
const mostBytes = 4 << 20

// Load reads a folder of client configurations, one of them with its folder, or a manifest
// of Secrets. A single configuration counts as that of cluster.
func Load(name, cluster string) (Files, error) {
	info, err := os.Stat(name)
	if err != nil {
		return nil, err
	}
	if info.IsDir() {
		return loadFolder(name)
	}
	text, err := load(name)
	if err != nil {
		return nil, err
	}
	if !isConfig(text) {
		return Parse(text)
	}
	files, err := loadFolder(filepath.Dir(name))
	if err != nil {
		return nil, err
	}
	files[cluster] = text
	return files, nil
}

func load(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, mostBytes+1))
	if err == nil && len(text) > mostBytes {
		err = fmt.Errorf("%s is larger than %d MiB", name, mostBytes>>20)
	}
	return text, err
}

// loadFolder reads the configurations in a folder and what belongs to them.
func loadFolder(name string) (Files, error) {
	entries, err := os.ReadDir(name)
	if err != nil {
		return nil, err
	}
	files := Files{}
	for _, e := range entries {
		// Kubernetes mounts files of a Secret as links.
		info, err := os.Stat(filepath.Join(name, e.Name()))
		if err != nil || !info.Mode().IsRegular() || info.Size() > mostBytes {
			continue
		}
		text, err := load(filepath.Join(name, e.Name()))
		if err != nil {
			return nil, err
		}
		if isConfig(text) || strings.HasSuffix(e.Name(), caEnd) || strings.HasSuffix(e.Name(), certEnd) || strings.HasSuffix(e.Name(), keyEnd) {
			files[e.Name()] = text
		}
	}
	return files, nil
}

// isConfig reports whether a file is a client configuration, and not, for example, a
// certificate or a manifest.
func isConfig(text []byte) bool {
	var c struct {
		Kind      string          `json:"kind"`
		Endpoints json.RawMessage `json:"endpoints"`
	}
	return yaml.Unmarshal(text, &c) == nil && c.Kind == "" && c.Endpoints != nil
}

// object is a Secret, or a list of them.
type object struct {
	Kind     string `json:"kind"`
	Metadata struct {
		Name string `json:"name"`
	} `json:"metadata"`
	Data       map[string][]byte `json:"data"`
	StringData map[string]string `json:"stringData"`
	Items      []object          `json:"items"`
}

func (o object) ofKVStoreMesh() bool { return o.Metadata.Name == meshSecret }

// Parse reads the Secrets of a manifest.
func Parse(manifest []byte) (Files, error) {
	files := Files{}
	docs := utilyaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(manifest)))
	var secrets []object
	for n := 1; ; n++ {
		doc, err := docs.Read()
		if errors.Is(err, io.EOF) {
			break
		}
		var o object
		if err == nil {
			err = yaml.Unmarshal(doc, &o)
		}
		if err != nil {
			return nil, fmt.Errorf("document %d is not a Secret: %w", n, hideValues(err))
		}
		secrets = append(append(secrets, o), o.Items...)
	}
	secrets = slices.DeleteFunc(secrets, func(o object) bool { return o.Kind != "Secret" })
	if len(secrets) == 0 {
		return nil, fmt.Errorf("there is no Secret in it: `kubectl -n kube-system get secret %s -o yaml` of a Cilium cluster prints one", agentSecret)
	}
	first := slices.DeleteFunc(slices.Clone(secrets), object.ofKVStoreMesh)
	last := slices.DeleteFunc(secrets, func(o object) bool { return !o.ofKVStoreMesh() })
	for _, s := range append(first, last...) {
		data := maps.Clone(s.Data)
		if data == nil {
			data = map[string][]byte{}
		}
		for name, text := range s.StringData {
			data[name] = []byte(text)
		}
		if prefix, ok := sharedPrefix(s.Metadata.Name); ok {
			data = map[string][]byte{prefix + caEnd: data["ca.crt"], prefix + certEnd: data["tls.crt"], prefix + keyEnd: data["tls.key"]}
		}
		for name, text := range data {
			if len(text) > 0 {
				files[name] = text
			}
		}
	}
	return files, nil
}

// hideValues returns the kind of an error without its text, which could quote a key.
func hideValues(err error) error {
	var mistyped *json.UnmarshalTypeError
	if errors.As(err, &mistyped) {
		return fmt.Errorf("%s is of the wrong type (%s)", mistyped.Field, mistyped.Value)
	}
	return errors.New("it cannot be parsed")
}

func sharedPrefix(secret string) (string, bool) {
	for end, prefix := range shared {
		if strings.HasSuffix(secret, end) {
			return prefix, true
		}
	}
	return "", false
}

// config is the part of an etcd client configuration that Cilium uses.
type config struct {
	Endpoints  []string        `json:"endpoints"`
	CA         string          `json:"trusted-ca-file"`
	Cert       string          `json:"cert-file"`
	Key        string          `json:"key-file"`
	Plain      bool            `json:"insecure-transport"`
	Unverified bool            `json:"insecure-skip-tls-verify"`
	Aliases    json.RawMessage `json:"cilium-host-aliases"`
}

// Clusters lists the clusters that there are configurations for.
func (f Files) Clusters() []string {
	var names []string
	for name, text := range f {
		if isConfig(text) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// Access returns how to reach a cluster. at replaces the endpoints in the files, where
// they are known by names that only Cilium resolves; then even a configuration is not
// needed, if the certificates are those for all clusters. All mistakes are reported.
func (f Files) Access(cluster string, at ...string) (Access, error) {
	c := config{CA: "common-" + caEnd, Cert: "common-" + certEnd, Key: "common-" + keyEnd}
	text, there := f[cluster]
	switch {
	case there:
		c = config{}
		if err := yaml.Unmarshal(text, &c); err != nil {
			return Access{}, fmt.Errorf("file %s is not an etcd client configuration: %w", cluster, hideValues(err))
		}
	case len(at) == 0 || f[c.Cert] == nil:
		if others := f.Clusters(); len(others) > 0 {
			return Access{}, fmt.Errorf("there is no cluster %q in it, only %s", cluster, strings.Join(others, ", "))
		}
		return Access{}, fmt.Errorf("it has no client configuration of cluster %q; with Secret clustermesh-apiserver-remote-cert of that cluster, say where its clustermesh-apiserver is with --endpoint https://ADDRESS:2379", cluster)
	}
	var a Access
	var errs []error
	mistake := func(field, format string, args ...any) {
		errs = append(errs, fmt.Errorf("cluster %s: %s: %s", cluster, field, fmt.Sprintf(format, args...)))
	}
	if c.Plain {
		mistake("insecure-transport", "a peer is reached by TLS only")
	}
	if c.Unverified {
		mistake("insecure-skip-tls-verify", "the server of a peer is always verified")
	}
	if err := a.place(cluster, c, at); err != nil {
		mistake("endpoints", "%v", err)
	}
	for _, file := range []struct {
		field, name string
		to          *string
	}{{"trusted-ca-file", c.CA, &a.CA}, {"cert-file", c.Cert, &a.Cert}, {"key-file", c.Key, &a.Key}} {
		text, there := f[path.Base(file.name)]
		switch {
		case file.name == "":
			mistake(file.field, "it is missing")
		case !there:
			mistake(file.field, "there is no %s%s", path.Base(file.name), f.whence(file.name))
		}
		*file.to = string(text)
	}
	if len(errs) > 0 {
		return Access{}, errors.Join(errs...)
	}
	return a, nil
}

// whence says which Secret a missing file is from.
func (f Files) whence(name string) string {
	for end, prefix := range shared {
		if strings.HasPrefix(path.Base(name), prefix) {
			return fmt.Sprintf(": it is in Secret clustermesh-apiserver%s of the cluster that this configuration is from; give both in one file", end)
		}
	}
	return " beside it"
}

// place sets the endpoints and the name of their servers.
func (a *Access) place(cluster string, c config, at []string) error {
	aliases, err := hostAliases(c.Aliases)
	if err != nil {
		return err
	}
	if len(c.Endpoints)+len(at) == 0 {
		return errors.New("there are none")
	}
	for _, e := range c.Endpoints {
		u, err := parseEndpoint(e)
		if err != nil {
			return err
		}
		ips := aliases[u.Hostname()]
		if unresolved(u.Hostname()) || len(ips) > 0 {
			if a.ServerName != "" && a.ServerName != u.Hostname() {
				return fmt.Errorf("they are servers of several names, %s and %s", a.ServerName, u.Hostname())
			}
			a.ServerName = u.Hostname()
		}
		switch {
		case len(at) > 0:
		case len(ips) > 0:
			for _, ip := range ips {
				a.Endpoints = append(a.Endpoints, "https://"+net.JoinHostPort(ip.String(), u.Port()))
			}
		case unresolved(u.Hostname()):
			return fmt.Errorf("only Cilium resolves the name in %s: say where that is with --endpoint https://ADDRESS:%s", e, u.Port())
		default:
			a.Endpoints = append(a.Endpoints, e)
		}
	}
	if len(c.Endpoints) == 0 {
		a.ServerName = cluster + meshDomain
	}
	for _, e := range at {
		if _, err := parseEndpoint(e); err != nil {
			return err
		}
		a.Endpoints = append(a.Endpoints, e)
	}
	return nil
}

// meshDomain is the end of the names of clusters' servers, in every certificate that Cilium
// issues for them.
const meshDomain = ".mesh.cilium.io"

// unresolved reports whether only Cilium resolves a name.
func unresolved(host string) bool {
	return strings.HasSuffix(host, meshDomain) || strings.HasSuffix(host, ".svc") || strings.HasSuffix(host, ".svc.cluster.local")
}

func parseEndpoint(text string) (*url.URL, error) {
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "https" || u.Port() == "" || u.Hostname() == "" || u.Path != "" || u.RawQuery != "" || u.User != nil || u.Fragment != "" {
		return nil, fmt.Errorf("%q is not of the form https://host:port", text)
	}
	return u, nil
}

// hostAliases reads Cilium's own addresses of names: a list, or, in one release, a mapping.
func hostAliases(text json.RawMessage) (map[string][]netip.Addr, error) {
	out := map[string][]netip.Addr{}
	if len(text) == 0 || string(text) == "null" {
		return out, nil
	}
	type alias struct {
		Hostname string       `json:"hostname"`
		IPs      []netip.Addr `json:"ips"`
	}
	var list []alias
	if err := json.Unmarshal(text, &list); err != nil {
		var mapping map[string]alias
		if json.Unmarshal(text, &mapping) != nil {
			return nil, fmt.Errorf("cilium-host-aliases cannot be read: %w", err)
		}
		for name, a := range mapping {
			list = append(list, alias{name, a.IPs})
		}
	}
	for _, a := range list {
		if a.Hostname == "" || len(a.IPs) == 0 || slices.ContainsFunc(a.IPs, func(ip netip.Addr) bool { return !ip.IsValid() || ip.Zone() != "" }) {
			return nil, errors.New("cilium-host-aliases has an entry without a hostname or without addresses")
		}
		if out[a.Hostname] != nil {
			return nil, fmt.Errorf("cilium-host-aliases has %s twice", a.Hostname)
		}
		out[a.Hostname] = a.IPs
	}
	return out, nil
}
