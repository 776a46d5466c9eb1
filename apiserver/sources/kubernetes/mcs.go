package kubernetes

import (
	"context"
	"encoding/json"
	"errors"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
	api "sigs.k8s.io/mcs-api/pkg/apis/v1beta1"

	"github.com/weft-mesh/weft/apiserver/mcs"
)

// ClusterSet writes to Kubernetes what package mcs derives, by server-side apply. It
// implements mcs.Outside.
type ClusterSet struct {
	Access func() (*rest.Config, error)

	mu     sync.Mutex // guards what follows
	client dynamic.Interface
}

const (
	manager      = "weft-mcs"
	managedLabel = "app.kubernetes.io/managed-by"
	managedValue = "weft"
	// writeLimit bounds one request.
	writeLimit = 5 * time.Second
)

var (
	mcsGroup    = schema.GroupVersion(api.GroupVersion)
	mcsServices = corev1.SchemeGroupVersion.WithResource("services")
	mcsImports  = mcsGroup.WithResource("serviceimports")
	mcsExports  = mcsGroup.WithResource("serviceexports")
)

func (c *ClusterSet) open() (dynamic.Interface, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.client != nil {
		return c.client, nil
	}
	conf, err := c.Access()
	if err != nil {
		return nil, err
	}
	conf = rest.CopyConfig(conf)
	conf.UserAgent, conf.QPS, conf.Burst = "weft-apiserver", requestsPerSecond, requestsAtOnce
	c.client, err = dynamic.NewForConfig(conf)
	return c.client, err
}

// apply writes the fields of an object that are given; sub is a subresource, or empty.
func (c *ClusterSet) apply(ctx context.Context, r schema.GroupVersionResource, ns, name string, object any, sub ...string) error {
	client, err := c.open()
	if err != nil {
		return err
	}
	text, err := json.Marshal(object)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, writeLimit)
	defer cancel()
	force := true
	_, err = client.Resource(r).Namespace(ns).Patch(ctx, name, types.ApplyPatchType, text, metav1.PatchOptions{FieldManager: manager, Force: &force}, sub...)
	return err
}

func (c *ClusterSet) delete(ctx context.Context, r schema.GroupVersionResource, ns, name string) error {
	client, err := c.open()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, writeLimit)
	defer cancel()
	if err = client.Resource(r).Namespace(ns).Delete(ctx, name, metav1.DeleteOptions{}); apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

// head identifies an object that is applied.
type head struct {
	Namespace   string            `json:"namespace"`
	Name        string            `json:"name"`
	Labels      map[string]string `json:"labels,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

func managed(m metav1.ObjectMeta) head {
	labels := map[string]string{managedLabel: managedValue}
	for k, v := range m.Labels {
		labels[k] = v
	}
	return head{m.Namespace, m.Name, labels, m.Annotations}
}

type applied struct {
	metav1.TypeMeta `json:",inline"`
	Head            head `json:"metadata"`
	Spec            any  `json:"spec,omitempty"`
	Status          any  `json:"status,omitempty"`
}

// PutService implements mcs.Outside.
func (c *ClusterSet) PutService(ctx context.Context, svc *corev1.Service) error {
	return c.apply(ctx, mcsServices, svc.Namespace, svc.Name, applied{TypeMeta: svc.TypeMeta, Head: managed(svc.ObjectMeta), Spec: svc.Spec})
}

// DeleteService implements mcs.Outside.
func (c *ClusterSet) DeleteService(ctx context.Context, ns, name string) error {
	return c.delete(ctx, mcsServices, ns, name)
}

// PutImport implements mcs.Outside.
func (c *ClusterSet) PutImport(ctx context.Context, i *api.ServiceImport) error {
	put := applied{TypeMeta: i.TypeMeta, Head: managed(i.ObjectMeta), Spec: i.Spec}
	if err := c.apply(ctx, mcsImports, i.Namespace, i.Name, put); err != nil {
		return undefined(err)
	}
	put = applied{TypeMeta: i.TypeMeta, Head: head{Namespace: i.Namespace, Name: i.Name}, Status: i.Status}
	return undefined(c.apply(ctx, mcsImports, i.Namespace, i.Name, put, "status"))
}

// undefined tells that nobody has installed the definition, and so nobody looks for imports.
func undefined(err error) error {
	if apierrors.IsNotFound(err) {
		return errors.Join(mcs.ErrUndefined, err)
	}
	return err
}

// DeleteImport implements mcs.Outside.
func (c *ClusterSet) DeleteImport(ctx context.Context, ns, name string) error {
	return c.delete(ctx, mcsImports, ns, name)
}

// Imports implements mcs.Outside.
func (c *ClusterSet) Imports(ctx context.Context) (names []mcs.Name, err error) {
	client, err := c.open()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, writeLimit)
	defer cancel()
	list, err := client.Resource(mcsImports).List(ctx, metav1.ListOptions{LabelSelector: managedLabel + "=" + managedValue})
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	for _, o := range list.Items {
		names = append(names, mcs.Name{Namespace: o.GetNamespace(), Name: o.GetName()})
	}
	return names, nil
}

// PutExportStatus implements mcs.Outside.
func (c *ClusterSet) PutExportStatus(ctx context.Context, ns, name string, s api.ServiceExportStatus) error {
	err := c.apply(ctx, mcsExports, ns, name, applied{
		TypeMeta: metav1.TypeMeta{APIVersion: api.GroupVersion.String(), Kind: "ServiceExport"},
		Head:     head{Namespace: ns, Name: name}, Status: s,
	}, "status")
	if apierrors.IsNotFound(err) {
		return nil // it has gone meanwhile
	}
	return err
}
