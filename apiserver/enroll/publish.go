package enroll

import (
	"context"
	"fmt"
	"log/slog"
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

// publishTurn is how often the object is looked at: somebody may have changed it.
const publishTurn = 30 * time.Second

// Publisher keeps the ConfigMap as it should be.
type Publisher struct {
	Client    kubernetes.Interface
	Namespace string
	// Now is what it should say.
	Now func() api.Bootstrap
	Log *slog.Logger
}

// Run works until ctx ends. While Kubernetes is away, agents keep what they have.
func (p *Publisher) Run(ctx context.Context) error {
	var told string
	for ctx.Err() == nil {
		text := ""
		if err := p.look(ctx); err != nil && ctx.Err() == nil {
			text = err.Error()
		}
		switch {
		case text == told:
		case text == "":
			p.Log.Info("agents can be told again how to reach the API servers")
		default:
			p.Log.Warn("cannot tell agents how to reach the API servers; retrying", "error", text)
		}
		told = text
		select {
		case <-ctx.Done():
		case <-time.After(publishTurn):
		}
	}
	return nil
}

// look corrects the object if it differs.
func (p *Publisher) look(ctx context.Context) error {
	now := p.Now()
	now.Servers = slices.Sorted(slices.Values(now.Servers)) // the same whoever leads
	text, err := yaml.Marshal(now)
	if err != nil {
		return err
	}
	maps := p.Client.CoreV1().ConfigMaps(p.Namespace)
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
