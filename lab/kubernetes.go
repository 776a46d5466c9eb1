package lab

import (
	"archive/tar"
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	_ "embed"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"text/template"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// A cluster with kubernetes: true is a real one: etcd and Kubernetes' control plane on its
// control machine, and a kubelet with containerd on each. Weft is not started: the script
// installs it, as people do.
//
// Its programs are what `make kubernetes` builds; containerd and runc are Debian's. Images
// are loaded from files, because a lab reaches no registry.

// KubernetesPrograms are what the folder of Kubernetes' programs must have.
var KubernetesPrograms = []string{"etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kubectl"}

// kubernetesTools are Debian's programs that a node of Kubernetes needs.
var kubernetesTools = map[string]string{"containerd": "containerd", "ctr": "containerd", "runc": "runc", "mount": "mount", "unshare": "util-linux"}

const (
	kubernetesPort = 6443
	// kubernetesDir holds what the lab itself keeps on a machine of Kubernetes.
	kubernetesDir = "/var/lib/kubernetes"
	// labImage is the lab's own program as an image, for pods that answer and ask; pauseImage
	// the same, as what holds a pod's namespaces; weftImage is Weft's, whatever its version.
	labImage, pauseImage, weftImage = "weft.test/lab:lab", "weft.test/pause:lab", "weft.test/weft:lab"
	corednsImage                    = "weft.test/coredns:lab"
)

// kubernetesDirs are the folders outside of /run of a container runtime and a kubelet, which
// each machine has to itself.
var kubernetesDirs = []string{kubernetesDir, "/var/lib/kubelet", "/var/lib/containerd", "/var/lib/cni", "/etc/cni", "/opt/cni", "/var/log/pods", "/var/log/containers"}

//go:embed kubernetes.yaml.tmpl
var kubernetesFiles string

// kubernetesSite is what the templates of a machine's files know.
type kubernetesSite struct {
	Node, Address        string // the machine's
	Server               string // host and port of the API server
	CA                   string // its, in base64; empty until it has started
	PodCIDR, ServiceCIDR string
	DNS                  []string // addresses of the service of the cluster's DNS, for who installs one
	PauseImage           string
	// Tokens of the cluster's users; Kubelet is that of the machine's, Tokens are all of them
	// by node.
	Admin, Manager, Scheduler, Kubelet string
	Tokens                             map[string]string
}

// usesKubernetes says whether a cluster of the lab is one of Kubernetes.
func (t Topology) usesKubernetes() bool {
	for i := range t.Clusters {
		if t.Clusters[i].Kubernetes {
			return true
		}
	}
	return false
}

// missingKubernetes says what a machine lacks for Kubernetes clusters.
func missingKubernetes(folder string) error {
	for _, name := range KubernetesPrograms {
		if _, err := os.Stat(filepath.Join(folder, name)); err != nil {
			return fmt.Errorf("there is no %s in %s: `make test-kubernetes` builds it", name, folder)
		}
	}
	if _, err := os.Stat(imageIn(folder)); err != nil {
		return fmt.Errorf("there is no image %s: `make image` builds it", imageIn(folder))
	}
	t := Topology{Tools: kubernetesTools}
	return t.Missing()
}

// prepareKubernetes finds what Kubernetes clusters need, and makes the lab's images.
func (l *Lab) prepareKubernetes() (err error) {
	if l.kubernetes, err = filepath.Abs(cmp.Or(l.kubernetes, filepath.Join(".bin", "kubernetes"))); err != nil {
		return err
	}
	if err := missingKubernetes(l.kubernetes); err != nil {
		return err
	}
	if err := os.Symlink(l.kubernetesProgram("kubectl"), filepath.Join(l.bin(), "kubectl")); err != nil {
		return err
	}
	return l.buildImages()
}

// imageIn is the file with Weft's image, beside the folder of Kubernetes' programs.
func imageIn(folder string) string { return filepath.Join(filepath.Dir(folder), "weft-image.tar") }

func (l *Lab) kubernetesProgram(name string) string { return filepath.Join(l.kubernetes, name) }

// bootKubernetes starts a cluster, and returns when all of its nodes are registered. They are
// not ready: their pods have no network yet.
func (l *Lab) bootKubernetes(ctx context.Context, c *Cluster) error {
	token := func() string {
		var random [16]byte
		rand.Read(random[:])
		return hex.EncodeToString(random[:])
	}
	control := l.control(c)
	site := kubernetesSite{
		Server: net.JoinHostPort(control.Addr.String(), strconv.Itoa(kubernetesPort)),
		Admin:  token(), Manager: token(), Scheduler: token(), Tokens: map[string]string{},
		PodCIDR: list(c.PodCIDRs()), ServiceCIDR: list(c.ServiceCIDRs()), PauseImage: pauseImage, DNS: clusterDNS(c),
	}
	for _, name := range c.Nodes {
		site.Tokens[name] = token()
	}
	if err := l.startControlPlane(ctx, control, &site); err != nil {
		return err
	}
	g, nodes := errgroup.WithContext(ctx)
	for _, name := range c.Nodes {
		g.Go(func() error { return l.startKubelet(nodes, l.nodes[c.Name+"/"+name], site) })
	}
	if err := g.Wait(); err != nil {
		return err
	}
	return l.await(ctx, "Kubernetes of cluster "+c.Name, control, func() error {
		out, err := l.kubectl(ctx, c.Name, "get", "nodes", "-o", "name")
		if n := len(strings.Fields(out)); err == nil && n < len(c.Nodes) {
			err = fmt.Errorf("%d of %d nodes are registered", n, len(c.Nodes))
		}
		return err
	})
}

// clusterDNS are the tenth addresses of a cluster's services, as kubeadm has it.
func clusterDNS(c *Cluster) (addrs []string) {
	for _, cidr := range c.ServiceCIDRs() {
		addr := cidr.Addr()
		for range 10 {
			addr = addr.Next()
		}
		addrs = append(addrs, addr.String())
	}
	return addrs
}

// kubectl runs kubectl as the operator.
func (l *Lab) kubectl(ctx context.Context, cluster string, args ...string) (string, error) {
	var stdout, stderr bytes.Buffer
	err := l.Run(ctx, l.Dir, &stdout, &stderr, append([]string{l.kubernetesProgram("kubectl"), "--context", cluster}, args...)...)
	if err != nil {
		err = fmt.Errorf("kubectl %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), err
}

// kubeconfig is the file with the operator's contexts of all Kubernetes clusters.
func (l *Lab) kubeconfig() string { return kubeconfigIn(l.Dir) }

func kubeconfigIn(lab string) string { return filepath.Join(lab, "kubeconfig") }

// startControlPlane starts etcd and Kubernetes' own servers.
func (l *Lab) startControlPlane(ctx context.Context, n *Node, site *kubernetesSite) error {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return err
	}
	signing := pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)})
	if err := os.WriteFile(n.path(kubernetesDir+"/sa.key"), signing, 0o600); err != nil {
		return err
	}
	site.Node, site.Address = n.Name, n.Addr.String()
	if err := writeKubernetesFiles(n, *site, "tokens.csv", "manager.conf", "scheduler.conf"); err != nil {
		return err
	}
	if err := l.startKubernetes(n, "etcd", "--data-dir", kubernetesDir+"/etcd", "--unsafe-no-fsync", "--advertise-client-urls", "http://127.0.0.1:2379",
		// As kubeadm has it, so that nobody else can want these ports.
		"--listen-client-urls", "http://127.0.0.1:2379,http://"+site.Address+":2379", "--listen-peer-urls", "http://"+site.Address+":2380"); err != nil {
		return err
	}
	if err := l.startKubernetes(n, "kube-apiserver", "--etcd-servers", "http://127.0.0.1:2379", "--service-cluster-ip-range", site.ServiceCIDR,
		"--bind-address", "0.0.0.0", "--advertise-address", site.Address, "--secure-port", strconv.Itoa(kubernetesPort), "--cert-dir", kubernetesDir+"/pki",
		"--token-auth-file", kubernetesDir+"/tokens.csv", "--authorization-mode", "Node,RBAC", "--allow-privileged",
		"--kubelet-preferred-address-types", "InternalIP", "--service-account-issuer", "https://kubernetes.default.svc",
		"--service-account-key-file", kubernetesDir+"/sa.key", "--service-account-signing-key-file", kubernetesDir+"/sa.key"); err != nil {
		return err
	}
	var ca []byte
	if err := l.await(ctx, "kube-apiserver on "+n.Full(), n, func() (err error) {
		ca, err = os.ReadFile(n.path(kubernetesDir + "/pki/apiserver.crt"))
		return err
	}); err != nil {
		return err
	}
	site.CA = base64.StdEncoding.EncodeToString(ca)
	if err := l.addKubeContext(n.Cluster.Name, *site); err != nil {
		return err
	}
	// The others end if it does not answer in time.
	if err := l.await(ctx, "kube-apiserver on "+n.Full(), n, func() error {
		_, err := l.kubectl(ctx, n.Cluster.Name, "get", "--raw", "/readyz")
		return err
	}); err != nil {
		return err
	}
	if err := writeKubernetesFiles(n, *site, "manager.conf", "scheduler.conf"); err != nil {
		return err
	}
	if err := l.startKubernetes(n, "kube-controller-manager", "--kubeconfig", kubernetesDir+"/manager.conf", "--leader-elect=false",
		"--service-account-private-key-file", kubernetesDir+"/sa.key", "--use-service-account-credentials", "--root-ca-file", kubernetesDir+"/pki/apiserver.crt",
		"--allocate-node-cidrs", "--cluster-cidr", site.PodCIDR, "--service-cluster-ip-range", site.ServiceCIDR); err != nil {
		return err
	}
	return l.startKubernetes(n, "kube-scheduler", "--kubeconfig", kubernetesDir+"/scheduler.conf", "--leader-elect=false")
}

