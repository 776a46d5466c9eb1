package install

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
)

// Uninstalling goes in this order, and may be repeated from the start:
//
//	do pods need it? ──► delete the processes ──► clean each node, by a pod ──► delete the rest
//
// Nodes are cleaned only when nothing of Weft runs there any longer.

// Uninstaller removes Weft from one cluster.
type Uninstaller struct {
	Client    kubernetes.Interface
	Namespace string
	// Image cleans the nodes; empty: that of the agents, which then have to be there.
	Image string
	// Force goes on although pods lose their network, Purge deletes what a later installation
	// would begin with too.
	Force, Purge bool
	// Say is called with each step.
	Say func(text string)
}

// Removed is what uninstalling has done.
type Removed struct {
	// Objects are those that were deleted in Kubernetes, Kept those that stay there.
	Objects []string `json:"objects"`
	Kept    []string `json:"kept"`
	// Nodes are the reports of nodes, by name.
	Nodes map[string]json.RawMessage `json:"nodes"`
}

const (
	// cleaner is the DaemonSet whose pods clean the nodes.
	cleaner = "weft-uninstall"
	// keptPrefix begins the names of Secrets with what a new store begins with.
	keptPrefix = "weft-kept"
	// cleanTurn is how often it is looked at.
	cleanTurn = time.Second
)

// ErrInUse says that pods would lose their network.
var ErrInUse = errors.New("pods have their network from Weft")

// Run removes Weft. When ctx ends before all nodes are clean, the error names those that are
// not, and running it again goes on.
func (u *Uninstaller) Run(ctx context.Context) (*Removed, error) {
	out := &Removed{Objects: []string{}, Kept: []string{}, Nodes: map[string]json.RawMessage{}}
	agents, err := u.Client.AppsV1().DaemonSets(u.Namespace).Get(ctx, "weft-agent", metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		agents, err = nil, nil
	}
	if err != nil {
		return out, err
	}
	if agents != nil && agents.Labels["app.kubernetes.io/managed-by"] == "Helm" && agents.Annotations["meta.helm.sh/release-name"] != "" {
		return out, fmt.Errorf("helm has installed Weft here, and would have it again: run `helm uninstall %s -n %s`, then this again with --image", agents.Annotations["meta.helm.sh/release-name"], u.Namespace)
	}
	if err := u.unused(ctx); err != nil {
		return out, err
	}
	clean, err := u.cleaner(ctx, agents)
	if err != nil {
		return out, err
	}
	// Kept until the nodes are clean: what it is made of is known from the agents alone.
	if err := u.begin(ctx, clean, out); err != nil {
		return out, err
	}
	if err := u.await(ctx, out); err != nil {
		return out, err
	}
	return out, u.rest(ctx, out)
}

// unused refuses while pods have their network from Weft.
func (u *Uninstaller) unused(ctx context.Context) error {
	pods, err := u.Client.CoreV1().Pods("").List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	var names []string
	for _, p := range pods.Items {
		if !p.Spec.HostNetwork && p.Spec.NodeName != "" && p.Status.Phase != corev1.PodSucceeded && p.Status.Phase != corev1.PodFailed {
			names = append(names, p.Namespace+"/"+p.Name)
		}
	}
	if len(names) == 0 {
		return nil
	}
	slices.Sort(names)
	if u.Force {
		u.Say(fmt.Sprintf("%d pods lose their network; delete them once another plugin is there", len(names)))
		return nil
	}
	some := strings.Join(names[:min(5, len(names))], ", ")
	if len(names) > 5 {
		some += fmt.Sprintf(" and %d more", len(names)-5)
	}
	return fmt.Errorf("%w: %s", ErrInUse, some)
}

// cleaner is the DaemonSet that cleans the nodes. It has the agents' image and folders; one
// that is there from an earlier attempt is used as it is.
func (u *Uninstaller) cleaner(ctx context.Context, agents *appsv1.DaemonSet) (*appsv1.DaemonSet, error) {
	was, err := u.Client.AppsV1().DaemonSets(u.Namespace).Get(ctx, cleaner, metav1.GetOptions{})
	if err == nil {
		return was, nil
	}
	if !apierrors.IsNotFound(err) {
		return nil, err
	}
	image, pull, secrets := u.Image, corev1.PullIfNotPresent, []corev1.LocalObjectReference(nil)
	confDir, binDir, dirs := "/etc/cni/net.d", "/opt/cni/bin", []string{}
	if agents != nil {
		pod := agents.Spec.Template.Spec
		image, pull, secrets = orImage(u.Image, pod.Containers[0].Image), pod.Containers[0].ImagePullPolicy, pod.ImagePullSecrets
		for _, v := range pod.Volumes {
			switch {
			case v.HostPath == nil:
			case v.Name == "cni-conf":
				confDir = v.HostPath.Path
			case v.Name == "cni-bin":
				binDir = v.HostPath.Path
			case v.Name == "data":
				dirs = append(dirs, v.HostPath.Path)
			}
		}
	}
	servers, err := u.Client.AppsV1().Deployments(u.Namespace).Get(ctx, "weft-apiserver", metav1.GetOptions{})
	if err == nil {
		for _, v := range servers.Spec.Template.Spec.Volumes {
			if v.Name == "data" && v.HostPath != nil {
				dirs = append(dirs, v.HostPath.Path)
			}
		}
	} else if !apierrors.IsNotFound(err) {
		return nil, err
	}
	if image == "" {
		return nil, errors.New("there are no agents whose image could clean the nodes: give it with --image")
	}
	return cleanerOf(u.Namespace, image, pull, secrets, confDir, binDir, slices.DeleteFunc(dirs, func(dir string) bool { return strings.HasPrefix(dir, "/var/lib/weft/") })), nil
}

