package connectivity

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/restmapper"
	"k8s.io/client-go/tools/remotecommand"
	"sigs.k8s.io/yaml"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/connectivity/probe"
	"github.com/weft-mesh/weft/flow"
)

// manager owns the fields that a test applies.
const manager = "weft-connectivity"

// program is weft in its image.
const program = "/usr/bin/weft"

// Kubernetes is a cluster of Kubernetes.
type Kubernetes struct {
	name, context string
	// Image is what the pods run; empty: what the agents run.
	Image string

	conf    *rest.Config
	client  kubernetes.Interface
	dynamic dynamic.Interface
	mapper  meta.RESTMapper
	mesh    *api.Client
}

// NewKubernetes connects to the cluster of a kubeconfig's context, and to its mesh API server.
func NewKubernetes(ctx context.Context, kubeContext string, conf *rest.Config, mesh *api.Client) (*Kubernetes, error) {
	k := &Kubernetes{context: kubeContext, conf: rest.CopyConfig(conf), mesh: mesh}
	// Several checks ask at once, each many times.
	k.conf.QPS, k.conf.Burst, k.conf.WarningHandler = 100, 200, rest.NoWarnings{}
	var err error
	if k.client, err = kubernetes.NewForConfig(k.conf); err != nil {
		return nil, err
	}
	if k.dynamic, err = dynamic.NewForConfig(k.conf); err != nil {
		return nil, err
	}
	d, err := discovery.NewDiscoveryClientForConfig(k.conf)
	if err != nil {
		return nil, err
	}
	groups, err := restmapper.GetAPIGroupResources(d)
	if err != nil {
		return nil, fmt.Errorf("ask the Kubernetes API server of %s for its resources: %w", kubeContext, err)
	}
	k.mapper = restmapper.NewDiscoveryRESTMapper(groups)
	s, err := mesh.Status(ctx)
	if err != nil {
		return nil, err
	}
	k.name = s.Cluster.Name
	return k, nil
}

// Name implements Site.
func (k *Kubernetes) Name() string { return k.name }

// Context implements Site.
func (k *Kubernetes) Context() string { return k.context }

// Host is the Kubernetes API server's host.
func (k *Kubernetes) Host() string {
	u, err := url.Parse(k.conf.Host)
	if err != nil || u.Host == "" {
		return k.conf.Host
	}
	return u.Hostname()
}

// Leftovers implements Site.
func (k *Kubernetes) Leftovers(ctx context.Context) (found []string, err error) {
	for _, n := range namespaces() {
		ns, err := k.client.CoreV1().Namespaces().Get(ctx, n.Name, metav1.GetOptions{})
		switch {
		case apierrors.IsNotFound(err):
		case err != nil:
			return nil, err
		case ns.Labels[label] == "":
			return nil, fmt.Errorf("namespace %s of %s is not one of a connectivity test, which would delete it: delete or rename it yourself", n.Name, k.context)
		default:
			found = append(found, n.Name)
		}
	}
	return found, nil
}

// Look implements Site.
func (k *Kubernetes) Look(ctx context.Context) (*Facts, error) {
	f := &Facts{Name: k.name, Nodes: map[string]string{}, Addresses: map[string][]netip.Addr{}, Services: map[string]Service{}, Slices: map[string][]netip.Addr{}}
	nodes, err := k.client.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	for _, n := range nodes.Items {
		f.All = append(f.All, n.Name)
		ready := slices.ContainsFunc(n.Status.Conditions, func(c corev1.NodeCondition) bool {
			return c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue
		})
		if !ready || n.Spec.Unschedulable || f.Nodes["far"] != "" {
			continue
		}
		place := "near"
		if f.Nodes[place] != "" {
			place = "far"
		}
		f.Nodes[place] = n.Name
		for _, a := range n.Status.Addresses {
			if addr, err := netip.ParseAddr(a.Address); err == nil && a.Type == corev1.NodeInternalIP {
				f.Addresses["node/"+place] = append(f.Addresses["node/"+place], addr)
			}
		}
	}
	if f.Nodes["near"] == "" {
		return nil, fmt.Errorf("none of the %s of %s is ready and takes pods", api.Count(len(nodes.Items), "node"), k.context)
	}
	s, err := k.mesh.Status(ctx)
	if err != nil {
		return nil, err
	}
	for _, p := range s.Peers {
		if p.Control.State == api.LinkUp {
			f.Peers = append(f.Peers, p.Name)
		}
	}
	return f, nil
}

