package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	corev1 "k8s.io/api/core/v1"

	"github.com/weft-mesh/weft/manifest"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/wire"
)

// A manifest's status is not stored. A pod's status is derived from its endpoint when the
// pod is read. A pod without an endpoint is Pending.

// showStatus fills in the status of pods and service exports. Other kinds are left alone.
func (r *Registry) showStatus(ctx context.Context, kind Kind, namespace string, items []json.RawMessage) error {
	if kind.Plural == manifest.ServiceExports {
		return r.showExports(ctx, items)
	}
	if kind.Plural != manifest.Pods || len(items) == 0 {
		return nil
	}
	prefix := wire.EndpointsPrefix
	if namespace != "" {
		prefix += namespace + "/"
	}
	kvs, _, err := r.store.List(ctx, prefix)
	if err != nil {
		return storeError(err)
	}
	endpoints := make(map[string]wire.Endpoint, len(kvs))
	for _, kv := range kvs {
		if e, err := wire.Unmarshal[wire.Endpoint](kv.Value); err == nil {
			endpoints[e.Namespace+"/"+e.Pod] = e
		}
	}
	waits := r.waits(ctx)
	for i, item := range items {
		if items[i], err = podWithStatus(item, endpoints, waits); err != nil {
			return err
		}
	}
	return nil
}

// showOneStatus is showStatus for a single object.
func (r *Registry) showOneStatus(ctx context.Context, kind Kind, namespace, name string, item json.RawMessage) (json.RawMessage, error) {
	if kind.Plural == manifest.ServiceExports {
		items := []json.RawMessage{item}
		err := r.showExports(ctx, items)
		return items[0], err
	}
	if kind.Plural != manifest.Pods {
		return item, nil
	}
	endpoints := map[string]wire.Endpoint{}
	kv, err := r.store.Get(ctx, wire.EndpointKey(namespace, name))
	switch {
	case err == nil:
		if e, err := wire.Unmarshal[wire.Endpoint](kv.Value); err == nil {
			endpoints[e.Namespace+"/"+e.Pod] = e
		}
	case !errors.Is(err, store.ErrNotFound):
		return nil, storeError(err)
	}
	return podWithStatus(item, endpoints, r.waits(ctx))
}

// waits returns a function that says why a pod is not ready. It calls conf.Waits for the
// first such pod.
func (r *Registry) waits(ctx context.Context) func(*corev1.Pod) (reason, message string, err error) {
	var ask func(node, namespace, pod string) (string, string)
	return func(pod *corev1.Pod) (reason, message string, err error) {
		if ask == nil {
			if r.conf.Waits == nil {
				return "", "", nil
			}
			if ask, err = r.conf.Waits(ctx); err != nil {
				return "", "", storeError(err)
			}
		}
		reason, message = ask(pod.Spec.NodeName, pod.Namespace, pod.Name)
		return reason, message, nil
	}
}

func podWithStatus(item json.RawMessage, endpoints map[string]wire.Endpoint, waits func(*corev1.Pod) (reason, message string, err error)) (json.RawMessage, error) {
	var pod corev1.Pod
	if err := json.Unmarshal(item, &pod); err != nil {
		return nil, fmt.Errorf("read stored pod: %w", err)
	}
	e, known := endpoints[pod.Namespace+"/"+pod.Name]
	known = known && (e.UID == "" || e.UID == string(pod.UID))
	pod.Status = podStatus(e, known)
	if known && e.Ready {
		return json.Marshal(&pod)
	}
	reason, message, err := waits(&pod)
	if err != nil {
		return nil, err
	}
	pod.Status.Reason, pod.Status.Message = reason, message
	for i := range pod.Status.Conditions {
		pod.Status.Conditions[i].Reason, pod.Status.Conditions[i].Message = reason, message
	}
	return json.Marshal(&pod)
}

func podStatus(e wire.Endpoint, known bool) corev1.PodStatus {
	if !known || !e.IP.IsValid() {
		return corev1.PodStatus{Phase: corev1.PodPending}
	}
	ready := corev1.ConditionFalse
	if e.Ready {
		ready = corev1.ConditionTrue
	}
	s := corev1.PodStatus{
		Phase:      corev1.PodRunning,
		PodIP:      e.IP.String(),
		Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: ready}},
	}
	for _, ip := range e.IPs() {
		s.PodIPs = append(s.PodIPs, corev1.PodIP{IP: ip.String()})
	}
	if e.State == wire.EndpointCreating {
		s.Phase = corev1.PodPending
	}
	if e.NodeIP.IsValid() {
		s.HostIP = e.NodeIP.String()
	}
	return s
}
