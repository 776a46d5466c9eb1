package install

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	k8stesting "k8s.io/client-go/testing"
)

// installed is a cluster with Weft, whose cleaning pods are ready at once if they may be.
func installed(ready bool, more ...runtime.Object) *fake.Clientset {
	at := metav1.ObjectMeta{Namespace: "weft-system"}
	named := func(name string) metav1.ObjectMeta { at.Name = name; return at }
	client := fake.NewClientset(append([]runtime.Object{
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "weft-system"}},
		&appsv1.DaemonSet{ObjectMeta: named("weft-agent"), Spec: appsv1.DaemonSetSpec{Template: corev1.PodTemplateSpec{Spec: corev1.PodSpec{
			Containers: []corev1.Container{{Name: "agent", Image: "example/weft:v1"}},
			Volumes: []corev1.Volume{
				{Name: "cni-bin", VolumeSource: corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: "/srv/cni"}}},
				{Name: "data", VolumeSource: corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: "/data/weft"}}},
			},
		}}}},
		&appsv1.DaemonSet{ObjectMeta: named("weft-tunnel")}, &appsv1.Deployment{ObjectMeta: named("weft-apiserver")},
		&corev1.Secret{ObjectMeta: named("weft-operator")}, &corev1.Secret{ObjectMeta: named("weft-kept")}, &corev1.Secret{ObjectMeta: named("weft-kept-7")},
		&corev1.ConfigMap{ObjectMeta: named("weft-members")}, &corev1.ServiceAccount{ObjectMeta: named("weft-agent")},
		&rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: "weft-apiserver"}},
	}, more...)...)
	client.PrependReactor("create", "daemonsets", func(a k8stesting.Action) (bool, runtime.Object, error) {
		d := a.(k8stesting.CreateAction).GetObject().(*appsv1.DaemonSet)
		d.UID, d.Status.DesiredNumberScheduled = "u1", 1
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p", Namespace: "weft-system", Labels: d.Spec.Template.Labels}, Spec: d.Spec.Template.Spec}
		p.Spec.NodeName = "n1"
		if ready {
			p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}
		}
		return false, nil, client.Tracker().Add(p)
	})
	return client
}

func uninstaller(client *fake.Clientset) *Uninstaller {
	return &Uninstaller{Client: client, Namespace: "weft-system", Say: func(string) {}}
}

func TestUninstallingIsRefusedWhilePodsNeedIt(t *testing.T) {
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "web", Namespace: "shop"}, Spec: corev1.PodSpec{NodeName: "n1"}}
	client := installed(true, pod, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "host", Namespace: "shop"}, Spec: corev1.PodSpec{NodeName: "n1", HostNetwork: true}})
	if _, err := uninstaller(client).Run(t.Context()); !errors.Is(err, ErrInUse) || !strings.HasSuffix(err.Error(), ": shop/web") {
		t.Errorf("%v, want it to name shop/web alone", err)
	}
	for _, a := range client.Actions() {
		if a.GetVerb() != "get" && a.GetVerb() != "list" {
			t.Errorf("%s %s, and it was refused", a.GetVerb(), a.GetResource().Resource)
		}
	}
	u := uninstaller(client)
	u.Force = true
	if _, err := u.Run(t.Context()); err != nil {
		t.Error(err)
	}
}

// Nodes are cleaned after the processes have gone and before the rest, with the agents' image
// and folders.
func TestUninstallingGoesInOrder(t *testing.T) {
	client := installed(true)
	out, err := uninstaller(client).Run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if out.Nodes["n1"] == nil || !slices.Equal(out.Kept, []string{"Secret weft-system/weft-kept", "Secret weft-system/weft-kept-7"}) {
		t.Errorf("it says %+v", out)
	}
	want := []string{"delete daemonsets weft-agent", "delete daemonsets weft-tunnel", "delete deployments weft-apiserver", "create daemonsets weft-uninstall", "delete daemonsets weft-uninstall"}
	var did []string
	for _, a := range client.Actions() {
		switch a := a.(type) {
		case k8stesting.DeleteAction:
			did = append(did, "delete "+a.GetResource().Resource+" "+a.GetName())
		case k8stesting.CreateAction:
			if d, ok := a.GetObject().(*appsv1.DaemonSet); ok {
				did = append(did, "create daemonsets "+d.Name)
				c := d.Spec.Template.Spec.InitContainers[0]
				if args := strings.Join(c.Args, " "); c.Image != "example/weft:v1" || !strings.Contains(args, "--cni-bin-dir /srv/cni") || !strings.Contains(args, "--dir /data/weft") {
					t.Errorf("nodes are cleaned by %s with %q", c.Image, c.Args)
				}
			}
		}
	}
	if len(did) < len(want) || !slices.Equal(did[:len(want)], want) {
		t.Errorf("it did %q", did)
	}
	for _, name := range []string{"weft-kept", "weft-kept-7"} {
		if _, err := client.CoreV1().Secrets("weft-system").Get(t.Context(), name, metav1.GetOptions{}); err != nil {
			t.Error(err)
		}
	}
	if !slices.Contains(did, "delete clusterroles weft-apiserver") || !slices.Contains(did, "delete secrets weft-operator") {
		t.Errorf("it did %q", did)
	}
}

// A node that cannot be cleaned keeps everything that is needed to go on.
func TestUninstallingWaitsForEveryNode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := installed(false)
		ctx, stop := context.WithTimeout(t.Context(), time.Minute)
		defer stop()
		if _, err := uninstaller(client).Run(ctx); err == nil || !strings.Contains(err.Error(), "nodes n1 are not clean") {
			t.Errorf("%v, want it to name n1", err)
		}
		if _, err := client.AppsV1().DaemonSets("weft-system").Get(t.Context(), cleaner, metav1.GetOptions{}); err != nil {
			t.Error(err)
		}
		if _, err := client.CoreV1().Secrets("weft-system").Get(t.Context(), "weft-operator", metav1.GetOptions{}); err != nil {
			t.Error(err)
		}
	})
}

func TestWhatHelmHasInstalledIsLeftToIt(t *testing.T) {
	client := installed(true)
	d, err := client.AppsV1().DaemonSets("weft-system").Get(t.Context(), "weft-agent", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	d.Labels, d.Annotations = map[string]string{"app.kubernetes.io/managed-by": "Helm"}, map[string]string{"meta.helm.sh/release-name": "weft"}
	if _, err := client.AppsV1().DaemonSets("weft-system").Update(t.Context(), d, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := uninstaller(client).Run(t.Context()); err == nil || !strings.Contains(err.Error(), "helm uninstall weft -n weft-system") {
		t.Errorf("%v, want it to name helm uninstall", err)
	}
}
