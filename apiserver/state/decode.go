package state

import (
	"encoding/json"
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	mcs "sigs.k8s.io/mcs-api/pkg/apis/v1beta1"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/manifest"
	"github.com/weft-mesh/weft/service"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/wire"
)

// Pod is what a declared pod's endpoint and slices depend on.
type Pod struct {
	UID, Node  string
	Labels     map[string]string
	Account    string
	NamedPorts []wire.NamedPort
	// Hostname and Subdomain are its name under a headless service.
	Hostname, Subdomain string
}

// Service is a service as it was applied, and in our form. Wrong says why it has none;
// apply refuses such services, but an older version may have taken them.
type Service struct {
	Object *corev1.Service
	service.Service
	Wrong error
	// Kubernetes says that it comes from there, with its endpoint slices.
	Kubernetes bool
}

// Event is one change of a key. Object is its value, nil if the key was deleted or cannot
// be read, and Wrong says why it cannot. Nobody may change what it points to. Value is
// there only for endpoints and endpoint slices, whose texts are compared.
//
// By key, Object is a *Pod, *Service, *corev1.Namespace, *discoveryv1.EndpointSlice,
// *mcs.ServiceExport, *mcs.ServiceImport, *mcs.ServiceExportStatus, *wire.NodeState,
// *wire.EndpointState, *wire.Registration, *wire.Endpoint, or the identity.Labels of an
// identity.
type Event struct {
	store.Event
	Object any
	Wrong  error
}

// Decode reads the value of a key of the state; false if nobody derives anything from such
// keys.
func Decode(ev store.Event) (Event, bool) {
	read := reader(ev.Key)
	if read == nil {
		return Event{}, false
	}
	out := Event{Event: ev}
	if !compared(ev.Key) {
		out.Value = nil
	}
	if !ev.Deleted {
		out.Object, out.Wrong = read(ev.Value)
	}
	return out, true
}

// reader returns how the value of a key is read; nil if it is not.
func reader(key string) func([]byte) (any, error) {
	if plural, _, _, ok := wire.ParseObjectKey(key); ok {
		switch plural {
		case manifest.Pods:
			return readPod
		case manifest.Services:
			return readService
		case manifest.Namespaces:
			return readObject[corev1.Namespace]
		case manifest.EndpointSlices:
			return readObject[discoveryv1.EndpointSlice]
		case manifest.ServiceExports:
			return readObject[mcs.ServiceExport]
		case manifest.ServiceImports:
			return readObject[mcs.ServiceImport]
		}
		return nil
	}
	if _, entry, _, _, ok := wire.ParseNodesKey(key); ok {
		switch entry {
		case wire.NodeEntryNode:
			return readValue[wire.NodeState]
		case wire.NodeEntryEndpoint:
			return readValue[wire.EndpointState]
		case wire.NodeEntrySynced:
			return func([]byte) (any, error) { return nil, nil } // that it exists is all
		}
		return nil
	}
	if _, ok := wire.ParseRegistrationKey(key); ok {
		return readValue[wire.Registration]
	}
	if _, _, ok := wire.ParseEndpointKey(key); ok {
		return readValue[wire.Endpoint]
	}
	if _, _, ok := wire.ParseExportStatusKey(key); ok {
		return readObject[mcs.ServiceExportStatus]
	}
	if _, ok := wire.ParseIdentityIDKey(key); ok {
		return func(b []byte) (any, error) { return orNothing(wire.ParseIdentity(b)) }
	}
	return nil
}

// orNothing keeps a value that could not be read from looking like one.
func orNothing[T any](v T, err error) (any, error) {
	if err != nil {
		return nil, err
	}
	return v, nil
}

func readValue[T any](b []byte) (any, error) {
	v, err := wire.Unmarshal[T](b)
	return orNothing(&v, err)
}

func readObject[T any](b []byte) (any, error) {
	v := new(T)
	if err := json.Unmarshal(b, v); err != nil {
		return nil, fmt.Errorf("read object: %w", err)
	}
	return v, nil
}

func readService(b []byte) (any, error) {
	v, err := readObject[corev1.Service](b)
	if err != nil {
		return nil, err
	}
	s := &Service{Object: v.(*corev1.Service), Kubernetes: api.OwnerOf(b) == api.OwnerKubernetes}
	s.Service, s.Wrong = service.FromKubernetes(s.Object)
	return s, nil
}

func readPod(b []byte) (any, error) {
	v, err := readObject[corev1.Pod](b)
	if err != nil {
		return nil, err
	}
	pod := v.(*corev1.Pod)
	return &Pod{
		UID: string(pod.UID), Node: pod.Spec.NodeName, Labels: pod.Labels, Account: pod.Spec.ServiceAccountName, NamedPorts: namedPorts(pod),
		Hostname: pod.Spec.Hostname, Subdomain: pod.Spec.Subdomain,
	}, nil
}

// namedPorts are those of the containers that run as long as the pod does. Sidecars among
// the init containers come last, which is the order in which Kubernetes looks names up.
func namedPorts(v *corev1.Pod) []wire.NamedPort {
	var out []wire.NamedPort
	running := append([]corev1.Container(nil), v.Spec.Containers...)
	for _, c := range v.Spec.InitContainers {
		if c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways {
			running = append(running, c)
		}
	}
	for _, c := range running {
		for _, p := range c.Ports {
			if p.Name != "" {
				out = append(out, wire.NamedPort{Name: p.Name, Port: uint16(p.ContainerPort), Protocol: string(p.Protocol)})
			}
		}
	}
	return out
}

// compared reports whether somebody compares the text of such a key with what it should
// be. The texts of the others are not kept.
func compared(key string) bool {
	return strings.HasPrefix(key, wire.EndpointsPrefix) || strings.HasPrefix(key, wire.ObjectKindPrefix(manifest.EndpointSlices))
}