func orImage(given, found string) string {
	if given != "" {
		return given
	}
	return found
}

// cleanerOf makes the DaemonSet. Its pods are ready once they have cleaned their nodes.
func cleanerOf(namespace, image string, pull corev1.PullPolicy, secrets []corev1.LocalObjectReference, confDir, binDir string, dirs []string) *appsv1.DaemonSet {
	yes, no, grace := true, false, int64(1)
	labels := map[string]string{"app.kubernetes.io/name": "weft", "app.kubernetes.io/component": "uninstall"}
	both := corev1.MountPropagationHostToContainer
	var mounts []corev1.VolumeMount
	var volumes []corev1.Volume
	for i, path := range append([]string{"/var/lib", "/run", "/sys/fs/bpf", confDir, binDir}, dirs...) {
		name := fmt.Sprintf("dir-%d", i)
		mounts = append(mounts, corev1.VolumeMount{Name: name, MountPath: path, MountPropagation: &both})
		kind := corev1.HostPathDirectoryOrCreate
		volumes = append(volumes, corev1.Volume{Name: name, VolumeSource: corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: path, Type: &kind}}})
	}
	args := []string{"uninstall", "--node", "--force", "-o", "json", "--cni-conf-dir", confDir, "--cni-bin-dir", binDir}
	for _, dir := range dirs {
		args = append(args, "--dir", dir)
	}
	container := func(name string, args ...string) corev1.Container {
		return corev1.Container{Name: name, Image: image, ImagePullPolicy: pull, Args: args, SecurityContext: &corev1.SecurityContext{Privileged: &yes, ReadOnlyRootFilesystem: &yes}}
	}
	clean := container("clean", args...)
	clean.VolumeMounts = mounts
	done := container("done", "uninstall", "--node", "--done")
	done.SecurityContext = &corev1.SecurityContext{AllowPrivilegeEscalation: &no, ReadOnlyRootFilesystem: &yes, Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}}}
	return &appsv1.DaemonSet{
		ObjectMeta: metav1.ObjectMeta{Name: cleaner, Namespace: namespace, Labels: labels},
		Spec: appsv1.DaemonSetSpec{
			Selector: &metav1.LabelSelector{MatchLabels: labels},
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: labels},
				Spec: corev1.PodSpec{
					HostNetwork: true, AutomountServiceAccountToken: &no, ImagePullSecrets: secrets, TerminationGracePeriodSeconds: &grace, PriorityClassName: "system-node-critical",
					Tolerations:    []corev1.Toleration{{Operator: corev1.TolerationOpExists}},
					InitContainers: []corev1.Container{clean}, Containers: []corev1.Container{done}, Volumes: volumes,
				},
			},
		},
	}
}

// begin deletes the processes and, once their pods are gone, has the nodes cleaned.
func (u *Uninstaller) begin(ctx context.Context, clean *appsv1.DaemonSet, out *Removed) error {
	if clean.UID != "" {
		return nil // it has begun
	}
	background := metav1.DeletePropagationBackground
	gone := metav1.DeleteOptions{PropagationPolicy: &background}
	apps := u.Client.AppsV1()
	for _, name := range []string{"weft-agent", "weft-tunnel"} {
		if err := u.deleted(out, "DaemonSet "+name, apps.DaemonSets(u.Namespace).Delete(ctx, name, gone)); err != nil {
			return err
		}
	}
	if err := u.deleted(out, "Deployment weft-apiserver", apps.Deployments(u.Namespace).Delete(ctx, "weft-apiserver", gone)); err != nil {
		return err
	}
	for {
		pods, err := u.Client.CoreV1().Pods(u.Namespace).List(ctx, metav1.ListOptions{LabelSelector: "app.kubernetes.io/component in (agent,tunnel,apiserver)"})
		if err == nil && len(pods.Items) == 0 {
			break
		}
		if !pause(ctx) {
			return fmt.Errorf("Weft's pods do not end; look at `kubectl -n %s get pods`, then run this again: %w", u.Namespace, ctx.Err())
		}
	}
	_, err := apps.DaemonSets(u.Namespace).Create(ctx, clean, metav1.CreateOptions{})
	return err
}

// await waits until all nodes are clean, and reads what was removed from each.
func (u *Uninstaller) await(ctx context.Context, out *Removed) error {
	for {
		why := u.look(ctx, out)
		if why == nil {
			return nil
		}
		if !pause(ctx) {
			return fmt.Errorf("%w; run this again to go on", why)
		}
	}
}