// Prepare implements Site.
func (k *Kubernetes) Prepare(ctx context.Context, f *Facts) error {
	p := pods{cluster: k.name, image: k.Image, near: f.Nodes["near"], far: f.Nodes["far"]}
	if p.image == "" {
		agents, err := k.client.AppsV1().DaemonSets(api.SystemNamespace).Get(ctx, "weft-agent", metav1.GetOptions{})
		if err != nil {
			return fmt.Errorf("which image do the agents run? %w", err)
		}
		p.image = agents.Spec.Template.Spec.Containers[0].Image
	}
	for _, n := range namespaces() {
		if err := k.apply(ctx, n); err != nil {
			return err
		}
	}
	if err := k.Apply(ctx, services); err != nil {
		return err
	}
	switch err := k.Apply(ctx, external); {
	case apierrors.IsForbidden(err):
		f.NoExternal = fmt.Sprintf("cluster %s refuses external IPs of services", k.name)
	case err != nil:
		return err
	}
	all := p.objects()
	for _, o := range all {
		if err := k.apply(ctx, o); err != nil {
			return err
		}
	}
	if err := k.apply(ctx, p.global()); err != nil {
		return err
	}
	for _, o := range all {
		addrs, err := k.ready(ctx, o.Namespace, o.Name)
		if err != nil {
			return err
		}
		f.Addresses[o.Name] = addrs
	}
	addrs, err := k.ready(ctx, Namespace, "global-0")
	if err != nil {
		return err
	}
	f.Addresses["global-0"] = addrs
	return k.lookAtServices(ctx, f)
}

// again is the pause between two looks.
const again = 200 * time.Millisecond

// pause waits for a moment, unless ctx ends.
func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(d):
		return nil
	}
}

// ready waits for a pod, and returns its addresses.
func (k *Kubernetes) ready(ctx context.Context, namespace, name string) ([]netip.Addr, error) {
	for {
		pod, err := k.client.CoreV1().Pods(namespace).Get(ctx, name, metav1.GetOptions{})
		if err != nil && !apierrors.IsNotFound(err) {
			return nil, err
		}
		if err == nil && slices.ContainsFunc(pod.Status.Conditions, func(c corev1.PodCondition) bool {
			return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
		}) {
			var addrs []netip.Addr
			for _, ip := range pod.Status.PodIPs {
				if a, err := netip.ParseAddr(ip.IP); err == nil {
					addrs = append(addrs, a)
				}
			}
			return addrs, nil
		}
		if pause(ctx, again) != nil {
			return nil, fmt.Errorf("pod %s/%s of %s is not ready: %s; look at `kubectl --context %s -n %s describe pod %s`", namespace, name, k.context, waitsFor(pod), k.context, namespace, name)
		}
	}
}

// waitsFor says what keeps a pod.
func waitsFor(pod *corev1.Pod) string {
	if pod == nil || pod.Name == "" {
		return "it does not exist"
	}
	for _, c := range pod.Status.ContainerStatuses {
		switch {
		case c.State.Waiting != nil && c.LastTerminationState.Terminated != nil:
			return fmt.Sprintf("%s, its container ended with exit code %d", c.State.Waiting.Reason, c.LastTerminationState.Terminated.ExitCode)
		case c.State.Waiting != nil:
			return c.State.Waiting.Reason
		}
	}
	return string(pod.Status.Phase)
}

