package install

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/restmapper"
)

// manager is who owns the fields that are applied.
const manager = "weft-install"

// Installer applies objects to one cluster.
type Installer struct {
	client  dynamic.Interface
	mapper  meta.RESTMapper
	version string
	// Say is called with each step.
	Say func(text string)
}

// NewInstaller connects to a cluster.
func NewInstaller(conf *rest.Config) (*Installer, error) {
	d, err := discovery.NewDiscoveryClientForConfig(conf)
	if err != nil {
		return nil, err
	}
	v, err := d.ServerVersion()
	if err != nil {
		return nil, fmt.Errorf("ask the Kubernetes API server for its version: %w", err)
	}
	groups, err := restmapper.GetAPIGroupResources(d)
	if err != nil {
		return nil, fmt.Errorf("ask the Kubernetes API server for its resources: %w", err)
	}
	client, err := dynamic.NewForConfig(conf)
	if err != nil {
		return nil, err
	}
	return &Installer{client: client, mapper: restmapper.NewDiscoveryRESTMapper(groups), version: v.GitVersion, Say: func(string) {}}, nil
}

// Version is that of the cluster's Kubernetes.
func (i *Installer) Version() string { return i.version }

// Apply makes the cluster have the objects, and their namespace, as they are given. It may be
// repeated: what is right already stays untouched. With dry, the API server only says what it
// would do.
func (i *Installer) Apply(ctx context.Context, namespace string, objects []*unstructured.Unstructured, dry bool) error {
	ns := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "v1", "kind": "Namespace",
		"metadata": map[string]any{"name": namespace, "labels": map[string]any{"pod-security.kubernetes.io/enforce": "privileged"}},
	}}
	for _, o := range append([]*unstructured.Unstructured{ns}, objects...) {
		apply := i.apply
		if offered(o) {
			apply = i.offer
		}
		what, err := apply(ctx, o, dry)
		if dry && apierrors.IsNotFound(err) && o.GetNamespace() == namespace {
			what, err = "would be created", nil // together with its namespace
		}
		if err != nil {
			return fmt.Errorf("apply %s %s: %w", o.GetKind(), o.GetName(), err)
		}
		i.Say(fmt.Sprintf("%s %s %s", o.GetKind(), o.GetName(), what))
	}
	return nil
}

// offer creates a definition that others may bring too, Cilium for example: theirs is never
// touched. One that an earlier version has brought is applied.
func (i *Installer) offer(ctx context.Context, o *unstructured.Unstructured, dry bool) (string, error) {
	r, err := i.resource(o)
	if err != nil {
		return "", err
	}
	is, err := r.Get(ctx, o.GetName(), metav1.GetOptions{})
	switch {
	case err != nil && !apierrors.IsNotFound(err):
		return "", err
	case err == nil && !ours(is):
		return "is there already, and is left as it is", nil
	}
	return i.apply(ctx, o, dry)
}

// RemoveDefinitions removes the definitions of Definitions that were installed here and of
// which there are no objects. The others stay, with their objects; it says which.
func (i *Installer) RemoveDefinitions(ctx context.Context) error {
	all, err := Definitions()
	if err != nil {
		return err
	}
	for _, o := range all {
		r, err := i.resource(o)
		if err != nil {
			return err
		}
		is, err := r.Get(ctx, o.GetName(), metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			continue
		}
		if err != nil {
			return err
		}
		if !ours(is) {
			i.Say(fmt.Sprintf("%s %s is not Weft's, and stays", o.GetKind(), o.GetName()))
			continue
		}
		group, _, _ := unstructured.NestedString(is.Object, "spec", "group")
		plural, _, _ := unstructured.NestedString(is.Object, "spec", "names", "plural")
		list, err := i.client.Resource(schema.GroupVersionResource{Group: group, Version: stored(is), Resource: plural}).List(ctx, metav1.ListOptions{Limit: 1})
		if err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("list %s: %w", o.GetName(), err)
		}
		if err == nil && len(list.Items) > 0 {
			i.Say(fmt.Sprintf("%s %s stays, because there are objects of it", o.GetKind(), o.GetName()))
			continue
		}
		// Not if somebody has changed it meanwhile, Cilium for example.
		version := is.GetResourceVersion()
		if err := r.Delete(ctx, o.GetName(), metav1.DeleteOptions{Preconditions: &metav1.Preconditions{ResourceVersion: &version}}); err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("delete %s %s: %w", o.GetKind(), o.GetName(), err)
		}
		i.Say(fmt.Sprintf("%s %s deleted", o.GetKind(), o.GetName()))
	}
	return nil
}

