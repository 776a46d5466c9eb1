package kubernetes

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"

	"github.com/weft-mesh/weft/apiserver/declared"
)

// Objects writes Weft's own objects, and reads what they refer to. Safe for concurrent use.
type Objects struct {
	// Access returns how to reach Kubernetes, and Namespace is Weft's own there.
	Access    func() (*rest.Config, error)
	Namespace string

	mu     sync.Mutex // guards client
	client dynamic.Interface
}

func (o *Objects) dynamic() (dynamic.Interface, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.client != nil {
		return o.client, nil
	}
	conf, err := o.Access()
	if err != nil {
		return nil, err
	}
	conf = rest.CopyConfig(conf)
	conf.UserAgent, conf.QPS, conf.Burst = "weft-apiserver", requestsPerSecond, requestsAtOnce
	o.client, err = dynamic.NewForConfig(conf)
	return o.client, err
}

// of is the client of a resource.
func (o *Objects) of(group schema.GroupVersion, plural string) (dynamic.NamespaceableResourceInterface, error) {
	c, err := o.dynamic()
	if err != nil {
		return nil, err
	}
	return c.Resource(group.WithResource(plural)), nil
}

// Token implements declared.Kubernetes.
func (o *Objects) Token(ctx context.Context, secret string) ([]byte, error) {
	secrets, err := o.of(schema.GroupVersion{Version: "v1"}, "secrets")
	if err != nil {
		return nil, err
	}
	is, err := secrets.Namespace(o.Namespace).Get(ctx, secret, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil, fmt.Errorf("there is no Secret %s in namespace %s: create it, with the key token", secret, o.Namespace)
	}
	if err != nil {
		return nil, fmt.Errorf("Secret %s/%s cannot be read: %s", o.Namespace, secret, cause(err))
	}
	text, err := json.Marshal(is.Object["data"]) // base64, as []byte is
	if err != nil {
		return nil, err
	}
	var data map[string][]byte
	if err := json.Unmarshal(text, &data); err != nil || data["token"] == nil {
		return nil, fmt.Errorf("Secret %s/%s has no key token: add it", o.Namespace, secret)
	}
	return []byte(strings.TrimSpace(string(data["token"]))), nil
}

// ShowPeer implements declared.Kubernetes.
func (o *Objects) ShowPeer(ctx context.Context, name, uid string, s declared.Status) error {
	r, err := o.of(ownGroup, peers)
	if err != nil {
		return err
	}
	is, err := r.Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) || err == nil && uid != "" && string(is.GetUID()) != uid {
		return nil // it has gone; the next one is another one
	}
	if err != nil {
		return err
	}
	was, _, _ := unstructured.NestedSlice(is.Object, "status", "conditions")
	conditions := []any{}
	for _, c := range s.Conditions {
		since := time.Now().UTC().Format(time.RFC3339)
		for _, old := range was {
			if old, ok := old.(map[string]any); ok && old["type"] == c.Type && old["status"] == c.Status {
				since, _ = old["lastTransitionTime"].(string)
			}
		}
		conditions = append(conditions, map[string]any{
			"type": c.Type, "status": c.Status, "reason": c.Reason, "message": c.Message,
			"lastTransitionTime": since, "observedGeneration": is.GetGeneration(),
		})
	}
	status := map[string]any{"observedGeneration": is.GetGeneration(), "conditions": conditions, "id": nil, "podCIDRs": nil}
	if s.ID != 0 {
		status["id"], status["podCIDRs"] = s.ID, s.PodCIDRs
	}
	return o.patchStatus(ctx, r, name, is.GetResourceVersion(), status)
}

// patchStatus replaces fields of a status, if the object is still as it was read.
func (o *Objects) patchStatus(ctx context.Context, r dynamic.ResourceInterface, name, version string, status map[string]any) error {
	patch := map[string]any{"status": status}
	if version != "" {
		patch["metadata"] = map[string]any{"resourceVersion": version}
	}
	text, err := json.Marshal(patch)
	if err != nil {
		return err
	}
	_, err = r.Patch(ctx, name, types.MergePatchType, text, metav1.PatchOptions{}, "status")
	return err
}

// Node is what a WeftNode shows.
type Node struct {
	Name string
	// UID is that of its Node, with which the object goes; "" if it has none.
	UID                                string
	State, Message                     string
	Addresses, PodCIDRs, MeshAddresses []string
}

const weftNodes = "weftnodes"

// ErrUndefined: the kinds of Weft's own objects are not defined there.
var ErrUndefined = errors.New("weftnodes.weft.io is not defined in Kubernetes; install again to define it")

// Nodes lists what WeftNodes show.
func (o *Objects) Nodes(ctx context.Context) (map[string]Node, error) {
	r, err := o.of(ownGroup, weftNodes)
	if err != nil {
		return nil, err
	}
	list, err := r.List(ctx, metav1.ListOptions{})
	if apierrors.IsNotFound(err) {
		return nil, ErrUndefined
	}
	if err != nil {
		return nil, err
	}
	out := map[string]Node{}
	for _, is := range list.Items {
		n := Node{Name: is.GetName()}
		for _, owner := range is.GetOwnerReferences() {
			n.UID = string(owner.UID)
		}
		n.State, _, _ = unstructured.NestedString(is.Object, "status", "state")
		n.Message, _, _ = unstructured.NestedString(is.Object, "status", "message")
		n.Addresses, _, _ = unstructured.NestedStringSlice(is.Object, "status", "addresses")
		n.PodCIDRs, _, _ = unstructured.NestedStringSlice(is.Object, "status", "podCIDRs")
		n.MeshAddresses, _, _ = unstructured.NestedStringSlice(is.Object, "status", "meshAddresses")
		out[n.Name] = n
	}
	return out, nil
}

// ShowNode writes a WeftNode; create says that there is none.
func (o *Objects) ShowNode(ctx context.Context, n Node, create bool) error {
	r, err := o.of(ownGroup, weftNodes)
	if err != nil {
		return err
	}
	if create {
		o := &unstructured.Unstructured{Object: map[string]any{"apiVersion": ownGroup.String(), "kind": "WeftNode"}}
		o.SetName(n.Name)
		if n.UID != "" {
			o.SetOwnerReferences([]metav1.OwnerReference{{APIVersion: "v1", Kind: "Node", Name: n.Name, UID: types.UID(n.UID)}})
		}
		_, err := r.Create(ctx, o, metav1.CreateOptions{})
		if err != nil && !apierrors.IsAlreadyExists(err) {
			return err
		}
	}
	return o.patchStatus(ctx, r, n.Name, "", map[string]any{
		"state": n.State, "message": n.Message, "addresses": n.Addresses, "podCIDRs": n.PodCIDRs, "meshAddresses": n.MeshAddresses,
	})
}

// HideNode deletes a WeftNode.
func (o *Objects) HideNode(ctx context.Context, name string) error {
	r, err := o.of(ownGroup, weftNodes)
	if err != nil {
		return err
	}
	if err := r.Delete(ctx, name, metav1.DeleteOptions{}); !apierrors.IsNotFound(err) {
		return err
	}
	return nil
}