// look says which nodes are not clean yet; nil if all are.
func (u *Uninstaller) look(ctx context.Context, out *Removed) error {
	d, err := u.Client.AppsV1().DaemonSets(u.Namespace).Get(ctx, cleaner, metav1.GetOptions{})
	if err != nil {
		return err
	}
	pods, err := u.Client.CoreV1().Pods(u.Namespace).List(ctx, metav1.ListOptions{LabelSelector: "app.kubernetes.io/component=uninstall"})
	if err != nil {
		return err
	}
	if d.Status.ObservedGeneration < d.Generation || int(d.Status.DesiredNumberScheduled) > len(pods.Items) {
		return errors.New("waiting for Kubernetes to start a pod on each node")
	}
	var waiting []string
	for _, p := range pods.Items {
		node := p.Spec.NodeName
		switch {
		case out.Nodes[node] != nil:
		case !isReady(p):
			waiting = append(waiting, node)
		default:
			text, err := u.Client.CoreV1().Pods(u.Namespace).GetLogs(p.Name, &corev1.PodLogOptions{Container: "clean"}).DoRaw(ctx)
			if err != nil {
				return fmt.Errorf("node %s is clean, and its report cannot be read: %w", node, err)
			}
			if !json.Valid(text) {
				text, _ = json.Marshal(string(text))
			}
			out.Nodes[node] = text
			u.Say("node " + node + " is clean")
		}
	}
	if len(waiting) > 0 {
		slices.Sort(waiting)
		return fmt.Errorf("nodes %s are not clean; `kubectl -n %s logs -l app.kubernetes.io/component=uninstall -c clean` says why", strings.Join(waiting, ", "), u.Namespace)
	}
	return nil
}

func isReady(p corev1.Pod) bool {
	return slices.ContainsFunc(p.Status.Conditions, func(c corev1.PodCondition) bool { return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue })
}

// rest deletes what is left in Kubernetes.
func (u *Uninstaller) rest(ctx context.Context, out *Removed) error {
	now := metav1.DeleteOptions{}
	core, rbac := u.Client.CoreV1(), u.Client.RbacV1()
	type deletion struct {
		what string
		do   func() error
	}
	all := []deletion{
		{"DaemonSet " + cleaner, func() error { return u.Client.AppsV1().DaemonSets(u.Namespace).Delete(ctx, cleaner, now) }},
		{"PodDisruptionBudget weft-apiserver", func() error {
			return u.Client.PolicyV1().PodDisruptionBudgets(u.Namespace).Delete(ctx, "weft-apiserver", now)
		}},
		{"RoleBinding weft-apiserver", func() error { return rbac.RoleBindings(u.Namespace).Delete(ctx, "weft-apiserver", now) }},
		{"Role weft-apiserver", func() error { return rbac.Roles(u.Namespace).Delete(ctx, "weft-apiserver", now) }},
		{"ClusterRoleBinding weft-apiserver", func() error { return rbac.ClusterRoleBindings().Delete(ctx, "weft-apiserver", now) }},
		{"ClusterRole weft-apiserver", func() error { return rbac.ClusterRoles().Delete(ctx, "weft-apiserver", now) }},
		{"ServiceAccount weft-agent", func() error { return core.ServiceAccounts(u.Namespace).Delete(ctx, "weft-agent", now) }},
		{"ServiceAccount weft-apiserver", func() error { return core.ServiceAccounts(u.Namespace).Delete(ctx, "weft-apiserver", now) }},
		{"ConfigMap weft-bootstrap", func() error { return core.ConfigMaps(u.Namespace).Delete(ctx, "weft-bootstrap", now) }},
		{"ConfigMap weft-members", func() error { return core.ConfigMaps(u.Namespace).Delete(ctx, "weft-members", now) }},
		{"Secret weft-operator", func() error { return core.Secrets(u.Namespace).Delete(ctx, "weft-operator", now) }},
	}
	if u.Purge {
		all = append(all, deletion{"Namespace " + u.Namespace, func() error { return core.Namespaces().Delete(ctx, u.Namespace, now) }})
	}
	for _, d := range all {
		if err := u.deleted(out, d.what, d.do()); err != nil {
			return err
		}
	}
	if u.Purge {
		return nil
	}
	secrets, err := core.Secrets(u.Namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	for _, s := range secrets.Items {
		if strings.HasPrefix(s.Name, keptPrefix) {
			out.Kept = append(out.Kept, fmt.Sprint("Secret ", types.NamespacedName{Namespace: u.Namespace, Name: s.Name}))
		}
	}
	return nil
}

// deleted notes that an object was deleted, if it was there.
func (u *Uninstaller) deleted(out *Removed, what string, err error) error {
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("delete %s: %w", what, err)
	}
	out.Objects = append(out.Objects, what)
	u.Say(what + " deleted")
	return nil
}

func pause(ctx context.Context) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(cleanTurn):
		return true
	}
}
