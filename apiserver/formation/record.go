// Package formation lets the API servers of a Kubernetes cluster form one store: one with
// an empty disk finds in Kubernetes whether it is the first, joins the others, or begins the
// store again because it is lost.
//
// What a store that begins again holds is up to package keeping, and how a member of the store
// joins to package members.
package formation

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"sigs.k8s.io/yaml"
)

// ConfigMap is the object, in the namespace of the API servers, that says which of them have a
// part of the store; its key RecordKey holds a Record.
const (
	ConfigMap = "weft-members"
	RecordKey = "members.yaml"
)

// Record says who has a part of the store. It names at least those that have one.
type Record struct {
	Members map[string]Member `json:"members"`
}

// Member is an API server that has a part of the store.
type Member struct {
	Address netip.Addr `json:"address"`
	// Empty says that it has started since with an empty disk: its part is lost.
	Empty bool `json:"empty,omitempty"`
}

// step is what an API server with an empty disk does.
type step int

const (
	wait  step = iota
	begin      // there is no store, or none any more
)

// decide says what an API server does that has no store, while no other one answers. known
// says that there is a record, gone whether a member's node is no longer there.
//
// A store can be written while more than half of its members have it. Once more than half have
// lost it, the rest can never write again: a new one has nothing beside it.
func decide(r Record, known bool, gone func(Member) bool) (step, string) {
	if !known {
		return begin, ""
	}
	var have []string
	for _, name := range slices.Sorted(maps.Keys(r.Members)) {
		if m := r.Members[name]; !m.Empty && !gone(m) {
			have = append(have, name)
		}
	}
	if lost := len(r.Members) - len(have); 2*lost > len(r.Members) {
		return begin, ""
	}
	return wait, fmt.Sprintf("API servers %s have not lost the store, and do not answer", strings.Join(have, ", "))
}

// errChanged says that somebody else has changed the record.
var errChanged = errors.New("the record of members was changed meanwhile")

// records reads and writes the Record.
type records struct {
	client    kubernetes.Interface
	namespace string
}

// read returns the record, and the object that it is in; nil if there is none.
func (r records) read(ctx context.Context) (Record, *corev1.ConfigMap, error) {
	is, err := r.client.CoreV1().ConfigMaps(r.namespace).Get(ctx, ConfigMap, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return Record{}, nil, nil
	}
	if err != nil {
		return Record{}, nil, fmt.Errorf("ConfigMap %s/%s: %w", r.namespace, ConfigMap, err)
	}
	var out Record
	if err := yaml.Unmarshal([]byte(is.Data[RecordKey]), &out); err != nil {
		return Record{}, nil, fmt.Errorf("ConfigMap %s/%s: %w", r.namespace, ConfigMap, err)
	}
	return out, is, nil
}

// write replaces the record in an object that was read, or makes it if that is nil; errChanged
// if it was changed meanwhile.
func (r records) write(ctx context.Context, is *corev1.ConfigMap, to Record) error {
	text, err := yaml.Marshal(to)
	if err != nil {
		return err
	}
	maps := r.client.CoreV1().ConfigMaps(r.namespace)
	if is == nil {
		_, err = maps.Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: ConfigMap, Namespace: r.namespace}, Data: map[string]string{RecordKey: string(text)}}, metav1.CreateOptions{})
	} else {
		is = is.DeepCopy()
		is.Data = map[string]string{RecordKey: string(text)}
		_, err = maps.Update(ctx, is, metav1.UpdateOptions{})
	}
	switch {
	case apierrors.IsConflict(err), apierrors.IsAlreadyExists(err):
		return errChanged
	case err != nil:
		return fmt.Errorf("ConfigMap %s/%s: %w", r.namespace, ConfigMap, err)
	}
	return nil
}

// Follow makes the record name the members that the store has, by name. The one that leads
// calls it now and then.
func Follow(ctx context.Context, client kubernetes.Interface, namespace string, members map[string]netip.Addr) error {
	r := records{client, namespace}
	was, is, err := r.read(ctx)
	if err != nil {
		return err
	}
	next := Record{Members: map[string]Member{}}
	for name, address := range members {
		next.Members[name] = Member{Address: address, Empty: was.Members[name].Empty}
	}
	if is != nil && maps.Equal(was.Members, next.Members) {
		return nil
	}
	if err := r.write(ctx, is, next); !errors.Is(err, errChanged) {
		return err
	}
	return nil // the next time
}