// lookAtServices waits until services have addresses and headless ones have endpoints.
func (k *Kubernetes) lookAtServices(ctx context.Context, f *Facts) error {
	l, err := k.client.CoreV1().Services(Namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	for _, s := range l.Items {
		out := Service{NodePorts: map[string]uint16{}}
		out.IPs, out.External = parseAddrs(s.Spec.ClusterIPs), parseAddrs(s.Spec.ExternalIPs)
		for _, p := range s.Spec.Ports {
			if p.NodePort != 0 {
				out.NodePorts[fmt.Sprintf("%d/%s", p.Port, strings.ToLower(string(p.Protocol)))] = uint16(p.NodePort)
			}
		}
		f.Services[s.Name] = out
	}
	kubernetes, err := k.client.CoreV1().Services("default").Get(ctx, "kubernetes", metav1.GetOptions{})
	if err != nil {
		return err
	}
	f.Services["kubernetes"] = Service{IPs: parseAddrs(kubernetes.Spec.ClusterIPs)}
	for {
		l, err := k.client.DiscoveryV1().EndpointSlices(Namespace).List(ctx, metav1.ListOptions{LabelSelector: discoveryv1.LabelServiceName + "=headless"})
		if err != nil {
			return err
		}
		var all []netip.Addr
		for _, s := range l.Items {
			for _, e := range s.Endpoints {
				all = append(all, parseAddrs(e.Addresses)...)
			}
		}
		if len(all) >= min(len(f.Nodes), 2) {
			f.Slices["headless"] = all
			return nil
		}
		if err := pause(ctx, again); err != nil {
			return fmt.Errorf("service %s/headless of %s has no endpoints: %w", Namespace, k.context, err)
		}
	}
}

func parseAddrs(all []string) (out []netip.Addr) {
	for _, text := range all {
		if a, err := netip.ParseAddr(text); err == nil {
			out = append(out, a)
		}
	}
	return out
}

// apply makes the cluster have an object.
func (k *Kubernetes) apply(ctx context.Context, object any) error {
	text, err := json.Marshal(object)
	if err != nil {
		return err
	}
	var o unstructured.Unstructured
	if err := json.Unmarshal(text, &o.Object); err != nil {
		return err
	}
	r, err := k.resource(&o)
	if err != nil {
		return err
	}
	// A status that is empty would be one that the test owns.
	unstructured.RemoveNestedField(o.Object, "status")
	if text, err = json.Marshal(o.Object); err != nil {
		return err
	}
	force := true
	for {
		_, err = r.Patch(ctx, o.GetName(), types.ApplyPatchType, text, metav1.PatchOptions{FieldManager: manager, Force: &force})
		// The account of a new namespace is there a little later.
		if err == nil || !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), "serviceaccount") || pause(ctx, again) != nil {
			break
		}
	}
	if err != nil {
		return fmt.Errorf("apply %s %s to %s: %w", o.GetKind(), o.GetName(), k.context, err)
	}
	return nil
}

// errNoKind says that Kubernetes does not know a kind.
var errNoKind = errors.New("Kubernetes has no such kind")

func (k *Kubernetes) resource(o *unstructured.Unstructured) (dynamic.ResourceInterface, error) {
	gvk := schema.FromAPIVersionAndKind(o.GetAPIVersion(), o.GetKind())
	m, err := k.mapper.RESTMapping(gvk.GroupKind(), gvk.Version)
	if meta.IsNoMatchError(err) {
		return nil, errNoKind
	}
	if err != nil {
		return nil, err
	}
	if m.Scope.Name() == meta.RESTScopeNameNamespace {
		if o.GetNamespace() == "" {
			o.SetNamespace(Namespace)
		}
		return k.dynamic.Resource(m.Resource).Namespace(o.GetNamespace()), nil
	}
	return k.dynamic.Resource(m.Resource), nil
}

// each calls what for each object of a manifest; where Kubernetes does not know its kind, it
// is for the mesh API server.
func (k *Kubernetes) each(manifest string, here func(o *unstructured.Unstructured) error, mesh func(text []byte) error) error {
	for _, doc := range strings.Split(manifest, "---\n") {
		var o unstructured.Unstructured
		if err := yaml.Unmarshal([]byte(doc), &o.Object); err != nil {
			return err
		}
		if len(o.Object) == 0 {
			continue
		}
		_, err := k.resource(&o)
		switch {
		case errors.Is(err, errNoKind):
			if o.GetNamespace() == "" && !strings.Contains(o.GetKind(), "Clusterwide") {
				o.SetNamespace(Namespace)
			}
			text, err := yaml.Marshal(o.Object)
			if err == nil {
				err = mesh(text)
			}
			if err != nil {
				return err
			}
		case err != nil:
			return err
		default:
			if err := here(&o); err != nil {
				return err
			}
		}
	}
	return nil
}

// Apply implements Site.
func (k *Kubernetes) Apply(ctx context.Context, manifest string) error {
	return k.each(manifest, func(o *unstructured.Unstructured) error { return k.apply(ctx, o.Object) }, func(text []byte) error {
		_, err := k.mesh.Apply(ctx, text, api.ManifestOptions{})
		return err
	})
}

// Withdraw implements Site.
func (k *Kubernetes) Withdraw(ctx context.Context, manifest string) error {
	return k.each(manifest, func(o *unstructured.Unstructured) error {
		r, err := k.resource(o)
		if err == nil {
			err = r.Delete(ctx, o.GetName(), metav1.DeleteOptions{})
		}
		if apierrors.IsNotFound(err) {
			return nil
		}
		return err
	}, func(text []byte) error {
		_, err := k.mesh.DeleteManifest(ctx, text, api.ManifestOptions{})
		var refused *api.Error
		if errors.As(err, &refused) && refused.Status == 404 {
			return nil
		}
		return err
	})
}