// stored is the version in which a definition's objects are kept.
func stored(definition *unstructured.Unstructured) string {
	versions, _, _ := unstructured.NestedSlice(definition.Object, "spec", "versions")
	for _, v := range versions {
		if v, ok := v.(map[string]any); ok && v["storage"] == true {
			name, _ := v["name"].(string)
			return name
		}
	}
	return ""
}

// apply applies one object, and says what has become of it.
func (i *Installer) apply(ctx context.Context, o *unstructured.Unstructured, dry bool) (string, error) {
	r, err := i.resource(o)
	if err != nil {
		return "", err
	}
	before, err := r.Get(ctx, o.GetName(), metav1.GetOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return "", err
	}
	existed := err == nil
	text, err := json.Marshal(o)
	if err != nil {
		return "", err
	}
	force := true
	options := metav1.PatchOptions{FieldManager: manager, Force: &force}
	would := ""
	if dry {
		options.DryRun, would = []string{metav1.DryRunAll}, "would be "
	}
	after, err := r.Patch(ctx, o.GetName(), types.ApplyPatchType, text, options)
	switch {
	case err != nil:
		return "", err
	case !existed:
		return would + "created", nil
	case same(before, after):
		return "unchanged", nil
	}
	return would + "changed", nil
}

// same says whether two states of an object differ in nothing that counts.
func same(a, b *unstructured.Unstructured) bool {
	bare := func(o *unstructured.Unstructured) map[string]any {
		o = o.DeepCopy()
		o.SetManagedFields(nil)
		o.SetResourceVersion("")
		o.SetGeneration(0)
		return o.Object
	}
	return reflect.DeepEqual(bare(a), bare(b))
}

func (i *Installer) resource(o *unstructured.Unstructured) (dynamic.ResourceInterface, error) {
	kind := o.GroupVersionKind()
	m, err := i.mapper.RESTMapping(kind.GroupKind(), kind.Version)
	if err != nil {
		return nil, fmt.Errorf("this Kubernetes has no %s: %w", kind, err)
	}
	if m.Scope.Name() == meta.RESTScopeNameNamespace {
		return i.client.Resource(m.Resource).Namespace(o.GetNamespace()), nil
	}
	return i.client.Resource(m.Resource), nil
}

// waitTurn is how often Wait looks.
const waitTurn = time.Second

// Wait returns once all pods of the objects run and are ready, as they are now. When ctx
// ends before that, the error says what is missing.
func (i *Installer) Wait(ctx context.Context, objects []*unstructured.Unstructured) error {
	for _, o := range objects {
		var told string
		for {
			missing, err := i.missing(ctx, o)
			if err == nil && missing == "" {
				break
			}
			if err != nil {
				missing = err.Error()
			}
			if missing != told && ctx.Err() == nil {
				i.Say(fmt.Sprintf("%s %s: %s", o.GetKind(), o.GetName(), missing))
				told = missing
			}
			select {
			case <-ctx.Done():
				return fmt.Errorf("%s %s/%s is not ready: %s; `kubectl -n %s describe pods` says why", o.GetKind(), o.GetNamespace(), o.GetName(), cmp.Or(told, missing), o.GetNamespace())
			case <-time.After(waitTurn):
			}
		}
	}
	return nil
}

// missing says what an object lacks; "" if nothing.
func (i *Installer) missing(ctx context.Context, o *unstructured.Unstructured) (string, error) {
	if kind := o.GetKind(); kind != "Deployment" && kind != "DaemonSet" {
		return "", nil
	}
	r, err := i.resource(o)
	if err != nil {
		return "", err
	}
	is, err := r.Get(ctx, o.GetName(), metav1.GetOptions{})
	if err != nil {
		return "", err
	}
	if o.GetKind() == "Deployment" {
		var d appsv1.Deployment
		if err := runtime.DefaultUnstructuredConverter.FromUnstructured(is.Object, &d); err != nil {
			return "", err
		}
		return missingOf(d.Status.ObservedGeneration >= d.Generation, *d.Spec.Replicas, min(d.Status.UpdatedReplicas, d.Status.AvailableReplicas)), nil
	}
	var d appsv1.DaemonSet
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(is.Object, &d); err != nil {
		return "", err
	}
	return missingOf(d.Status.ObservedGeneration >= d.Generation, d.Status.DesiredNumberScheduled, min(d.Status.UpdatedNumberScheduled, d.Status.NumberAvailable)), nil
}

func missingOf(seen bool, want, have int32) string {
	switch {
	case !seen:
		return "waiting for Kubernetes to act on it"
	case have < want:
		return fmt.Sprintf("%d of %d pods are ready", have, want)
	}
	return ""
}

// ErrNoCluster says that nothing names a Kubernetes cluster.
var ErrNoCluster = errors.New("no Kubernetes cluster is named: give --kubeconfig, or set KUBECONFIG")
