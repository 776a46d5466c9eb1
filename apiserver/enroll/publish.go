package enroll

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"sigs.k8s.io/yaml"

	"github.com/weft-mesh/weft/api"
)

// ConfigMap is the name of the object, in the agents' namespace, that tells them how to reach
// the API servers; its key BootstrapKey holds an api.Bootstrap. Agents have it as a file, and
// need no right to read Kubernetes.
const (
	ConfigMap    = "weft-bootstrap"
	BootstrapKey = "bootstrap.yaml"
)

// OperatorSecret is the name of the object, in the same namespace, with the context of the
// first operator; its key ContextKey holds contexts as `weft -c` reads them. Who may read it
// in Kubernetes may operate the cluster's mesh.
const (
	OperatorSecret = api.OperatorSecret
	ContextKey     = api.OperatorContextKey
)

// publishTurn is how often the objects are looked at: somebody may have changed them. After a
// failure the first look comes sooner, and each later one after twice as long: in a new
// cluster, nodes wait for it.
const (
	publishTurn  = 30 * time.Second
	publishRetry = time.Second
)

// Publisher keeps ConfigMap and Secret as they should be.
type Publisher struct {
	Cluster   *Cluster
	Namespace string
	// Mesh is the cluster's name in the mesh.
	Mesh string
	// Now is what it should say.
	Now func() api.Bootstrap
	// Operator is what the Secret should say.
	Operator func() ([]byte, error)
	// Tell gets how the latest attempt ended.
	Tell func(error)
}

// Run works until ctx ends. While Kubernetes is away, agents keep what they have.
func (p *Publisher) Run(ctx context.Context) error {
	defer p.Tell(nil) // another one tells by now
	retry := publishRetry
	for ctx.Err() == nil {
		pause := publishTurn
		err := p.publish(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if p.Tell(err); err != nil {
			pause, retry = retry, min(2*retry, publishTurn)
		} else {
			retry = publishRetry
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
	return nil
}

// publish corrects what differs, unless it is another mesh's: the objects of another Kubernetes
// cluster, or those of a store that runs on another node.
func (p *Publisher) publish(ctx context.Context) error {
	client, err := p.Cluster.Client(ctx)
	if err != nil {
		return err
	}
	now := p.Now()
	secret, err := client.CoreV1().Secrets(p.Namespace).Get(ctx, OperatorSecret, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		secret = nil
	case err != nil:
		return fmt.Errorf("Secret %s/%s: %w", p.Namespace, OperatorSecret, err)
	default:
		if err := checkSecret(secret, p.Mesh, []byte(now.CA)); err != nil {
			return err
		}
	}
	return errors.Join(p.look(ctx, client, now), p.lookAtSecret(ctx, client, secret))
}

// lookAtSecret corrects the Secret if it differs; nil if there is none.
func (p *Publisher) lookAtSecret(ctx context.Context, client kubernetes.Interface, is *corev1.Secret) error {
	text, err := p.Operator()
	if err != nil {
		return fmt.Errorf("read the operator's context: %w", err)
	}
	secrets := client.CoreV1().Secrets(p.Namespace)
	switch {
	case is == nil:
		is = &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: OperatorSecret, Namespace: p.Namespace}, Data: map[string][]byte{ContextKey: text}}
		_, err = secrets.Create(ctx, is, metav1.CreateOptions{})
	case !bytes.Equal(is.Data[ContextKey], text):
		is = is.DeepCopy()
		is.Data = map[string][]byte{ContextKey: text}
		_, err = secrets.Update(ctx, is, metav1.UpdateOptions{})
	}
	if err != nil {
		return fmt.Errorf("Secret %s/%s: %w", p.Namespace, OperatorSecret, err)
	}
	return nil
}

// look corrects the ConfigMap if it differs.
func (p *Publisher) look(ctx context.Context, client kubernetes.Interface, now api.Bootstrap) error {
	now.Servers = slices.Sorted(slices.Values(now.Servers)) // the same whoever leads
	text, err := yaml.Marshal(now)
	if err != nil {
		return err
	}
	maps := client.CoreV1().ConfigMaps(p.Namespace)
	is, err := maps.Get(ctx, ConfigMap, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		is = &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: ConfigMap, Namespace: p.Namespace}, Data: map[string]string{BootstrapKey: string(text)}}
		_, err = maps.Create(ctx, is, metav1.CreateOptions{})
	case err == nil && is.Data[BootstrapKey] != string(text):
		is = is.DeepCopy()
		if is.Data == nil {
			is.Data = map[string]string{}
		}
		is.Data[BootstrapKey] = string(text)
		_, err = maps.Update(ctx, is, metav1.UpdateOptions{})
	}
	if err != nil {
		return fmt.Errorf("ConfigMap %s/%s: %w", p.Namespace, ConfigMap, err)
	}
	return nil
}