// startKubelet starts containerd, loads the images, and starts the kubelet.
func (l *Lab) startKubelet(ctx context.Context, n *Node, site kubernetesSite) error {
	site.Node, site.Address, site.Kubelet = n.Name, n.Addr.String(), site.Tokens[n.Name]
	if err := writeKubernetesFiles(n, site, "containerd.toml", "kubelet.yaml", "kubelet.conf"); err != nil {
		return err
	}
	// Containers have cgroups of their own, outside of the machine's. In a namespace of process
	// IDs that begins with containerd, they end with it, and with the machine.
	if err := l.startProgram(n, "containerd", "/usr/bin/env", "unshare", "--fork", "--kill-child", "--pid", "--mount", "--propagation", "unchanged", "--mount-proc",
		"containerd", "-c", kubernetesDir+"/containerd.toml"); err != nil {
		return err
	}
	ctr := func(args ...string) error {
		var out strings.Builder
		err := l.RunAt(ctx, Place{Node: n}, &out, &out, append([]string{"/usr/bin/env", "ctr", "-n", "k8s.io"}, args...)...)
		if err != nil {
			err = fmt.Errorf("ctr %s on %s: %w: %s", strings.Join(args, " "), n.Full(), err, out.String())
		}
		return err
	}
	if err := l.await(ctx, "containerd on "+n.Full(), n, func() error { return ctr("version") }); err != nil {
		return err
	}
	name, err := imageName(imageIn(l.kubernetes))
	if err != nil {
		return err
	}
	// The lab's own folder is out of a machine's sight.
	if err := os.Link(l.images(), filepath.Join(SandboxConfig{Kubernetes: filepath.Join(n.dir, "kubernetes")}.kubernetesDir(kubernetesDir), "images.tar")); err != nil {
		return err
	}
	for _, args := range [][]string{
		{"images", "import", kubernetesDir + "/images.tar"}, {"images", "import", imageIn(l.kubernetes)}, {"images", "tag", "--force", name, weftImage},
	} {
		if err := ctr(args...); err != nil {
			return err
		}
	}
	return l.startKubernetes(n, "kubelet", "--config", kubernetesDir+"/kubelet.yaml", "--kubeconfig", kubernetesDir+"/kubelet.conf",
		"--hostname-override", n.Name, "--node-ip", n.Addr.String())
}