// Ask implements Site.
func (k *Kubernetes) Ask(ctx context.Context, pod string, q []probe.Question) (answers []probe.Answer, err error) {
	text, err := json.Marshal(q)
	if err != nil {
		return nil, err
	}
	out, err := k.exec(ctx, namespaceOf(pod), pod, "probe", program, "connectivity", "probe", string(text))
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(out, &answers); err != nil || len(answers) != len(q) {
		return nil, fmt.Errorf("pod %s answered %d of %d questions: %.100q: %w", pod, len(answers), len(q), out, err)
	}
	return answers, nil
}

// Weft implements Site.
func (k *Kubernetes) Weft(ctx context.Context, node string, args ...string) ([]byte, error) {
	l, err := k.client.CoreV1().Pods(api.SystemNamespace).List(ctx, metav1.ListOptions{
		LabelSelector: "app.kubernetes.io/component=agent", FieldSelector: "spec.nodeName=" + node,
	})
	if err != nil {
		return nil, err
	}
	for _, p := range l.Items {
		if p.Status.Phase == corev1.PodRunning && p.DeletionTimestamp == nil {
			return k.exec(ctx, p.Namespace, p.Name, "agent", append([]string{program}, args...)...)
		}
	}
	return nil, fmt.Errorf("no agent runs on node %s of %s", node, k.context)
}

// exec runs a command in a container.
func (k *Kubernetes) exec(ctx context.Context, namespace, pod, container string, command ...string) ([]byte, error) {
	return Exec(ctx, k.conf, k.client, namespace, pod, container, command...)
}

// Exec runs a command in a container and returns what it wrote.
func Exec(ctx context.Context, conf *rest.Config, client kubernetes.Interface, namespace, pod, container string, command ...string) ([]byte, error) {
	u := client.CoreV1().RESTClient().Post().Resource("pods").Namespace(namespace).Name(pod).SubResource("exec").
		VersionedParams(&corev1.PodExecOptions{Container: container, Command: command, Stdout: true, Stderr: true}, scheme.ParameterCodec).URL()
	e, err := remotecommand.NewWebSocketExecutor(conf, "GET", u.String())
	if err != nil {
		return nil, err
	}
	var stdout, stderr bytes.Buffer
	if err := e.StreamWithContext(ctx, remotecommand.StreamOptions{Stdout: &stdout, Stderr: &stderr}); err != nil {
		return stdout.Bytes(), fmt.Errorf("run %s in pod %s/%s: %w: %s", strings.Join(command[:min(len(command), 3)], " "), namespace, pod, err, strings.TrimSpace(stderr.String()))
	}
	return stdout.Bytes(), nil
}

// Scale implements Site.
func (k *Kubernetes) Scale(ctx context.Context, replicas int) error {
	_, err := k.client.AppsV1().StatefulSets(Namespace).Patch(ctx, "global", types.MergePatchType,
		fmt.Appendf(nil, `{"spec":{"replicas":%d}}`, replicas), metav1.PatchOptions{FieldManager: manager})
	return err
}

// Flows implements Site.
func (k *Kubernetes) Flows(ctx context.Context, r flow.Request) (out []flow.Flow, err error) {
	_, err = k.mesh.Observe(ctx, r.Values(), func(line []byte) error {
		var f flow.Flow
		if err := json.Unmarshal(line, &f); err != nil {
			return fmt.Errorf("read flow: %w", err)
		}
		out = append(out, f)
		return nil
	})
	return out, err
}

// Status implements Site.
func (k *Kubernetes) Status(ctx context.Context) (*api.Status, error) { return k.mesh.Status(ctx) }

// Clean implements Site. It returns when everything is gone.
func (k *Kubernetes) Clean(ctx context.Context) error {
	var failed []error
	for _, p := range policies(Checks()) {
		failed = append(failed, k.Withdraw(ctx, p))
	}
	left, err := k.Leftovers(ctx)
	failed = append(failed, err)
	for _, name := range left {
		if err := k.client.CoreV1().Namespaces().Delete(ctx, name, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
			failed = append(failed, err)
		}
	}
	for len(left) > 0 {
		if left, err = k.Leftovers(ctx); err != nil {
			failed = append(failed, err)
			break
		}
		if len(left) > 0 && pause(ctx, again) != nil {
			failed = append(failed, fmt.Errorf("%s of %s still being deleted", strings.Join(left, ", "), k.context))
			break
		}
	}
	return errors.Join(failed...)
}

// LocalAddress is the address with which this machine reaches a host.
func LocalAddress(host string) (netip.Addr, error) {
	conn, err := net.Dial("udp", net.JoinHostPort(host, "9")) // sends nothing
	if err != nil {
		return netip.Addr{}, err
	}
	defer conn.Close()
	a, _ := netip.AddrFromSlice(conn.LocalAddr().(*net.UDPAddr).IP)
	return a.Unmap(), nil
}
