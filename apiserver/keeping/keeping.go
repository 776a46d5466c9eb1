// Package keeping keeps in Kubernetes what a lost store could not get back from there or from
// agents and peers: identity numbers, the certificate authority, keys, peers with our
// certificates, the register of nodes, and policies that were applied by hand.
//
// When a store begins again is decided in package formation.
package keeping

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/apiserver/authority"
	"github.com/weft-mesh/weft/manifest"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/wire"
)

// Secrets in the API servers' namespace: Secret has everything but identities, and those are
// in shards, named Secret-0 and so on. 65,536 identities with labels of 200 bytes are some
// 100 kB in each, and one Secret may have 1 MiB. A new identity writes one shard.
const (
	Secret = "weft-kept"
	shards = 16
	// dataKey holds, packed, the values by their keys in the store.
	dataKey = "store.json.gz"
	// clusterKey and idKey say whose they are.
	clusterKey = "cluster"
	idKey      = "id"
)

// prefixes are those of the keys that are kept.
func prefixes() []string {
	all := []string{
		wire.IdentityIDPrefix, wire.RegistrationsPrefix, wire.PeersPrefix, wire.PeerSecretsPrefix, wire.FormerPrefix,
		wire.AuthorityKey, wire.GossipKey, wire.WANGossipKey, wire.RemovalsKey, wire.RotationKey, wire.KubernetesKey,
	}
	// Others than Kubernetes may have these here.
	for _, k := range manifest.Kinds() {
		if k.Policy || k.Plural == manifest.CIDRGroups {
			all = append(all, wire.ObjectKindPrefix(k.Plural))
		}
	}
	return all
}

// place is the Secret that has a key; "" if the key is not kept.
func place(key string, value []byte) string {
	if n, ok := wire.ParseIdentityIDKey(key); ok {
		return Secret + "-" + strconv.Itoa(int(n)%shards)
	}
	if _, _, _, object := wire.ParseObjectKey(key); object && api.OwnerOf(value) != api.OwnerApply {
		return ""
	}
	return Secret
}

// names are those of all Secrets.
func names() (all []string) {
	for i := range shards {
		all = append(all, Secret+"-"+strconv.Itoa(i))
	}
	return append(all, Secret)
}

// Kept is what Kubernetes keeps of a lost store.
type Kept struct {
	Authority authority.Secret
	// Writes bring an empty store to it.
	Writes []store.Op
	// Identities is how many numbers are among it.
	Identities int
}

// Read returns what Kubernetes keeps for a cluster; nil if it keeps nothing. What is another
// cluster's, or damaged, is an error.
func Read(ctx context.Context, client kubernetes.Interface, namespace, cluster string, id uint32) (*Kept, error) {
	k := &Kept{}
	for _, name := range names() {
		secret, err := client.CoreV1().Secrets(namespace).Get(ctx, name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("Secret %s/%s: %w", namespace, name, err)
		}
		if c, i := string(secret.Data[clusterKey]), string(secret.Data[idKey]); c != cluster || i != strconv.FormatUint(uint64(id), 10) {
			return nil, fmt.Errorf("Secret %s/%s is of cluster %s (ID %s), and this API server is for %s (ID %d): correct the values, or delete it to begin without", namespace, name, c, i, cluster, id)
		}
		values, err := unpack(secret.Data[dataKey])
		if err != nil {
			return nil, fmt.Errorf("Secret %s/%s is damaged: %w", namespace, name, err)
		}
		for _, key := range slices.Sorted(maps.Keys(values)) {
			k.add(key, values[key])
		}
		if name != Secret {
			continue
		}
		if k.Authority, err = wire.Unmarshal[authority.Secret](values[wire.AuthorityKey]); err != nil {
			return nil, fmt.Errorf("Secret %s/%s has no certificate authority: %w", namespace, name, err)
		}
	}
	if len(k.Authority.Key) == 0 {
		return nil, nil // without it, nobody would believe the rest
	}
	return k, nil
}

func (k *Kept) add(key string, value []byte) {
	k.Writes = append(k.Writes, store.Put(key, value))
	if n, ok := wire.ParseIdentityIDKey(key); ok {
		k.Identities++
		k.Writes = append(k.Writes, store.Put(wire.IdentityTextKey(string(value)), wire.NumberText(n)))
	}
}

func pack(values map[string][]byte) ([]byte, error) {
	text, err := json.Marshal(values) // in order of keys
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	_, err = w.Write(text)
	if err := errors.Join(err, w.Close()); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

// most bounds what a Secret may be unpacked to.
const most = 64 << 20

func unpack(packed []byte) (values map[string][]byte, err error) {
	r, err := gzip.NewReader(bytes.NewReader(packed))
	if err != nil {
		return nil, err
	}
	text, err := io.ReadAll(io.LimitReader(r, most))
	if err != nil {
		return nil, err
	}
	return values, json.Unmarshal(text, &values)
}

// put brings a Secret to what it should have. It never overwrites what is of another
// authority: then this store is not the one that is kept.
func (k *Keeper) put(ctx context.Context, client kubernetes.Interface, name string, values map[string][]byte) error {
	data, err := pack(values)
	if err != nil {
		return err
	}
	if len(data) > 1000<<10 {
		return fmt.Errorf("Secret %s/%s would have %d bytes, more than Kubernetes takes", k.Namespace, name, len(data))
	}
	want := map[string][]byte{clusterKey: []byte(k.Mesh), idKey: []byte(strconv.FormatUint(uint64(k.ID), 10)), dataKey: data}
	secrets := client.CoreV1().Secrets(k.Namespace)
	is, err := secrets.Get(ctx, name, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		_, err = secrets.Create(ctx, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: k.Namespace}, Data: want}, metav1.CreateOptions{})
	case err == nil && maps.EqualFunc(is.Data, want, bytes.Equal):
	case err == nil:
		if err := k.ours(name, is); err != nil {
			return err
		}
		is = is.DeepCopy()
		is.Data = want
		_, err = secrets.Update(ctx, is, metav1.UpdateOptions{})
	}
	if err != nil {
		return fmt.Errorf("Secret %s/%s: %w", k.Namespace, name, err)
	}
	return nil
}

// ours returns an error if a Secret keeps another store.
func (k *Keeper) ours(name string, is *corev1.Secret) error {
	if name != Secret {
		return nil // it was looked at first
	}
	values, err := unpack(is.Data[dataKey])
	if err != nil {
		return nil // damaged: it is written again
	}
	theirs, err := wire.Unmarshal[authority.Secret](values[wire.AuthorityKey])
	if err != nil || api.ShareCertificate(theirs.Bundle, k.CA()) {
		return nil
	}
	return fmt.Errorf("Secret %s/%s keeps another store, with another certificate authority: if that is lost, delete the Secrets %s", k.Namespace, name, strings.Join(names(), ", "))
}