func (l *Lab) startKubernetes(n *Node, name string, args ...string) error {
	return l.startProgram(n, name, append([]string{l.kubernetesProgram(name)}, args...)...)
}

// startProgram starts a program that runs as long as its machine does.
func (l *Lab) startProgram(n *Node, name string, command ...string) error {
	cmd := l.placed(context.Background(), Place{Node: n}, command)
	cmd.Dir = "/"
	_, err := n.spawn(name, cmd)
	return err
}

// containers are the IDs of all containers that run on the lab's machines.
func (l *Lab) containers() (ids []string) {
	for _, n := range l.nodes {
		if !n.Cluster.Kubernetes || !n.Powered() {
			continue
		}
		entries, _ := os.ReadDir(n.path("/run/containerd/io.containerd.runtime.v2.task/k8s.io"))
		for _, e := range entries {
			ids = append(ids, e.Name())
		}
	}
	return ids
}

// cgroupPatience is how long dead containers' processes may take to leave their cgroups.
const cgroupPatience = 5 * time.Second

// removeContainerCgroups removes what containers leave behind in the hierarchies of cgroups.
func removeContainerCgroups(ids []string) error {
	var left []string
	for deadline := time.Now().Add(cgroupPatience); ; time.Sleep(20 * time.Millisecond) {
		left = nil
		for _, parent := range containerCgroups() {
			for _, id := range ids {
				dir := filepath.Join(parent, id)
				if err := unix.Rmdir(dir); err != nil && !errors.Is(err, unix.ENOENT) {
					left = append(left, dir)
				}
			}
			_ = unix.Rmdir(parent) // if it was the last one's
		}
		if len(left) == 0 {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("cgroups of containers are in use: %s", strings.Join(left, ", "))
		}
	}
}

