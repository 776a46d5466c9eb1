package main

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/weft-mesh/weft/lab"
)

// programs are what the folder with Kubernetes' programs holds.
var programs = []string{"etcd", "kube-apiserver", "kube-proxy"}

// missing says what a machine lacks to run kube-proxy beside Weft; nil if nothing.
func missing(folder string) error {
	for _, name := range programs {
		if _, err := os.Stat(filepath.Join(folder, name)); err != nil {
			return fmt.Errorf("there is no %s in %s: `make bench-services` builds it", name, folder)
		}
	}
	for _, name := range []string{"iptables-save", "iptables-restore", "nft"} {
		if _, err := exec.LookPath(name); err != nil {
			return fmt.Errorf("kube-proxy needs %s: install iptables and nftables", name)
		}
	}
	return nil
}

// kubePort is where Kubernetes' API server listens.
const kubePort = 6443

// kubernetes is an API server with its etcd on a machine of the lab, and kube-proxy on
// others.
type kubernetes struct {
	*kubeStore
	lab     *lab.Lab
	server  *lab.Node
	folder  string
	proxies map[mode]*lab.Task
}

// startKubernetes starts etcd and the API server.
func startKubernetes(ctx context.Context, l *lab.Lab, server *lab.Node, folder string) (*kubernetes, error) {
	var random [16]byte
	rand.Read(random[:])
	token := hex.EncodeToString(random[:])
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return nil, err
	}
	dir := "/etc/weft" // on the machine's disk
	for name, text := range map[string]string{
		"tokens.csv": token + ",bench,bench,system:masters\n",
		"key.pem":    string(pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)})),
	} {
		if err := os.WriteFile(server.Path(filepath.Join(dir, name)), []byte(text), 0o600); err != nil {
			return nil, err
		}
	}
	k := &kubernetes{kubeStore: newKubeStore(l, server, token), lab: l, server: server, folder: folder, proxies: map[mode]*lab.Task{}}
	at := lab.Place{Node: server}
	etcd := "http://" + etcdAddr
	if _, err := l.StartAt(at, "etcd", nil, filepath.Join(folder, "etcd"), "--data-dir", "/var/lib/weft/etcd",
		"--listen-client-urls", etcd, "--advertise-client-urls", etcd, "--listen-peer-urls", "http://127.0.0.1:2380", "--quota-backend-bytes", "8589934592"); err != nil {
		return nil, err
	}
	task, err := l.StartAt(at, "kube-apiserver", nil, filepath.Join(folder, "kube-apiserver"),
		"--etcd-servers", etcd, "--service-cluster-ip-range", serviceCIDR.String(), "--bind-address", "0.0.0.0",
		"--advertise-address", server.Addr.String(), "--secure-port", fmt.Sprint(kubePort), "--cert-dir", filepath.Join(dir, "kubernetes"),
		"--token-auth-file", filepath.Join(dir, "tokens.csv"), "--authorization-mode", "AlwaysAllow",
		"--service-account-issuer", "https://kubernetes.default.svc", "--service-account-key-file", filepath.Join(dir, "key.pem"),
		"--service-account-signing-key-file", filepath.Join(dir, "key.pem"), "--disable-admission-plugins", "ServiceAccount",
		"--enable-priority-and-fairness=false")
	if err != nil {
		return nil, err
	}
	deadline := time.Now().Add(2 * time.Minute)
	for {
		// The namespace is made by the server, after its start.
		err := k.do(ctx, http.MethodGet, "/api/v1/namespaces/default", nil)
		if err == nil {
			return k, nil
		}
		if !task.Running() || time.Now().After(deadline) {
			return nil, fmt.Errorf("kube-apiserver does not start: %w%s", err, task.Log())
		}
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// addNode makes the object without which kube-proxy does not begin, and writes its access.
func (k *kubernetes) addNode(ctx context.Context, m *machine) error {
	name := string(m.mode)
	if err := k.do(ctx, http.MethodPost, "/api/v1/nodes", map[string]any{
		"apiVersion": "v1", "kind": "Node", "metadata": map[string]any{"name": name},
	}); err != nil {
		return err
	}
	if err := k.do(ctx, http.MethodPut, "/api/v1/nodes/"+name+"/status", map[string]any{
		"apiVersion": "v1", "kind": "Node", "metadata": map[string]any{"name": name},
		"status": map[string]any{"addresses": []any{map[string]any{"type": "InternalIP", "address": m.node.Addr.String()}}},
	}); err != nil {
		return err
	}
	access := fmt.Sprintf(`apiVersion: v1
kind: Config
clusters:
- {name: bench, cluster: {server: "https://%s", insecure-skip-tls-verify: true}}
users:
- {name: bench, user: {token: %s}}
contexts:
- {name: bench, context: {cluster: bench, user: bench}}
current-context: bench
`, netip.AddrPortFrom(k.kubernetesAddr(), kubePort), k.token)
	return os.WriteFile(m.node.Path("/etc/weft/kubeconfig"), []byte(access), 0o600)
}

func (k *kubernetes) kubernetesAddr() netip.Addr { return k.server.Addr }

// chooseIPTables has a machine's kube-proxy use one of Debian's two iptables, nft or legacy.
func chooseIPTables(m *machine, variant string) error {
	multi, err := exec.LookPath("xtables-" + variant + "-multi")
	if err != nil {
		return fmt.Errorf("there is no iptables in its %s variant: %w", variant, err)
	}
	for _, family := range []string{"iptables", "ip6tables"} {
		for _, end := range []string{"", "-save", "-restore"} {
			// A folder of its own at the head of PATH.
			if err := os.Symlink(multi, m.node.Path("/run/weft-bin/"+family+end)); err != nil {
				return err
			}
		}
	}
	return nil
}

// startProxy starts kube-proxy with its defaults, except that it leaves the kernel's
// settings of connection tracking alone, which the machines of a lab share.
func (k *kubernetes) startProxy(m *machine) error {
	task, err := k.lab.StartAt(lab.Place{Node: m.node}, "kube-proxy", nil, filepath.Join(k.folder, "kube-proxy"),
		"--kubeconfig", "/etc/weft/kubeconfig", "--proxy-mode", string(m.mode), "--hostname-override", string(m.mode),
		"--detect-local-mode", "ClusterCIDR", "--cluster-cidr", podCIDR.String(),
		"--conntrack-max-per-core", "0", "--conntrack-min", "0", "--conntrack-tcp-timeout-established", "0s", "--conntrack-tcp-timeout-close-wait", "0s")
	k.proxies[m.mode] = task
	return err
}

// stopProxy stops kube-proxy. Its rules stay.
func (k *kubernetes) stopProxy(m *machine) error { return k.proxies[m.mode].Stop() }

// flush removes the rules of kube-proxy.
func (k *kubernetes) flush(ctx context.Context, m *machine) error {
	// There is nobody else's rule.
	commands := [][]string{{"nft", "flush", "ruleset"}}
	if m.mode == iptables {
		for _, table := range []string{"nat", "filter", "mangle"} {
			commands = append(commands, []string{"iptables", "-t", table, "-F"}, []string{"iptables", "-t", table, "-X"})
		}
	}
	for _, command := range commands {
		var out strings.Builder
		// By env, which looks a command up on the machine.
		if err := k.lab.RunAt(ctx, lab.Place{Node: m.node}, &out, &out, append([]string{"/usr/bin/env"}, command...)...); err != nil {
			return fmt.Errorf("remove the rules of %s: %s: %w: %s", m.mode, strings.Join(command, " "), err, out.String())
		}
	}
	return nil
}

// failed says whether kube-proxy has ended, and its last words.
func (k *kubernetes) failed(m *machine) error {
	if t := k.proxies[m.mode]; t != nil && !t.Running() {
		return errors.New("kube-proxy has ended" + t.Log())
	}
	return nil
}