// containerCgroups are the folders in which a runtime has its containers' cgroups.
func containerCgroups() (parents []string) {
	for _, pattern := range []string{"/sys/fs/cgroup/k8s.io", "/sys/fs/cgroup/*/k8s.io"} {
		found, _ := filepath.Glob(pattern)
		parents = append(parents, found...)
	}
	return parents
}

// addKubeContext adds a cluster to the operator's kubeconfig.
func (l *Lab) addKubeContext(cluster string, site kubernetesSite) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.kubeContexts == nil {
		l.kubeContexts = map[string]kubernetesSite{}
	}
	l.kubeContexts[cluster] = site
	text, err := renderKubernetes("operator.conf", l.kubeContexts)
	if err != nil {
		return err
	}
	return os.WriteFile(l.kubeconfig(), text, 0o600)
}

func writeKubernetesFiles(n *Node, site kubernetesSite, names ...string) error {
	for _, name := range names {
		text, err := renderKubernetes(name, site)
		if err != nil {
			return err
		}
		if err := os.WriteFile(n.path(filepath.Join(kubernetesDir, name)), text, 0o600); err != nil {
			return err
		}
	}
	return nil
}

func renderKubernetes(name string, data any) ([]byte, error) {
	t, err := template.New("").Option("missingkey=error").Parse(kubernetesFiles)
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	err = t.ExecuteTemplate(&out, name, data)
	return out.Bytes(), err
}

// imageName is the name under which an OCI archive's image is imported.
func imageName(archive string) (string, error) {
	f, err := os.Open(archive)
	if err != nil {
		return "", err
	}
	defer f.Close()
	for r := tar.NewReader(f); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return "", fmt.Errorf("%s names no image", archive)
		}
		if err != nil {
			return "", fmt.Errorf("%s: %w", archive, err)
		}
		if h.Name != "index.json" {
			continue
		}
		var index struct {
			Manifests []struct {
				Annotations map[string]string `json:"annotations"`
			} `json:"manifests"`
		}
		if err := json.NewDecoder(r).Decode(&index); err != nil {
			return "", fmt.Errorf("%s: %w", archive, err)
		}
		for _, m := range index.Manifests {
			if name := m.Annotations["io.containerd.image.name"]; name != "" {
				return name, nil
			}
		}
	}
}

// kubernetesPatience bounds the start of one Kubernetes cluster.
const kubernetesPatience = 3 * time.Minute
